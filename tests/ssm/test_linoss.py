"""Checks LinOSS and D-LinOSS beyond their suites in `rnnscale.verify`: stability for any
parameters, sequences in pieces, the ring of eigenvalues, bad arguments."""

import math
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from rnnscale import _over_time
from rnnscale.ssm import DampedLinOSS, LinOSS, OscillatorState
from rnnscale.ssm._damped_linoss import damping_and_stiffness
from rnnscale.verify import relative_error
from rnnscale.verify._double import as_complex, to_double
from rnnscale.verify._linoss import matrices, oracle, spectral_excess
from rnnscale.verify._probe import build, draw, with_arrays
from rnnscale_kernels import Planar

UNITS = 12
MAKE = {
    "im": partial(LinOSS, 3, UNITS),
    "imex": partial(LinOSS, 3, UNITS, discretisation="imex"),
    "damped": partial(DampedLinOSS, 3, UNITS),
}
over_layers = pytest.mark.parametrize("name", MAKE)


def wild(name, values):
    """A layer with the rows of an array of values in the place of the parameters of its matrix."""
    a, step_logit, g = values
    layer = jax.eval_shape(lambda key: MAKE[name](key=key), jax.random.key(0))
    return with_arrays(layer, a=a, step_logit=step_logit, **({"g": g} if name == "damped" else {}))


any_number = st.floats(width=32, allow_nan=False, allow_infinity=False)
any_parameters = hnp.arrays(
    np.float32, (3, UNITS), elements=any_number | st.floats(-9, 9, width=32)
)


@over_layers
@given(values=any_parameters)
@settings(max_examples=170, deadline=None)
def test_stable_for_any_parameters(name, values):
    """Eigenvalues stay in the unit disc, and states stay bounded for a long time: an oscillator
    that integrates twice grows with the time, and nothing grows faster."""
    layer = wild(name, values)
    assert spectral_excess(layer) <= 2**-22
    step = matrices(layer)
    steps = 10_000
    longest = np.maximum(np.abs(step).max(axis=(1, 2), keepdims=True), 1)
    assert np.all(np.abs(np.linalg.matrix_power(step, steps)) <= 1.01 * steps * longest)


@over_layers
def test_gradient_is_finite_for_any_parameters(name):
    values = np.array([-3e38, -200.0, -15.3, -1e-30, 0.0, 1e-30, 0.5, 4.0, 50.0, 1e5, 1e30, 3e38])
    layer = wild(name, np.random.default_rng(0).permuted(np.tile(values, (3, 100)), axis=1))
    moving, fixed = eqx.partition(layer, eqx.is_inexact_array)

    @jax.jit
    @jax.grad
    def gradient(moving):
        matrix, step = eqx.combine(moving, fixed).discretise()
        return sum(jnp.sum(x) for x in jax.tree.leaves((matrix, step)))

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient(moving)))


@pytest.mark.parametrize("name", ["imex", "damped"])
def test_parameters_outside_of_the_interval_match_the_oracle(name, key):
    layer = build(lambda key: MAKE[name](key=key), key)
    layer = with_arrays(layer, a=np.linspace(-2, 30, UNITS))
    with jax.enable_x64(True):
        layer, xs = to_double((layer, *draw(key, (30, 3))))
        state, ys = eqx.filter_jit(layer)(xs)
        got = (as_complex(*state.z), as_complex(*state.y)), ys
        assert relative_error(got, oracle(layer, xs)) < 1e-10


