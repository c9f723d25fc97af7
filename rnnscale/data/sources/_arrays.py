"""Records that are the rows of arrays."""

import numpy as np

from rnnscale._errors import UserError
from rnnscale.data.sources._source import ArraySpec, ElementSpec, Record
from rnnscale.data.sources._unusable import Skipped


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
            raise UserError(f"arrays must have one leading axis of the same size; got {lengths}")
        self._arrays = {name: read_only(array) for name, array in arrays.items()}

    @property
    def element_spec(self) -> ElementSpec:
        return {name: ArraySpec(x.shape[1:], x.dtype) for name, x in self._arrays.items()}

    def __len__(self) -> int:
        return len(next(iter(self._arrays.values())))

    def __getitem__(self, index: int) -> Record:
        return {name: np.asarray(array[index]) for name, array in self._arrays.items()}


class SequenceArrays:
    """Sequences of many lengths, in memory.

    **Arguments:**

    - `over_time`: by name, for each sequence an array whose leading axis is its time.
    - `whole`: by name, arrays with one row for each sequence, such as its label.
    - `skipped`: what was left out of where they come from, and why.

    **Raises:** `ValueError` if there is no sequence, their numbers differ, the arrays of one name
    differ in dtype or trailing axes, or the arrays of one sequence in their steps.
    """

    def __init__(
        self,
        over_time: dict[str, list[np.ndarray]],
        whole: dict[str, np.ndarray] | None = None,
        *,
        skipped: Skipped = (),
    ):
        whole = {} if whole is None else whole
        counts = {name: len(arrays) for name, arrays in (over_time | whole).items()}
        if not over_time or len(set(counts.values())) != 1 or 0 in counts.values():
            raise UserError(f"there must be as many of each array, at least one; got {counts}")
        self._over_time = {name: list(map(read_only, arrays)) for name, arrays in over_time.items()}
        self._whole = {name: read_only(array) for name, array in whole.items()}
        self.skipped = skipped
        self._spec = {
            **{name: _varying(name, arrays) for name, arrays in over_time.items()},
            **{name: ArraySpec(x.shape[1:], x.dtype) for name, x in whole.items()},
        }
        steps = np.array([[len(x) for x in arrays] for arrays in over_time.values()], np.int64)
        differ = np.flatnonzero((steps != steps[0]).any(axis=0))
        if differ.size:
            found = dict(zip(over_time, steps[:, differ[0]].tolist(), strict=True))
            raise UserError(f"sequence {differ[0]}: arrays must have as many steps; got {found}")
        self._lengths = steps[0]

    @property
    def lengths(self) -> np.ndarray:
        return self._lengths

    @property
    def element_spec(self) -> ElementSpec:
        return self._spec

    def __len__(self) -> int:
        return len(self._lengths)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        return self.read(index, 0, int(self._lengths[index]))

    def read(self, index: int, start: int, stop: int) -> Record:
        return {
            **{name: arrays[index][start:stop] for name, arrays in self._over_time.items()},
            **{name: np.asarray(array[index]) for name, array in self._whole.items()},
        }


def read_only(array: np.ndarray) -> np.ndarray:
    """A view that can't be written to, nor can parts of it: what changes records in place would
    change the data for good."""
    view = np.asarray(array).view()
    view.flags.writeable = False
    return view


def _varying(name: str, arrays: list[np.ndarray]) -> ArraySpec:
    kinds = {(x.shape[1:], x.dtype) for x in arrays}
    if len(kinds) != 1:
        told = ", ".join(sorted(f"{dtype}{list(shape)}" for shape, dtype in kinds))
        raise UserError(f"the steps of {name!r} must be of one shape and dtype; got {told}")
    ((shape, dtype),) = kinds
    return ArraySpec((None, *shape), dtype)
