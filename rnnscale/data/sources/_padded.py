"""Records padded with zeros, one by one, to a multiple of a number of steps."""

import numpy as np

from rnnscale._checks import check_arguments
from rnnscale._errors import UserError
from rnnscale.data.sources._source import Record, Source


class PaddedSource:
    """A source whose records are padded to a multiple of a number of steps.

    The padding is zero: zero features, token and label 0, and false in `"scored"`. `"lengths"`,
    int32, is the number of steps before the padding, unless records already have it.

    **Arguments:**

    - `source`: the records.
    - `multiple_of`: at least 1.
    - `per_step`: names of the arrays to pad, if a record has them. Time is their leading axis, with
        the same number of steps in all.

    **Raises:** `ValueError` if `multiple_of` is below 1; and at an index, if arrays differ in their
    number of steps.
    """

    @check_arguments
    def __init__(self, source: Source, multiple_of: int, *, per_step: tuple[str, ...]):
        if multiple_of < 1:
            raise UserError(f"multiple_of must be at least 1; got {multiple_of}")
        self.source = source
        self.multiple_of = multiple_of
        self.per_step = per_step

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        record = self.source[index]
        padded = {name: record[name] for name in self.per_step if name in record}
        steps = {name: len(array) for name, array in padded.items()}
        if len(set(steps.values())) != 1:
            raise UserError(f"arrays over time must have the same number of steps; got {steps}")
        (time,) = set(steps.values())
        added = -time % self.multiple_of
        return {
            "lengths": np.asarray(time, np.int32),
            **record,
            **{name: with_zeros(array, added) for name, array in padded.items()},
        }


def with_zeros(array: np.ndarray, steps: int) -> np.ndarray:
    """The array, with this many steps of zeros after it."""
    # np.pad does the same, but takes ten times as long for short arrays.
    longer = np.zeros((len(array) + steps, *array.shape[1:]), array.dtype)
    longer[: len(array)] = array
    return longer
