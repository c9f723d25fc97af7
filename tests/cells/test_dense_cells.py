"""Dense and gated cells: other libraries' numbers, and what a caller may get wrong.

What the papers promise is in `rnnscale.verify`.
"""

import math

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnscale._fields import parameters
from rnnscale.cells import (
    AntiSymmetricRNNCell,
    ChoGatedRecurrentUnitCell,
    ClockWorkRNNCell,
    ElmanRNNCell,
    GatedAntiSymmetricRNNCell,
    GatedLipschitzRNNCell,
    GatedRecurrentUnit,
    GatedRecurrentUnitCell,
    IndRNNCell,
    LeakyElmanCell,
    LipschitzRNNCell,
    LongShortTermMemoryCell,
    WilsonCowanCell,
)

CELLS = [
    AntiSymmetricRNNCell,
    ChoGatedRecurrentUnitCell,
    ClockWorkRNNCell,
    ElmanRNNCell,
    GatedAntiSymmetricRNNCell,
    GatedLipschitzRNNCell,
    GatedRecurrentUnitCell,
    IndRNNCell,
    LeakyElmanCell,
    LipschitzRNNCell,
    LongShortTermMemoryCell,
    WilsonCowanCell,
]


@eqx.filter_jit
def run(cell, xs, state):
    return jax.lax.scan(lambda state, x: cell(x, state), state, xs)


def flat(*arrays):
    """Gates below one another, as other libraries have them."""
    return (x.reshape(-1, *x.shape[2:]) for x in arrays)


