"""The layers with a delta rule give the outputs of the published code on equal weights.

`delta_rules.npz`, beside this file, was made once with small random float32 parameters:

- `GatedDeltaNet`: `Qwen3NextGatedDeltaNet` of transformers 5.24.0 under torch 2.15.0; its
    `state_dict`, inputs and outputs.
- `DeltaNet`, `DeltaProduct`: the functions `delta_rule_recurrence` and
    `naive_recurrent_gated_delta_product` of fla-org/flash-linear-attention at
    bc3b101dcb713ddc5bd8924b66754eb68b5ccf89, between projections, convolutions and norms of
    `torch.nn.functional`, since its layers need a GPU; parameters have the names of its layers.
- `RWKV7`: `time_mixing` of RWKV-v7/rwkv_v7_numpy.py of BlinkDL/RWKV-LM at
    524481d5099b38d9bc8ef1e89209161b86c8011b, in float64, for the first layer.
"""

from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from rnnscale.attention import RWKV7, DeltaNet, DeltaProduct, GatedDeltaNet
from rnnscale_kernels import linear_attention

type Arrays = dict[str, NDArray]


def published(case: str) -> tuple[Arrays, dict[str, Any]]:
    """The parameters of a case, and its inputs and outputs."""
    with np.load(Path(__file__).parent / "delta_rules.npz") as file:
        arrays = {
            path.removeprefix(f"{case}/"): file[path]
            for path in file.files
            if path.startswith(f"{case}/")
        }
    params = {name.removeprefix("params/"): x for name, x in arrays.items() if "/" in name}
    return params, {name: x for name, x in arrays.items() if "/" not in name}


def with_arrays[Layer: eqx.Module](layer: Layer, **arrays: Any) -> Layer:
    """The layer with these arrays; a dot in a name, written as two underscores, goes deeper."""

    def field(layer: Any, path: str) -> Any:
        for name in path.split("__"):
            layer = getattr(layer, name)
        return layer

    def fields(layer: Any) -> list[Any]:
        return [field(layer, path) for path in arrays]

    values = [jnp.asarray(x, jnp.float32) for x in arrays.values()]
    for value, old in zip(values, fields(layer), strict=True):
        assert value.shape == old.shape
    return eqx.tree_at(fields, layer, values)


def close(got: Any, expected: NDArray) -> None:
    scale = np.max(np.abs(expected))
    assert np.isfinite(expected).all() and scale > 0.1
    np.testing.assert_allclose(np.asarray(got), expected, atol=1e-5 * scale, rtol=0)


def gated_deltanet_from_qwen(params: Arrays, key_dim: int, value_dim: int) -> GatedDeltaNet:
    """Its rows are those of each head in turn, q, k, v and the gate, but its convolution has the q
    of all heads first. The last tap of a convolution in torch is that of the present."""
    idim, heads = params["out_proj.weight"].shape[0], len(params["A_log"])
    rows = params["in_proj_qkvz.weight"].reshape(heads, -1, idim)
    ends = np.cumsum([key_dim, key_dim, value_dim])
    query, key, value, gate = np.split(rows, ends, axis=1)
    beta, decay = np.split(params["in_proj_ba.weight"].reshape(heads, 2, idim), 2, axis=1)
    taps = params["conv1d.weight"][:, 0, ::-1]
    taps = [x.reshape(heads, -1, taps.shape[-1]) for x in np.split(taps, heads * ends[:2])]
    layer = GatedDeltaNet(idim, heads, key_dim=key_dim, value_dim=value_dim, key=jax.random.key(0))
    return with_arrays(
        layer,
        **{"query": query, "key": key, "value": value, "gate": gate, "beta": beta},
        decay__weight=decay[:, 0],
        decay__log_rate=params["A_log"],
        decay__bias=params["dt_bias"],
        conv__weight=np.concatenate(taps, axis=1).reshape(-1, taps[0].shape[-1]),
        scale=params["norm.weight"],
        output=params["out_proj.weight"].reshape(idim, heads, value_dim),
    )


