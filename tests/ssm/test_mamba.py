"""Mamba and Mamba-2 against transformers, on meshes, and what their arguments mean.

`transformers_mamba.npz` was made once with `MambaMixer` and `Mamba2Mixer` of transformers 5.24 and
torch 2.15 on a CPU: parameters shifted by random numbers, an input, the output, and gradients for
the cotangent `g` of the output.
"""

from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnscale import Mamba, Mamba2
from rnnscale._fields import parameters
from rnnscale.sharding import make_mesh, shardings


def golden(case):
    with np.load(Path(__file__).with_name("transformers_mamba.npz")) as arrays:
        prefix = f"{case}/"
        return {name.removeprefix(prefix): x for name, x in arrays.items() if prefix in name}


def mamba(arrays: dict[str, Any]) -> dict[str, Any]:
    """The arrays of `Mamba`, from those of `MambaMixer`."""
    rows = arrays["in_proj.weight"]
    return {
        "in_proj": rows.reshape(2, -1, rows.shape[1]),
        "in_bias": arrays["in_proj.bias"].reshape(2, -1),
        "conv.weight": arrays["conv1d.weight"][:, 0, ::-1],
        "conv.bias": arrays["conv1d.bias"],
        "x_proj": arrays["x_proj.weight"],
        "dt_proj": arrays["dt_proj.weight"],
        "dt_bias": arrays["dt_proj.bias"],
        "a_log": arrays["A_log"],
        "d": arrays["D"],
        "out_proj": arrays["out_proj.weight"],
        "out_bias": arrays["out_proj.bias"],
    }


def mamba2(arrays: dict[str, Any]) -> dict[str, Any]:
    """The arrays of `Mamba2` with 4 heads of 4 channels, from those of `Mamba2Mixer`."""
    idim = arrays["in_proj.weight"].shape[1]
    zx, bc, dt = np.split(arrays["in_proj.weight"], [32, 52])
    weight, maps_weight = np.split(arrays["conv1d.weight"][:, 0, ::-1], [16])
    bias, maps_bias = np.split(arrays["conv1d.bias"], [16])
    return {
        "zx_proj": zx.reshape(2, 4, 4, idim),
        "bc_proj": bc.reshape(2, 2, 5, idim),
        "dt_proj": dt,
        "conv.weight": weight,
        "conv.bias": bias,
        "conv_maps.weight": maps_weight,
        "conv_maps.bias": maps_bias,
        "dt_bias": arrays["dt_bias"],
        "a_log": arrays["A_log"],
        "d": arrays["D"],
        "norm_scale": arrays["norm.weight"].reshape(4, 4),
        "out_proj": arrays["out_proj.weight"].reshape(-1, 4, 4),
    }


CASES = {
    "mamba": (lambda key: Mamba(6, 5, dt_rank=3, use_bias=True, key=key), mamba),
    "mamba2": (
        lambda key: Mamba2(8, 5, head_dim=4, groups=2, dt_limit=(0.01, 0.5), key=key),
        mamba2,
    ),
}


def named(layer) -> dict[str, Any]:
    return {each.path: each.value for each in parameters(layer)}


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_transformers(case, key):
    build, converted = CASES[case]
    arrays = golden(case)

    def folder(name):
        prefix = f"{name}/"
        return {n.removeprefix(prefix): x for n, x in arrays.items() if n.startswith(prefix)}

    like = eqx.filter_eval_shape(build, key)
    given = converted(folder("params"))
    assert {n: x.shape for n, x in given.items()} == {n: x.shape for n, x in named(like).items()}
    leaves = [jnp.asarray(given[each.path]) for each in parameters(like)]
    layer = jax.tree.unflatten(jax.tree.structure(like), leaves)
    run = jax.jit(lambda layer, x: layer(x)[1])
    y, pull = jax.vjp(run, layer, jnp.asarray(arrays["x"]))
    d_layer, dx = pull(jnp.asarray(arrays["g"]))
    close(y, arrays["y"])
    close(dx, arrays["dx"])
    expected = converted(folder("gradients"))
    for name, gradient in named(d_layer).items():
        close(gradient, expected[name])