def test_lstm_equals_equinox(getkey):
    cell = LongShortTermMemoryCell(3, 7, key=getkey())
    other = eqx.nn.LSTMCell(3, 7, key=getkey())
    recurrent, weight, bias = flat(cell.recurrent, cell.input, cell.bias)
    other = eqx.tree_at(
        lambda m: (m.weight_hh, m.weight_ih, m.bias), other, (recurrent, weight, bias)
    )
    xs, h, c = (jax.random.normal(getkey(), shape) for shape in [(20, 3), (7,), (7,)])
    (expected_h, expected_c), _ = jax.lax.scan(lambda s, x: (other(x, s), None), (h, c), xs)
    (got_h, got_c), ys = run(cell, xs, (h, c))
    np.testing.assert_allclose(got_h, expected_h, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got_c, expected_c, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(ys[-1], got_h)


def test_gru_equals_equinox(getkey):
    cell = GatedRecurrentUnitCell(3, 7, key=getkey())
    other = eqx.nn.GRUCell(3, 7, key=getkey())
    recurrent, weight, bias = flat(cell.recurrent, cell.input, cell.bias)
    other = eqx.tree_at(
        lambda m: (m.weight_hh, m.weight_ih, m.bias, m.bias_n),
        other,
        (recurrent, weight, bias, cell.candidate_bias),
    )
    xs, h = (jax.random.normal(getkey(), shape) for shape in [(20, 3), (7,)])
    expected, _ = jax.lax.scan(lambda h, x: (other(x, h), None), h, xs)
    got, _ = run(cell, xs, h)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_equals_torch(name, getkey):
    torch = pytest.importorskip("torch", reason="PyTorch is not a dependency")
    ours = {"LSTM": LongShortTermMemoryCell, "GRU": GatedRecurrentUnitCell}[name]
    cell = ours(3, 7, key=getkey())
    recurrent, weight, bias = map(np.array, flat(cell.recurrent, cell.input, cell.bias))
    # Theirs have two biases a gate, of which only that of the GRU's candidate makes a difference.
    recurrent_bias = np.zeros_like(bias)
    if name == "GRU":
        recurrent_bias[14:] = cell.candidate_bias
    other = getattr(torch.nn, name)(3, 7)
    with torch.no_grad():
        for theirs, value in [
            (other.weight_hh_l0, recurrent),
            (other.weight_ih_l0, weight),
            (other.bias_ih_l0, bias),
            (other.bias_hh_l0, recurrent_bias),
        ]:
            theirs.copy_(torch.from_numpy(value))
    xs, h, c = (jax.random.normal(getkey(), shape) for shape in [(20, 3), (7,), (7,)])
    theirs = [torch.from_numpy(np.array(x)[None]) for x in (h, c)]
    start = tuple(theirs) if name == "LSTM" else theirs[0]
    expected, _ = other(torch.from_numpy(np.array(xs)), start)
    _, ys = run(cell, xs, (h, c) if name == "LSTM" else h)
    np.testing.assert_allclose(ys, expected.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_alias():
    assert GatedRecurrentUnit is GatedRecurrentUnitCell


def test_lipschitz_against_diffrax(getkey):
    cell_key = getkey()
    euler = LipschitzRNNCell(3, 5, init_std=2.0, method="euler", key=cell_key)
    rk2 = LipschitzRNNCell(3, 5, init_std=2.0, method="rk2", key=cell_key)
    x, h, bias = (jax.random.normal(getkey(), shape) for shape in [(3,), (5,), (5,)])
    euler, rk2 = (eqx.tree_at(lambda c: c.bias, cell, bias) for cell in (euler, rk2))
    with jax.enable_x64(True):
        euler, rk2, x, h = jax.tree.map(lambda a: a.astype(jnp.float64), (euler, rk2, x, h))

        def slope(t, h, cell):
            (m_a, m_w), (beta, _), (gamma, _) = cell.recurrent, cell.beta, cell.gamma
            a, w = (
                (1 - beta) * (m + m.T) + beta * (m - m.T) - gamma * jnp.eye(5) for m in (m_a, m_w)
            )
            return a @ h + jnp.tanh(w @ h + cell.input @ x + cell.bias)

        def solve(solver, steps, **how):
            term = diffrax.ODETerm(slope)
            return diffrax.diffeqsolve(term, solver, 0.0, 1.0, 1 / steps, h, euler, **how).ys[-1]

        controller = diffrax.PIDController(rtol=1e-12, atol=1e-12)
        exact = solve(diffrax.Dopri8(), 100, stepsize_controller=controller)
        for cell, solver, order in ((euler, diffrax.Euler(), 1), (rk2, diffrax.Midpoint(), 2)):
            errors = []
            for steps in (64, 128):
                finer = eqx.tree_at(lambda c: c.epsilon, cell, jnp.array(1 / steps))
                got, _ = run(finer, jnp.tile(x, (steps, 1)), h)
                errors.append(float(jnp.max(jnp.abs(got - exact))))
            assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.1)
            # Step by step it is the same method.
            np.testing.assert_allclose(got, solve(solver, 128), rtol=1e-11)


def test_initialise_inside_jit_and_vmap(key):
    def make(key):
        return [cell(3, 8, key=key) for cell in CELLS]

    keys = jax.random.split(key, 2)
    stacked = eqx.filter_jit(eqx.filter_vmap(make))(keys)
    for got, expected in zip(jax.tree.leaves(stacked), jax.tree.leaves(make(keys[1])), strict=True):
        np.testing.assert_allclose(got[1], expected, rtol=1e-5, atol=1e-6)


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


@pytest.mark.parametrize("cell", CELLS)
def test_bad_sizes(cell, key):
    with pytest.raises(ValueError, match=f"{cell.__name__}: idim must be at least 1; got 0"):
        cell(0, 8, key=key)
    with pytest.raises(ValueError, match=f"{cell.__name__}: hdim must be at least 1; got -4"):
        cell(3, -4, key=key)


@pytest.mark.parametrize(
    ("cell", "arguments", "message"),
    [
        (LeakyElmanCell, {"leak": 0.0}, r"leak must be in \(0, 1\]; got 0.0"),
        (LeakyElmanCell, {"leak": 1.5}, r"leak must be in \(0, 1\]; got 1.5"),
        (WilsonCowanCell, {"rate": -0.1}, r"rate must be in \(0, 1\]; got -0.1"),
        (WilsonCowanCell, {"rate": math.nan}, r"rate must be in \(0, 1\]; got nan"),
        (IndRNNCell, {"recurrent_range": (1.0, 0.5)}, r"\(least, largest\); got \(1.0, 0.5\)"),
        (AntiSymmetricRNNCell, {"epsilon": 0.0}, "epsilon must be positive; got 0.0"),
        (AntiSymmetricRNNCell, {"recurrent_std": -1.0}, "recurrent_std must not be negative"),
        (GatedAntiSymmetricRNNCell, {"epsilon": -1.0}, "epsilon must be positive; got -1.0"),
        (GatedAntiSymmetricRNNCell, {"recurrent_std": -1.0}, "recurrent_std must not be negative"),
        (ClockWorkRNNCell, {"periods": ()}, r"integers of at least 1; got \(\)"),
        (ClockWorkRNNCell, {"periods": (1, 0)}, r"integers of at least 1; got \(1, 0\)"),
        (ClockWorkRNNCell, {"periods": (1, 2.5)}, r"integers of at least 1; got \(1, 2.5\)"),
        (ClockWorkRNNCell, {"periods": (1, 2, 4)}, "hdim must be a multiple of 3; got 8"),
        (ClockWorkRNNCell, {"periods": (2**16, 3**14)}, "least common multiple .* got 31345665"),
        (LipschitzRNNCell, {"epsilon": 0.0}, "epsilon must be positive; got 0.0"),
        (LipschitzRNNCell, {"beta": 1.1}, r"beta must be in \[0, 1\]; got 1.1"),
        (LipschitzRNNCell, {"beta": (0.5, -0.1)}, r"beta must be in \[0, 1\]; got \(0.5, -0.1\)"),
        (LipschitzRNNCell, {"init_std": -1.0}, "init_std must not be negative; got -1.0"),
        (LipschitzRNNCell, {"method": "rk4"}, "method must be 'euler' or 'rk2'; got 'rk4'"),
        (GatedLipschitzRNNCell, {"beta": (2.0, 0.5)}, r"beta must be in \[0, 1\]; got"),
        (GatedLipschitzRNNCell, {"method": "heun"}, "method must be 'euler' or 'rk2'; got 'heun'"),
    ],
)
def test_bad_arguments(cell, arguments, message, key):
    with pytest.raises(ValueError, match=f"{cell.__name__}: .*{message}"):
        cell(3, 8, **arguments, key=key)


@pytest.mark.parametrize(
    "cell",
    [AntiSymmetricRNNCell, GatedAntiSymmetricRNNCell, LipschitzRNNCell, GatedLipschitzRNNCell],
)
@pytest.mark.parametrize("gamma", [-0.1, 4.1])
def test_warns_of_unstable_arguments(cell, gamma, key):
    with pytest.warns(UserWarning, match=rf"{cell.__name__}: .* \[0, 4\]; got {gamma}"):
        cell(3, 8, epsilon=0.5, gamma=gamma, key=key)


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


def test_wrong_state(key):
    cell = ClockWorkRNNCell(3, 8, key=key)
    with pytest.raises(ValueError, match="ClockWorkRNNCell takes a state like init_state"):
        cell(jnp.zeros(3), jnp.zeros(8))
    cell = GatedRecurrentUnitCell(3, 8, key=key)
    with pytest.raises(ValueError, match="with 3 features; got shape"):
        cell(jnp.zeros(8), cell.init_state())
