"""Predictions of a trained model for new data, in the names and units of the data."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from os import PathLike
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from rnnscale._base import SequenceModel
from rnnscale.data import PaddedSource, Record, evaluation_batches
from rnnscale.runs._config import TrainConfig
from rnnscale.runs._predictions import Predictions
from rnnscale.runs._setup import batch_layout
from rnnscale.tasks import Preprocessing, TaskSpec
from rnnscale.training import call_model


def predict(
    model: SequenceModel,
    preprocessing: Preprocessing,
    data: str | PathLike[str] | np.ndarray | Sequence[np.ndarray],
    *,
    times: np.ndarray | Sequence[np.ndarray] | None = None,
    config: TrainConfig,
    spec: TaskSpec,
    mesh: Mesh,
) -> Predictions:
    """The predictions of a trained model for new data; see `Preprocessing.read`.

    **Raises:** `ValueError` if the data can't be read or do not fit the model.
    """
    series = preprocessing.read(data, times=times)
    per_step = spec.labels == "step"
    over_time = ("inputs", "intervals", "labels") if per_step else ("inputs", "intervals")
    records = PaddedSource(series, mesh.shape["seq"], per_step=over_time)
    outputs, labels, lengths = _outputs(model, records, config, spec, mesh)
    names = np.asarray(series.names)
    if preprocessing.kind == "forecast":
        # What follows the last step is what nobody knows yet.
        outputs = outputs[np.arange(len(lengths)), lengths - 1]
        return Predictions(names, None, preprocessing.decode(outputs), {})
    steps = None
    if per_step:
        valid = np.arange(outputs.shape[1]) < lengths[:, None]
        rows, steps = np.nonzero(valid)
        names, outputs = names[rows], outputs[valid]
        labels = None if labels is None else labels[valid]
    values = preprocessing.decode(outputs)
    figures = {} if labels is None else _figures(preprocessing, outputs, labels)
    return Predictions(names, steps, values, figures)


def _outputs(
    model: SequenceModel, records: PaddedSource, config: TrainConfig, spec: TaskSpec, mesh: Mesh
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """For each record the outputs of the model, its labels if it has them, and its length."""
    label_axes = 2 if spec.labels == "step" else 1

    @jax.jit
    def run(model: PyTree, batch: Mapping[str, Array]) -> Array:
        batch = {**batch, "inputs": batch["inputs"].astype(config.dtype)}
        return call_model(model, batch, label_axes=label_axes)[1].astype(jnp.float32)

    parts: list[tuple[Any, Record]] = []
    layout = partial(batch_layout, mesh, spec)
    with (
        jax.set_mesh(mesh),
        evaluation_batches(records, config.batch_size, shardings=layout) as batches,
    ):
        for batch in batches:
            outputs = run(model, {name: x for name, x in batch.items() if name != "labels"})
            parts.append((np.asarray(outputs), {name: np.asarray(x) for name, x in batch.items()}))
    assert len(parts) == math.ceil(len(records) / config.batch_size)

    def joined(arrays: Any) -> np.ndarray:
        return np.concatenate(list(arrays))[: len(records)]  # the last batch was filled up

    labels = None
    if "labels" in parts[0][1]:
        labels = joined(batch["labels"] for _, batch in parts)
    return (
        joined(outputs for outputs, _ in parts),
        labels,
        joined(batch["lengths"] for _, batch in parts),
    )


def _figures(
    preprocessing: Preprocessing, outputs: np.ndarray, labels: np.ndarray
) -> dict[str, float]:
    """How well outputs agree with labels."""
    if preprocessing.classes is not None:
        return {"accuracy": float((outputs.argmax(axis=-1) == labels).mean())}
    predicted, true = preprocessing.decode(outputs), preprocessing.decode(labels)
    return {
        f"rmse of {name}": float(np.sqrt(np.square(predicted[name] - true[name]).mean()))
        for name in true
    }