def close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.max(np.abs(expected)))


@pytest.mark.parametrize("case", CASES)
def test_the_stored_arrays_are_what_transformers_computes(case):
    torch: Any = pytest.importorskip("torch", reason="torch is not installed")
    transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")
    arrays, models = golden(case), transformers.models
    shared = {"expand": 2, "conv_kernel": 4, "num_hidden_layers": 1, "state_size": 5}
    if case == "mamba":
        config = transformers.MambaConfig(hidden_size=6, time_step_rank=3, use_bias=True, **shared)
        mixer = models.mamba.modeling_mamba.MambaMixer(config, 0)
    else:
        config = transformers.Mamba2Config(
            hidden_size=8, num_heads=4, head_dim=4, n_groups=2, chunk_size=8,
            time_step_limit=(0.01, 0.5), **shared,
        )  # fmt: skip
        mixer = models.mamba2.modeling_mamba2.Mamba2Mixer(config, 0)
    prefix = "params/"
    weights = {n.removeprefix(prefix): torch.tensor(x) for n, x in arrays.items() if prefix in n}
    mixer.load_state_dict(weights)
    with torch.no_grad():
        close(mixer.eval()(torch.tensor(arrays["x"])).numpy(), arrays["y"])


LAYERS = {
    "Mamba": lambda key: Mamba(8, 4, use_bias=True, key=key),
    "Mamba2": lambda key: Mamba2(8, 4, head_dim=2, groups=2, key=key),
}


def loss(layer, xs, state):
    reset = jnp.zeros(xs.shape[:2], bool).at[:, 11].set(True)
    state, ys = layer(xs, state, reset=reset, lengths=jnp.asarray([32, 0, 9, 17]))
    return sum(jnp.sum(x**2) for x in jax.tree.leaves((state, ys)))


gradient = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))


@pytest.mark.parametrize("axes", [{"seq": 8}, {"tensor": 8}, {"fsdp": 2, "tensor": 2, "seq": 2}])
@pytest.mark.parametrize("name", LAYERS)
def test_losses_and_gradients_on_a_mesh_are_those_of_one_device(name, axes, key):
    layer = jax.jit(LAYERS[name])(key)
    xs = jax.random.normal(key, (4, 32, 8))
    state = jax.tree.map(lambda x: x + 0.5, layer.init_state((4,)))
    expected = gradient(layer, xs, state)
    mesh = make_mesh(**axes)
    with jax.set_mesh(mesh):
        got = gradient(jax.device_put(layer, shardings(layer, mesh)), xs, state)

    def close(x, y):
        np.testing.assert_allclose(x, y, rtol=0, atol=2e-5 * max(1, np.max(np.abs(y))))

    jax.tree.map(close, got, expected)


@pytest.mark.parametrize("name", LAYERS)
def test_no_weight_decay_for_decays_steps_and_skips(name, key):
    groups = {
        each.path: each.group for each in parameters(eqx.filter_eval_shape(LAYERS[name], key))
    }
    assert {n for n, group in groups.items() if group == "recurrence"} == {"a_log", "dt_bias"}
    assert groups["d"] == groups.get("norm_scale", "bias") == groups["conv.bias"] == "bias"
    assert groups["out_proj"] == "weight"


def test_norms_over_all_channels_or_over_groups(key):
    """With one group of channels the norms are those over all of them."""
    both = [Mamba2(8, 4, head_dim=4, groups=2, norm_groups=n, key=key) for n in (1, 2)]
    xs = jax.random.normal(key, (1, 5, 8))
    all_channels, groups = (layer(xs)[1] for layer in both)
    assert not np.allclose(all_channels, groups)
    assert Mamba2(8, 4, head_dim=4, groups=2, key=key).norm_groups == 2
