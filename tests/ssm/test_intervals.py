"""S5 on samples at irregular times."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st

from rnnscale import verify
from rnnscale._base import CausalLayer
from rnnscale.sharding import batch_sharding, make_mesh, shardings
from rnnscale.ssm import LRU, S5

over_discretisations = pytest.mark.parametrize("discretisation", ["zoh", "bilinear"])


@jax.jit
def call(layer, xs, **options):
    return layer(xs, **options)


class Irregular(CausalLayer):
    """S5 with its intervals among the features of its input, so that the laws of layers hold."""

    layer: S5
    idim: int = eqx.field(static=True)
    odim: int = eqx.field(static=True)

    def __init__(self, layer):
        self.layer, self.idim, self.odim = layer, layer.idim + 1, layer.odim

    def __call__(self, xs, state=None, *, reset=None, lengths=None, key=None):
        intervals = jax.nn.relu(xs[..., 0] + 1)
        return self.layer(xs[..., 1:], state, reset=reset, lengths=lengths, intervals=intervals)

    def step(self, x, state, *, key=None):
        return self.layer.step(x[..., 1:], state, interval=jax.nn.relu(x[..., 0] + 1))

    def init_state(self, batch_shape=(), dtype=None):
        return self.layer.init_state(batch_shape, dtype)


def test_laws(getkey):
    irregular = Irregular(S5(3, 12, 4, blocks=3, key=getkey()))
    for check in verify.laws(irregular, getkey()):
        assert check.passed, check


@over_discretisations
def test_matches_the_continuous_system(discretisation, getkey):
    layer = S5(3, 12, discretisation=discretisation, step_rescale=0.5, key=getkey())
    intervals = np.array(jax.random.exponential(getkey(), (600,)))
    intervals[[3, 300]] = 0
    reset = np.zeros(600, bool)
    # At the border of two pieces, next to one, and at intervals of zero.
    reset[[3, 299, 300, 450]] = True
    xs = jax.random.normal(getkey(), (600, 3))
    check = verify.matches_oracle(layer, xs, reset, intervals=intervals)
    assert check.passed, check
    with jax.enable_x64(True):
        layer = jax.tree.map(lambda x: np.asarray(x, np.float64), layer)
        xs, intervals = jnp.asarray(xs[:41], jnp.float64), np.asarray(intervals[:41] + 0.1, float)
        for check in (
            verify.matches_oracle(layer, xs, bound=1e-10, intervals=intervals),
            verify.gradient_matches_oracle(layer, xs, getkey(), intervals=intervals),
        ):
            assert check.passed, check


@over_discretisations
def test_ones_are_the_nominal_steps(discretisation, getkey):
    time = 600
    layer = S5(3, 12, 4, discretisation=discretisation, key=getkey())
    xs = jax.random.normal(getkey(), (2, time, 3))
    lengths = jnp.array([time, time // 2])
    got = call(layer, xs, lengths=lengths, intervals=jnp.ones((2, time)))
    assert verify.relative_error(got, call(layer, xs, lengths=lengths)) < 1e-6


def test_intervals_of_a_rate_are_its_rescaled_steps(getkey):
    key, xs = getkey(), jax.random.normal(getkey(), (20, 3))
    fast = S5(3, 12, discretisation="bilinear", key=key)
    slow = S5(3, 12, discretisation="bilinear", step_rescale=2.5, key=key)
    got = call(fast, xs, intervals=jnp.full(20, 2.5))
    assert verify.relative_error(got, call(slow, xs)) < 1e-6


@given(parts=st.lists(st.tuples(st.integers(1, 3), st.floats(0, 4)), min_size=6, max_size=6))
def test_an_input_held_for_longer_is_held_for_its_parts(parts):
    """What makes a hold of order zero: `n` equal samples, one interval each, are one sample after
    `n` intervals. A decay that forgot its interval, or a gain, would show."""
    key = jax.random.key(0)
    layer, us = S5(3, 12, key=key), np.asarray(jax.random.normal(key, (6, 3)))
    counts, lengths = (np.array(each) for each in zip(*parts, strict=True))
    last = np.cumsum(counts) - 1
    # Padded, so that all examples are one program.
    xs, intervals = np.zeros((18, 3), np.float32), np.zeros(18, np.float32)
    xs[: counts.sum()] = np.repeat(us, counts, axis=0)
    intervals[: counts.sum()] = np.repeat(lengths, counts)
    state, ys = call(layer, xs, intervals=intervals)
    total = np.asarray(counts * lengths, np.float32)
    expected_state, expected = call(layer, us, intervals=total)
    assert verify.relative_error((state, ys[last]), (expected_state, expected)) < 1e-5


@over_discretisations
def test_no_time_leaves_the_state_exactly(discretisation, getkey):
    # Eigenvalues of zero, which are clipped, and decays that are at their limit.
    layer = S5(3, 12, discretisation=discretisation, dt_min=1e-6, dt_max=1e-6, key=getkey())
    layer = eqx.tree_at(lambda m: [m.lambda_re, m.lambda_im], layer, [jnp.zeros(6)] * 2)
    state, _ = call(layer, jax.random.normal(getkey(), (5, 3)))
    after, _ = call(layer, jnp.ones((400, 3)), state=state, intervals=jnp.zeros(400))
    for got, expected in zip(after, state, strict=True):
        np.testing.assert_array_equal(got, expected)
        assert np.any(expected)


def test_no_array_of_all_decays(key):
    """The gradient of a long sequence, with more states than features, in less memory than that."""
    time, states = 2**14, 256
    layer = jax.eval_shape(lambda key: S5(4, 2 * states, key=key), key)
    xs, intervals = (jax.ShapeDtypeStruct((time, *axes), jnp.float32) for axes in ((4,), ()))

    @jax.jit
    @jax.grad
    def gradient(layer, xs, intervals):
        return jnp.sum(layer(xs, intervals=intervals)[1] ** 2)

    memory: Any = gradient.lower(layer, xs, intervals).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * time * states


def test_on_meshes(getkey):
    layer = S5(8, 16, 4, key=getkey())
    xs = jax.random.normal(getkey(), (2, 520, 8))
    options = {
        "intervals": jax.random.exponential(getkey(), (2, 520)),
        "reset": jax.random.bernoulli(getkey(), 0.02, (2, 520)),
        "lengths": jnp.array([520, 261]),
    }

    @jax.jit
    def run(layer, xs, options):
        def total(layer, xs, options):
            return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(layer(xs, **options)))

        return jax.value_and_grad(total, (0, 1))(layer, xs, options)

    expected = run(layer, xs, options)
    for mesh in (
        make_mesh(data=2, tensor=2, devices=jax.devices()[:4]),
        make_mesh(fsdp=2, tensor=2, seq=2),
    ):

        def place(x, mesh=mesh):
            time_axis = 1 if x.ndim > 1 else None
            return jax.device_put(x, batch_sharding(mesh, x.ndim, time_axis=time_axis))

        with jax.set_mesh(mesh):
            placed = jax.device_put(layer, shardings(layer, mesh))
            got = jax.device_get(run(placed, *jax.tree.map(place, (xs, options))))
        assert verify.relative_error(got, expected) < 1e-5, mesh.shape


@pytest.mark.parametrize(
    ("intervals", "error", "message"),
    [
        (jnp.ones((2, 5)), ValueError, r"of shape \(2, 6\); got shape \(2, 5\)"),
        (jnp.ones((2, 6), int), TypeError, "must be a floating array .*; got int32"),
        (jnp.full((2, 6), -0.5), ValueError, r"at least 0; got -0\.5"),
    ],
)
def test_bad_intervals(intervals, error, message, key):
    with pytest.raises(error, match=message):
        S5(3, 4, key=key)(jnp.zeros((2, 6, 3)), intervals=intervals)


def test_lru_takes_none(key):
    with pytest.raises(TypeError, match="intervals"):
        LRU(3, 4, key=key)(jnp.zeros((6, 3)), intervals=jnp.ones(6))  # pyright: ignore[reportCallIssue]
