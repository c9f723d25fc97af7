"""Sources of arrays in `.npy` and `.npz` files: records, and sequences of different lengths."""

import os
from collections.abc import Mapping

import numpy as np

from rnnscale._checks import check_arguments
from rnnscale._errors import UserError
from rnnscale.data.sources._source import AbstractSequences, ArraySpec, Record
from rnnscale.data.sources._stored import StoredArray, open_npy
from rnnscale.data.sources._unusable import Unusable

type ArrayFile = str | os.PathLike[str] | StoredArray


class ArrayFiles:
    """Records that are the rows of arrays in files. Each access reads its rows.

    ```
    ArrayFiles(inputs="inputs.npy", labels="labels.npy")
    ArrayFiles(**open_npz("data.npz"))
    ```

    **Arguments:**

    - `arrays`: by name, `.npy` files or arrays of `open_npz`, with one leading axis of the same
        size.

    **Raises:** `ValueError` if there is no array, the sizes of the leading axes differ, or a file
    can't be used (see `open_npy`); and at an index, with file and record, if a file has changed.
    """

    def __init__(self, **arrays: ArrayFile):
        self._arrays = {name: _opened(array) for name, array in arrays.items()}
        counts = {name: len(array) for name, array in self._arrays.items()}
        if len(set(counts.values())) != 1:
            raise UserError(f"arrays must have one leading axis of the same size; got {counts}")
        (self._count,) = set(counts.values())
        self.element_spec = {name: array.row for name, array in self._arrays.items()}

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < self._count:
            raise IndexError(f"index {index} is out of range for {self._count} records")
        return {
            name: array.read(index, index + 1, index)[0, ...]
            for name, array in self._arrays.items()
        }


class SequenceFiles(AbstractSequences):
    """Sequences of different lengths in files. Each access reads the steps that it needs.

    ```
    SequenceFiles({"inputs": "inputs.npy"}, "offsets.npy", {"labels": "labels.npy"})
    ```

    **Arguments:**

    - `over_time`: by name, `.npy` files or arrays of `open_npz` with the steps of all sequences,
        one sequence after another, shape `(steps, ...)`.
    - `offsets`: where sequences begin and end, integers of shape `(sequences + 1,)`: sequence `i`
        is the steps `offsets[i]` to `offsets[i + 1] - 1`. With None all sequences have the same
        length, and the arrays over time have the shape `(sequences, time, ...)`.
    - `per_sequence`: by name, arrays with one row for each sequence, such as its label.
    - `skip`: whether to leave out sequences without steps, which are an error otherwise. `skipped`
        lists them.

    **Raises:** `ValueError` if there is no array over time, numbers of steps or sequences differ,
    offsets decrease, or a file can't be used (see `open_npy`); and at an index, with file and
    record, if a file has changed.
    """

    @check_arguments
    def __init__(
        self,
        over_time: Mapping[str, ArrayFile],
        offsets: ArrayFile | None = None,
        per_sequence: Mapping[str, ArrayFile] | None = None,
        *,
        skip: bool = False,
    ):
        steps = {name: _opened(array) for name, array in over_time.items()}
        self._per_sequence = {name: _opened(x) for name, x in (per_sequence or {}).items()}
        if not steps:
            raise UserError("there must be at least one array over time")
        if offsets is None:
            bounds = _equal_lengths(steps)
            where = next(iter(steps.values())).file.path
            steps = {name: _flattened(array) for name, array in steps.items()}
        else:
            stored = _opened(offsets)
            where = stored.file.path
            bounds = read_offsets(stored)
        for name, array in steps.items():
            if len(array) != bounds[-1]:
                raise UserError(
                    f"{array.file.path}: {name!r} has {len(array)} steps, and the offsets in "
                    f"{where} end at {bounds[-1]}"
                )
        for name, array in self._per_sequence.items():
            if len(array) != len(bounds) - 1:
                raise UserError(
                    f"{array.file.path}: {name!r} has {len(array)} rows for {len(bounds) - 1} "
                    "sequences"
                )
        self._steps = steps
        lengths = np.diff(bounds)
        unusable = Unusable(skip)
        for empty in np.flatnonzero(lengths == 0):
            unusable.note(f"{where}, record {empty}", "the sequence is empty")
        self.skipped = unusable.all()
        self._rows = np.flatnonzero(lengths)
        self._starts, self.lengths = bounds[self._rows], lengths[self._rows]
        spec = {name: ArraySpec((None, *x.shape[1:]), x.native) for name, x in steps.items()}
        self.element_spec = spec | {name: x.row for name, x in self._per_sequence.items()}

    def read(self, index: int, start: int, stop: int) -> Record:
        first, row = int(self._starts[index]), int(self._rows[index])
        begin, end = first + start, first + stop
        record = {name: x.read(begin, end, row) for name, x in self._steps.items()}
        labels = {name: x.read(row, row + 1, row)[0, ...] for name, x in self._per_sequence.items()}
        return record | labels


def read_offsets(stored: StoredArray) -> np.ndarray:
    """Offsets as int64.

    **Raises:** `ValueError` if they are not integers that begin with 0 and never decrease.
    """
    where = stored.file.path
    if stored.dtype.kind not in "iu" or len(stored.shape) != 1 or len(stored) == 0:
        raise UserError(
            f"{where}: offsets must be integers of shape (sequences + 1,); got {stored.dtype} of "
            f"shape {list(stored.shape)}"
        )
    offsets = stored.read(0, len(stored), 0).astype(np.int64)
    if offsets[0] != 0:
        raise UserError(f"{where}: offsets must begin with 0; got {offsets[0]}")
    falling = np.flatnonzero(np.diff(offsets) < 0)
    if falling.size:
        raise UserError(f"{where}: offsets must not decrease; they do after record {falling[0]}")
    return offsets


def _opened(array: ArrayFile) -> StoredArray:
    return array if isinstance(array, StoredArray) else open_npy(array)


def _equal_lengths(arrays: Mapping[str, StoredArray]) -> np.ndarray:
    """The offsets of sequences of the same length."""
    axes = {name: array.shape[:2] for name, array in arrays.items()}
    if len(set(axes.values())) != 1 or len(next(iter(axes.values()))) != 2:
        raise UserError(
            "without offsets, arrays over time must have the same two leading axes, sequences and "
            f"time; got {axes}"
        )
    ((sequences, time),) = set(axes.values())
    return np.arange(sequences + 1) * time


def _flattened(array: StoredArray) -> StoredArray:
    """The array with its two leading axes, sequences and time, as one."""
    sequences, time, *rest = array.shape
    return StoredArray(array.file, array.offset, (sequences * time, *rest), array.dtype)
