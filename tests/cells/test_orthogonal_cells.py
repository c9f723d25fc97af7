"""What the checks of every cell don't say of the unitary and orthogonal ones."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnscale.cells import ExpRNNCell, NonNormalRNNCell, UnitaryEvolutionRNNCell, time_loop
from rnnscale_kernels import Planar

CELLS = [UnitaryEvolutionRNNCell, ExpRNNCell, NonNormalRNNCell]
over_cells = pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.__name__)


def _uniform_within(x, limit):
    x = np.asarray(x, np.float64)
    assert np.abs(x).max() <= limit
    assert x.std() == pytest.approx(limit / math.sqrt(3), rel=0.06)
    assert x.mean() == pytest.approx(0, abs=0.1 * limit)


def test_unitary_initial_statistics(key):
    cell = UnitaryEvolutionRNNCell(10, 2000, key=key)
    _uniform_within(cell.theta, math.pi)
    _uniform_within(cell.bias, 0.01)
    for re, im, limit in [
        (cell.reflection_re, cell.reflection_im, math.sqrt(6 / 4002)),
        (cell.input_re, cell.input_im, math.sqrt(6 / 4010)),
        (cell.initial_re, cell.initial_im, math.sqrt(3 / 4000)),
    ]:
        _uniform_within(re, limit)
        _uniform_within(im, limit)
        assert not np.allclose(re, im)
    order = np.asarray(cell.permutation)
    assert sorted(order) == list(range(2000))
    assert np.mean(order == np.arange(2000)) < 0.01
    # The learned initial state has unit power in the mean.
    assert np.linalg.norm(cell.output(cell.init_state())) == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("init", ["henaff", "cayley"])
def test_exponential_initial_statistics(init, key):
    cell = ExpRNNCell(200, 601, init=init, key=key)
    angles = np.asarray(cell.log_orthogonal[::2][:300, 1::2].diagonal(), np.float64)
    assert np.count_nonzero(cell.log_orthogonal) == 300 == np.count_nonzero(angles)
    if init == "henaff":
        angles = angles / math.pi
    else:
        # The inverse of the paper's formula.
        angles = np.arccos((1 - angles**2) / (1 + angles**2)) * 4 / math.pi - 1
    assert np.abs(angles).max() <= 1 + 1e-6
    assert angles.std() == pytest.approx(1 / math.sqrt(3), rel=0.1)
    assert np.asarray(cell.input).std() == pytest.approx(0.1, rel=0.02)
    _uniform_within(cell.bias, 0.01)


def test_non_normal_initial_statistics(key):
    cell = NonNormalRNNCell(200, 600, key=key)
    assert np.all(cell.gamma == 1) and not np.any(cell.upper)
    _uniform_within(cell.theta - math.pi, math.pi)
    assert np.asarray(cell.input).std() == pytest.approx(0.1, rel=0.02)
    _uniform_within(cell.bias, 0.01)


def test_lengths_after_exponential_of_large_matrix(getkey):
    # Squaring the exponential some ten times leaves an error that this would show.
    hdim = 64
    cell = ExpRNNCell(1, hdim, key=getkey())
    log = 8 * jax.random.normal(getkey(), (hdim, hdim))
    cell = eqx.tree_at(lambda c: [c.log_orthogonal, c.bias], cell, [log, jnp.zeros(hdim)])
    start = jax.random.normal(getkey(), (hdim,))
    state, _ = eqx.filter_jit(time_loop)(cell, jnp.zeros((10_000, 1)), start)
    assert np.linalg.norm(state) == pytest.approx(np.linalg.norm(start), rel=2e-3)


def test_unitary_gradient_in_time_loop(getkey):
    """W is a function that closes over the parameters, and not a matrix."""
    with jax.enable_x64(True):
        cell = UnitaryEvolutionRNNCell(2, 5, key=getkey())
        cell = jax.tree.map(lambda x: x.astype(float) if eqx.is_inexact_array(x) else x, cell)
        xs = jax.random.normal(getkey(), (13, 2), jnp.float64)
        reset = jnp.arange(13) == 6

        def by_loop(cell):
            return time_loop(cell, xs, cell.init_state((), xs.dtype), reset=reset)[1]

        def by_scan(cell):
            fresh = cell.init_state((), xs.dtype)

            def step(state, inputs):
                x, start = inputs
                state = jax.tree.map(lambda new, old: jnp.where(start, new, old), fresh, state)
                return cell(x, state)

            return jax.lax.scan(step, fresh, (xs, reset))[1]

        got, expected = (
            eqx.filter_jit(eqx.filter_grad(lambda cell, f=f: jnp.sum(jnp.sin(f(cell)))))(cell)
            for f in (by_loop, by_scan)
        )
    for name in ["theta", "reflection_re", "reflection_im", "initial_re", "initial_im"]:
        expectation = getattr(expected, name)
        assert np.abs(expectation).min() > 0
        np.testing.assert_allclose(getattr(got, name), expectation, rtol=1e-10, atol=1e-12)


def test_reset_restores_the_learned_state(getkey):
    cell = UnitaryEvolutionRNNCell(2, 5, key=getkey())
    xs = jax.random.normal(getkey(), (6, 2))
    zero = Planar(jnp.zeros(5), jnp.zeros(5))
    run = eqx.filter_jit(time_loop)
    _, ys = run(cell, xs, zero, reset=jnp.arange(6) == 2)
    _, fresh = run(cell, xs[2:], cell.init_state())
    _, from_zero = run(cell, xs[2:], zero)
    np.testing.assert_allclose(ys[2:], fresh, rtol=1e-5, atol=1e-6)
    assert np.abs(ys[2] - from_zero[0]).max() > 0.05


def test_non_normal_corners_are_not_read(getkey):
    """Whatever is on or below the diagonal blocks of T, corners included, changes nothing."""
    cell = NonNormalRNNCell(2, 6, key=getkey())
    pair = np.arange(6) // 2
    noise = jax.random.normal(getkey(), (6, 6))
    ignored = jnp.where(pair[:, None] >= pair, noise, 0)

    @jax.jit
    def recurrent(upper):
        return eqx.tree_at(lambda c: c.upper, cell, upper).weights().recurrent

    np.testing.assert_array_equal(recurrent(ignored), recurrent(cell.upper))
    assert np.abs(recurrent(noise - ignored) - recurrent(cell.upper)).max() > 0.1


@over_cells
def test_initialises_inside_jit(cell, key):
    eager, jitted = cell(3, 4, key=key), jax.jit(lambda key: cell(3, 4, key=key))(key)
    for one, other in zip(jax.tree.leaves(eager), jax.tree.leaves(jitted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


@over_cells
@pytest.mark.parametrize("name", ["idim", "hdim"])
def test_bad_sizes(cell, name, key):
    with pytest.raises(ValueError, match=f"{cell.__name__}: {name} must be at least 1; got 0"):
        cell(**({"idim": 3, "hdim": 4} | {name: 0}), key=key)


def test_bad_arguments(key):
    with pytest.raises(ValueError, match="hdim must be even, .*; got 5"):
        NonNormalRNNCell(3, 5, key=key)
    for cell in (ExpRNNCell, NonNormalRNNCell):
        with pytest.raises(ValueError, match="init must be 'henaff' or 'cayley'; got 'haar'"):
            cell(3, 4, init="haar", key=key)


def test_bad_inputs(key):
    cell = UnitaryEvolutionRNNCell(3, 4, key=key)
    with pytest.raises(ValueError, match="with 3 features; got shape"):
        cell(jnp.zeros(2), cell.init_state())
    with pytest.raises(ValueError, match="takes a state like"):
        cell(jnp.zeros(3), jnp.zeros(4))
