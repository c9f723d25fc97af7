"""Lyapunov spectra of systems whose exponents are known, among them maps written as cells."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnscale
from rnnscale import ElmanRNNCell, RNNEncoder
from rnnscale.analysis import eigenvalues, lyapunov_spectrum
from rnnscale.cells import Cell
from rnnscale.models import BlockStack
from rnnscale.ssm import LRU


class Map(Cell):
    """A map of the plane or the line, which ignores its input."""

    idim: int = eqx.field(static=True, default=1)
    hdim: int = eqx.field(static=True, default=2)

    def drive(self, weights, x):
        return 0 * x

    def start(self):
        return jnp.full(self.hdim, 0.1)


class Henon(Map):
    def advance(self, weights, drive, state, affine):
        x, y = state[..., 0], state[..., 1]
        return jnp.stack([1 - 1.4 * x**2 + y, 0.3 * x], axis=-1)


class Logistic(Map):
    hdim: int = eqx.field(static=True, default=1)

    def advance(self, weights, drive, state, affine):
        return 4 * state * (1 - state)


def zeros(time, idim=1):
    return jnp.zeros((time, idim))


def test_henon():
    """Published as 0.41922 and -1.62319 (Sprott, Chaos and Time-Series Analysis, 2003)."""
    cell = Henon()
    found = lyapunov_spectrum(cell, zeros(10_000), cell.start(), burn_in=100)
    np.testing.assert_allclose(found, [0.41922, -1.62319], atol=0.01)
    # Every step shrinks areas by 0.3 exactly, on any trajectory.
    assert found.sum() == pytest.approx(np.log(0.3), abs=1e-5)


def test_logistic():
    """The logarithm of two, exactly."""
    cell = Logistic()
    found = lyapunov_spectrum(cell, zeros(10_000), cell.start(), burn_in=100)
    np.testing.assert_allclose(found, [np.log(2)], atol=0.01)


def test_orthogonal_states_keep_their_distances(getkey):
    """modReLU without a bias is the identity, and a driven state is nowhere zero."""
    cell = rnnscale.ExpRNNCell(2, 6, key=getkey())
    cell = eqx.tree_at(lambda c: c.bias, cell, jnp.zeros(6))
    xs = jax.random.normal(getkey(), (2, 60, 2))
    state, _ = cell(xs[:, 0], cell.init_state((2,)))
    np.testing.assert_allclose(lyapunov_spectrum(cell, xs, state), np.zeros((2, 6)), atol=1e-5)


def test_diagonal_layers_have_the_logarithms_of_their_decays(getkey):
    layer = LRU(2, 4, r_min=0.5, r_max=0.95, key=getkey())
    expected = np.sort(np.repeat(np.log(abs(eigenvalues(layer))), 2))[::-1]
    xs = jax.random.normal(getkey(), (3000, 2))
    found = lyapunov_spectrum(layer, xs, burn_in=2000)
    np.testing.assert_allclose(found, expected, atol=2e-3)
    # The first exponents are the largest ones, whatever the order of the states.
    np.testing.assert_allclose(
        lyapunov_spectrum(layer, xs, count=2, burn_in=2000), expected[:2], atol=2e-3
    )


def test_volumes_of_cornn_shrink_by_its_damping(getkey):
    """Without a matrix on the velocities the determinant of a step is (1 - dt epsilon)^n, for any
    input."""
    cell = rnnscale.CoupledOscillatoryRNNCell(2, 5, dt=0.1, epsilon=2.0, key=getkey())
    w = cell.recurrent.at[1].set(0).at[0].multiply(8)
    cell = eqx.tree_at(lambda c: c.recurrent, cell, w)
    found = lyapunov_spectrum(cell, jax.random.normal(getkey(), (100, 2)))
    assert found.sum() == pytest.approx(5 * np.log(1 - 0.1 * 2.0), rel=1e-4)


def test_the_sum_is_the_mean_growth_of_volumes(getkey):
    """For an Elman network, whose derivative is known, along its trajectory in double precision."""
    cell = rnnscale.ElmanRNNCell(2, 5, key=getkey())
    cell = eqx.tree_at(lambda c: c.recurrent, cell, 3 * cell.recurrent)
    xs = jax.random.normal(getkey(), (50, 2))
    w, v, b = (np.float64(each) for each in (cell.recurrent, cell.input, cell.bias))
    h, logs = np.zeros(5), []
    for x in np.float64(xs):
        h = np.tanh(w @ h + v @ x + b)
        logs.append(np.linalg.slogdet((1 - h**2)[:, None] * w)[1])
    whole = lyapunov_spectrum(cell, xs)
    assert whole.sum() == pytest.approx(np.mean(logs), rel=1e-3)
    assert (np.diff(whole) <= 0).all()
    late = lyapunov_spectrum(cell, xs, burn_in=20)
    assert late.sum() == pytest.approx(np.mean(logs[20:]), rel=1e-3)


def test_each_row_has_its_own_spectrum(getkey):
    cell = rnnscale.GatedRecurrentUnitCell(2, 3, key=getkey())
    xs = jax.random.normal(getkey(), (2, 2, 20, 2))
    found = lyapunov_spectrum(cell, xs)
    assert found.shape == (2, 2, 3)
    np.testing.assert_allclose(found[1, 0], lyapunov_spectrum(cell, xs[1, 0]), atol=1e-5)


def test_double_precision_sees_what_single_does_not(key):
    """One direction is kept, the other shrinks by 23 nats per step."""
    cosine, sine = np.cos(0.7), np.sin(0.7)
    turn = np.array([[cosine, -sine], [sine, cosine]])
    matrix = turn @ np.diag([1, 1e-10]) @ turn.T
    cell = rnnscale.ElmanRNNCell(1, 2, nonlinearity=lambda x: x, key=key)
    cell = eqx.tree_at(lambda c: c.recurrent, cell, jnp.asarray(matrix, jnp.float32))
    single = lyapunov_spectrum(cell, zeros(20), burn_in=5)
    assert single[0] == pytest.approx(0, abs=1e-6) and -21 < single[1] < -13
    with jax.enable_x64(True):
        cell = eqx.tree_at(lambda c: c.recurrent, cell, jnp.asarray(matrix))
        double = lyapunov_spectrum(cell, jnp.zeros((20, 1), jnp.float64), burn_in=5)
    np.testing.assert_allclose(double, [0, np.log(1e-10)], atol=1e-4)


def test_a_direction_set_to_zero_has_minus_infinity(key):
    """All units of a relu network are off for one step."""
    cell = rnnscale.IndRNNCell(1, 3, key=key)
    cell = eqx.tree_at(lambda c: (c.recurrent, c.input), cell, (jnp.full(3, 0.5), jnp.ones((3, 1))))
    on = jnp.ones((20, 1))
    np.testing.assert_allclose(lyapunov_spectrum(cell, on), np.full(3, np.log(0.5)), atol=1e-5)
    assert (lyapunov_spectrum(cell, on.at[10].set(-100)) == -np.inf).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"count": 0}, "count must be from 1 to 4.*got 0"),
        ({"count": 5}, "count must be from 1 to 4.*got 5"),
        ({"burn_in": 10}, "burn_in.*below the 10 steps.*got 10"),
        ({"burn_in": -1}, "burn_in"),
        ({"state": jnp.zeros(3)}, "init_state"),
    ],
)
def test_bad_options(options, words, key):
    cell = rnnscale.ElmanRNNCell(1, 4, key=key)
    with pytest.raises(ValueError, match=words):
        lyapunov_spectrum(cell, zeros(10), **options)


def test_a_layer_that_looks_ahead_is_refused(key):
    cell = rnnscale.ElmanRNNCell(1, 4, key=key)
    with pytest.raises(TypeError, match="looks ahead"):
        lyapunov_spectrum(rnnscale.BidirectionalRNNEncoder(cell, cell), zeros(10))


def stack(key):
    return BlockStack(lambda key: RNNEncoder(ElmanRNNCell(3, 3, key=key)), 2, key=key)


def test_rows_of_a_stack_whose_state_has_its_blocks_in_front(getkey):
    """As many rows as blocks, so that taking one axis for the other would raise nothing."""
    layer, xs = stack(getkey()), jax.random.normal(getkey(), (2, 5, 3))
    state = jax.tree.map(lambda x: x + jax.random.normal(getkey(), x.shape), layer.init_state((2,)))
    found = lyapunov_spectrum(layer, xs, state, count=2)
    for n in range(2):
        row = jax.tree.map(lambda x, n=n: x[:, n], state)
        np.testing.assert_allclose(found[n], lyapunov_spectrum(layer, xs[n], row, count=2), 1e-5)


def test_inputs_of_16_bits_are_taken_in_32(getkey):
    cell = ElmanRNNCell(2, 6, key=getkey())
    xs = jax.random.normal(getkey(), (40, 2), jnp.bfloat16)
    expected = lyapunov_spectrum(cell, xs.astype(jnp.float32))
    np.testing.assert_array_equal(lyapunov_spectrum(cell, xs), expected)
