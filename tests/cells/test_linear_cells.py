"""Linear cells: initial statistics, and gates so extreme that they under- or overflow."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnscale.cells import MinGRUCell, MinLSTMCell, RGLRUCell, compute_weights

CELLS = {
    "MinGRUCell": lambda key: MinGRUCell(4, 6, key=key),
    "MinLSTMCell": lambda key: MinLSTMCell(4, 6, key=key),
    "RGLRUCell": lambda key: RGLRUCell(4, blocks=2, key=key),
}
over_cells = pytest.mark.parametrize("build", CELLS.values(), ids=CELLS)


@pytest.mark.parametrize(("cell", "gates"), [(MinGRUCell, 2), (MinLSTMCell, 3)])
def test_initial_statistics(cell, gates, key):
    cell = cell(100, 400, key=key)
    assert cell.input.shape == (gates, 400, 100) and cell.bias.shape == (gates, 400)
    for x in (*cell.input, *cell.bias):
        x = np.asarray(x, np.float64)
        assert np.abs(x).max() <= 0.1
        assert x.std() == pytest.approx(0.1 / math.sqrt(3), rel=0.1)


def test_rglru_initial_statistics(key):
    cell = RGLRUCell(600, blocks=3, key=key)
    for gate in cell.gates:
        assert np.asarray(gate).std() == pytest.approx(200**-0.5, rel=0.02)
    assert not np.allclose(*cell.gates) and not np.any(cell.bias)


def test_rglru_blocks_are_apart(getkey):
    """A unit's gates see the features of their own block and no others."""
    cell = RGLRUCell(6, blocks=3, key=getkey())
    x, h = jax.random.normal(getkey(), (2, 6))
    jacobian = jax.jacobian(lambda x: cell(x, h)[1])(x)
    same = np.kron(np.eye(3), np.ones((2, 2)))
    assert np.all((np.asarray(jacobian) != 0) == same)


@over_cells
def test_coefficients_are_wide(build, key):
    cell = build(key)
    a, b = cell.drive(cell.weights(), jnp.ones((3, 4), jnp.bfloat16))
    assert a.dtype == b.dtype == jnp.float32
    a, b = cell.drive(cell.weights(), np.ones((3, 4), np.float32))
    assert a.dtype == b.dtype == jnp.float32


@pytest.mark.parametrize(
    ("name", "gate"), [("MinGRUCell", 0), ("MinLSTMCell", 1), ("RGLRUCell", 0)]
)
def test_biases_are_not_rounded_to_16_bits(name, gate, key):
    """In 16 bits a bias of -7 has a spacing of a few percent of the rate that it stands for."""
    cell = CELLS[name](key)
    cell = eqx.tree_at(lambda cell: cell.bias, cell, cell.bias.at[gate].set(-7.01))
    x = jnp.zeros((1, 4), jnp.bfloat16)
    found, _ = cell.drive(compute_weights(cell, jnp.bfloat16), x)
    expected, _ = cell.drive(compute_weights(cell, jnp.float32), x)
    np.testing.assert_allclose(1 - np.float64(found), 1 - np.float64(expected), rtol=1e-3)


EXTREMES = jnp.array([-1e4, -100.0, -17.0, -1.0, 0.0, 1.0, 17.0, 100.0, 1e4])


@over_cells
def test_finite_whatever_the_gates(build, key):
    """Gates that are closed or open to the last digit, all at once."""
    cell = build(key)

    @jax.jit
    @jax.vmap
    def run(bias):
        changed = eqx.tree_at(lambda c: c.bias, cell, jnp.full_like(cell.bias, bias))
        total = lambda arguments: jnp.sum(arguments[0](*arguments[1:])[1])  # noqa: E731
        return jax.value_and_grad(total)((changed, jnp.zeros(4), jnp.zeros(cell.hdim)))

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run(EXTREMES)))


def test_rglru_gradient_is_finite(key):
    # Near a = 1 the root has a slope without bound.
    cell = RGLRUCell(2, key=key)

    @jax.jit
    @jax.vmap
    @jax.grad
    def gradient(parameters):
        decay, gate = parameters
        where = lambda c: [c.decay, c.bias]  # noqa: E731
        changed = eqx.tree_at(where, cell, [jnp.full(2, decay), jnp.full((2, 2), gate)])
        a, b = changed.drive(changed.weights(), jnp.ones(2))
        return jnp.sum(a + b)

    got = gradient(jnp.stack(jnp.meshgrid(EXTREMES, EXTREMES), axis=-1).reshape(-1, 2))
    assert np.isfinite(got).all() and np.any(got)


def test_minlstm_gates_that_underflow_share_equally(key):
    cell = MinLSTMCell(1, 1, key=key)
    cell = eqx.tree_at(
        lambda c: [c.input, c.bias],
        cell,
        [jnp.zeros_like(cell.input), jnp.array([[-1000.0], [-1000.0], [3.0]])],
    )
    a, b = cell.drive(cell.weights(), jnp.ones(1))
    np.testing.assert_allclose((a[0], b[0]), (0.5, 1.5), rtol=1e-6)
