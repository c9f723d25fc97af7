"""Batches of sequences that are about as long as one another, padded to few lengths."""

import sys
from collections.abc import Sequence
from functools import lru_cache

import grain
import numpy as np

from rnnscale._errors import UserError
from rnnscale.data.pipelines._order import checked_seed, in_batches
from rnnscale.data.pipelines._pad import padded
from rnnscale.data.sources import Record, SequenceSource, check_sequences


def bucket(
    sequences: SequenceSource, bounds: Sequence[int], batch_size: int, *, seed: int
) -> grain.MapDataset:
    """Endless rows for `stream`, such that all of a batch have one length, one of few.

    A sequence belongs to the first bound that is not below its length, and is padded with zeros to
    it; `"lengths"` says where it ends. In each epoch all sequences come once, but for those without
    steps: each bucket in a new random order, cut into batches, and the batches of all buckets in a
    random order. The last batch of a bucket is filled up with rows that have `"lengths"` and
    `"weight"` 0; all others have `"weight"` 1. A train step is compiled once for each bound.

    **Arguments:**

    - `sequences`: see `SequenceSource`.
    - `bounds`: increasing lengths, the last one at least that of the longest sequence. Those that
        no sequence belongs to do not matter.
    - `batch_size`: the one that `stream` is given, at least 1.
    - `seed`: 0 to 2**32 - 1.

    **Returns:** a dataset whose row `step * batch_size + i` is row `i` of the batch of that step.

    **Raises:** `ValueError` for an argument out of range, bounds that do not increase, and a
    sequence that is longer than the last.
    """
    check_sequences(sequences)
    checked_seed(seed)
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1; got {batch_size}")
    if not sequences.lengths.any():
        raise UserError("the source has no sequences with steps")
    if not bounds or list(bounds) != sorted(set(bounds)) or bounds[0] < 1:
        raise UserError(f"bounds must be lengths from 1 on that increase; got {list(bounds)}")
    longest = int(sequences.lengths.argmax())
    if sequences.lengths[longest] > bounds[-1]:
        raise UserError(
            f"sequence {longest} has {sequences.lengths[longest]} steps, more than the last bound, "
            f"{bounds[-1]}: add a larger one, or cut the sequences with window"
        )
    return in_batches(_Bucketed(sequences, tuple(bounds), batch_size, seed), batch_size)


class _Bucketed:
    def __init__(
        self, sequences: SequenceSource, bounds: tuple[int, ...], batch_size: int, seed: int
    ):
        self._sequences = sequences
        self._bounds = bounds
        self._batch_size = batch_size
        self._seed = seed
        belongs = np.searchsorted(bounds, sequences.lengths)
        some = sequences.lengths > 0
        self._members = [np.flatnonzero(some & (belongs == i)) for i in range(len(bounds))]
        batches = [-(-len(members) // batch_size) for members in self._members]
        # Of each batch of an epoch, before they are put in an order: its bucket, and its number.
        self._bucket = np.repeat(np.arange(len(bounds)), batches)
        self._batch = np.concatenate([np.arange(n) for n in batches])
        self._make_caches()

    def _make_caches(self) -> None:
        # Workers walk through the epochs, and only at a border look at two of them.
        self._order = lru_cache(2)(self._draw_order)
        self._shuffled = lru_cache(2 * len(self._bounds))(self._draw_members)

    def __getstate__(self) -> dict:
        return {k: v for k, v in vars(self).items() if k not in ("_order", "_shuffled")}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._make_caches()

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> Record:
        step, row = divmod(index, self._batch_size)
        epoch, step = divmod(step, len(self._bucket))
        batch = self._order(epoch)[step]
        bucket = int(self._bucket[batch])
        members = self._shuffled(epoch, bucket)
        place = int(self._batch[batch]) * self._batch_size + row
        counts = place < len(members)
        sequence = int(members[place if counts else 0])
        record = padded(self._sequences, sequence, self._bounds[bucket])
        weight = np.asarray(record.get("weight", 1) * np.float32(counts))
        if not counts:
            record["lengths"] = np.zeros_like(record["lengths"])
        return {**record, "weight": weight}

    def _draw_order(self, epoch: int) -> np.ndarray:
        return _random(self._seed, epoch, 0).permutation(len(self._bucket))

    def _draw_members(self, epoch: int, bucket: int) -> np.ndarray:
        return _random(self._seed, epoch, 1 + bucket).permutation(self._members[bucket])


def _random(*key: int) -> np.random.RandomState:
    # RandomState, because NumPy promises never to change its stream; Generator's may change.
    return np.random.RandomState([part % 2**32 for part in key])
