"""Sources of arrays in memory: records of one shape, and sequences of different lengths."""

import numpy as np

from rnnscale._checks import check_arguments
from rnnscale._errors import UserError
from rnnscale.data.sources._source import AbstractSequences, ArraySpec, Record, Skipped


class ArraySource:
    """Records that are the rows of arrays in memory.

    **Arguments:**

    - `arrays`: by name, arrays with one leading axis of the same size: `ArraySource(inputs=x,
        labels=y)`.

    **Raises:** `ValueError` if there is no array, or the sizes of the leading axes differ.
    """

    def __init__(self, **arrays: np.ndarray):
        lengths = {name: len(array) for name, array in arrays.items()}
        if len(set(lengths.values())) != 1:
            raise UserError(f"arrays must have one leading axis of the same size; got {lengths}")
        self._arrays = {name: _read_only(array) for name, array in arrays.items()}
        self.element_spec = {name: _row_spec(array) for name, array in arrays.items()}

    def __len__(self) -> int:
        return len(next(iter(self._arrays.values())))

    def __getitem__(self, index: int) -> Record:
        return {name: np.asarray(array[index]) for name, array in self._arrays.items()}


class SequenceArrays(AbstractSequences):
    """Sequences of different lengths in memory.

    **Arguments:**

    - `over_time`: by name, an array for each sequence, whose leading axis is time.
    - `per_sequence`: by name, an array with one row for each sequence, such as its label.
    - `skipped`: records that were left out, with the reasons.

    **Raises:** `ValueError` if there is no sequence, names have different numbers of sequences, the
    arrays of one name differ in dtype or trailing axes, or the arrays of one sequence differ in
    their number of steps.
    """

    @check_arguments
    def __init__(
        self,
        over_time: dict[str, list[np.ndarray]],
        per_sequence: dict[str, np.ndarray] | None = None,
        *,
        skipped: Skipped = (),
    ):
        per_sequence = per_sequence or {}
        counts = {name: len(arrays) for name, arrays in (over_time | per_sequence).items()}
        if not over_time or len(set(counts.values())) != 1 or 0 in counts.values():
            raise UserError(
                f"all names must have the same number of sequences, at least one; got {counts}"
            )
        self._over_time = {
            name: [_read_only(array) for array in arrays] for name, arrays in over_time.items()
        }
        self._per_sequence = {name: _read_only(array) for name, array in per_sequence.items()}
        self.skipped = skipped
        self.element_spec = {
            **{name: _spec_over_time(name, arrays) for name, arrays in over_time.items()},
            **{name: _row_spec(array) for name, array in per_sequence.items()},
        }
        steps = np.array([[len(x) for x in arrays] for arrays in over_time.values()], np.int64)
        differ = np.flatnonzero((steps != steps[0]).any(axis=0))
        if differ.size:
            found = dict(zip(over_time, steps[:, differ[0]].tolist(), strict=True))
            raise UserError(
                f"sequence {differ[0]}: all arrays must have the same number of steps; got {found}"
            )
        self.lengths = steps[0]

    def read(self, index: int, start: int, stop: int) -> Record:
        return {
            **{name: arrays[index][start:stop] for name, arrays in self._over_time.items()},
            **{name: np.asarray(array[index]) for name, array in self._per_sequence.items()},
        }


def _read_only(array: np.ndarray) -> np.ndarray:
    """A view that can't be written to: changing a record in place would change the data."""
    view = np.asarray(array).view()
    view.flags.writeable = False
    return view


def _row_spec(array: np.ndarray) -> ArraySpec:
    return ArraySpec(array.shape[1:], array.dtype)


def _spec_over_time(name: str, arrays: list[np.ndarray]) -> ArraySpec:
    specs = {_row_spec(array) for array in arrays}
    if len(specs) != 1:
        found = ", ".join(sorted(f"{dtype}{list(shape)}" for shape, dtype in specs))
        raise UserError(f"the steps of {name!r} must have one shape and dtype; got {found}")
    ((shape, dtype),) = specs
    return ArraySpec((None, *shape), dtype)
