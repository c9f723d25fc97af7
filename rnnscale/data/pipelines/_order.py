"""Shuffling, repeating and randomly changing the records of a source."""

from collections.abc import Callable
from functools import lru_cache

import grain
import numpy as np

from rnnscale._checks import check_arguments
from rnnscale._errors import UserError
from rnnscale.data.sources._source import Record, Source

# Grain shuffles 32-bit indices.
_MOST_SHUFFLED = 2**32
# Up to this number of records, an epoch's order is drawn at once, which takes at most 1 ms. Grain
# computes the place of each record on its own: in 80 us for a few hundred records, 2 us for many.
_MOST_DRAWN = 2**16


def as_dataset(source: Source | grain.MapDataset) -> grain.MapDataset:
    """A source as a Grain dataset; a `grain.MapDataset` unchanged."""
    if isinstance(source, grain.MapDataset):
        return source
    # MapDataset.source does the same, but walks through every record to count its bytes, which
    # takes longer than reading a record in memory.
    return grain.MapDataset.range(len(source)).map(source.__getitem__)


@check_arguments
def shuffle(source: Source | grain.MapDataset, *, seed: int) -> grain.MapDataset:
    """The records in a random order; under `repeat`, in a new order in each epoch.

    **Arguments:**

    - `source`: the records.
    - `seed`: 0 to 2**32 - 1.

    **Raises:** `ValueError` if the seed is out of range or the records are endless.
    """
    check_seed(seed)
    if len(source) > _MOST_SHUFFLED:
        raise UserError("endless records can't be shuffled: call repeat after shuffle")
    records = as_dataset(source)
    if len(records) <= _MOST_DRAWN:
        return _Shuffled(records, seed)
    return records.seed(seed).shuffle()


class _Shuffled(grain.MapDataset):
    """The records in an order that is drawn at once for each epoch."""

    def __init__(self, records: grain.MapDataset, seed: int):
        super().__init__(records)
        self._records = records
        self._seed = seed

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        epoch, place = divmod(index, len(self))
        order = _epoch_order(self._seed, epoch, len(self))
        return self._records[epoch * len(self) + int(order[place])]


# Enough for this epoch and the next of a few dozen sources that are mixed.
@lru_cache(maxsize=64)
def _epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    # RandomState, because NumPy promises never to change its stream; Generator's may change.
    words = [seed, epoch % 2**32, (epoch >> 32) % 2**32]
    return np.random.RandomState(words).permutation(count)


@check_arguments
def repeat(source: Source | grain.MapDataset) -> grain.MapDataset:
    """The records again and again, endlessly.

    **Raises:** `ValueError` if the source has no records.
    """
    if len(source) == 0:
        raise UserError("the source has no records")
    return as_dataset(source).repeat(None)


@check_arguments
def augment(
    source: Source | grain.MapDataset,
    change: Callable[[Record, np.random.Generator], Record],
    *,
    seed: int,
) -> grain.MapDataset:
    """The records with random changes: `change(record, random)`.

    The random numbers of a record depend only on the seed and on its index in `source`, so they are
    the same after a restart and in every process and worker. After `repeat`, they are new in each
    epoch.

    **Arguments:**

    - `source`: the records.
    - `change`: returns a new record of the same shapes and dtypes. For worker processes it must be
        a function of a module, or something else that cloudpickle can pickle.
    - `seed`: 0 to 2**32 - 1.

    **Raises:** `ValueError` if the seed is out of range.
    """
    check_seed(seed)
    return as_dataset(source).random_map(change, seed=seed)


def check_seed(seed: int) -> None:
    """**Raises:** `ValueError` if the seed is out of range."""
    if not 0 <= seed < 2**32:
        raise UserError(f"seed must be 0 to 2**32 - 1; got {seed}")
