"""Networks of oscillators: initial statistics, and the warning of an unstable step."""

import itertools
import math
import warnings
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnscale.cells import (
    CoupledOscillatoryRNNCell,
    HeterogeneousOscillatoryRNNCell,
    RandomOscillatorsCell,
    UnICORNNCell,
    time_loop,
)

CELLS = [CoupledOscillatoryRNNCell, HeterogeneousOscillatoryRNNCell, RandomOscillatorsCell]
over_cells = pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.__name__)


def test_coupled_initial_statistics(key):
    cell = CoupledOscillatoryRNNCell(50, 400, key=key)
    limit = 1 / math.sqrt(850)
    for x in (cell.recurrent[0], cell.recurrent[1], cell.input, cell.bias):
        x = np.asarray(x, np.float64)
        assert np.abs(x).max() <= limit
        assert x.std() == pytest.approx(limit / math.sqrt(3), rel=0.06)
    assert not np.allclose(*cell.recurrent)


def test_random_initial_statistics(key):
    cell = RandomOscillatorsCell(30, 400, input_scaling=0.5, key=key)
    w = np.asarray(cell.recurrent, np.float64)
    # The entries are uniform, and the eigenvalues obey a circular law with this radius.
    assert w.std() == pytest.approx(0.9 / 20, rel=0.1)
    assert np.abs(w).max() / w.std() == pytest.approx(math.sqrt(3), rel=0.01)
    for x, low, high in [
        (cell.input, 0, 0.5),
        (cell.bias, -0.5, 0.5),
        (cell.gamma, 1.7, 3.7),
        (cell.epsilon, 4.2, 5.2),
    ]:
        x = np.asarray(x, np.float64)
        assert x.min() >= low and x.max() <= high
        assert x.mean() == pytest.approx((low + high) / 2, abs=0.06 * (high - low))
        assert x.std() == pytest.approx((high - low) / math.sqrt(12), rel=0.1)


def test_warns_exactly_where_the_spectral_radius_exceeds_one(key):
    warned, unstable = [], []
    for dt, gamma, epsilon in itertools.product(
        [0.05, 0.5, 1.9], [0.0, 0.3, 5.0, 40.0], [0.0, 0.7, 2.2, 30.0]
    ):
        build = partial(CoupledOscillatoryRNNCell, 1, 1, dt=dt, gamma=gamma, epsilon=epsilon)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            jax.eval_shape(lambda key, build=build: build(key=key), key)
        warned.append(bool(caught))
        z = [-dt * gamma, 1 - dt * epsilon]
        unit = np.array([[1 + dt * z[0], dt * z[1]], z])
        # A double eigenvalue of one is off by the root of the rounding.
        unstable.append(np.abs(np.linalg.eigvals(unit)).max() > 1 + 1e-6)
    assert warned == unstable
    assert 10 < sum(warned) < 38


@over_cells
def test_warning_names_the_bound_and_the_caller(cell, key):
    with pytest.warns(UserWarning, match=r"dt² gamma \+ 2 dt epsilon must be at most 4") as caught:
        cell(1, 2, dt=1.0, key=key)
    assert [each.filename for each in caught] == [__file__]


@pytest.mark.parametrize(("dt", "alpha", "warns"), [(0.19, 30.65, 0), (2.0, 1.0, 0), (2.1, 1.0, 1)])
def test_unicornn_warns_of_a_step_that_may_be_unstable(dt, alpha, warns, key):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        jax.eval_shape(lambda key: UnICORNNCell(1, 2, dt=dt, alpha=alpha, key=key), key)
    assert [each.filename for each in caught] == [__file__] * warns
    d = dt / (1 + math.exp(-30))  # the largest step that the control can ask for
    unit = np.array([[1 - d**2 * alpha, d], [-d * alpha, 1]])
    assert (np.abs(np.linalg.eigvals(unit)).max() > 1 + 1e-6) == bool(warns)


def test_step_sizes_are_swept_by_vmap(key, getkey):
    cell = CoupledOscillatoryRNNCell(2, 5, key=key)
    xs = jax.random.normal(getkey(), (11, 2))
    steps = [0.01, 0.05, 0.2]

    @eqx.filter_jit
    @eqx.filter_vmap(in_axes=(None, 0))
    def run(cell, dt):
        cell = eqx.tree_at(lambda c: c.dt, cell, dt)
        return time_loop(cell, xs, cell.init_state())[1]

    for dt, ys in zip(steps, run(cell, jnp.array(steps)), strict=True):
        one = CoupledOscillatoryRNNCell(2, 5, dt=dt, key=key)
        expected = eqx.filter_jit(time_loop)(one, xs, one.init_state())[1]
        np.testing.assert_allclose(ys, expected, rtol=1e-5, atol=1e-7)
