"""Dense and gated cells: Lipschitz compared with diffrax, and hyperparameters.

What the papers promise is checked by `rnnscale.verify`, and tests/interop compares with torch.
"""

import math
import re
import warnings

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnscale._fields import parameters
from rnnscale.cells import (
    AntiSymmetricRNNCell,
    ClockWorkRNNCell,
    GatedAntiSymmetricRNNCell,
    GatedLipschitzRNNCell,
    IndRNNCell,
    LeakyElmanCell,
    LipschitzRNNCell,
    SLSTMCell,
    WilsonCowanCell,
)


@eqx.filter_jit
def run(cell, xs, state):
    return jax.lax.scan(lambda state, x: cell(x, state), state, xs)


@pytest.mark.filterwarnings("ignore:LipschitzRNNCell. states may grow")
@pytest.mark.parametrize(
    ("method", "solver"), [("euler", diffrax.Euler()), ("rk2", diffrax.Midpoint())]
)
def test_lipschitz_equals_diffrax(method, solver, getkey):
    """Step by step it is the method of diffrax; its order is checked by `rnnscale.verify`."""
    cell = LipschitzRNNCell(3, 5, epsilon=1 / 16, init_std=2.0, method=method, key=getkey())
    x, h, bias = (jax.random.normal(getkey(), shape) for shape in [(3,), (5,), (5,)])
    cell = eqx.tree_at(lambda c: c.bias, cell, bias)
    with jax.enable_x64(True):
        cell, x, h = jax.tree.map(lambda a: a.astype(jnp.float64), (cell, x, h))

        def slope(t, h, cell):
            (m_a, m_w), (beta, _), (gamma, _) = cell.recurrent, cell.beta, cell.gamma
            a, w = (
                (1 - beta) * (m + m.T) + beta * (m - m.T) - gamma * jnp.eye(5) for m in (m_a, m_w)
            )
            return a @ h + jnp.tanh(w @ h + cell.input @ x + cell.bias)

        term = diffrax.ODETerm(slope)
        expected = diffrax.diffeqsolve(term, solver, 0.0, 1.0, 1 / 16, h, cell).ys
        assert expected is not None
        got, _ = run(cell, jnp.tile(x, (16, 1)), h)
        np.testing.assert_allclose(got, expected[-1], rtol=1e-11)


@pytest.mark.parametrize(
    ("cell", "constants"),
    [
        (LeakyElmanCell, {"leak"}),
        (WilsonCowanCell, {"rate"}),
        (AntiSymmetricRNNCell, {"epsilon", "gamma"}),
        (GatedAntiSymmetricRNNCell, {"epsilon", "gamma"}),
        (LipschitzRNNCell, {"epsilon", "beta", "gamma"}),
        (GatedLipschitzRNNCell, {"epsilon", "beta", "gamma"}),
        (ClockWorkRNNCell, set()),
        (IndRNNCell, set()),
    ],
)
def test_hyper_parameters_are_arrays_that_are_not_trained(cell, constants, key):
    assert {
        each.path for each in parameters(cell(3, 8, key=key)) if not each.trainable
    } == constants


def test_indrnn_splits_its_units_and_spares_u_of_weight_decay(key):
    cell = IndRNNCell(3, 8, key=key)
    found = {each.path: each for each in parameters(cell)}
    assert {name: each.axes[0] for name, each in found.items()} == dict.fromkeys(found, "state")
    assert found["recurrent"].group == "recurrence"
    assert cell.unit_axis == "state"