def delta_product_from_fla(params: Arrays, layer: DeltaNet | DeltaProduct) -> Any:
    """Its rows are those of each key of a step in turn, for all heads."""
    heads, m = layer.heads, layer.substeps

    def by_head(rows: NDArray, substeps: int) -> NDArray:
        rows = rows.reshape(substeps, heads, -1, rows.shape[-1])
        return np.moveaxis(rows, 0, 1).reshape(heads, -1, rows.shape[-1])

    def taps(name: str, substeps: int) -> NDArray:
        return by_head(params[f"{name}_conv1d.weight"][:, 0, ::-1], substeps)

    convolution = np.concatenate([taps("q", 1), taps("k", m), taps("v", m)], axis=1)
    layer = with_arrays(
        layer,
        query=by_head(params["q_proj.weight"], 1),
        key=by_head(params["k_proj.weight"], m),
        value=by_head(params["v_proj.weight"], m),
        beta=by_head(params["b_proj.weight"], m),
        conv__weight=convolution.reshape(-1, convolution.shape[-1]),
        scale=params["o_norm.weight"],
        output=params["o_proj.weight"].reshape(layer.odim, heads, -1),
    )
    if layer.gate is not None:
        layer = with_arrays(layer, gate=by_head(params["g_proj.weight"], 1))
    if "A_log" in params:
        decay = {"decay__log_rate": params["A_log"], "decay__bias": params["dt_bias"]}
        layer = with_arrays(layer, decay__weight=params["a_proj.weight"], **decay)
    return layer


def rwkv7_from_bo(params: Arrays) -> RWKV7:
    """Matrices of low rank are applied from the right there."""
    heads, key_dim = params["r_k"].shape
    idim = len(params["mr"])

    def by_head(x: NDArray) -> NDArray:
        return x.reshape(heads, key_dim, *x.shape[1:])

    ranks = {
        f"{name}_rank": params[f"W{letter}1"].shape[1]
        for name, letter in (("decay", "w"), ("rate", "a"), ("gate", "g"))
    }
    layer = RWKV7(idim, heads, key_dim=key_dim, **ranks, key=jax.random.key(0))
    return with_arrays(
        layer,
        mix=np.stack([params[f"m{letter}"] for letter in "rwkvag"]),
        query=by_head(params["Wr"]),
        key=by_head(params["Wk"]),
        value=by_head(params["Wv"]),
        output=params["Wo"].reshape(idim, heads, key_dim),
        **{"decay__down": params["Ww1"].T, "decay__up": by_head(params["Ww2"].T)},
        **{"rate__down": params["Wa1"].T, "rate__up": by_head(params["Wa2"].T)},
        **{"gate__down": params["Wg1"].T, "gate__up": by_head(params["Wg2"].T)},
        decay__bias=by_head(params["w_bias"]),
        rate__bias=by_head(params["a_bias"]),
        removal=by_head(params["k_k"]),
        replacement=by_head(params["k_a"]),
        bonus=params["r_k"],
        scale=by_head(params["ln_w"]),
        shift=by_head(params["ln_b"]),
    )


def test_gated_deltanet_of_transformers():
    params, data = published("GatedDeltaNet")
    layer = gated_deltanet_from_qwen(params, key_dim=3, value_dim=4)
    _, ys = eqx.filter_jit(layer)(data["xs"])
    close(ys, data["ys"])


@pytest.mark.parametrize(
    "layer",
    [
        lambda key: DeltaNet(8, 2, key_dim=3, value_dim=4, key=key),
        lambda key: DeltaProduct(
            8, 2, substeps=3, key_dim=3, value_dim=4, gate=True, decay=True, key=key
        ),
    ],
    ids=["DeltaNet", "DeltaProduct"],
)
def test_delta_rules_of_fla(layer, key):
    layer = layer(key)
    params, data = published(type(layer).__name__)
    state, ys = eqx.filter_jit(delta_product_from_fla(params, layer))(data["xs"])
    close(ys, data["ys"])
    close(state.memory, data["memory"])


def test_time_mixing_of_rwkv7():
    params, data = published("RWKV7")
    _, ys = eqx.filter_jit(rwkv7_from_bo(params))(data["xs"])
    close(ys, data["ys"])


