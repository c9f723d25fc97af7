"""What a source is: random access to records, and their shapes before any is read."""

import abc
from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from rnnscale._checks import check_arguments
from rnnscale._errors import UserError

type Record = dict[str, np.ndarray]

# For each record that was left out: its name in messages, and the reason.
type Skipped = tuple[tuple[str, str], ...]


class ArraySpec(NamedTuple):
    """The shape and dtype of an array of a record.

    An axis whose size differs between records is None; as the leading axis, it is time.
    """

    shape: tuple[int | None, ...]
    dtype: np.dtype


type ElementSpec = Mapping[str, ArraySpec]


@runtime_checkable
class Source(Protocol):
    """Random access to records.

    A record for training is a dict with `"inputs"` and `"labels"`. It can also have:

    - `"lengths"`: the number of steps of a padded sequence that are not padding.
    - `"reset"`: bool, true at the first step of each sequence of a row that holds several.
    - `"weight"`: float32, the weight of each label, or of all of them.
    - `"scored"`: bool, one per label: whether accuracy counts it.
    - `"intervals"`: float32, the time between each step and the one before.

    An index out of range raises `IndexError`.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


@runtime_checkable
class SpecifiedSource(Source, Protocol):
    """A source that knows the shapes and dtypes of its records without reading one."""

    @property
    def element_spec(self) -> ElementSpec: ...


@runtime_checkable
class SequenceSource(SpecifiedSource, Protocol):
    """A source of sequences of different lengths, parts of which can be read.

    - `lengths`: the number of steps of each sequence, int64, shape `(records,)`.
    - `element_spec`: the arrays whose leading axis is None are over time.
    - `read(index, start, stop)`: record `index` with steps `start` to `stop - 1` of its arrays over
        time, for `0 <= start <= stop <= lengths[index]`.

    `AbstractSequences` implements the rest for a class that has these three.
    """

    @property
    def lengths(self) -> np.ndarray: ...

    def read(self, index: int, start: int, stop: int) -> Record: ...


class AbstractSequences(abc.ABC):
    """A `SequenceSource` whose subclass has `lengths`, `element_spec` and `read`.

    **Attributes:**

    - `lengths`, `element_spec`: see `SequenceSource`.
    - `skipped`: for each record that was left out because it can't be used, its name and the
        reason.
    """

    lengths: np.ndarray
    element_spec: ElementSpec
    skipped: Skipped = ()

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} sequences")
        return self.read(index, 0, int(self.lengths[index]))

    @abc.abstractmethod
    def read(self, index: int, start: int, stop: int) -> Record:
        """Record `index` with steps `start` to `stop - 1` of its arrays over time."""


@check_arguments
def element_spec(source: Source) -> ElementSpec:
    """The shapes and dtypes of a source's records; a source without a spec reads its first record.

    **Raises:** `ValueError` if a source without a spec has no records.
    """
    if isinstance(source, SpecifiedSource):
        return source.element_spec
    if len(source) == 0:
        raise UserError("the source has no records")
    return record_spec(source[0])


def record_spec(record: Record) -> ElementSpec:
    """The shapes of a record's arrays, and their dtypes in this machine's byte order."""
    arrays = {name: np.asarray(array) for name, array in record.items()}
    return {name: ArraySpec(x.shape, x.dtype.newbyteorder("=")) for name, x in arrays.items()}


def describe_spec(spec: ElementSpec) -> str:
    """The spec in words, for messages."""
    return ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in spec.items())


def arrays_over_time(spec: ElementSpec) -> tuple[str, ...]:
    """The names of the arrays whose leading axis is a time axis that differs between records."""
    return tuple(name for name, array in spec.items() if array.shape[:1] == (None,))
