"""Batches of sequences of similar length, padded to one of a few lengths."""

import sys
from collections.abc import Sequence
from functools import lru_cache

import grain
import numpy as np

from rnnscale._checks import check_arguments
from rnnscale._errors import UserError
from rnnscale.data.pipelines._batch_rows import BatchRows
from rnnscale.data.pipelines._order import check_seed
from rnnscale.data.pipelines._pad import padded_record
from rnnscale.data.sources._source import Record, SequenceSource


@check_arguments
def bucket(
    sequences: SequenceSource, bounds: Sequence[int], batch_size: int, *, seed: int
) -> grain.MapDataset:
    """Endless rows for `stream`: the rows of a batch have the same length, one of a few.

    The bucket of a sequence is the first bound that is not below its length. The sequence is padded
    with zeros to this bound; `"lengths"` is its own length. Each epoch has every sequence once,
    except those without steps: the sequences of a bucket are put in a new random order and cut into
    batches, and the batches of all buckets are put in a random order. The last batch of a bucket is
    completed with rows whose `"lengths"` and `"weight"` are 0; other rows have `"weight"` 1. A
    train step is compiled once for each bound.

    **Arguments:**

    - `sequences`: see `SequenceSource`.
    - `bounds`: increasing lengths, the last one at least the length of the longest sequence. Bounds
        without sequences have no effect.
    - `batch_size`: the batch size that `stream` gets, at least 1.
    - `seed`: 0 to 2**32 - 1.

    **Returns:** a dataset whose row `step * batch_size + i` is row `i` of the batch of that step.

    **Raises:** `ValueError` if an argument is out of range, bounds do not increase, or a sequence
    is longer than the last bound.
    """
    check_seed(seed)
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1; got {batch_size}")
    if not sequences.lengths.any():
        raise UserError("the source has no sequences with steps")
    if not bounds or list(bounds) != sorted(set(bounds)) or bounds[0] < 1:
        raise UserError(f"bounds must be increasing lengths of at least 1; got {list(bounds)}")
    longest = int(sequences.lengths.argmax())
    if sequences.lengths[longest] > bounds[-1]:
        raise UserError(
            f"sequence {longest} has {sequences.lengths[longest]} steps, more than the last bound, "
            f"{bounds[-1]}: add a larger one, or cut the sequences with window"
        )
    return _Bucketed(sequences, tuple(bounds), batch_size, seed)


class _Bucketed(BatchRows):
    def __init__(
        self, sequences: SequenceSource, bounds: tuple[int, ...], batch_size: int, seed: int
    ):
        super().__init__(batch_size)
        self._sequences = sequences
        self._bounds = bounds
        self._seed = seed
        bucket_of = np.searchsorted(bounds, sequences.lengths)
        usable = sequences.lengths > 0
        self._members = [np.flatnonzero(usable & (bucket_of == i)) for i in range(len(bounds))]
        batches = [-(-len(members) // batch_size) for members in self._members]
        # The batches of an epoch, before they are shuffled: bucket, and number in the bucket.
        self._bucket = np.repeat(np.arange(len(bounds)), batches)
        self._batch = np.concatenate([np.arange(n) for n in batches])
        # Workers go through the epochs in order, so they need at most two at a time.
        self._order = lru_cache(2)(self._draw_order)
        self._shuffled = lru_cache(2 * len(bounds))(self._draw_members)

    def __reduce__(self) -> tuple:  # caches can't be pickled
        return type(self), (self._sequences, self._bounds, self.batch_size, self._seed)

    def __len__(self) -> int:
        return sys.maxsize

    def row(self, step: int, place: int) -> Record:
        epoch, step = divmod(step, len(self._bucket))
        batch = self._order(epoch)[step]
        bucket = int(self._bucket[batch])
        members = self._shuffled(epoch, bucket)
        member = int(self._batch[batch]) * self.batch_size + place
        exists = member < len(members)
        sequence = int(members[member if exists else 0])
        record = padded_record(self._sequences, sequence, self._bounds[bucket])
        weight = np.asarray(record.get("weight", 1) * np.float32(exists))
        if not exists:
            record["lengths"] = np.zeros_like(record["lengths"])
        return {**record, "weight": weight}

    def _draw_order(self, epoch: int) -> np.ndarray:
        return _random(self._seed, epoch, 0).permutation(len(self._bucket))

    def _draw_members(self, epoch: int, bucket: int) -> np.ndarray:
        return _random(self._seed, epoch, 1 + bucket).permutation(self._members[bucket])


def _random(*key: int) -> np.random.RandomState:
    # RandomState, because NumPy promises never to change its stream; Generator's may change.
    return np.random.RandomState([part % 2**32 for part in key])
