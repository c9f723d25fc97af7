"""Language models whose layers have matrix states, with heads and time split over devices."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnscale import (
    MLSTM,
    RWKV7,
    DeltaNet,
    DeltaProduct,
    GatedDeltaNet,
    GatedLinearAttention,
    LinearAttention,
    LocalAttention,
    Mamba,
    Mamba2,
    trainable,
)
from rnnscale.models import LanguageModel
from rnnscale.sharding import batch_sharding, make_mesh, shardings
from rnnscale_kernels.testing import compile_for

ROWS, TIME, DIM, HEADS, KEY, DEPTH, VOCAB = 8, 32, 32, 8, 8, 2, 16

LAYERS: dict[str, Any] = {
    "LinearAttention": lambda key: LinearAttention(DIM, HEADS, key=key),
    "GatedLinearAttention": lambda key: GatedLinearAttention(DIM, HEADS, key=key),
    "MLSTM": lambda key: MLSTM(DIM, HEADS, key=key),
    "DeltaNet": lambda key: DeltaNet(DIM, HEADS, key_dim=KEY, key=key),
    "GatedDeltaNet": lambda key: GatedDeltaNet(DIM, HEADS, key_dim=KEY, key=key),
    "DeltaProduct": lambda key: DeltaProduct(DIM, HEADS, key_dim=KEY, decay=True, key=key),
    "RWKV7": lambda key: RWKV7(DIM, HEADS, key=key),
    "Mamba": lambda key: Mamba(DIM, 4, key=key),
    "Mamba2": lambda key: Mamba2(DIM, 8, head_dim=8, key=key),
    "LocalAttention": lambda key: LocalAttention(DIM, HEADS, 4, key=key),
}
MESHES: dict[str, Any] = {
    "one device": {},
    "seq=8": {"seq": 8},
    "tensor=8": {"tensor": 8},
    "data=2,tensor=2,seq=2": {"data": 2, "tensor": 2, "seq": 2},
}
QUICK = [("GatedDeltaNet", "seq=8"), ("MLSTM", "data=2,tensor=2,seq=2"), ("Mamba2", "tensor=8")]
PAIRS = [
    *QUICK,
    *(
        pytest.param(layer, mesh, marks=pytest.mark.slow)
        for layer in LAYERS
        for mesh in ("seq=8", "tensor=8")
        if (layer, mesh) not in QUICK
    ),
]


@functools.cache
def build(layer):
    options = {"make_layer": LAYERS[layer], "dim": DIM, "depth": DEPTH}
    return LanguageModel(VOCAB, **options, key=jax.random.key(0))


def batch(time):
    """Resets on the first steps of devices and within them, and rows that end everywhere."""
    rng = np.random.default_rng(0)
    reset = rng.random((ROWS, time)) < 0.05
    reset[:, [time // 8, time // 2]] = True
    lengths = [time, time, 0, 1, time // 2, time // 2 + 1, 5, time - 1]
    tokens = rng.integers(0, VOCAB, (2, ROWS, time))
    return {"inputs": tokens[0], "labels": tokens[1], "reset": reset, "lengths": np.array(lengths)}


def gradient(params, fixed, batch):
    def loss(params):
        model = eqx.combine(params, fixed)
        state, ys = model(batch["inputs"], reset=batch["reset"], lengths=batch["lengths"])
        scores = jnp.take_along_axis(jax.nn.log_softmax(ys), batch["labels"][..., None], -1)
        return sum(jnp.mean(x**2) for x in jax.tree.leaves(state)) - jnp.mean(scores)

    return jax.value_and_grad(loss)(params)


def on_mesh(layer, mesh_name, time=TIME):
    """The mesh, and the arguments of `gradient` on it."""
    axes = MESHES[mesh_name]
    mesh = make_mesh(**axes, devices=jax.devices()[: int(np.prod(list(axes.values())))])
    model = build(layer)
    placed = jax.device_put(model, shardings(model, mesh))

    def place(x):
        return jax.device_put(x, batch_sharding(mesh, x.ndim, time_axis=1 if x.ndim > 1 else None))

    return mesh, (*eqx.partition(placed, trainable(model)), jax.tree.map(place, batch(time)))


@functools.cache
def value_and_gradients(layer, mesh_name):
    mesh, (params, fixed, batch) = on_mesh(layer, mesh_name)
    with jax.set_mesh(mesh):
        return jax.device_get(eqx.filter_jit(gradient)(params, fixed, batch))


@pytest.mark.parametrize(("layer", "mesh_name"), PAIRS)
def test_losses_and_gradients_are_those_of_one_device(layer, mesh_name):
    value, gradients = value_and_gradients(layer, mesh_name)
    expected_value, expected = value_and_gradients(layer, "one device")
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    for x, y in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
        # A change of the parameters in the last digit changes gradients by 5e-6.
        np.testing.assert_allclose(x, y, rtol=0, atol=3e-5 * np.max(np.abs(y)))


def collectives(layer, mesh_name, time):
    mesh, arguments = on_mesh(layer, mesh_name, time)
    arrays, static = eqx.partition(arguments, eqx.is_array)
    program = compile_for(
        lambda arrays: gradient(*eqx.combine(arrays, static)), arrays, target=mesh
    )
    return sorted((x.kind, x.axes, x.bytes, x.turns, len(x.loops)) for x in program.collectives)


# The numbers that a device sends for a row in the forward and in the backward pass.
STATES = {
    "GatedDeltaNet": [HEADS * (KEY * KEY + 2 * KEY * KEY) + 1, HEADS * 2 * KEY * KEY],
    "MLSTM": [2 * HEADS + 1, HEADS * (2 * 5 + 1) + 1, HEADS * 2 * 5],
}


@pytest.mark.parametrize("layer", ["GatedDeltaNet", pytest.param("MLSTM", marks=pytest.mark.slow)])
def test_what_is_gathered_over_seq_does_not_grow_with_the_length(layer):
    short, long = (collectives(layer, "seq=8", time) for time in (TIME, 4 * TIME))
    assert short == long
    gathers = [(size, turns) for kind, _, size, turns, _ in short if kind == "all-gather"]
    # Once in each of the blocks, over which the model loops.
    assert gathers == sorted((8 * ROWS * 4 * each, DEPTH) for each in STATES[layer])


@pytest.mark.parametrize("layer", ["GatedDeltaNet", pytest.param("RWKV7", marks=pytest.mark.slow)])
def test_no_loop_over_time_has_a_collective_over_tensor(layer):
    """Over the blocks there is one sum of the outputs, and one of the gradients of the inputs.
    What a convolution gathers are its parameters and its state, not its steps."""
    found = collectives(layer, "tensor=8", TIME)
    assert max(loops for *_, loops in found) == 1
    sums = [size for kind, _, size, _, loops in found if kind == "all-reduce" and loops]
    steps = ROWS * TIME * DIM * 4
    assert len(sums) == 2 and min(sums) == steps
    gathered = [size for kind, _, size, _, loops in found if kind == "all-gather"]
    assert all(size < steps for size in gathered)
