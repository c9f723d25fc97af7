"""`Preprocessing`: what is fitted to the training split and applied to new data in the same way."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from os import PathLike
from typing import Any

import numpy as np

from rnnscale._errors import UserError
from rnnscale.data import PaddedSource, SequenceArrays, arrays_over_time
from rnnscale.tasks._data_options import DataOptions, Kind
from rnnscale.tasks.files._arrays import table_of_arrays
from rnnscale.tasks.files._read import read_new, with_constant_labels_once
from rnnscale.tasks.files._series_table import (
    SeriesTable,
    check_complete,
    names_of,
    with_numbers_as_labels,
)


class NewSeries(PaddedSource):
    """Series of new data as records for a model, padded to one length.

    **Attributes:**

    - `names`: where each series comes from, such as `"x.ts, line 12"`, or the name of its group.
    """

    def __init__(self, source: SequenceArrays, steps: int, names: Sequence[str]):
        super().__init__(source, steps, per_step=arrays_over_time(source.element_spec))
        self.names = tuple(names)


@dataclass(frozen=True)
class Preprocessing:
    """How a task's data become records: fitted to the training split only.

    It is kept in the folder of a run, and makes records of new data as the model takes them, and
    predictions in the units and names of the data.

    **Attributes:**

    - `options`: how the data are read. Their kind is decided.
    - `columns`: the names of the inputs in the data.
    - `mean`, `std`: of each input in the training split, without missing values; 1 for the standard
        deviation of a constant input.
    - `classes`: the names of the classes in the order of the labels; None for real labels.
    - `targets`: the names of the labels.
    - `target_mean`, `target_std`: of each real label in the training split; empty for classes.
    - `labels_per_step`: whether there is a label at each step.
    - `interval`: the median time between two steps in the training split; None without times.
    - `irregular`: whether the steps are not evenly spaced. Then records have `"intervals"`, in
        units of `interval`.
    - `seq_len`: steps of the records of the task.
    """

    options: DataOptions
    columns: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    targets: tuple[str, ...]
    classes: tuple[str, ...] | None
    target_mean: tuple[float, ...]
    target_std: tuple[float, ...]
    labels_per_step: bool
    interval: float | None
    irregular: bool
    seq_len: int

    @property
    def kind(self) -> Kind:
        """The kind of problem."""
        assert self.options.kind is not None  # it is decided when the preprocessing is fitted
        return self.options.kind

    @property
    def idim(self) -> int:
        """The number of features of a record's inputs."""
        return len(self.columns) * (2 if self.options.missing == "mask" else 1)

    def to_json(self) -> dict[str, Any]:
        """The values as JSON can store them."""
        return dataclasses.asdict(self)

    def difference(self, other: "Preprocessing") -> str | None:
        """The first attribute by which the two make different records of the same data; None if
        there is none. Numbers may differ by rounding, and `seq_len` is not compared."""
        names = "kind", "columns", "classes", "targets", "labels_per_step", "irregular"
        for name in (*names, "options.missing"):
            if attrgetter(name)(self) != attrgetter(name)(other):
                return name
        interval = self.interval or 1.0
        units = {"mean": self.std, "std": self.std, "interval": interval}
        units |= dict.fromkeys(("target_mean", "target_std"), self.target_std)
        for name, unit in units.items():
            mine, others = (np.array(getattr(x, name), np.float64) for x in (self, other))
            equal = np.isclose(mine / unit, others / unit, rtol=1e-6, atol=1e-6, equal_nan=True)
            if not equal.all():
                return name
        return None

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Preprocessing":
        """The preprocessing of which `to_json` is the JSON.

        **Raises:** `ValueError` if a value is missing or unknown.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if stored.keys() != known:
            raise UserError(
                f"the stored preprocessing must have {', '.join(sorted(known))}; it has "
                f"{', '.join(sorted(stored))}: use the version of rnnscale that wrote it"
            )
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
        return cls(**{**values, "options": DataOptions.from_json(stored["options"])})

    def read(
        self,
        data: str | PathLike[str] | np.ndarray | Sequence[np.ndarray],
        *,
        times: np.ndarray | Sequence[np.ndarray] | None = None,
    ) -> NewSeries:
        """Records of new data, as the model takes them.

        **Arguments:**

        - `data`: a file or a folder, of the same form as the training data, whose labels can be
            missing; or inputs in memory, as `Task.from_arrays` takes them, with the channels in
            the order of `columns`.
        - `times`: for inputs in memory, the times of their steps, as `Task.from_arrays` takes them,
            in the unit of the training data; dates are seconds since 1970.

        **Returns:**

        A source with a record for each series, in the order of the file: `"inputs"`, `"lengths"`,
        `"intervals"` if samples are not evenly spaced, and `"labels"` if the data have them. They
        are padded to the steps of the training data, or to the longest series if that is longer.
        For a forecast, the inputs are the last steps of a series, and the model's output at the
        last of them is the forecast.

        **Raises:** `ValueError` if the data can't be read, or have other columns or classes than
        the training data; `TypeError` if they are no path and no arrays.
        """
        if isinstance(data, (str, PathLike)):
            if times is not None:
                raise UserError(
                    f"times are for inputs in memory; {data} has its own, leave them out"
                )
            path, table = data, read_new(data, self.options)
        elif not isinstance(data, list | tuple) and np.ndim(data) == 0:
            raise TypeError(f"data must be a path, an array, or a list of arrays; got {data!r}")
        else:
            if self.kind != "forecast" and isinstance(data, np.ndarray) and data.ndim == 2:
                data = data[..., None]  # series of one channel
            path = "the array"
            table = table_of_arrays(path, data, times=times)
            if len(table.columns) == len(self.columns):  # arrays have no names of their own
                table = replace(table, columns=self.columns)
        if table.columns != self.columns:
            raise UserError(
                f"{path} has the inputs {', '.join(table.columns)}; the training data had "
                f"{', '.join(self.columns)}"
            )
        if self.kind == "forecast":
            table = table.last_steps(self.seq_len)
        elif not self.labels_per_step:
            table = with_constant_labels_once(table)
        if self.options.missing == "error":
            check_complete(table, new=True)
        if table.labels and self.kind == "regression":
            table = with_numbers_as_labels(table)
        if table.labels and table.labels_per_step != self.labels_per_step:
            per = "step" if self.labels_per_step else "series"
            raise UserError(f"{path} must have one label for each {per}, as the training data")
        if table.times and self.interval is None:
            raise UserError(
                f"{path} has times, and the training data had no times; leave out times"
            )
        if not table.times and self.interval is not None:
            raise UserError(
                f"{path} has no times, and the training data had times; give those of all steps as "
                "times, of the shape (series, steps)"
            )
        if table.times and not self.irregular:
            self._check_even(table)
        names = table.short_names
        if len(set(names)) < len(names):  # groups of the same name in several files
            names = table.names
        steps = max(self.seq_len, int(table.lengths.max()))
        return NewSeries(self.sequences(table), steps, names)

    def decode(self, outputs: np.ndarray) -> dict[str, np.ndarray]:
        """The predictions in the names and units of the data.

        **Arguments:**

        - `outputs`: outputs of the model, shape `(..., classes)` or `(..., targets)`.

        **Returns:**

        Arrays without the last axis. For classes `"prediction"`, their names, and `"probability of
        NAME"` for each class. For real labels an array for each target, under its name.
        """
        outputs = np.asarray(outputs, np.float64)
        expected = len(self.target_mean if self.classes is None else self.classes)
        if outputs.shape[-1:] != (expected,):
            raise ValueError(f"outputs must have the shape (..., {expected}); got {outputs.shape}")
        if self.classes is None:
            values = outputs * np.array(self.target_std) + np.array(self.target_mean)
            return {name: values[..., n] for n, name in enumerate(self.targets)}
        probability = np.exp(outputs - outputs.max(axis=-1, keepdims=True))
        probability /= probability.sum(axis=-1, keepdims=True)
        names = np.array(self.classes)
        return {
            "prediction": names[outputs.argmax(axis=-1)],
            **{f"probability of {c}": probability[..., n] for n, c in enumerate(self.classes)},
        }

    def sequences(self, table: SeriesTable) -> SequenceArrays:
        """The series as a model takes them, without padding."""
        over_time = {"inputs": [self.features(x) for x in table.inputs]}
        per_series = {}
        if self.irregular:
            over_time["intervals"] = [self.intervals(t) for t in table.times]
        if table.labels:
            labels = [self.encode(y, n) for y, n in zip(table.labels, table.names, strict=True)]
            if self.labels_per_step:
                over_time["labels"] = labels
            else:
                per_series["labels"] = np.stack(labels)
        return SequenceArrays(over_time, per_series)

    def features(self, inputs: np.ndarray) -> np.ndarray:
        """The inputs of a series, standardised; missing values are the mean."""
        scaled = (inputs - np.array(self.mean)) / np.array(self.std)
        missing = np.isnan(scaled)
        scaled = np.where(missing, 0, scaled)
        if self.options.missing == "mask":
            scaled = np.concatenate([scaled, missing], axis=1)
        return scaled.astype(np.float32)

    def intervals(self, times: np.ndarray) -> np.ndarray:
        """The time between steps in units of the training data; 1 before the first step."""
        units = times / (self.interval or 1)
        return np.diff(units, prepend=units[0] - 1).astype(np.float32)

    def _check_even(self, table: SeriesTable) -> None:
        """**Raises:** `ValueError` if steps are not as far apart as in the training data."""
        for name, times in zip(table.names, table.times, strict=True):
            if not is_even([times], self.interval):
                raise UserError(
                    f"{name}: its steps must be {self.interval:g} apart, as in the training data; "
                    f"they are {np.diff(times).min():g} to {np.diff(times).max():g} apart"
                )

    def encode(self, labels: np.ndarray, name: str) -> np.ndarray:
        """The labels of a series as a model takes them."""
        if self.classes is None:
            scaled = (labels - np.array(self.target_mean)) / np.array(self.target_std)
            return scaled.astype(np.float32)
        numbers = {label: number for number, label in enumerate(self.classes)}
        names = names_of(labels).ravel().tolist()
        found = [numbers.get(label) for label in names]
        if None in found:
            unknown = names[found.index(None)]
            raise UserError(
                f"{name}: the class {unknown!r} is not one of {', '.join(self.classes)}"
            )
        return np.array(found, np.int32).reshape(labels.shape[:-1])


def mean_and_std(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each column without missing values; 0 and 1 for a column with
    no value, and 1 for the deviation of a constant one."""
    known = ~np.isnan(values)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, values, 0).sum(axis=0) / count
    std = np.sqrt(np.where(known, np.square(values - mean), 0).sum(axis=0) / count)
    # The mean of equal numbers is rounded, so that they differ from it.
    return mean, np.where(std > 1e-12 * np.abs(mean), std, 1)


def median_interval(times: Sequence[np.ndarray]) -> float | None:
    """The median time between two steps of series; None if they have no times."""
    if not times:
        return None
    between = np.concatenate([np.diff(of_series) for of_series in times])
    return float(np.median(between)) if len(between) else 1.0


def is_even(times: Sequence[np.ndarray], interval: float | None) -> bool:
    """Whether all steps of the series are `interval` apart, to a thousandth."""
    if interval is None:
        return True
    return all(bool((abs(np.diff(t) / interval - 1) < 1e-3).all()) for t in times)
