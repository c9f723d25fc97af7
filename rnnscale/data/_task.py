"""What a task is: a source of records for each split, and what a model has to know of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np


class Source(Protocol):
    """Random access to records; every record has the same keys, shapes and dtypes.

    A record is a dict with `"inputs"` and `"labels"`, and for sequences of varying length, padded
    to one length, `"lengths"`. An index that is out of range raises `IndexError`.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, np.ndarray]: ...


class ArraySource:
    """Records that are the rows of arrays in memory.

    **Arguments:**

    - `arrays`: by name, arrays with one leading axis of the same size: `ArraySource(inputs=x,
        labels=y)`.

    Raises `ValueError` if there is no array, or the leading axes differ.
    """

    def __init__(self, **arrays: np.ndarray):
        lengths = {name: len(array) for name, array in arrays.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"arrays must have one leading axis of the same size; got {lengths}")
        self._arrays = arrays

    def __len__(self) -> int:
        return len(next(iter(self._arrays.values())))

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {name: np.asarray(array[index]) for name, array in self._arrays.items()}


@dataclass(frozen=True, eq=False)
class Task:
    """A data set with a fixed split, and what a model and a training loop need to know of it.

    **Attributes:**

    - `name`, `description`: for people.
    - `train`, `validation`, `test`: the splits; no record is in two of them.
    - `inputs`: `"features"` for float inputs of shape `(seq_len, idim)`, `"tokens"` for int inputs
        of shape `(seq_len,)` in `[0, idim)`.
    - `idim`: the number of features, or of distinct tokens.
    - `classes`: the number of label values; labels are ints in `[0, classes)`.
    - `labels`: `"sequence"` for one label a record, `"step"` for one a time step.
    - `seq_len`: time steps in a record.
    - `metric`: what the test split is judged by.
    - `notes`: where the data came from; values go into JSON as they are.
    - `baseline`: computes the figures of a simple model on the test split, by name, for comparison;
        None where there is none. It may take some seconds, and nothing is spent unless it is
        called.
    """

    name: str
    description: str
    train: Source
    validation: Source
    test: Source
    inputs: Literal["features", "tokens"]
    idim: int
    classes: int
    labels: Literal["sequence", "step"]
    seq_len: int
    metric: Literal["accuracy", "bits_per_byte"]
    notes: Mapping[str, Any] = field(default_factory=dict)
    baseline: Callable[[], Mapping[str, float]] | None = None
