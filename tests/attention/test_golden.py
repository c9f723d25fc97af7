"""Layers of xLSTM with the weights of other code give the outputs of that code.

The `.npz` files beside this one were made once, at small sizes with random float32 parameters:

- `xlstm_large.npz`: the layer `xLSTMLayer` of transformers 5.24.0 under torch 2.15.0, with its own
    code for CPUs (`mode="inference"`, `chunk_size` above the length).
- `xlstm_mlstm.npz`, `xlstm_slstm.npz`: the layers `mLSTMLayer` (inner features rounded to 8) and
    `sLSTMLayer` (`backend="vanilla"`) of the authors' package xlstm 2.0.6 under torch 2.15.0.
"""

from pathlib import Path
from typing import Any

import equinox as eqx
import numpy as np

from rnnscale.attention import MLSTM, UpProjectedMLSTM
from rnnscale.layers import SLSTM, CausalConv


def golden(file: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters, and the inputs and outputs."""
    with np.load(Path(__file__).parent / file) as arrays:
        data = dict(arrays)
    params = {name[7:]: data.pop(name) for name in list(data) if name.startswith("params/")}
    return params, data


def replaced(layer: Any, **arrays: Any) -> Any:
    """The layer with these arrays, each in the shape that it has there."""
    return eqx.tree_at(
        lambda each: [getattr(each, name) for name in arrays],
        layer,
        [array.reshape(getattr(layer, name).shape) for name, array in arrays.items()],
    )


def test_mlstm_of_transformers(key):
    params, data = golden("xlstm_large.npz")
    layer = replaced(
        MLSTM(24, 3, key=key),
        query=params["q.weight"],
        key=params["k.weight"],
        value=params["v.weight"],
        output_gate=params["ogate_preact.weight"],
        gates=np.stack([params["igate_preact.weight"], params["fgate_preact.weight"]]),
        gate_bias=np.stack([params["igate_preact.bias"], params["fgate_preact.bias"]]),
        scale=params["multihead_norm.weight"],
        output=params["out_proj.weight"],
    )
    state, ys = eqx.filter_jit(layer)(data["xs"])
    assert relative_error(ys, data["ys"]) < 1e-5
    # There, queries are divided by the root of the size of keys; here, keys are, as in the paper.
    size = layer.key_dim**0.5
    assert relative_error(size * state.memory, data["memory"]) < 1e-5
    assert relative_error(size * state.normaliser, data["normaliser"]) < 1e-5
    np.testing.assert_allclose(state.stabiliser, data["stabiliser"][..., 0], rtol=1e-5)


def test_up_projected_mlstm_of_the_authors(key):
    params, data = golden("xlstm_mlstm.npz")
    layer = replaced(
        UpProjectedMLSTM(12, 3, key=key),
        up=params["proj_up.weight"],
        qkv=np.stack([params[f"{name}_proj.weight"] for name in "qkv"]),
        gates=np.stack([params[f"mlstm_cell.{name}gate.weight"] for name in "if"]),
        gate_bias=np.stack([params[f"mlstm_cell.{name}gate.bias"] for name in "if"]),
        scale=1 + params["mlstm_cell.outnorm.weight"],
        skip=params["learnable_skip"],
        down=params["proj_down.weight"],
    )
    layer = eqx.tree_at(lambda each: each.conv, layer, convolution(layer.conv, params))
    _, ys = eqx.filter_jit(layer)(data["xs"])
    assert relative_error(ys, data["ys"]) < 1e-5


def test_slstm_of_the_authors(key):
    """Their layer calls the map of the input gate `fgate`, and that of the forget gate `igate`."""
    params, data = golden("xlstm_slstm.npz")
    layer = replaced(
        SLSTM(12, 3, key=key),
        input=np.stack([params[f"{name}gate.weight"] for name in "fizo"]),
        scale=1 + params["group_norm.weight"],
    )
    cell = replaced(
        layer.encoder.cell,
        # There, heads come before gates.
        recurrent=params["slstm_cell._recurrent_kernel_"].reshape(3, 4, 4, 4).swapaxes(0, 1),
        bias=params["slstm_cell._bias_"],
    )
    conv = convolution(layer.conv, params)
    layer = eqx.tree_at(lambda each: (each.conv, each.encoder.cell), layer, (conv, cell))
    state, ys = eqx.filter_jit(layer)(data["xs"])
    assert relative_error(ys, data["ys"]) < 1e-5
    assert relative_error(np.stack(state.cell), data["state"]) < 1e-5


def convolution(conv: CausalConv | None, params: dict[str, Any]) -> Any:
    """The convolution of torch, whose last weight belongs to the present step."""
    weight = params["conv1d.conv.weight"][:, 0, ::-1]
    return replaced(conv, weight=weight, bias=params["conv1d.conv.bias"])


def relative_error(got: Any, expected: Any) -> float:
    return float(np.max(np.abs(np.asarray(got) - expected)) / np.max(np.abs(expected)))
