"""Imported weights give the outputs of the original code.

The `.npz` files beside this one were made once with the code of the originals, unchanged, at small
sizes with float32 parameters, all of them shifted by random numbers so that none is zero or one:

- `torch_rnns.npz`: torch 2.15.0; the `state_dict`, inputs, outputs and last states of modules.
- `lindermanlab_s5.npz`: lindermanlab/S5 at 3c18fdb6b06414da35e77b94b9cd855f6a95ef17, under jax
    0.11.2 and flax 0.12.12. Newer jax lacks `jax.numpy.DeviceArray`, which stands in annotations
    there; it was set to `jax.Array`.
- `minimal_lru.npz`: NicolasZucchet/minimal-LRU at bbd71b1104c399ec0d13819527d791949e66f599, with
    the same versions.
- `lrcssm.npz`: the cell of MoniFarsang/LrcSSM at 5581972e453467d0878df7ee9e7652295a1be12a, under
    jax 0.11.2 and equinox 0.13.8.
- `linoss.npz`: tk-rusch/linoss at 83e6318469cf9e5f78290ed5f5fe8db7cfb6e667, and the projection, the
    recurrence and the call of `DampedIMEX1Layer` of jaredbmit/damped-linoss at
    450b546f693918fe7cfe44082e88538fb29fbd64, under jax 0.11.2 with `jax_enable_x64`. Some of their
    `A_diag` and `G_diag` are where these are projected.

Each holds arrays by the path `case/params/...`; the statistics of batch norms are those after
twenty batches, and the outputs of models are those in inference.
"""

from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnscale import BidirectionalRNNEncoder, DeepRNNEncoder, RNNEncoder, trainable
from rnnscale.interop import (
    FrozenBatchNorm,
    damped_linoss_from_boyer,
    elman_cell_from_torch,
    elman_from_torch,
    gru_cell_from_torch,
    gru_from_torch,
    linoss_from_rusch,
    lrcssm_cell_from_farsang,
    lru_classifier_from_minimal,
    lru_from_minimal,
    lru_layers_from_minimal,
    lstm_cell_from_torch,
    lstm_from_torch,
    s5_classifier_from_lindermanlab,
    s5_from_lindermanlab,
    s5_layers_from_lindermanlab,
)
from rnnscale.ssm import S5, BidirectionalS5


def golden(file: str, case: str) -> dict[str, Any]:
    """The arrays of a case, as the tree given by their paths."""
    tree: dict[str, Any] = {}
    with np.load(Path(__file__).parent / file) as arrays:
        for path in arrays.files:
            first, *folders, name = path.split("/")
            if first == case:
                inner = tree
                for folder in folders:
                    inner = inner.setdefault(folder, {})
                inner[name] = arrays[path]
    assert tree, f"{file} has no {case}"
    return tree


def close(got: Any, expected: np.ndarray) -> None:
    scale = np.max(np.abs(expected))
    assert np.all(np.isfinite(expected)) and scale > 0.1
    np.testing.assert_allclose(np.asarray(got), expected, atol=1e-5 * scale, rtol=0)


def run(layer: Any, *args: Any, **kwargs: Any) -> Any:
    return eqx.filter_jit(lambda layer, args, kwargs: layer(*args, **kwargs))(layer, args, kwargs)


@pytest.mark.parametrize(("case", "read"), [("LSTM", lstm_from_torch), ("GRU", gru_from_torch)])
def test_torch_in_two_layers_both_ways(case, read):
    data = golden("torch_rnns.npz", case)
    encoder = read(data["params"])
    assert isinstance(encoder, DeepRNNEncoder)
    assert all(isinstance(each, BidirectionalRNNEncoder) for each in encoder.encoders)
    state, ys = run(encoder, data["xs"])
    close(ys, data["ys"])
    # torch stacks the last states: layer 0 forwards, backwards, layer 1 forwards, backwards
    both_ways = [each for layer in state for each in layer]
    for i, name in enumerate("hc" if case == "LSTM" else "h"):
        parts = [each[i] if case == "LSTM" else each for each in both_ways]
        close(np.stack(parts), data[name])


def test_torch_elman_without_biases():
    data = golden("torch_rnns.npz", "RNN")
    encoder = elman_from_torch(data["params"], nonlinearity=jax.nn.relu)
    assert isinstance(encoder, DeepRNNEncoder)
    assert all(isinstance(each, RNNEncoder) for each in encoder.encoders)
    close(run(encoder, data["xs"])[1], data["ys"])


@pytest.mark.parametrize(
    ("case", "read", "read_cell"),
    [
        ("LSTM", lstm_from_torch, lstm_cell_from_torch),
        ("GRU", gru_from_torch, gru_cell_from_torch),
        ("RNN", elman_from_torch, elman_cell_from_torch),
    ],
)
def test_torch_cells_and_parts_of_a_model(case, read, read_cell):
    params = golden("torch_rnns.npz", case)["params"]
    weights = {name: array for name, array in params.items() if name.endswith("_l0")}
    encoder = read(weights)
    assert isinstance(encoder, RNNEncoder)
    cell = read_cell({name.removesuffix("_l0"): array for name, array in weights.items()})
    assert eqx.tree_equal(cell, encoder.cell)
    model = {f"encoder.rnn.{name}": array for name, array in weights.items()}
    model["head.weight"] = np.zeros((2, 2))
    assert eqx.tree_equal(read(model, prefix="encoder.rnn."), encoder)


