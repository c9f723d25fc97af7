"""The layers with a delta rule with rows, heads and time split over devices."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnscale.attention import DeltaProduct
from rnnscale.sharding import batch_sharding, make_mesh, shardings
from rnnscale.verify import _rwkv7
from rnnscale.verify._double import to_double
from rnnscale_kernels.testing import compile_for

ROWS, TIME = 8, 32

LAYERS: dict[str, Any] = {
    "DeltaProduct": lambda key: DeltaProduct(5, 2, 6, key_dim=3, gate=True, decay=True, key=key),
    "RWKV7": _rwkv7.awake,
}
MESHES: dict[str, Any] = {"seq=8": {"seq": 8}, "tensor=2,seq=4": {"tensor": 2, "seq": 4}}
SLOW = {("RWKV7", "tensor=2,seq=4"), ("DeltaProduct", "seq=8")}
PAIRS = [
    pytest.param(layer, axes, marks=[pytest.mark.slow] if (layer, axes) in SLOW else [])
    for layer in LAYERS
    for axes in MESHES
]


def total(layer, xs, state, options):
    state, ys = layer(xs, state, **options)
    weighted = (jnp.sum(x * jnp.cos(jnp.arange(x.shape[-1]))) for x in jax.tree.leaves(state))
    return jnp.sum(jnp.sin(ys)) + sum(weighted), (ys, state)


gradient = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))


def options() -> dict[str, Any]:
    """Resets and row ends at and between the borders of the devices' parts."""
    starts = np.zeros((ROWS, TIME), bool)
    for row, steps in enumerate([[], [0], [1], [3, 4], [8, 17], [16], [31], [7, 9, 20]]):
        starts[row, steps] = True
    return {"reset": jnp.asarray(starts), "lengths": jnp.array([32, 32, 4, 5, 0, 1, 32, 15])}


@pytest.mark.parametrize(("name", "axes"), PAIRS)
def test_outputs_states_and_gradients_are_those_of_one_device(name, axes, key):
    """In double precision, since gradients cancel."""
    layer = to_double(jax.jit(LAYERS[name])(key))
    mesh = make_mesh(**MESHES[axes])
    with jax.enable_x64(True):
        xs = jax.random.normal(key, (ROWS, TIME, layer.idim), jnp.float64)
        # A NaN in the state must not pass a reset.
        start = layer.init_state((ROWS,), jnp.float64)
        state = jax.tree.map(lambda x: (x + 0.5).at[1].set(jnp.nan), start)
        expected = gradient(layer, xs, state, options())
    with jax.enable_x64(True), jax.set_mesh(mesh):
        placed = jax.device_put(layer, shardings(layer, mesh))
        got = gradient(placed, xs, state, options())
        # A single step works on any mesh.
        step = jax.jit(lambda layer, x, state: layer.step(x, state)[1])
        assert step(placed, xs[:, 0], start).shape == (ROWS, layer.odim)

    def close(x, y):
        assert np.isfinite(y).all()
        np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-10 * max(1, np.max(np.abs(y))))

    jax.tree.map(close, got, expected)


def test_collectives_do_not_grow_with_the_length(key):
    """Over `seq`, one permute and one gather in each direction, and none in a loop."""
    mesh = make_mesh(seq=8)

    def collectives(time: int) -> list[Any]:
        def abstract(x, sharding):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

        layer = jax.eval_shape(LAYERS["DeltaProduct"], key)
        layer = jax.tree.map(abstract, layer, shardings(layer, mesh))
        xs = jax.ShapeDtypeStruct(
            (ROWS, time, 5), jnp.float32, sharding=batch_sharding(mesh, 3, time_axis=1)
        )
        program = compile_for(
            jax.grad(lambda layer, xs: jnp.sum(jnp.sin(layer(xs)[1]))), layer, xs, target=mesh
        )
        found = (each for each in program.collectives if each.kind != "all-reduce")
        return sorted((each.kind, each.axes, each.bytes, each.turns) for each in found)

    short = collectives(512)
    assert short == collectives(1024)
    assert [(kind, turns) for kind, _, _, turns in short] == [
        ("all-gather", 1),
        ("all-gather", 1),
        ("collective-permute", 1),
        ("collective-permute", 1),
    ], short
