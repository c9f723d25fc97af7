"""Nonlinear cells in parallel over time compared with the loop by steps, and what makes a row fail.

The loop by steps is compared with a plain `lax.scan` in `test_time_loop.py`.
"""

from functools import partial
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnscale import verify
from rnnscale.cells import (
    Cell,
    ClockWorkRNNCell,
    CoupledOscillatoryRNNCell,
    ElmanRNNCell,
    GatedRecurrentUnitCell,
    IndRNNCell,
    LongShortTermMemoryCell,
    Newton,
    SLSTMCell,
    UnitaryEvolutionRNNCell,
    certified_time_loop,
    time_loop,
)
from rnnscale.cells._jacobian import jacobian_of
from rnnscale.verify._double import to_double

pytestmark = pytest.mark.usefixtures("quick_compilation")


def value_and_gradient(cell, xs, parallel, **options) -> tuple[Any, Any]:
    """Value and gradient by all floating arrays, and the certificate if it runs in parallel."""
    state = jax.tree.map(
        lambda x: x + 0.3 if eqx.is_inexact_array(x) else x,
        cell.init_state(xs.shape[:-2], xs.dtype),
    )
    moving, still = eqx.partition((cell, xs, state), eqx.is_inexact_array)

    @partial(jax.jit, static_argnums=1)
    def run(moving, parallel):
        def loss(moving):
            state, ys, certificate = certified_time_loop(
                *eqx.combine(moving, still), **options, parallel=parallel
            )
            floats = jax.tree.leaves(eqx.filter(state, eqx.is_inexact_array))
            weights = jnp.cos(jnp.arange(ys.size)).reshape(ys.shape)
            total = jnp.sum(weights * jnp.sin(ys)) + sum(jnp.sum(jnp.cos(x)) for x in floats)
            return total, ((state, ys), certificate)

        return jax.grad(loss, has_aux=True)(moving)

    gradient, (value, certificate) = run(moving, parallel)
    return (value, gradient), certificate


def with_gain(cell, gain, key):
    """The cell with random recurrent weights whose eigenvalues are within a circle of this size."""
    shape = cell.recurrent.shape
    recurrent = gain * jax.random.normal(key, shape, cell.recurrent.dtype) / shape[-1] ** 0.5
    return eqx.tree_at(lambda cell: cell.recurrent, cell, recurrent)


CELLS = {
    "lstm": (lambda key: LongShortTermMemoryCell(3, 5, key=key), "diagonal"),
    "gru": (lambda key: GatedRecurrentUnitCell(3, 5, key=key), "block"),
    "cornn": (lambda key: CoupledOscillatoryRNNCell(3, 5, key=key), "block"),
    "indrnn": (lambda key: IndRNNCell(3, 5, nonlinearity=jnp.tanh, key=key), "block"),
    "clockwork": (lambda key: ClockWorkRNNCell(3, 6, periods=(1, 2, 5), key=key), "block"),
    # Its recurrent weights are zero at first.
    "slstm": (lambda key: with_gain(SLSTMCell(3, 4, heads=2, key=key), 1.0, key), "block"),
    "unitary": (lambda key: UnitaryEvolutionRNNCell(3, 4, key=key), "dense"),
}


@pytest.mark.parametrize("name", CELLS)
def test_equals_the_steps(name, getkey):
    """With resets and lengths, an odd length, in both directions."""
    build, jacobian = CELLS[name]
    reverse = name in ("gru", "cornn", "clockwork")
    with jax.enable_x64(True):
        cell = to_double(build(getkey()))
        xs = jax.random.normal(getkey(), (4, 63, 3), jnp.float64)
        options = {
            "reset": jax.random.bernoulli(getkey(), 0.1, (4, 63)),
            "lengths": jnp.array([63, 0, 5, 33]),
            "reverse": reverse,
        }
        expected, _ = value_and_gradient(cell, xs, None, **options)
        got, certificate = value_and_gradient(cell, xs, Newton(jacobian), **options)
        assert verify.relative_error(got, expected) < 1e-12
        # And it was not computed by steps.
        assert not np.any(certificate.stepped)
        assert np.max(certificate.iterations) > 1 and np.max(certificate.residual) < 1e-13


@pytest.mark.parametrize("name", ["lstm", "cornn"])
def test_single_precision(name, getkey):
    """By what suits the cell, in two windows and a rest, without resets."""
    cell = CELLS[name][0](getkey())
    xs = jax.random.normal(getkey(), (2, 3, 149, 3))
    expected, _ = value_and_gradient(cell, xs, None)
    got, certificate = value_and_gradient(cell, xs, Newton(window=60))
    assert verify.relative_error(got[0], expected[0]) < 1e-5
    # In the gradients of three numbers of the oscillators, terms cancel: the loop is 7e-5 off.
    arrays = eqx.filter((got[1], expected[1]), lambda x: x.ndim > 0)
    assert verify.relative_error(*arrays) < 2e-5
    assert not np.any(certificate.stepped) and np.max(certificate.residual) < 1e-5