S5_LAYERS = {
    "zoh": {},
    "bilinear": {
        "discretisation": "bilinear",
        "conj_sym": False,
        "clip_eigenvalues": True,
        "step_rescale": 2.0,
    },
    "bidirectional": {},
    "bidirectional one C": {"conj_sym": False, "clip_eigenvalues": True, "step_rescale": 0.5},
}


@pytest.mark.parametrize("case", S5_LAYERS)
def test_s5_layers(case):
    data = golden("lindermanlab_s5.npz", case)
    layer = s5_from_lindermanlab(data["params"], **S5_LAYERS[case])
    assert type(layer) is (BidirectionalS5 if "bidirectional" in case else S5)
    close(run(layer, data["xs"])[1], data["ys"])


@pytest.mark.parametrize(
    ("case", "activation", "pool", "options"),
    [
        ("half_glu1 batch", "half_glu1", "mean", {}),
        (
            "full_glu layer",
            "full_glu",
            "last",
            {"discretisation": "bilinear", "clip_eigenvalues": True, "step_rescale": 0.5},
        ),
        ("half_glu2 batch", "half_glu2", "last", {"conj_sym": False}),
        ("gelu layer", "gelu", "mean", {}),
    ],
)
def test_s5_classifiers(case, activation, pool, options):
    data = golden("lindermanlab_s5.npz", case)
    variables = {name: data[name] for name in ("params", "batch_stats") if name in data}
    norm = "batch" if "batch" in case else "layer"
    model = s5_classifier_from_lindermanlab(
        variables, norm=norm, activation=activation, pool=pool, **options
    )
    assert isinstance(model.stack.blocks.norm, FrozenBatchNorm) == ("batch" in case)
    _, logits = run(model, data["xs"], lengths=data.get("lengths"))
    close(jax.nn.log_softmax(logits), data["ys"])


@pytest.mark.parametrize("pool", ["mean", "last", "none"])
def test_lru_classifiers(pool):
    case = {"mean": "batch mean", "last": "layer last", "none": "batch none"}[pool]
    data = golden("minimal_lru.npz", case)
    variables = {name: data[name] for name in ("params", "batch_stats") if name in data}
    norm = "batch" if "batch" in case else "layer"
    _, logits = run(lru_classifier_from_minimal(variables, norm=norm, pool=pool), data["xs"])
    logits = logits.reshape(data["ys"].shape)
    close(jax.nn.log_softmax(logits, axis=-1), data["ys"])


def test_lru_layer():
    data = golden("minimal_lru.npz", "layer")
    close(run(lru_from_minimal(data["params"]), data["xs"])[1], data["ys"])


@pytest.mark.parametrize(
    ("case", "options"), [("asymmetric", {}), ("symmetric", {"form": "symmetric", "dt": 0.5})]
)
def test_lrcssm_cells(case, options):
    data = golden("lrcssm.npz", case)
    cell = lrcssm_cell_from_farsang(data["params"], **options)
    close(run(RNNEncoder(cell), data["xs"])[1], data["ys"])


@pytest.mark.parametrize("discretisation", ["im", "imex"])
def test_linoss_layers(discretisation):
    data = golden("linoss.npz", discretisation)
    layer = linoss_from_rusch(data["params"], discretisation=discretisation)
    close(run(layer, data["xs"])[1], data["ys"])


def test_damped_linoss_layer():
    data = golden("linoss.npz", "damped")
    close(run(damped_linoss_from_boyer(data["params"]), data["xs"])[1], data["ys"])


def test_layers_are_found_by_their_path():
    params = golden("minimal_lru.npz", "layer last")["params"]
    found = lru_layers_from_minimal(params)
    assert list(found) == ["encoder.layers_0.seq", "encoder.layers_1.seq"]
    alone = lru_from_minimal(params["encoder"]["layers_1"]["seq"])
    assert eqx.tree_equal(found["encoder.layers_1.seq"], alone)
    params = golden("lindermanlab_s5.npz", "gelu layer")["params"]
    found = s5_layers_from_lindermanlab(params, step_rescale=2.0)
    assert list(found) == ["encoder.layers_0.seq", "encoder.layers_1.seq"]
    alone = s5_from_lindermanlab(params["encoder"]["layers_0"]["seq"], step_rescale=2.0)
    assert eqx.tree_equal(found["encoder.layers_0.seq"], alone)


def test_an_imported_model_is_one_of_ours():
    data = golden("lindermanlab_s5.npz", "half_glu1 batch")
    model = s5_classifier_from_lindermanlab({k: data[k] for k in ("params", "batch_stats")})
    leaves = jax.tree.leaves(model)
    assert all(isinstance(leaf, jax.Array) and leaf.dtype == jnp.float32 for leaf in leaves)
    frozen = trainable(model).stack.blocks.norm
    assert (frozen.mean, frozen.variance, frozen.scale, frozen.bias) == (False, False, True, True)
