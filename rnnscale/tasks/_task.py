"""What a task is: a source of records for each split, and what a model has to know of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rnnscale._errors import UserError
from rnnscale.data.sources import SequenceSource, Source


@dataclass(frozen=True, eq=False)
class Task:
    """A data set with a fixed split, and what a model and a training loop need to know of it.

    **Attributes:**

    - `name`, `description`: for people.
    - `train`, `validation`, `test`: the splits; no record is in two of them.
    - `inputs`: `"features"` for float inputs of shape `(seq_len, idim)`, `"tokens"` for int inputs
        of shape `(seq_len,)` in `[0, idim)`.
    - `idim`: the number of features, or of distinct tokens.
    - `labels`: `"sequence"` for one label a record, `"step"` for one a time step.
    - `seq_len`: time steps in a record.
    - `metric`: what the test split is judged by: `"accuracy"` or `"bits_per_byte"` where labels
        are classes; `"mse"`, or `"nrmse"` (the root of that over the standard deviation of the
        labels), where they are real.
    - `classes`: for classification, the number of label values: labels are ints in `[0, classes)`,
        of shape `()` or `(seq_len,)`.
    - `odim`: for regression, the number of features of a label: labels are float32 of shape
        `(odim,)` or `(seq_len, odim)`. Exactly one of `classes` and `odim` is given.
    - `notes`: where the data came from; values go into JSON as they are.
    - `baseline`: computes the figures of a simple model on the test split, by name, for comparison;
        None where there is none. It may take some seconds, and nothing is spent unless it is
        called.
    - `sequences`: by the names of the splits, their sequences as long as they are, where records
        are sequences filled up to one length: for `bucket`, `pack` and
        `lanes`. Empty where they are not.

    **Raises:** `ValueError` where both or neither of `classes` and `odim` are given, or the metric
    isn't one of such labels.
    """

    name: str
    description: str
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
            raise UserError(
                f"task {self.name!r} needs either classes (labels are ints) or odim (labels are "
                f"real); got classes={self.classes} and odim={self.odim}"
            )
        metrics = ("mse", "nrmse") if self.classes is None else ("accuracy", "bits_per_byte")
        if self.metric not in metrics:
            kind = "odim" if self.classes is None else "classes"
            raise UserError(
                f"task {self.name!r} has {kind}, so its metric must be one of {metrics}; "
                f"got {self.metric!r}"
            )
