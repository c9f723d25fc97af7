"""Eigenvalues, time scales and recurrent matrices, compared with the equations of the papers."""

from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnscale
from rnnscale.analysis import continuous_eigenvalues, eigenvalues, recurrent_matrix, timescales
from rnnscale.ssm import LRU, S4D, S5, BidirectionalS5, DampedLinOSS, LinOSS
from rnnscale.verify import CELLS
from rnnscale.verify._double import to_double


def as_sets_agree(found, expected, atol=1e-5):
    """Each eigenvalue is near one of the other set, and both sets have the same size."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    distance = np.abs(found[:, None] - expected[None, :])
    assert max(distance.min(axis=0).max(), distance.min(axis=1).max()) < atol


def test_lru_has_the_eigenvalues_of_the_paper(key):
    layer = LRU(3, 20, r_min=0.5, r_max=0.99, key=key)
    nu, theta = np.float64(layer.nu_log), np.float64(layer.theta_log)
    expected = np.exp(-np.exp(nu) + 1j * np.exp(theta))
    np.testing.assert_allclose(eigenvalues(layer), expected, atol=1e-6)
    np.testing.assert_allclose(timescales(layer), np.exp(-nu), rtol=1e-4)


def test_oscillators_have_the_eigenvalues_of_the_papers(key):
    layer = DampedLinOSS(3, 20, r_min=0.5, key=key)
    g, step = np.float64(layer.g), 1 / (1 + np.exp(-np.float64(layer.step_logit)))
    got = eigenvalues(layer)
    np.testing.assert_allclose(np.abs(got), (1 + step * g) ** -0.5, rtol=1e-6)
    # Twice the real part is the trace of the matrix.
    trace = 1 + (1 - step**2 * np.float64(layer.a)) / (1 + step * g)
    np.testing.assert_allclose(2 * np.real(got), trace, atol=1e-6)
    linoss = LinOSS(3, 20, key=key)
    step = 1 / (1 + np.exp(-np.float64(linoss.step_logit)))
    square = step**2 * np.float64(linoss.a)
    np.testing.assert_allclose(
        eigenvalues(linoss), (1 + 1j * square**0.5) / (1 + square), atol=1e-6
    )


@pytest.mark.parametrize("make", [S5, BidirectionalS5])
@pytest.mark.parametrize("discretisation", ["zoh", "bilinear"])
def test_s5_in_continuous_and_in_discrete_time(make, discretisation, key):
    layer = make(3, 12, discretisation=discretisation, step_rescale=2.0, key=key)
    s5 = layer if make is S5 else layer.forward
    # A parameter that training has moved to where the layer clips it.
    drifted = eqx.tree_at(lambda s: s.lambda_re, s5, s5.lambda_re.at[0].set(0.7))
    layer = drifted if make is S5 else eqx.tree_at(lambda each: each.forward, layer, drifted)
    continuous = continuous_eigenvalues(layer)
    assert continuous[0].real == np.float32(-1e-4)
    np.testing.assert_array_equal(np.imag(continuous), np.asarray(drifted.lambda_im, np.float64))
    exponent = continuous * 2 * np.exp(np.float64(drifted.log_step))
    decay = np.exp(exponent) if discretisation == "zoh" else (1 + exponent / 2) / (1 - exponent / 2)
    np.testing.assert_allclose(eigenvalues(layer), decay, atol=1e-6)


def test_s4d_has_the_eigenvalues_of_all_features(key):
    layer = S4D(2, 6, init="inv", key=key)
    continuous: Any = continuous_eigenvalues(layer)
    np.testing.assert_allclose(continuous.imag, np.ravel(layer.a_im))
    np.testing.assert_allclose(continuous.real, -0.5, rtol=1e-6)
    exponent = continuous * np.repeat(np.exp(np.float64(layer.log_step)), 3)
    np.testing.assert_allclose(eigenvalues(layer), np.exp(exponent), atol=1e-6)
    np.testing.assert_allclose(timescales(layer), -1 / exponent.real, rtol=1e-3)


def test_s5_without_clipping(key):
    layer = S5(3, 12, clip_eigenvalues=False, key=key)
    layer = eqx.tree_at(lambda s: s.lambda_re, layer, layer.lambda_re.at[0].set(0.7))
    assert continuous_eigenvalues(layer)[0].real == pytest.approx(0.7)
    assert timescales(layer)[0] == np.inf


def test_a_diagonal_layer_has_the_eigenvalues_of_its_step(key):
    """Together with their conjugates they are the eigenvalues of the Jacobian of its step."""
    layer = LRU(2, 5, key=key)

    def step(vector):
        state = type(layer.init_state())(*jnp.split(vector, 2))
        return jnp.concatenate(layer.step(jnp.ones(2), state)[0])

    decays = eigenvalues(layer)
    jacobian = jax.jacrev(step)(jnp.ones(10))
    as_sets_agree(np.linalg.eigvals(jacobian), [*decays, *decays.conj()])


def test_elman_has_the_matrix_times_the_slope(getkey):
    cell = rnnscale.ElmanRNNCell(3, 6, key=getkey())
    x, h = jax.random.normal(getkey(), (3,)), jax.random.normal(getkey(), (6,))
    w, v, b, h64, x64 = (
        np.asarray(each, np.float64) for each in (cell.recurrent, cell.input, cell.bias, h, x)
    )
    slope = 1 - np.tanh(w @ h64 + v @ x64 + b) ** 2
    as_sets_agree(eigenvalues(cell, x, h), np.linalg.eigvals(slope[:, None] * w))
    # A cell over time is the cell.
    assert (eigenvalues(rnnscale.RNNEncoder(cell), x, h) == eigenvalues(cell, x, h)).all()


def test_leaky_units_keep_their_leak(key):
    cell = rnnscale.LeakyElmanCell(1, 4, leak=0.25, key=key)
    cell = eqx.tree_at(lambda c: c.recurrent, cell, jnp.zeros((4, 4)))
    np.testing.assert_allclose(eigenvalues(cell), np.full(4, 0.75), atol=1e-6)
    np.testing.assert_allclose(timescales(cell), np.full(4, -1 / np.log(0.75)), rtol=1e-5)


def test_linear_cells_have_the_decay_under_an_input(getkey):
    cell = rnnscale.MinGRUCell(3, 5, key=getkey())
    x = jax.random.normal(getkey(), (3,))
    decay, _ = cell.drive(cell.weights(), x)
    as_sets_agree(eigenvalues(cell, x), np.asarray(decay))


def test_cornn_undriven_swings_as_its_oscillators_do(key):
    """y'' = -gamma y - epsilon y' of each unit, by the two-by-two map of the paper's scheme."""
    dt, gamma, epsilon = 0.1, 4.0, 0.5
    cell = rnnscale.CoupledOscillatoryRNNCell(2, 3, dt=dt, gamma=gamma, epsilon=epsilon, key=key)
    cell = eqx.tree_at(lambda c: c.recurrent, cell, jnp.zeros((2, 3, 3)))
    velocity = np.array([-dt * gamma, 1 - dt * epsilon])  # of y and z
    unit = np.array([[1, 0] + dt * velocity, velocity])
    as_sets_agree(eigenvalues(cell), np.repeat(np.linalg.eigvals(unit), 3))
    # Within the step's error, the envelope falls with epsilon / 2.
    assert timescales(cell)[0] == pytest.approx(2 / epsilon / dt, rel=0.05)


def test_timescales_of_modes_that_end_or_do_not(key):
    cell = rnnscale.IndRNNCell(1, 4, key=key)
    cell = eqx.tree_at(lambda c: c.recurrent, cell, jnp.array([0.0, 0.5, 1.0, 2.0]))
    on = eqx.tree_at(lambda c: c.bias, cell, jnp.ones(4))
    np.testing.assert_allclose(
        np.sort(timescales(on)), [0, 1 / np.log(2), np.inf, np.inf], rtol=1e-6
    )
    assert (eigenvalues(cell) == 0).all()  # every relu is off


@pytest.mark.parametrize(
    "name",
    [
        "LongShortTermMemoryCell",
        "GatedRecurrentUnitCell",
        "ClockWorkRNNCell",  # with an integer in its state
        "UnitaryEvolutionRNNCell",  # with complex numbers in its state
        "CoupledOscillatoryRNNCell",
    ],
)
def test_cells_have_the_eigenvalues_of_their_paper(name, getkey):
    """Compared with finite differences, in double precision, of the oracles of the papers."""
    (subject,) = [each for each in CELLS if each.name == name]
    cell = subject.build(getkey())
    x = jax.random.normal(getkey(), (cell.idim,))
    state, _ = cell(x, cell.init_state())
    leaves, structure = jax.tree.flatten(jax.tree.map(np.asarray, state))
    moving = [i for i, leaf in enumerate(leaves) if np.issubdtype(leaf.dtype, np.floating)]

    def after(vector):
        parts = np.split(vector, np.cumsum([leaves[i].size for i in moving])[:-1])
        moved = [*leaves]
        for i, part in zip(moving, parts, strict=True):
            moved[i] = part
        end, _ = subject.oracle(*to_double((cell, x[None], jax.tree.unflatten(structure, moved))))
        ends = jax.tree.leaves(end)
        return np.concatenate([np.float64(ends[i]) for i in moving])

    start = np.concatenate([np.float64(leaves[i]) for i in moving])
    nudges = 1e-6 * np.eye(start.size)
    columns = [(after(start + each) - after(start - each)) / 2e-6 for each in nudges]
    as_sets_agree(eigenvalues(cell, x, state), np.linalg.eigvals(np.stack(columns, 1)), atol=1e-4)


def matrix(cell):
    found = recurrent_matrix(cell)
    assert found is not None
    return found


def test_recurrent_matrices_have_the_properties_of_the_papers(getkey):
    exprnn = rnnscale.ExpRNNCell(2, 6, key=getkey())
    m = matrix(exprnn)
    np.testing.assert_allclose(m @ m.T, np.eye(6), atol=1e-5)
    urnn = rnnscale.UnitaryEvolutionRNNCell(2, 5, key=getkey())
    m = matrix(urnn)
    assert m.shape == (10, 10)
    np.testing.assert_allclose(np.abs(np.linalg.eigvals(m)), np.ones(10), atol=1e-5)
    # The real form [[A, -B], [B, A]] of A + iB.
    np.testing.assert_allclose(m[:5, :5], m[5:, 5:], atol=1e-6)
    np.testing.assert_allclose(m[:5, 5:], -m[5:, :5], atol=1e-6)
    nnrnn = rnnscale.NonNormalRNNCell(2, 6, key=getkey())
    nnrnn = eqx.tree_at(lambda c: c.gamma, nnrnn, jnp.array([0.5, 1.0, 1.5]))
    lengths = np.sort(np.abs(np.linalg.eigvals(matrix(nnrnn))))
    np.testing.assert_allclose(lengths, [0.5, 0.5, 1, 1, 1.5, 1.5], rtol=1e-4)
    antisymmetric = rnnscale.AntiSymmetricRNNCell(2, 6, gamma=0.25, key=getkey())
    real = np.linalg.eigvals(matrix(antisymmetric)).real
    np.testing.assert_allclose(real, np.full(6, -0.25), atol=1e-5)
    elman = rnnscale.ElmanRNNCell(2, 6, key=getkey())
    np.testing.assert_allclose(matrix(elman), elman.recurrent, rtol=1e-6)
    indrnn = rnnscale.IndRNNCell(2, 6, key=getkey())
    assert (matrix(indrnn) == np.diag(indrnn.recurrent)).all()


@pytest.mark.parametrize(
    "name", ["LongShortTermMemoryCell", "CoupledOscillatoryRNNCell", "GatedRecurrentUnitCell"]
)
def test_cells_with_several_matrices_have_no_recurrent_matrix(name, key):
    assert recurrent_matrix(getattr(rnnscale, name)(2, 4, key=key)) is None


def test_bad_arguments(key):
    cell = rnnscale.ElmanRNNCell(2, 4, key=key)
    with pytest.raises(TypeError, match="looks ahead"):
        eigenvalues(rnnscale.BidirectionalRNNEncoder(cell, cell))
    with pytest.raises(TypeError, match="got .lstm."):
        eigenvalues(cast(Any, "lstm"))
    with pytest.raises(TypeError, match="takes an S4D"):
        continuous_eigenvalues(cast(Any, LRU(2, 4, key=key)))
    with pytest.raises(TypeError, match=r"takes a rnnscale.cells.Cell; got LRU"):
        recurrent_matrix(cast(Any, LRU(2, 4, key=key)))
    with pytest.raises(ValueError, match="2 features"):
        eigenvalues(cell, jnp.zeros(3))
    with pytest.raises(ValueError, match="one input"):
        eigenvalues(cell, jnp.zeros((5, 2)))
    with pytest.raises(ValueError, match="init_state"):
        eigenvalues(cell, jnp.zeros(2), jnp.zeros(5))
    with pytest.raises(ValueError, match="Jacobian of ElmanRNNCell is not finite"):
        eigenvalues(cell, jnp.array([jnp.nan, 0]))
    layer = S5(2, 4, key=key)
    layer = eqx.tree_at(lambda layer: layer.lambda_re, layer, layer.lambda_re * jnp.nan)
    with pytest.raises(ValueError, match="Jacobian of S5 is not finite"):
        timescales(layer)
