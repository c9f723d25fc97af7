"""Checks linear attention beyond the laws of all layers: its oracle, memory, ranges."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnscale import verify
from rnnscale.attention import LinearAttention
from rnnscale.verify._double import directional_derivative
from rnnscale.verify._linear_attention import oracle
from rnnscale.verify._segments import sequence_matches_oracle

# Two chunks of 64 steps and a part of one.
TIME = 150


@pytest.fixture
def layer(key):
    return LinearAttention(5, 2, 6, key_dim=3, value_dim=4, key=key)


@pytest.mark.parametrize("time", [1, 7, 64, 65, TIME])
def test_matches_oracle(time, layer, getkey):
    check = sequence_matches_oracle(oracle, layer, jax.random.normal(getkey(), (time, 5)))
    assert check.passed, check


@pytest.mark.parametrize(
    "starts", [[0], [10], [64], [63, 65], [1, 2, 3], [30, 140], [149], list(range(0, TIME, 7))]
)
def test_matches_oracle_in_segments(starts, layer, getkey):
    reset = np.zeros(TIME, bool)
    reset[starts] = True
    xs = jax.random.normal(getkey(), (TIME, 5))
    check = sequence_matches_oracle(oracle, layer, xs, reset)
    assert check.passed, check


def test_float64_and_gradient(layer, getkey):
    with jax.enable_x64(True):
        layer = jax.tree.map(lambda x: x.astype(jnp.float64), layer)
        xs = jax.random.normal(getkey(), (70, 5), jnp.float64)
        reset = np.arange(70) == 20
        check = sequence_matches_oracle(oracle, layer, xs, reset, bound=1e-12)
        assert check.passed, check
        leaves, structure = jax.tree.flatten((layer, xs, layer(xs)[0]))
        direction = [jax.random.normal(getkey(), x.shape, x.dtype) for x in leaves]

        @jax.jit
        def total(leaves):
            layer, xs, state = jax.tree.unflatten(structure, leaves)
            state, ys = layer(xs, state, reset=reset)
            return sum(jnp.sum(jnp.sin(leaf)) for leaf in (ys, *state))

        slope = sum(map(jnp.vdot, jax.jit(jax.grad(total))(leaves), direction))
        expected = directional_derivative(total, leaves, direction, 1e-4)
        assert slope == pytest.approx(float(expected), rel=1e-8)


def test_gradient_where_features_are_those_of_zero(layer, getkey):
    """As of the first step of training on inputs that are zero, such as empty pixels."""
    with jax.enable_x64(True):
        layer = jax.tree.map(lambda x: x.astype(jnp.float64), layer)
        xs = jax.random.normal(getkey(), (20, 5), jnp.float64)
        zero, direction = jnp.zeros_like(layer.key), jax.random.normal(getkey(), layer.key.shape)

        @jax.jit
        def total(key):
            _, ys = eqx.tree_at(lambda layer: layer.key, layer, key)(xs)
            return jnp.sum(jnp.sin(ys))

        slope = jnp.vdot(jax.grad(total)(zero), direction)
        difference = (total(1e-5 * direction) - total(-1e-5 * direction)) / 2e-5
        assert slope == pytest.approx(float(difference), rel=1e-3)


def test_laws_over_several_chunks(layer, getkey):
    xs = jax.random.normal(getkey(), (3, TIME, 5))
    checks = [
        verify.step_equals_call(layer, xs),
        verify.chunks_equal_one_call(layer, xs, 64),
        verify.chunks_equal_one_call(layer, xs, 97),
        verify.reset_equals_fresh(layer, xs, 64),
        verify.reset_equals_fresh(layer, xs, 97),
        verify.padding_is_inert(layer, xs, [0, 64, 101]),
        verify.padding_spares_gradient(layer, xs, [0, 64, 101]),
        verify.state_is_stable(layer, xs),
        verify.batching_agrees(layer, xs),
        verify.gradient_reaches_parameters(layer, xs),
        verify.bfloat16_keeps_dtypes(layer, xs),
    ]
    assert all(check.passed for check in checks), "\n".join(map(str, checks))


def test_gradient_survives_a_state_that_a_reset_replaces(layer, getkey):
    xs = jax.random.normal(getkey(), (TIME, 5))
    state = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), layer.init_state())

    @eqx.filter_jit
    def gradient(layer, xs, state):
        reset = jnp.arange(TIME) == 0
        total = lambda layer, xs: jnp.sum(jnp.sin(layer(xs, state, reset=reset)[1]))  # noqa: E731
        return jax.grad(total, (0, 1))(layer, xs)

    got, expected = gradient(layer, xs, state), gradient(layer, xs, layer.init_state())
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_backward_pass_keeps_nothing_larger_than_the_values(key):
    """Neither a state of every step nor the pairs of all chunks."""
    layer = LinearAttention(64, 2, key=key)
    xs = jnp.ones((4096, 64))
    _, pull = jax.vjp(lambda xs: layer(xs)[1], xs)
    assert max(x.size for x in jax.tree.leaves(pull)) <= 4096 * 2 * (32 + 1)


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e3, 1e6])
def test_finite_whatever_the_features(scale, layer, getkey):
    xs = scale * jax.random.normal(getkey(), (TIME, 5))

    @eqx.filter_jit
    def run(layer, xs):
        return jax.value_and_grad(lambda layer, xs: jnp.sum(layer(xs)[1]), (0, 1))(layer, xs)

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run(layer, xs)))


def test_empty_sequence(layer, getkey):
    state, _ = layer(jax.random.normal(getkey(), (7, 5)))
    same, ys = layer(jnp.zeros((0, 5)), state)
    assert ys.shape == (0, 6)
    jax.tree.map(np.testing.assert_array_equal, same, state)


def test_initial_statistics(key):
    layer = LinearAttention(200, 4, key_dim=50, value_dim=60, key=key)
    for weight in (layer.query, layer.key, layer.value):
        assert np.asarray(weight).std() == pytest.approx(200**-0.5, rel=0.03)
    assert np.asarray(layer.output).std() == pytest.approx(240**-0.5, rel=0.03)
    assert not np.allclose(layer.query, layer.key)


def test_default_sizes(key):
    layer = LinearAttention(12, 3, key=key)
    assert (layer.odim, layer.key_dim, layer.value_dim) == (12, 4, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"idim": 0}, "idim must be at least 1; got 0"),
        ({"heads": 0}, "heads must be at least 1; got 0"),
        ({"heads": 5}, "heads must divide idim=6; got heads=5"),
        ({"odim": 0}, "odim must be at least 1; got 0"),
        ({"key_dim": 0}, "key_dim must be at least 1; got 0"),
        ({"value_dim": 0}, "value_dim must be at least 1; got 0"),
    ],
)
def test_bad_arguments(arguments, message, key):
    with pytest.raises(ValueError, match=f"LinearAttention: {message}"):
        LinearAttention(**({"idim": 6, "heads": 2} | arguments), key=key)


def test_bad_inputs(layer):
    with pytest.raises(ValueError, match="LinearAttention takes an array .* with 5 features"):
        layer(jnp.zeros((7, 4)))
    with pytest.raises(TypeError, match="must be floating; got int32"):
        layer(jnp.zeros((7, 5), jnp.int32))
    with pytest.raises(ValueError, match="lengths must be from 0 to the 7 steps, got 8 to 8"):
        layer(jnp.zeros((7, 5)), lengths=8)
    with pytest.raises(TypeError, match="reset must be boolean"):
        layer(jnp.zeros((7, 5)), reset=jnp.zeros(7))
    with pytest.raises(ValueError, match="LinearAttention takes a state like init_state"):
        layer(jnp.zeros((2, 7, 5)), layer.init_state())
    with pytest.raises(ValueError, match="LinearAttention takes a state like init_state"):
        layer.step(jnp.zeros((2, 5)), layer.init_state())
