"""What a source is: records by their index, and what is known of them before any is read."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from rnnscale._errors import UserError

type Record = dict[str, np.ndarray]


class ArraySpec(NamedTuple):
    """The shape and dtype of an array of a record. An axis that differs from record to record is
    None; if it is the leading one, it is time."""

    shape: tuple[int | None, ...]
    dtype: np.dtype


type ElementSpec = Mapping[str, ArraySpec]


class Source(Protocol):
    """Random access to records.

    A record for training is a dict with `"inputs"` and `"labels"`, and, where it needs them:

    - `"lengths"`: how many steps of a padded sequence count.
    - `"reset"`: bool, true at the first step of each sequence, where a row holds several.
    - `"weight"`: float32, what each label counts for, or all of them.
    - `"scored"`: bool, one a label, where the accuracy is that of some labels only.
    - `"intervals"`: float32, the time between each step and the one before.

    An index that is out of range raises `IndexError`.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


@runtime_checkable
class SequenceSource(Source, Protocol):
    """A source of sequences of many lengths, of which parts can be read.

    - `lengths`: int64, shape `(records,)`: the steps of each sequence.
    - `element_spec`: the arrays over time are those whose leading axis is None.
    - `read(index, start, stop)`: record `index` with steps `start` to `stop - 1` of its arrays over
        time, for `0 <= start <= stop <= lengths[index]`.
    """

    @property
    def lengths(self) -> np.ndarray: ...

    @property
    def element_spec(self) -> ElementSpec: ...

    def read(self, index: int, start: int, stop: int) -> Record: ...


def check_sequences(source: object) -> None:
    """**Raises:** `TypeError` unless it is a `SequenceSource`."""
    if not isinstance(source, SequenceSource):
        raise TypeError(
            f"sequences of many lengths are needed here, with their `lengths` and a `read` (see "
            f"SequenceSource), such as SequenceArrays or TextFiles; got {type(source).__name__}"
        )


def element_spec(source: Source) -> ElementSpec:
    """The shapes and dtypes of a source's records: what it says of itself, or, where it says
    nothing, those of its first record.

    **Raises:** `ValueError` for a source without records that says nothing.
    """
    told = getattr(source, "element_spec", None)
    if told is not None:
        return told
    if len(source) == 0:
        raise UserError("the source has no records")
    return record_spec(source[0])


def record_spec(record: Record) -> ElementSpec:
    """The shapes of a record's arrays, and their dtypes in the byte order of this machine."""
    arrays = {name: np.asarray(array) for name, array in record.items()}
    return {name: ArraySpec(x.shape, x.dtype.newbyteorder("=")) for name, x in arrays.items()}


def describe_spec(spec: ElementSpec) -> str:
    """In words, for messages."""
    return ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in spec.items())


def zeros(spec: ArraySpec, *varying: int) -> np.ndarray:
    """An array of zeros, with these sizes for the axes that vary."""
    sizes = iter(varying)
    shape = tuple(next(sizes) if size is None else size for size in spec.shape)
    return np.zeros(shape, spec.dtype)


def arrays_over_time(spec: ElementSpec) -> tuple[str, ...]:
    """The arrays of a record that have an axis of time that differs from record to record."""
    return tuple(name for name, array in spec.items() if array.shape[:1] == (None,))