def test_transformers_that_are_installed(getkey):
    """The layer and both functions, chunked and step by step, with random weights."""
    reason = "needs torch and transformers, of which CI checks the stored outputs"
    torch = pytest.importorskip("torch", reason=reason)
    qwen = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next", reason=reason)
    sizes = {"linear_num_value_heads": 2, "linear_num_key_heads": 2}
    sizes |= {"linear_key_head_dim": 5, "linear_value_head_dim": 7, "hidden_size": 12}
    config = qwen.Qwen3NextConfig(
        num_hidden_layers=1, layer_types=["linear_attention"], rms_norm_eps=1e-5, **sizes
    )
    module = qwen.Qwen3NextGatedDeltaNet(config, 0).float()
    xs = jax.random.normal(getkey(), (2, 100, 12))
    with torch.no_grad():
        expected = module(torch.tensor(np.asarray(xs))).numpy()
    params = {name: x.numpy() for name, x in module.state_dict().items()}
    close(gated_deltanet_from_qwen(params, key_dim=5, value_dim=7)(xs)[1], expected)

    q, k = jax.random.normal(getkey(), (2, 2, 100, 3, 5))
    k = k / jnp.linalg.norm(k, axis=-1, keepdims=True)
    v, h0 = jax.random.normal(getkey(), (2, 100, 3, 7)), jax.random.normal(getkey(), (2, 3, 5, 7))
    beta = 2 * jax.nn.sigmoid(jax.random.normal(getkey(), (2, 100, 3)))
    decay = -jax.nn.softplus(jax.random.normal(getkey(), (2, 100, 3)))
    strength = beta[..., None]
    got = linear_attention(q / jnp.sqrt(5), k, strength * v, decay, erase=strength * k, h0=h0)
    q, k, v, decay, beta, h0 = (torch.tensor(np.asarray(x)) for x in (q, k, v, decay, beta, h0))
    for rule in (qwen.torch_chunk_gated_delta_rule, qwen.torch_recurrent_gated_delta_rule):
        expected = rule(
            q, k, v, g=decay, beta=beta, initial_state=h0.clone(), output_final_state=True
        )
        for ours, theirs in zip(got, expected, strict=True):
            close(ours, theirs.numpy())


def test_strengths_and_decays_as_published(key):
    layer = GatedDeltaNet(8, 500, key_dim=1, key=key)
    rate, step = np.exp(layer.decay.log_rate), jax.nn.softplus(layer.decay.bias)
    assert 0 < rate.min() and rate.max() <= 16 and abs(rate.mean() - 8) < 0.7
    assert step.min() >= 0.99e-3 and step.max() <= 0.101
    assert abs(np.log(step).mean() - np.log(1e-2)) < 0.2
    assert layer.value_dim == 2 and layer.gate is not None and float(layer.beta_max) == 1
    plain = DeltaNet(8, 4, key=key)
    assert plain.value_dim == 2 and plain.gate is None and float(plain.beta_max) == 2


def test_rwkv7_starts_as_published(key):
    """The formulas of the authors' code, of the first layer."""
    size, heads = 8, 3
    width = size * heads
    layer = RWKV7(width, heads, key=key)
    n = np.arange(width)
    linear = n / (width - 1) - 0.5
    zigzag = (n % size - (size - 1) / 2) / ((size - 1) / 2)
    zigzag = zigzag * abs(zigzag)
    start = -6 + 6 * (n / (width - 1)) + 0.5 + 2.5 * zigzag
    assert layer.decay.bias is not None and layer.rate.bias is not None
    np.testing.assert_allclose(layer.decay.bias.ravel(), start, atol=1e-5)
    rate = -0.19 + 0.3 * zigzag + 0.4 * linear
    np.testing.assert_allclose(layer.rate.bias.ravel(), rate, atol=1e-6)
    np.testing.assert_allclose(layer.removal.ravel(), 0.71 - 0.1 * linear, atol=1e-6)
    mix = 1 - (n / width) ** np.array([0.2, 0.9, 0.7, 0.7, 0.9, 0.2])[:, None]
    np.testing.assert_allclose(layer.mix, mix, atol=1e-6)
    for array, gain in ((layer.query, 1), (layer.key, 0.1), (layer.value, 1)):
        matrix = np.asarray(array).reshape(width, width)
        np.testing.assert_allclose(matrix @ matrix.T, gain**2 * np.eye(width), atol=1e-5)
    assert layer.gate.bias is None and not layer.output.any() and not layer.decay.down.any()
    wide = jax.eval_shape(lambda: RWKV7(1024, 16, key=key))
    ranks = [each.down.shape[0] for each in (wide.decay, wide.rate, wide.gate)]
    assert ranks == [64, 64, 160]