def test_clockwork_sorts_its_periods(getkey):
    cell_key = getkey()
    cell = ClockWorkRNNCell(2, 6, periods=[4, 1, 2], key=cell_key)
    assert cell.periods == (1, 2, 4)
    np.testing.assert_array_equal(cell.unit_periods, [1, 1, 2, 2, 4, 4])
    unequal = ClockWorkRNNCell(2, 6, periods=[4, 1, 2], sizes=[1, 3, 2], key=cell_key)
    assert unequal.periods == (1, 2, 4) and unequal.sizes == (3, 2, 1)
    np.testing.assert_array_equal(unequal.unit_periods, [1, 1, 1, 2, 2, 4])
    other = ClockWorkRNNCell(2, 6, periods=(1, 2, 4), key=cell_key)
    xs = jax.random.normal(getkey(), (9, 2))
    (h, clock), _ = run(cell, xs, cell.init_state())
    np.testing.assert_array_equal(h, run(other, xs, other.init_state())[0][0])
    assert clock.dtype == jnp.int32 and clock == 1


def test_clockwork_clock_does_not_overflow(key):
    period = 2**31 - 1
    cell = ClockWorkRNNCell(1, 2, periods=(1, period), key=key)
    h = jnp.array([0.5, 0.25])
    (after, clock), _ = cell(jnp.ones(1), (h, jnp.array(period - 1, jnp.int32)))
    assert after[1] == h[1] and clock == 0
    (after, clock), _ = cell(jnp.ones(1), (h, clock))
    assert after[1] != h[1] and clock == 1


@pytest.mark.parametrize(
    "cell",
    [AntiSymmetricRNNCell, GatedAntiSymmetricRNNCell, LipschitzRNNCell, GatedLipschitzRNNCell],
)
@pytest.mark.parametrize("gamma", [-0.1, 4.1])
def test_warns_of_unstable_arguments(cell, gamma, key):
    with pytest.warns(UserWarning, match=rf"{cell.__name__}: .* \[0, 4\]; got {gamma}"):
        cell(3, 8, epsilon=0.5, gamma=gamma, key=key)


@pytest.mark.parametrize(("init_std", "grows"), [(32.0, True), (0.1, False)])
def test_lipschitz_warns_of_growth_before_training(init_std, grows, key):
    options = {"epsilon": 0.01, "beta": 0.65, "init_std": init_std, "key": key}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cell = LipschitzRNNCell(1, 128, **options)
    assert len(caught) == grows
    linear_part = np.split(np.asarray(cell.weights().recurrent), 2)[0]
    rate = 0.01 * np.linalg.eigvalsh((linear_part + linear_part.T) / 2)[-1]
    if grows:
        factor = float(re.findall(r"factor of ([\d.]+)", str(caught[0].message))[0])
        assert math.log(factor) == pytest.approx(rate, rel=0.1)
    state, _ = run(cell, jnp.ones((784, 1)), cell.init_state())
    assert (jnp.max(jnp.abs(state)) > 100) == grows


@pytest.mark.parametrize(("gamma", "grows"), [(-0.1, True), (4.1, True), (3.9, False)])
@pytest.mark.parametrize("method", ["euler", "rk2", "antisymmetric"])
@pytest.mark.filterwarnings("ignore:.*small states grow", "ignore:.*states grow through A")
def test_that_bound_is_where_small_states_grow(method, gamma, grows, key):
    if method == "antisymmetric":
        cell = AntiSymmetricRNNCell(3, 5, epsilon=0.5, gamma=gamma, recurrent_std=0.0, key=key)
    else:
        cell = LipschitzRNNCell(
            3, 5, epsilon=0.5, gamma=(gamma, 0.0), init_std=0.0, method=method, key=key
        )
    start = jnp.full(5, 1e-6)
    end, _ = run(cell, jnp.zeros((20, 3)), start)
    assert (jnp.max(jnp.abs(end)) > 1e-6) == grows


def test_slstm_has_a_gradient_when_its_first_input_gate_is_closed(key):
    """The exponential of its opposite overflows float32."""
    cell = SLSTMCell(3, 4, key=key)
    cell = eqx.tree_at(lambda c: c.bias, cell, cell.bias.at[0].set(-100.0))

    def loss(cell, x):
        return jnp.sum(cell(x, cell.init_state())[1] ** 2)

    gradient = jax.grad(loss)(cell, jnp.ones(3))
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(gradient))
