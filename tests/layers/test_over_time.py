"""Checks running in pieces of time: equal values and gradients, and less memory."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnscale import over_time, verify
from rnnscale.cells import ElmanRNNCell, MinGRUCell
from rnnscale.layers import (
    RNN,
    BidirectionalRNNEncoder,
    DeepRNN,
    DeepRNNEncoder,
    RNNEncoder,
)
from rnnscale.sharding import make_mesh


def total(carry, piece, start):
    """A sum over time so far, of each row."""
    x, weight = piece
    sums = carry[:, None] + jnp.cumsum(x * weight[..., 0], axis=1)
    steps = start + jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape)
    return sums[:, -1] if x.shape[1] else carry, {"sums": sums, "steps": steps}


# Every example compiles: no step, one piece, equal pieces, a rest.
@pytest.mark.parametrize(("time", "steps"), [(0, 3), (5, 25), (12, 4), (20, 7), (3, 1)])
def test_pieces_of_any_size_give_the_same_numbers(time, steps):
    rng = np.random.default_rng(time)
    x, weight = rng.normal(size=(2, time)), rng.normal(size=(2, time, 1))
    carry, ys = over_time(total, jnp.ones(2), (x, weight), steps=steps, axis=1)
    expected = 1 + np.cumsum(x * weight[..., 0], axis=1)
    np.testing.assert_allclose(ys["sums"], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(ys["steps"], np.tile(np.arange(time), (2, 1)))
    last = expected[:, -1] if time else np.ones(2)
    np.testing.assert_allclose(carry, last, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", [4, 5, 30])
def test_gradients_of_all_that_goes_in(steps, getkey):
    def loss(scale, carry, x):
        def body(carry, x, start):
            def step(h, x):
                h = jnp.tanh(scale * h + x)
                return h, h

            return jax.lax.scan(step, carry, x)

        carry, hs = over_time(body, carry, x, steps=steps, axis=0)
        return jnp.sum(carry) + jnp.sum(hs * weights)

    def without_pieces(scale, carry, x):
        hs = []
        for each in x:
            carry = jnp.tanh(scale * carry + each)
            hs.append(carry)
        return jnp.sum(carry) + jnp.sum(jnp.stack(hs) * weights)

    weights, x = (jax.random.normal(getkey(), (10, 3)) for _ in range(2))
    arguments = jnp.float32(0.8), jnp.ones(3), x
    got = jax.jit(jax.grad(loss, (0, 1, 2)))(*arguments)
    assert (
        verify.relative_error(got, jax.jit(jax.grad(without_pieces, (0, 1, 2)))(*arguments)) < 1e-5
    )


def test_errors():
    with pytest.raises(ValueError, match="steps must be at least 1; got 0"):
        over_time(total, jnp.ones(2), (), steps=0, axis=1)
    with pytest.raises(ValueError, match=r"same number of steps, on axis 1; got \[3, 4\]"):
        over_time(total, jnp.ones(2), (jnp.ones((2, 3)), jnp.ones((2, 4, 1))), steps=2, axis=1)
    mesh = make_mesh(seq=2, devices=jax.devices()[:2])
    with jax.set_mesh(mesh), pytest.raises(ValueError, match="over seq=2"):
        over_time(total, jnp.ones(2), (jnp.ones((2, 4)), jnp.ones((2, 4, 1))), steps=2, axis=1)


NETWORKS = {
    "RNN": lambda chunk, key: RNN(MinGRUCell(3, 5, key=key), 2, chunk=chunk, key=key),
    "DeepRNN": lambda chunk, key: DeepRNN(
        [ElmanRNNCell(3, 5, key=key), MinGRUCell(5, 4, key=key)],
        2,
        chunk=chunk,
        key=key,
    ),
}


@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
def test_networks_in_chunks(build, getkey):
    key, xs = getkey(), jax.random.normal(getkey(), (3, 23, 3))
    reset = jax.random.bernoulli(getkey(), 0.2, (3, 23))

    @jax.jit
    @jax.value_and_grad
    def run(network, xs):
        y, hs = network(xs, reset=reset, lengths=jnp.array([23, 0, 11]))
        return jnp.sum(jnp.sin(y)) + jnp.sum(jnp.sin(hs))

    expected, chunks = (run(build(chunk, key), xs) for chunk in (None, 5))
    error = verify.relative_error(jax.tree.leaves(chunks), jax.tree.leaves(expected))
    assert error < 1e-5


def test_memory_of_a_label_for_a_whole_sequence(key):
    def temporaries(time, chunk):
        network = jax.eval_shape(
            lambda key: DeepRNN(
                [ElmanRNNCell(2, 32, key=key), ElmanRNNCell(32, 32, key=key)],
                2,
                chunk=chunk,
                key=key,
            ),
            key,
        )

        @jax.jit
        @jax.grad
        def gradient(network, xs):
            return jnp.sum(network(xs)[0])

        xs = jax.ShapeDtypeStruct((1, time, 2), jnp.float32)
        memory: Any = gradient.lower(network, xs).compile().memory_analysis()
        return memory.temp_size_in_bytes

    short, long = temporaries(2**12, 64), temporaries(2**14, 128)
    # Four times as long: twice the memory, and less for what does not grow.
    assert long < 2 * short


def test_chunks_need_what_is_causal(key):
    cell = ElmanRNNCell(3, 4, key=key)
    with pytest.raises(ValueError, match="chunk=5 hands states .* looks ahead"):
        DeepRNNEncoder([BidirectionalRNNEncoder(cell, cell)], chunk=5)
    with pytest.raises(ValueError, match="chunk must be at least 1; got 0"):
        RNNEncoder(cell, chunk=0)