def test_long_sequences_in_pieces(key, monkeypatch):
    """Rows that end at the ends of pieces and beside them, with resets, from a state: values are
    those of the oracle, and gradients those of a sequence in one piece."""
    time = 601  # in three pieces of 201 steps, the last of which has two steps too many
    layer = build(lambda key: MAKE["damped"](key=key), key)
    lengths = np.array([time, 0, 1, 200, 201, 202, 402, time - 1])
    xs, z, y = draw(key, (8, time, 3), (2, 8, UNITS), (2, 8, UNITS))
    xs[np.arange(time) >= lengths[:, None]] = np.nan
    reset = np.random.default_rng(0).random((8, time)) < 0.01
    start = OscillatorState(Planar(*z), Planar(*y))

    def loss(layer, xs, start):
        state, ys = layer(xs, start, reset=reset, lengths=lengths)
        leaves = jax.tree.leaves((state, ys))
        return sum(jnp.sum(jnp.sin(x)) for x in leaves), (state, ys)

    def run():
        with jax.enable_x64(True):
            gradient = jax.jit(jax.value_and_grad(loss, (0, 2), has_aux=True))
            return jax.device_get(gradient(*to_double((layer, xs, start))))

    (_, (state, ys)), gradient = run()
    for row in (3, 4, 5, 7):
        end = lengths[row]
        since = np.flatnonzero(reset[row, :end])[-1]
        (z, y), expected = oracle(*to_double((layer, xs[row, since:end])))
        got = as_complex(*state.z)[row], as_complex(*state.y)[row], ys[row, since:end]
        assert relative_error(got, (z, y, expected)) < 1e-10
    assert not np.any(ys[1]) and not np.any(np.isnan(ys))
    monkeypatch.setattr(_over_time, "_FEWEST_STEPS", 1000)
    (_, one_piece), expected = run()
    assert relative_error((state, ys), one_piece) < 1e-12
    assert relative_error(gradient, expected) < 1e-10


def test_oscillators_without_damping_can_learn_it(key):
    layer = DampedLinOSS(3, 6, r_min=1.0, r_max=1.0, theta_min=0.5, key=key)
    xs = jax.random.normal(key, (20, 3))
    gradient = jax.grad(lambda layer: jnp.sum(layer(xs)[1] ** 2))(layer)
    assert (layer.g < 1e-30).all() and (gradient.g != 0).all()


def test_eigenvalues_give_damping_and_stiffness():
    radius, angle, step = (
        np.random.default_rng(0).uniform((0.1, 0, 0.05), (1, math.pi, 1), (99, 3)).T
    )
    with jax.enable_x64(True):
        g, a = map(np.asarray, damping_and_stiffness(radius, angle, step))
    # The matrix of Boyer et al. 2025, whose eigenvalues are those.
    s = 1 + step * g
    matrix = np.array([[1 / s, -step * a / s], [step / s, 1 - step**2 * a / s]])
    found = np.linalg.eigvals(np.moveaxis(matrix, -1, 0))
    np.testing.assert_allclose(found.sum(-1).real, 2 * radius * np.cos(angle), atol=1e-12)
    np.testing.assert_allclose(found.prod(-1).real, radius**2, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (LinOSS, {"state_dim": 0}, "state_dim must be at least 1; got 0"),
        (LinOSS, {"discretisation": "ex"}, "discretisation must be one of im, imex; got 'ex'"),
        (DampedLinOSS, {"r_min": 0.0}, r"r_min must be in \(0, 1\]; got 0.0"),
        (DampedLinOSS, {"r_max": 0.5}, "r_min <= r_max <= 1; got r_min=0.9, r_max=0.5"),
        (DampedLinOSS, {"theta_min": 4.0}, "<= π; got theta_min=4.0, theta_max=3.14"),
        (DampedLinOSS, {"theta_max": 3.2}, "<= π; got theta_min=0.0, theta_max=3.2"),
    ],
)
def test_bad_arguments(make, arguments, message, key):
    with pytest.raises(ValueError, match=message):
        make(**({"idim": 2, "state_dim": 4} | arguments), key=key)


@pytest.mark.parametrize("make", [LinOSS, DampedLinOSS])
def test_the_skip_needs_equal_sizes(make, key):
    assert jax.eval_shape(lambda key: make(3, 4, key=key), key).d.shape == (3,)
    assert jax.eval_shape(lambda key: make(3, 4, 5, key=key), key).d is None
