"""Layers of xLSTM with the weights of other code give the outputs of that code.

The `.npz` files beside this one were made once, at small sizes with random float32 parameters:

- `xlstm_large.npz`: the layer `xLSTMLayer` of transformers 5.24.0 under torch 2.15.0, with its own
    code for CPUs (`mode="inference"`, `chunk_size` above the length).
"""

from pathlib import Path
from typing import Any

import equinox as eqx
import numpy as np

from rnnscale.attention import MLSTM


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


def relative_error(got: Any, expected: Any) -> float:
    return float(np.max(np.abs(np.asarray(got) - expected)) / np.max(np.abs(expected)))
