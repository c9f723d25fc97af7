"""Losses and gradients of models on many meshes equal those on one device."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnscale import LRU, S4D, S5, BidirectionalS5, DampedLinOSS, RNNEncoder, trainable
from rnnscale.cells import MinGRUCell
from rnnscale.models import FFN, LanguageModel, SequenceClassifier
from rnnscale.sharding import batch_sharding, make_mesh, shardings
from rnnscale.ssm import _siso

ROWS, TIME, DIM = 8, 24, 16
MESHES = {
    name: tuple((axis, int(size)) for axis, size in (each.split("=") for each in name.split(",")))
    for name in (
        "data=1",
        "data=8",
        "fsdp=8",
        "tensor=8",
        "seq=8",
        "data=2,seq=4",
        "fsdp=2,seq=4",
        "tensor=2,seq=4",
        "data=2,fsdp=2,tensor=2",
        "data=2,fsdp=2,seq=2",
        "data=2,tensor=2,seq=2",
        "fsdp=2,tensor=2,seq=2",
    )
}


# The layer of a model of two blocks, and its pool, or `tokens` for a language model.
LAYERS = {
    "S5": (lambda key: S5(DIM, 32, key=key), "mean"),
    "BidirectionalS5": (lambda key: BidirectionalS5(DIM, 32, key=key), "last"),
    "DampedLinOSS": (lambda key: DampedLinOSS(DIM, 16, key=key), "last"),
    "MinGRU": (lambda key: RNNEncoder(MinGRUCell(DIM, DIM, key=key)), "none"),
    "LRU": (lambda key: LRU(DIM, 16, key=key), "tokens"),
    "S4D": (lambda key: S4D(DIM, 4, key=key), "mean"),
}


@functools.cache
def build(layer):
    make_layer, pool = LAYERS[layer]
    options: Any = {"make_layer": make_layer, "dim": DIM, "depth": 2, "dropout": 0.1}
    if pool == "tokens":
        return LanguageModel(16, **options, key=jax.random.key(0))
    return SequenceClassifier(2, 8, make_mixer=FFN, pool=pool, **options, key=jax.random.key(0))


def batch():
    rng = np.random.default_rng(0)
    reset = rng.random((ROWS, TIME)) < 0.1
    # On the borders of the devices of seq=8 and seq=4, and just before one.
    reset[:, [6, 11]] = True
    return {
        "inputs": rng.normal(size=(ROWS, TIME, 2)).astype(np.float32),
        "tokens": rng.integers(0, 16, (ROWS, TIME)),
        "reset": reset,
        "lengths": np.asarray([24, 24, 0, 1, 12, 13, 3, 23]),
    }


def loss(model, batch):
    """A number that depends on every output and every last state."""
    inputs = batch["tokens" if isinstance(model, LanguageModel) else "inputs"]
    state, ys = model(inputs, reset=batch["reset"], lengths=batch["lengths"], key=jax.random.key(1))
    return jnp.mean(jnp.square(ys - 1)) + sum(jnp.mean(x**2) for x in jax.tree.leaves(state))


@functools.cache
def value_and_gradients(layer, mesh_name):
    axes = dict(MESHES[mesh_name])
    model = build(layer)
    mesh = make_mesh(**axes, devices=jax.devices()[: int(np.prod(list(axes.values())))])
    params, fixed = eqx.partition(model, trainable(model))

    def run(params, batch):
        return jax.value_and_grad(lambda params: loss(eqx.combine(params, fixed), batch))(params)

    def place(x):
        sharding = batch_sharding(mesh, x.ndim, time_axis=1 if x.ndim > 1 else None)
        return jax.device_put(x, sharding)

    with jax.set_mesh(mesh):
        params = jax.device_put(params, shardings(params, mesh))
        return jax.device_get(jax.jit(run)(params, jax.tree.map(place, batch())))


def check(layer, mesh_name):
    value, gradients = value_and_gradients(layer, mesh_name)
    expected_value, expected = value_and_gradients(layer, "data=1")
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    for x, y in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
        # Relative to the largest: what should be zero is a sum of terms that cancel.
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * np.max(np.abs(y)))


@pytest.mark.parametrize("mesh_name", [name for name in MESHES if name != "data=1"])
def test_losses_and_gradients_are_those_of_one_device(mesh_name):
    check("S5", mesh_name)


@pytest.mark.parametrize("mesh_name", ["seq=8", "data=2,seq=4", "fsdp=2,tensor=2,seq=2"])
@pytest.mark.parametrize("layer", ["LRU", "BidirectionalS5", "MinGRU"])
def test_other_layers_on_meshes_with_time(layer, mesh_name):
    check(layer, mesh_name)


def test_s4d_on_a_mesh_with_several_chunks_on_a_device(monkeypatch):
    monkeypatch.setattr(_siso, "_CHUNK", 4)
    check("S4D", "fsdp=2,tensor=2,seq=2")


@pytest.mark.parametrize(
    "mesh_name",
    [
        "fsdp=2,tensor=2,seq=2",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("seq=8", "data=8")),
    ],
)
def test_oscillators_on_meshes(mesh_name):
    check("DampedLinOSS", mesh_name)
