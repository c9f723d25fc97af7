"""Unitary and orthogonal cells: initial statistics, and which entries their matrix reads."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnscale.cells import ExpRNNCell, NonNormalRNNCell, UnitaryEvolutionRNNCell


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
    """Ten squarings of the exponential leave an error that 10,000 steps would amplify."""
    cell = ExpRNNCell(1, 64, key=getkey())
    cell = eqx.tree_at(lambda c: c.log_orthogonal, cell, 8 * jax.random.normal(getkey(), (64, 64)))
    recurrent = np.asarray(jax.jit(lambda cell: cell.weights().recurrent)(cell), np.float64)
    lengths = np.linalg.svd(np.linalg.matrix_power(recurrent, 10_000), compute_uv=False)
    np.testing.assert_allclose(lengths, 1, rtol=2e-3)


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
