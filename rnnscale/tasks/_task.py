"""The class `Task`: a source of records for each split, and what a model has to know about them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rnnscale.data import SequenceSource, Source


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
        labels) for real labels.
    - `classes`: for classification, the number of label values: labels are ints in `[0, classes)`,
        of shape `()` or `(seq_len,)`.
    - `odim`: for regression, the number of features of a label: labels are float32 of shape
        `(odim,)` or `(seq_len, odim)`. Exactly one of `classes` and `odim` is given.
    - `notes`: where the data came from; the values must be storable as JSON.
    - `baseline`: a function that computes the metrics of a simple model on the test split, by name;
        None if there is no baseline. It can take some seconds, and runs only when called.
    - `sequences`: for tasks whose records are padded sequences, the unpadded sequences of each
        split, by the name of the split; `bucket`, `pack` and `lanes` take them. Otherwise empty.

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
    metric: Literal["accuracy", "bits_per_byte", "mse", "nrmse"]
    classes: int | None = None
    odim: int | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    baseline: Callable[[], Mapping[str, float]] | None = None
    sequences: Mapping[str, SequenceSource] = field(default_factory=dict)

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
