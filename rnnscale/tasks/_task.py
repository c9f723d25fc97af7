"""The class `Task`: a source of records for each split, and `TaskSpec`, what a model has to know
about them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from rnnscale._errors import UserError
from rnnscale.data import SequenceSource, Source, element_spec
from rnnscale.tasks._data_options import DataOptions, Kind, Missing
from rnnscale.tasks.files._fields import fields_of_arrays
from rnnscale.tasks.files._preprocessing import Preprocessing

type Metric = Literal["accuracy", "bits_per_byte", "mse", "nrmse"]


@dataclass(frozen=True)
class TaskSpec:
    """What a model and its loss need to know about a task: a `Task` without its data. A run keeps
    it, so that the trained model can be used where the data are not.

    **Attributes:** those of `Task` with the same names. All can be stored as JSON.
    """

    name: str
    inputs: Literal["features", "tokens"]
    idim: int
    labels: Literal["sequence", "step"]
    seq_len: int
    metric: Metric
    classes: int | None = None
    odim: int | None = None

    @property
    def outputs(self) -> int:
        """The number of outputs of a model: `classes` or `odim`."""
        return self.classes or self.odim or 0  # a task has one of them


@dataclass(frozen=True, eq=False)
class Task:
    """A data set with a fixed split, and what a model and a training loop need to know about it.

    **Attributes:**

    - `name`: the name that logs and summaries show.
    - `train`, `validation`, `test`: the splits; no record is in two of them.
    - `inputs`: `"features"` for float inputs of shape `(seq_len, idim)`, `"tokens"` for int inputs
        of shape `(seq_len,)` in `[0, idim)`.
    - `idim`: the number of features, or of distinct tokens.
    - `labels`: `"sequence"` for one label per record, `"step"` for one per time step.
    - `seq_len`: time steps in a record.
    - `metric`: how predictions on the test split are judged: `"accuracy"` or `"bits_per_byte"` for
        classes; `"mse"` or `"nrmse"` (its square root divided by the standard deviation of the
        labels) for real labels. These are the figures of the losses that `rnnscale.runs.run` uses.
        A loss of your own is for your own loop, where `evaluate` takes the name of any of its sums.
    - `classes`: for classification, the number of label values: labels are ints in `[0, classes)`,
        of shape `()` or `(seq_len,)`.
    - `odim`: for regression, the number of features of a label: labels are float32 of shape
        `(odim,)` or `(seq_len, odim)`. Exactly one of `classes` and `odim` is given.
    - `notes`: where the data came from; the values must be storable as JSON.
    - `baseline`: a function that computes the metrics of a simple model on the test split, by name;
        None if there is no baseline. It can take some seconds, and runs only when called.
    - `sequences`: for tasks whose records are padded sequences, the unpadded sequences of each
        split, by the name of the split; `bucket`, `pack` and `lanes` take them. Otherwise empty.
    - `preprocessing`: for tasks of one's own series, what was fitted to the training split; it
        makes records of new data, and predictions in their units. Otherwise None.

    **Raises:** `ValueError` if both or neither of `classes` and `odim` are given, or the metric
    does not fit the kind of labels.
    """

    name: str
    train: Source
    validation: Source
    test: Source
    inputs: Literal["features", "tokens"]
    idim: int
    labels: Literal["sequence", "step"]
    seq_len: int
    metric: Metric
    classes: int | None = None
    odim: int | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    baseline: Callable[[], Mapping[str, float]] | None = None
    sequences: Mapping[str, SequenceSource] = field(default_factory=dict)
    preprocessing: Preprocessing | None = None

    def __post_init__(self):
        if (self.classes is None) == (self.odim is None):
            raise ValueError(
                f"task {self.name!r} needs either classes (labels are ints) or odim (labels are "
                f"real); got classes={self.classes} and odim={self.odim}"
            )
        metrics = ("mse", "nrmse") if self.classes is None else ("accuracy", "bits_per_byte")
        if self.metric not in metrics:
            kind = "odim" if self.classes is None else "classes"
            raise ValueError(
                f"task {self.name!r} has {kind}, so its metric must be one of {metrics}; "
                f"got {self.metric!r}"
            )

    @property
    def spec(self) -> TaskSpec:
        """What a model needs to know about the task, without the data."""
        return TaskSpec(
            name=self.name,
            inputs=self.inputs,
            idim=self.idim,
            labels=self.labels,
            seq_len=self.seq_len,
            metric=self.metric,
            classes=self.classes,
            odim=self.odim,
        )

    @classmethod
    def from_arrays(
        cls,
        inputs: np.ndarray | Sequence[np.ndarray],
        labels: np.ndarray | Sequence[Any] | None = None,
        *,
        lengths: np.ndarray | None = None,
        times: np.ndarray | Sequence[np.ndarray] | None = None,
        split: tuple[float, float, float] | Sequence[str] | np.ndarray = (0.7, 0.1, 0.2),
        kind: Kind | None = None,
        horizon: int | None = None,
        missing: Missing = "error",
        seq_len: int | None = None,
        name: str = "arrays",
    ) -> "Task":
        """A task of arrays in memory, standardised by its training split.

        **Arguments:**

        - `inputs`: real numbers of shape `(series, steps)` or `(series, steps, channels)`, or a
            list of arrays of shape `(steps, channels)`; without labels also one series of shape
            `(steps,)` or `(steps, channels)`. NaN is a missing value.
        - `labels`: one per series, `(series,)` or `(series, targets)`, or one at each step,
            `(series, steps)` or `(series, steps, targets)`: names or numbers. None for a forecast.
        - `lengths`: the steps of each series that are not padding, shape `(series,)`.
        - `times`: the times of the steps, like `inputs` without channels, if they are not evenly
            spaced.
        - `split`: the fractions of training, validation and test; or for each series `"train"`,
            `"validation"` or `"test"`.
        - `kind`, `horizon`, `missing`: see `DataOptions`.
        - `seq_len`: steps in a record of a forecast, at least 1.
        - `name`: the name that logs and summaries show.

        **Returns:** the task, see `task_from`.

        **Raises:** `ValueError` if an array has another shape, or a value can't be used.
        """
        arrays = {"inputs": inputs, "labels": labels, "lengths": lengths, "times": times}
        options = DataOptions(kind=kind, horizon=horizon, missing=missing)
        return cls(name=name, **fields_of_arrays(arrays, split, options, seq_len, name))


def check_records(task: Any) -> None:
    """Raises unless the records of a task are as it says, by the first one of each split.

    **Raises:** `UserError` if it is not a `Task`, a split is empty, or arrays of its records are
    missing or have another kind or shape.
    """
    if not isinstance(task, Task):
        raise UserError(
            "task must be a rnnscale.tasks.Task, such as Task.from_arrays(inputs, labels); got "
            f"{type(task).__name__}"
        )
    steps = (task.seq_len,)
    real_inputs, real_labels = task.inputs == "features", task.odim is not None
    expected = {
        "inputs": (real_inputs, (*steps, task.idim) if real_inputs else steps),
        "labels": (
            real_labels,
            (*(steps if task.labels == "step" else ()), *((task.odim,) if real_labels else ())),
        ),
    }
    for split in ("train", "validation", "test"):
        spec = element_spec(getattr(task, split))
        for name, (real, shape) in expected.items():
            got = spec[name] if name in spec else None
            if got is None or tuple(got.shape) != shape or (got.dtype.kind == "f") != real:
                raise UserError(
                    f"the task {task.name!r} has records with {name} "
                    f"{'float' if real else 'int'}{list(shape)}, from what it says of itself, but "
                    f"its split {split} has "
                    + ("none" if got is None else f"{got.dtype}{list(got.shape)}")
                    + '. See "Add a task" in rnnscale/tasks/README.md'
                )
