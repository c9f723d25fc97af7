"""Diagonal layers in double precision, whatever the precision of their parameters as stored."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnscale import verify
from rnnscale.ssm import LRU, S4D, S5, BidirectionalS5
from rnnscale.verify._double import to_double
from rnnscale.verify._s5 import irregular_oracle

LAYERS = {
    "LRU": partial(LRU, 3, 5, r_min=0.3, r_max=0.99),
    "S4D": partial(S4D, 3, 8),
    "S5": partial(S5, 3, 8),
    "S5 bilinear": partial(S5, 3, 8, 2, discretisation="bilinear"),
    "BidirectionalS5": partial(BidirectionalS5, 3, 8),
}


def stored(name, dtype, key):
    """The layer with its parameters in a dtype, and inputs, intervals and a reset of 20 steps."""
    layer = jax.device_get(jax.jit(LAYERS[name])(key=key))
    layer = jax.tree.map(lambda x: x.astype(dtype), layer)
    random = np.random.default_rng(0)
    reset = np.arange(20) == 9
    return layer, random.standard_normal((20, 3)), random.exponential(size=20), reset


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, np.float64])
@pytest.mark.parametrize("name", LAYERS)
def test_double_inputs_are_computed_in_double(name, dtype, key):
    with jax.enable_x64(True):
        layer, xs, _, reset = stored(name, dtype, key)
        check = verify.matches_oracle(layer, xs, reset, bound=1e-13)
        assert check.passed, check
        if isinstance(layer, BidirectionalS5):
            return
        step = jax.jit(lambda layer, x, state: layer.step(x, state))
        state = last = layer.init_state(dtype=xs.dtype)
        for x in xs[:2]:
            state, y = step(layer, x, state)
        last, ys = jax.jit(lambda layer, xs: layer(xs))(layer, xs[:2])
        assert verify.relative_error((state, y), (last, ys[-1])) < 1e-15


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["S5", "S5 bilinear"])
def test_double_inputs_at_irregular_times(name, dtype, key):
    with jax.enable_x64(True):
        layer, xs, intervals, reset = stored(name, dtype, key)
        check = verify.matches_oracle(layer, xs, reset, bound=1e-13, intervals=intervals)
        assert check.passed, check


@pytest.mark.parametrize("name", ["S5", "S5 bilinear"])
def test_gradient_at_an_interval_of_zero_is_that_from_above(name, key):
    """Intervals are at least 0, so at 0 the derivative is the one-sided one."""
    with jax.enable_x64(True):
        layer, xs, intervals, _ = stored(name, np.float64, key)
        intervals[[0, 7, 8]] = 0
        weights = np.random.default_rng(1).standard_normal((20, layer.odim))

        @jax.jit
        @jax.grad
        def gradient(intervals):
            return jnp.sum(weights * layer(xs, intervals=intervals)[1])

        got = gradient(intervals)

        @jax.jit
        @partial(jax.grad, argnums=1)
        def gradient_of_a_step(state, interval):
            return jnp.sum(layer.step(xs[0], state, interval=interval)[1])

        state = layer.init_state(dtype=xs.dtype)
        for t in (0, 7, 8):
            # Differences of second order, forwards.
            values = [
                np.sum(weights * irregular_oracle(to_double(layer), xs, None, shifted)[1])
                for shifted in (intervals + h * (np.arange(20) == t) for h in (0, 1e-4, 2e-4))
            ]
            expected = (4 * values[1] - 3 * values[0] - values[2]) / 2e-4
            assert got[t] == pytest.approx(expected, rel=1e-5)
        near, far = (float(gradient_of_a_step(state, h)) for h in np.array([0.0, 1e-6]))
        assert near == pytest.approx(far, rel=1e-4)


@pytest.mark.parametrize("name", LAYERS)
def test_a_sequence_without_steps_returns_the_state(name, key):
    layer, xs, _, _ = stored(name, np.float32, key)
    state = jax.tree.map(lambda x: x + 0.5, layer.init_state((2,)))
    run = jax.jit(lambda layer, xs, state, lengths: layer(xs, state, lengths=lengths))
    empty = np.zeros((2, 0, 3), np.float32)
    after, ys = run(layer, empty, state, np.zeros(2, np.int32))
    jax.tree.map(np.testing.assert_array_equal, after, state)
    assert ys.shape == (2, 0, layer.odim)


@pytest.mark.parametrize("name", ["LRU", "S5"])
def test_a_state_of_lower_precision_is_cast(name, key):
    layer, xs, _, _ = stored(name, np.float32, key)
    low = jax.tree.map(lambda x: (x + 0.3).astype(jnp.float16), layer.init_state())
    step = jax.jit(lambda layer, state: layer.step(xs[0].astype(np.float32), state))
    got = step(layer, low)
    expected = step(layer, jax.tree.map(lambda x: x.astype(jnp.float32), low))
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(got))
