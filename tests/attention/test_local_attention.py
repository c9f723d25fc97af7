"""Attention within a window: NaN in other segments, long streams, memory, and its arguments."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnscale import LocalAttention, verify
from rnnscale.sharding import make_mesh

WINDOW = 3


@jax.jit
def call(layer, xs, state=None):
    return layer(xs, state)


@pytest.fixture(scope="module")
def layer():
    return LocalAttention(4, 2, WINDOW, kv_heads=1, key_dim=4, key=jax.random.key(0))


def test_the_state_keeps_its_dtypes_in_64_bits(layer):
    with jax.enable_x64(True):
        xs, reset = jnp.zeros((2, 5, 4), jnp.float32), jnp.zeros((2, 5), bool)
        before = layer.init_state((2,))
        after, _ = jax.eval_shape(lambda xs: layer(xs, before, reset=reset), xs)
    assert [x.dtype for x in jax.tree.leaves(after)] == [x.dtype for x in jax.tree.leaves(before)]


@pytest.mark.parametrize(("key_dim", "rotary", "rotated"), [(50, 0.28, 14), (100, 0.58, 58)])
def test_parts_that_are_not_exact_in_binary_rotate(key_dim, rotary, rotated, key):
    layer = LocalAttention(4, 1, WINDOW, key_dim=key_dim, rotary=rotary, key=key)
    assert layer.rotated == rotated


def test_a_nan_reaches_the_window_of_its_segment_only(layer, getkey):
    """Neither the outputs of other segments nor the gradients of their inputs."""
    xs = np.array(jax.random.normal(getkey(), (12, 4)))
    reset = np.zeros(12, bool)
    reset[4] = True
    spoiled = xs.copy()
    spoiled[[3, 5]] = np.nan

    @jax.jit
    def outputs_and_gradient(xs):
        def total(xs):
            ys = layer(xs, reset=reset)[1]
            return jnp.sum(jnp.where(jnp.isfinite(ys), jnp.sin(ys), 0)), ys

        gradient, ys = jax.grad(total, has_aux=True)(xs)
        return ys, gradient

    ys, gradient = outputs_and_gradient(spoiled)
    seen = np.zeros(12, bool)
    seen[[3, 5, 6, 7]] = True  # step 4 is in another segment, and step 8 is beyond the window
    np.testing.assert_array_equal(np.isnan(ys).all(-1), seen)
    np.testing.assert_array_equal(np.isnan(ys).any(-1), seen)
    expected, _ = outputs_and_gradient(xs)
    np.testing.assert_allclose(ys[~seen], expected[~seen], rtol=1e-6, atol=1e-6)
    others = np.isin(np.arange(12), [3, 5], invert=True)
    assert np.isfinite(gradient[others]).all()


def test_a_stream_of_any_length_keeps_its_position_small(layer, getkey):
    xs = jax.random.normal(getkey(), (40, 4))
    assert verify.step_equals_call(layer, xs).passed
    state, _ = call(layer, xs)
    assert WINDOW <= state.position < 2 * WINDOW and state.position % WINDOW == 40 % WINDOW
    late, _ = call(layer, xs[:1], state)
    assert WINDOW <= late.position < 2 * WINDOW


def test_a_window_longer_than_the_sequence_sees_all_of_it(getkey):
    """As softmax attention over all steps, whatever the window."""
    xs = jax.random.normal(getkey(), (9, 4))
    key = getkey()
    narrow, wide = (LocalAttention(4, 2, window, key=key) for window in (9, 50))
    ys, expected = (call(layer, xs)[1] for layer in (narrow, wide))
    np.testing.assert_allclose(ys, expected, rtol=1e-5, atol=1e-6)


def test_half_precision(layer, getkey):
    """JAX asks for products of float16 that CPUs do not have."""
    xs = jax.random.normal(getkey(), (9, 4))
    half = xs.astype(jnp.float16)
    ys, expected = call(layer, half)[1], call(layer, xs)[1]
    assert ys.dtype == jnp.float16
    np.testing.assert_allclose(ys, expected, atol=0.01)
    y = layer.step(half[0], layer.init_state(dtype=jnp.float16))[1]
    np.testing.assert_allclose(y, expected[0], atol=0.01)


def test_memory_grows_with_the_length_and_not_with_its_square(key):
    def temporaries(time):
        layer = jax.eval_shape(lambda key: LocalAttention(8, 2, 64, key=key), key)
        xs = jax.ShapeDtypeStruct((time, 8), jnp.float32)
        loss = jax.grad(lambda layer, xs: jnp.sum(layer(xs)[1] ** 2))
        memory: Any = jax.jit(loss).lower(layer, xs).compile().memory_analysis()
        return memory.temp_size_in_bytes

    short, long = temporaries(2**13), temporaries(2**15)
    assert long < 4.5 * short
    assert long < 2**15 * 2**10  # weights of all blocks at once would take 1 KiB a step and head


def test_a_device_needs_as_many_steps_as_it_sends(key):
    layer = LocalAttention(4, 2, 6, key=key)
    with jax.set_mesh(make_mesh(seq=8)):
        with pytest.raises(ValueError, match="LocalAttention reaches over 5 steps, .* holds 4"):
            jax.eval_shape(layer, jnp.zeros((32, 4)))
        jax.eval_shape(layer, jnp.zeros((40, 4)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": 4}, "heads must divide idim=6; got heads=4"),
        ({"kv_heads": 2}, "kv_heads must divide heads=3; got kv_heads=2"),
        ({"rotary": 0.5}, "rotary=0.5 of key_dim=2"),
        ({"window": 1}, "window must be at least 2; got 1"),
    ],
)
def test_bad_arguments(arguments, message, key):
    with pytest.raises(ValueError, match=f"LocalAttention: .*{message}"):
        LocalAttention(**({"idim": 6, "heads": 3, "window": 4} | arguments), key=key)
