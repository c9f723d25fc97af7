"""In which order, how often, and how varied records come."""

from collections.abc import Callable
from functools import lru_cache

import grain
import numpy as np

from rnnscale._errors import UserError
from rnnscale.data.sources import Record, Source

_BATCH_SIZE = "_rnnscale_batch_size"
# Grain shuffles 32-bit numbers.
_MOST_SHUFFLED = 2**32
# Grain finds the place of each record by itself, which takes 80 us where there are a few hundred
# and 2 us where there are many. Up to here the order of an epoch is drawn as a whole, in at most
# 1 ms.
_DRAWN = 2**16


def dataset(source: Source | grain.MapDataset) -> grain.MapDataset:
    """A source as Grain knows it; a `grain.MapDataset` as it is."""
    if isinstance(source, grain.MapDataset):
        return source
    # MapDataset.source does the same, and to count bytes walks through every record, which takes
    # longer than to read one in memory.
    return grain.MapDataset.range(len(source)).map(source.__getitem__)


def in_batches(source: Source, batch_size: int) -> grain.MapDataset:
    """A source whose rows belong together in batches of that size, and in no others."""
    made = dataset(source)
    setattr(made, _BATCH_SIZE, batch_size)
    return made


def check_batch_size(records: Source | grain.MapDataset, batch_size: int) -> None:
    """**Raises:** `ValueError` where rows were made for batches of another size."""
    wanted = getattr(records, _BATCH_SIZE, batch_size)
    if wanted != batch_size:
        raise UserError(
            f"these rows were made for batch_size={wanted}, by lanes or bucket; got {batch_size}"
        )
    for parent in getattr(records, "parents", ()):
        check_batch_size(parent, batch_size)


def shuffle(source: Source | grain.MapDataset, *, seed: int) -> grain.MapDataset:
    """The records in a random order over all of them; under `repeat`, a new one in each epoch.

    **Arguments:**

    - `seed`: 0 to 2**32 - 1.

    **Raises:** `ValueError` for a seed out of range, and for records without end.
    """
    if len(source) > _MOST_SHUFFLED:
        raise UserError("records without end can't be shuffled: repeat them after that")
    records = dataset(source)
    if len(records) <= _DRAWN:
        return _Drawn(records, checked_seed(seed))
    return records.seed(checked_seed(seed)).shuffle()


class _Drawn(grain.MapDataset):
    """The records in an order drawn for each epoch."""

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
        order = _order(self._seed, epoch, len(self))
        return self._records[epoch * len(self) + int(order[place])]


# Of each of a few dozen sources that are mixed, this epoch's and the next one's.
@lru_cache(maxsize=64)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    # RandomState, because NumPy promises never to change its stream; Generator's may change.
    words = [seed, epoch % 2**32, (epoch >> 32) % 2**32]
    return np.random.RandomState(words).permutation(count)


def repeat(source: Source | grain.MapDataset) -> grain.MapDataset:
    """The records again and again, without end.

    **Raises:** `ValueError` for a source without records.
    """
    if len(source) == 0:
        raise UserError("the source has no records")
    return dataset(source).repeat(None)


def augment(
    source: Source | grain.MapDataset,
    change: Callable[[Record, np.random.Generator], Record],
    *,
    seed: int,
) -> grain.MapDataset:
    """Each record, changed at random: `change(record, random)`.

    What is drawn for a record depends on the seed and on its index in `source` only, so it is the
    same after a restart, in any process and worker. After `repeat` it is drawn anew in each epoch.

    **Arguments:**

    - `change`: returns a new record of the same shapes and dtypes. With worker processes, a
        function of a module, or what cloudpickle can pickle.
    - `seed`: 0 to 2**32 - 1.

    **Raises:** `ValueError` for a seed out of range.
    """
    return dataset(source).random_map(change, seed=checked_seed(seed))


def checked_seed(seed: int) -> int:
    if not 0 <= seed < 2**32:
        raise UserError(f"seed must be 0 to 2**32 - 1; got {seed}")
    return seed
