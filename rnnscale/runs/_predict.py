"""Predictions for new data, in the names and units of the data, and the files that hold them."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from rnnscale._base import SequenceModel
from rnnscale._errors import UserError
from rnnscale.data import PaddedSource, Record, evaluation_batches
from rnnscale.runs._config import TrainConfig
from rnnscale.runs._setup import batch_layout
from rnnscale.tasks import Preprocessing, TaskSpec
from rnnscale.training import call_model


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions for the series of new data: one row for each series, or, if the task has labels
    at each step, one for each of its steps.

    **Attributes:**

    - `series`: shape `(rows,)`: where the series comes from, such as `"x.csv, line 12"`.
    - `steps`: shape `(rows,)`: the step in its series, from 0; None for one row per series.
    - `values`: arrays of shape `(rows,)`. For classes `"prediction"`, the name of the likeliest,
        and `"probability of NAME"` for each; for real labels, each under its name, in the units of
        the data.
    - `figures`: if the data have labels, `"accuracy"`; or for real labels, `"rmse of NAME"`, the
        root of the mean squared error in the units of the data. Otherwise empty.
    """

    series: np.ndarray
    steps: np.ndarray | None
    values: Mapping[str, np.ndarray]
    figures: Mapping[str, float]

    def write(self, path: str | PathLike[str]) -> None:
        """Writes all rows to a file.

        **Arguments:**

        - `path`: a `.csv` file, with a line per row; or a `.npz` file, with an array per column.
            The columns are `series`, `step` if there is one, and those of `values`.

        **Raises:** `ValueError` if the file has another suffix or can't be written.
        """
        check_suffix(path)
        columns = {"series": self.series}
        if self.steps is not None:
            columns["step"] = self.steps
        if clashes := columns.keys() & self.values.keys():
            raise UserError(
                f"{path} would have two columns {min(clashes)!r}: rename that label in the data"
            )
        columns |= self.values
        try:
            if Path(path).suffix == ".npz":
                np.savez(path, allow_pickle=False, **columns)
                return
            with Path(path).open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(columns)
                writer.writerows(zip(*(each.tolist() for each in columns.values()), strict=True))
        except OSError as error:
            raise UserError(f"{path} can't be written ({error.strerror})") from error


def check_suffix(path: str | PathLike[str]) -> None:
    """**Raises:** `UserError` if predictions can't be written to a file of that name."""
    if Path(path).suffix not in (".csv", ".npz"):
        raise UserError(f"predictions are written to a .csv or an .npz file; got {str(path)!r}")


def predict(
    model: SequenceModel,
    preprocessing: Preprocessing,
    data: str | PathLike[str] | np.ndarray | Sequence[np.ndarray],
    *,
    config: TrainConfig,
    spec: TaskSpec,
    mesh: Mesh,
) -> Predictions:
    """The predictions of a trained model for new data; see `Preprocessing.read`.

    **Raises:** `ValueError` if the data can't be read or do not fit the model.
    """
    series = preprocessing.read(data)
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