def chaos(key) -> tuple[Any, Any]:
    """A chaotic network, and sequences of which the second has only silence in front."""
    cell = with_gain(ElmanRNNCell(3, 8, key=key), 3.0, key)
    cell = eqx.tree_at(lambda cell: cell.bias, cell, jnp.zeros(8))
    xs = jax.random.normal(key, (3, 700, 3))
    return cell, xs.at[1, :].set(0.0)


def test_a_chaotic_row_is_computed_by_steps(getkey):
    """With exactly the numbers of the loop, and the other rows are not."""
    cell, xs = chaos(getkey())
    expected, _ = value_and_gradient(cell, xs, None)
    got, certificate = value_and_gradient(cell, xs, Newton("dense"))
    assert verify.relative_error(got[0], expected[0]) == 0
    assert list(certificate.stepped) == [700, 700, 700]


def test_corrections_are_limited():
    """The linear parts of steps with large weights overflow along a sequence. Without a limit this
    takes 30 iterations."""
    cell = ElmanRNNCell(1, 8, key=jax.random.key(0))
    cell = eqx.tree_at(lambda cell: cell.recurrent, cell, 2 * cell.recurrent)
    xs = jax.random.uniform(jax.random.key(1), (2, 400, 1))
    *_, certificate = certified_time_loop(cell, xs, parallel=Newton("dense"))
    assert np.all(certificate.stepped == 0) and np.all(certificate.iterations <= 15)


def test_too_few_iterations(getkey):
    cell, xs = GatedRecurrentUnitCell(3, 5, key=getkey()), jax.random.normal(getkey(), (2, 63, 3))
    expected, _ = value_and_gradient(cell, xs, None)
    got, certificate = value_and_gradient(cell, xs, Newton("block", max_iterations=1))
    assert list(certificate.stepped) == [63, 63]
    assert list(certificate.iterations) == [1, 1] and np.all(certificate.residual > 1e-3)
    assert verify.relative_error(got[0], expected[0]) == 0
    assert verify.relative_error(got[1], expected[1]) < 1e-6


def test_the_certificate_decides(getkey):
    """With a tolerance that everything passes, the iterate itself comes out, which is wrong."""
    cell, xs = chaos(getkey())
    expected = time_loop(cell, xs[:1, :60])[1]
    _, ys, certificate = certified_time_loop(
        cell, xs[:1, :60], parallel=Newton("dense", tolerance=1e9)
    )
    assert list(certificate.stepped) == [0] and np.all(certificate.residual > 0.1)
    assert verify.relative_error(ys, expected) > 0.1


def test_small_residuals_are_not_enough(getkey):
    """Where errors grow, states may obey the recurrence to rounding and be wrong. Segments of 12
    steps are solved from the first to the last, whatever part of the Jacobian is used."""
    cell = with_gain(GatedRecurrentUnitCell(3, 8, key=getkey()), 12.0, getkey())
    xs = jax.random.normal(getkey(), (64, 120, 3))
    reset = jnp.broadcast_to(jnp.arange(120) % 12 == 0, (64, 120))
    expected = time_loop(cell, xs, reset=reset)[1]
    _, ys, certificate = certified_time_loop(cell, xs, reset=reset, parallel=Newton("block"))
    assert np.any((certificate.residual < 1e-6) & (certificate.stepped > 0))
    assert np.max(np.abs(ys - expected)) < 2e-5


def test_nan_stays_in_its_row(getkey):
    cell, xs = GatedRecurrentUnitCell(3, 5, key=getkey()), jax.random.normal(getkey(), (3, 40, 3))
    xs, lengths = xs.at[0, 20].set(jnp.nan).at[1, 30:].set(jnp.nan), jnp.array([40, 30, 40])
    expected = time_loop(cell, xs, lengths=lengths)
    *got, certificate = certified_time_loop(cell, xs, lengths=lengths, parallel=Newton())
    assert list(certificate.stepped) == [40, 0, 0]
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-5)


class Pairs(Cell):
    """Two numbers for each unit in every array of the state."""

    unit_axis: ClassVar[str] = "state"
    idim: int = eqx.field(static=True)
    hdim: int = eqx.field(static=True)
    arrays: int = eqx.field(static=True)

    def drive(self, weights, x):
        return x

    def advance(self, weights, drive, state, affine):
        return [jnp.tanh(x[..., ::-1, :] + drive[..., None, :]) for x in state]

    def output(self, state):
        return state[0][..., 0, :]

    def init_state(self, batch_shape=(), dtype=None):
        return [jnp.zeros((*batch_shape, 2, self.hdim))] * self.arrays


def test_units_with_several_numbers_in_an_array():
    """The columns of the Jacobian do not tell them apart: it is not exact, and no block."""
    _, exact = jacobian_of("block", Pairs(3, 3, 1))
    assert not exact
    with pytest.raises(ValueError, match="one number for each unit; Pairs has 2, of shapes"):
        certified_time_loop(Pairs(3, 3, 2), jnp.ones((2, 5, 3)), parallel="auto")


def test_time_loop_returns_the_same(getkey):
    cell, xs = GatedRecurrentUnitCell(3, 5, key=getkey()), jax.random.normal(getkey(), (2, 40, 3))
    *expected, _ = certified_time_loop(cell, xs)
    assert verify.relative_error(time_loop(cell, xs, parallel="auto"), tuple(expected)) == 0
