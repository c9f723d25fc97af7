"""`shift`, `take_step` and `CausalConv` with time split over devices, compared with NumPy."""

import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from rnnscale.layers import CausalConv
from rnnscale.sharding import batch_sharding, make_mesh, shift, take_step
from rnnscale_kernels.testing import compile_for

MESHES: dict[str, Any] = {
    "none": None,
    "seq=8": {"seq": 8},
    "data=2,seq=4": {"data": 2, "seq": 4},
    "fsdp=2,tensor=2,seq=2": {"fsdp": 2, "tensor": 2, "seq": 2},
}
every_mesh = pytest.mark.parametrize("axes", MESHES.values(), ids=MESHES)
ROWS, TIME = 4, 24


def on(axes):
    """A context with the mesh of these axes, or of one device."""
    return jax.set_mesh(make_mesh(**axes) if axes else make_mesh(devices=jax.devices()[:1]))


def abstract_batch(mesh, shape):
    """An array "batch time feature" in the layout of a batch."""
    return jax.ShapeDtypeStruct(
        shape, jnp.float32, sharding=batch_sharding(mesh, len(shape), time_axis=1)
    )


def shifted(x, steps, edge, axis):
    """`shift` in NumPy, by a loop over time."""
    x = np.moveaxis(np.asarray(x), axis, 0)
    y = np.full_like(x, edge)
    for t in range(len(x)):
        if 0 <= t - steps < len(x):
            y[t] = x[t - steps]
    return np.moveaxis(y, 0, axis)


@every_mesh
@pytest.mark.parametrize("steps", [-3, -1, 0, 1, 2, 3])
def test_shift(axes, steps):
    tokens = np.arange(ROWS * TIME, dtype=np.int32).reshape(ROWS, TIME)
    flags = tokens % 3 == 0
    features = np.random.default_rng(0).normal(size=(ROWS, TIME, 5)).astype(np.float32)
    with on(axes):
        run = jax.jit(shift, static_argnames=("steps", "time_axis", "edge"))
        for x, axis, edge in [(tokens, 1, -100), (flags, -1, True), (features, -2, 0.5)]:
            got = run(x, steps=steps, time_axis=axis, edge=edge)
            assert got.dtype == x.dtype
            np.testing.assert_array_equal(got, shifted(x, steps, edge, axis))
        alone = run(tokens[0], steps=steps, edge=7)
        np.testing.assert_array_equal(alone, shifted(tokens[0], steps, 7, 0))
        odd = run(features[:3, :23], steps=steps, time_axis=-2)
        np.testing.assert_array_equal(odd, shifted(features[:3, :23], steps, 0, 1))
        by_vmap = jax.vmap(lambda x: shift(x, steps, time_axis=0))(features)
        np.testing.assert_array_equal(by_vmap, shifted(features, steps, 0, 1))


@every_mesh
@pytest.mark.parametrize("steps", [-2, 2])
def test_gradient_of_shift(axes, steps):
    rng = np.random.default_rng(1)
    x, weight = rng.normal(size=(2, ROWS, TIME, 5)).astype(np.float32)
    edge = rng.normal(size=(ROWS, 2, 5)).astype(np.float32)

    def total(x, edge):
        return jnp.sum(weight * shift(x, steps, time_axis=1, edge=edge) ** 2)

    with on(axes):
        got = jax.jit(jax.grad(total, (0, 1)))(x, edge)
    np.testing.assert_allclose(got[0], 2 * x * shifted(weight, -steps, 0, 1), rtol=1e-6)
    at_edge = weight[:, :2] if steps > 0 else weight[:, -2:]
    np.testing.assert_allclose(got[1], 2 * edge * at_edge, rtol=1e-6)


@pytest.mark.parametrize("time", [256, 512])
def test_shift_permutes_only_the_shifted_steps(time):
    mesh = make_mesh(data=2, seq=4)
    x = abstract_batch(mesh, (ROWS, time, 5))
    (found,) = compile_for(lambda x: shift(x, 3, time_axis=1), x, target=mesh).collectives
    rows = ROWS // 2
    assert (found.kind, found.axes) == ("collective-permute", ("seq",))
    assert found.bytes == rows * 3 * 5 * 4


def test_errors_of_shift():
    with pytest.raises(ValueError, match="time_axis=2 is not an axis of an array of shape"):
        shift(jnp.zeros((2, 3)), 1, time_axis=2)
    with pytest.raises(ValueError, match="shift reaches over 5 steps, but a device holds 3 of"):
        shift(jnp.zeros((2, 3)), -5)
    with (
        on({"seq": 8}),
        pytest.raises(ValueError, match="a device holds 3 of the 24 steps, split over seq=8: use"),
    ):
        shift(jnp.zeros((2, 24)), 4)
    for x, edge in (
        (jnp.arange(4), 0.5),
        (jnp.ones(4, bool), 7),
        (jnp.ones(4, jnp.uint8), -100),
        (jnp.ones(4, jnp.uint8), 256),
    ):
        with pytest.raises(TypeError, match=f"edge must have the dtype of x, {x.dtype}"):
            shift(x, 1, edge=edge)


@every_mesh
@pytest.mark.parametrize("index", [0, 5, 23, np.array([0, 23, 11, 12])], ids=str)
def test_take_step(axes, index):
    xs = np.random.default_rng(2).normal(size=(ROWS, TIME, 3)).astype(np.float32)
    xs[:, 6] = np.nan  # at a step that is not taken
    with on(axes):
        got = jax.jit(take_step)(xs, index)
    rows = np.broadcast_to(index, ROWS)
    np.testing.assert_array_equal(got, xs[np.arange(ROWS), rows])


def convolved(layer, xs, state, starts, lengths):
    """Outputs and final states of `CausalConv`, by loops in float64."""
    weight, bias = (np.asarray(p, np.float64) for p in (layer.weight, layer.bias))
    ys, last = np.zeros(xs.shape), np.zeros(np.shape(state))
    for row, length in enumerate(lengths):
        seen = list(np.asarray(state[row], np.float64))
        for t in range(length):
            if starts[row, t]:
                seen = [np.zeros_like(x) for x in seen]
            seen.append(np.asarray(xs[row, t], np.float64))
            window = seen[-layer.width :][::-1]
            ys[row, t] = bias + sum(weight[:, j] * x for j, x in enumerate(window))
        last[row] = seen[len(seen) - layer.width + 1 :]
    return ys, last


@jax.jit
def conv_gradient(layer, xs, state, options):
    def total(layer, xs, state):
        last, ys = layer(xs, state, **options)
        return jnp.sum(jnp.sin(ys)) + jnp.sum(last**3), (ys, last)

    return jax.grad(total, (0, 1, 2), has_aux=True)(layer, xs, state)


@every_mesh
@pytest.mark.parametrize(("width", "segments"), [*itertools.product([2, 4], [False, True])])
def test_causal_conv(axes, width, segments, key):
    """Resets at, before and after the borders between devices, and rows that end there."""
    layer = CausalConv(5, width, key=key)
    layer = eqx.tree_at(lambda c: c.bias, layer, jnp.arange(5.0))
    rng = np.random.default_rng(3)
    rows = 8
    xs = rng.normal(size=(rows, TIME, 5)).astype(np.float32)
    state = rng.normal(size=(rows, width - 1, 5)).astype(np.float32)
    starts, lengths = np.zeros((rows, TIME), bool), np.full(rows, TIME)
    options = {}
    if segments:
        for row, steps in enumerate([[0], [1], [2, 3], [11, 13], [12], [5, 6, 7], [23], []]):
            starts[row, steps] = True
        lengths = np.array([0, 1, 3, 12, 13, 23, 24, 2])
        xs = np.where((np.arange(TIME) < lengths[:, None])[..., None], xs, np.nan)
        options = {"reset": starts, "lengths": lengths}

    expected_gradient, _ = conv_gradient(layer, xs, state, options)
    with on(axes):
        got_gradient, got = conv_gradient(layer, xs, state, options)
    for x, y in zip(got, convolved(layer, xs, state, starts, lengths), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)
    for x, y in zip(*map(jax.tree.leaves, (got_gradient, expected_gradient)), strict=True):
        assert np.isfinite(x).all()
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


def test_gradient_of_causal_conv_against_finite_differences(key):
    with jax.enable_x64(True):
        layer = jax.tree.map(lambda x: x.astype(jnp.float64), CausalConv(3, 3, key=key))
        xs = jax.random.normal(key, (2, 9, 3), jnp.float64)
        reset = jnp.zeros((2, 9), bool).at[0, 4].set(True)

        def total(layer, xs, state):
            last, ys = layer(xs, state, reset=reset, lengths=jnp.array([9, 7]))
            return jnp.sum(jnp.sin(ys)) + jnp.sum(last**3)

        check_grads(total, (layer, xs, jnp.ones((2, 2, 3), jnp.float64)), order=1, modes=["rev"])


@pytest.mark.parametrize("time", [256, 512])
def test_causal_conv_sends_only_its_halo(time, key):
    mesh = make_mesh(data=2, seq=4)
    layer = jax.eval_shape(lambda key: CausalConv(8, 4, key=key), key)
    gradient = jax.grad(lambda layer, xs: jnp.sum(layer(xs)[1] ** 2), (0, 1))
    found = compile_for(
        gradient, layer, abstract_batch(mesh, (ROWS, time, 8)), target=mesh
    ).collectives
    permutes = [each for each in found if each.kind == "collective-permute"]
    # One for the forward pass and one for its cotangent; the rest sum the gradients of the weights.
    assert [(each.axes, each.bytes) for each in permutes] == [(("seq",), ROWS // 2 * 3 * 8 * 4)] * 2
    rest = [each for each in found if each not in permutes]
    assert {each.kind for each in rest} == {"all-reduce"}
    assert sum(each.bytes for each in rest) <= 2 * (8 * 4 + 8) * 4


def test_errors_of_causal_conv(key):
    with pytest.raises(ValueError, match="CausalConv: width must be at least 2.*got 1"):
        CausalConv(5, 1, key=key)
    layer = CausalConv(5, 5, key=key)
    with pytest.raises(ValueError, match="takes a state like init_state"):
        layer(jnp.zeros((2, 9, 5)), jnp.zeros((2, 5, 5)))
    with (
        on({"seq": 8}),
        pytest.raises(ValueError, match="CausalConv reaches over 4 steps, but a device holds 3"),
    ):
        layer(jnp.zeros((2, 24, 5)))
