"""Contiguous streams through a corpus, for a state that is carried from batch to batch."""

import sys

import grain
import numpy as np

from rnnscale._checks import check_arguments
from rnnscale._errors import UserError
from rnnscale.data.pipelines._batch_rows import BatchRows
from rnnscale.data.pipelines._order import check_seed
from rnnscale.data.sources._source import (
    Record,
    SequenceSource,
    arrays_over_time,
    element_spec,
)


@check_arguments
def lanes(sequences: SequenceSource, batch_size: int, steps: int, *, seed: int) -> grain.MapDataset:
    """Endless contiguous streams for `stream` (stateful batching): row `i` of each batch continues
    row `i` of the previous batch.

    The sequences are concatenated in one random order to a ring of `n` steps. Lane `i` starts at
    step `i * n // batch_size` and goes round the ring, `steps` at a time. `"reset"`, bool, is true
    at the first step of each sequence, and at a lane's own first step. No step is left out or
    padded, and epochs have no borders: after any number of batches all steps have been read equally
    often, to within one (two if `batch_size` does not divide `n`).

    A model that starts each batch from its last state of the previous one
    (`TrainState.create(..., carry=...)`) thus sees complete sequences, however long they are.

    **Arguments:**

    - `sequences`: see `SequenceSource`; all of their arrays must be over time.
    - `batch_size`: the number of lanes, and the batch size that `stream` gets; at least 1.
    - `steps`: steps in a row, at least 1.
    - `seed`: seed of the order of the sequences, 0 to 2**32 - 1.

    **Returns:** a dataset whose row `step * batch_size + i` is row `i` of the batch of that step.

    **Raises:** `ValueError` if an argument is out of range, there are fewer steps than lanes, or an
    array is not over time.
    """
    check_seed(seed)
    order = np.random.RandomState([seed]).permutation(len(sequences))
    return _Lanes(_ring_for(sequences, order, batch_size, steps), batch_size, steps)


@check_arguments
def lanes_once(sequences: SequenceSource, batch_size: int, steps: int) -> grain.MapDataset:
    """Contiguous streams that have every step once, for evaluation; otherwise like `lanes`.

    The sequences, in their order, are divided among the lanes in runs of similar length. After the
    end of a lane's run its rows are zeros, with `"weight"`, float32, 0; all other steps have weight
    1.

    **Arguments, raises:** see `lanes`.
    """
    ring = _ring_for(sequences, np.arange(len(sequences)), batch_size, steps)
    return _LanesOnce(ring, batch_size, steps)


def _ring_for(sequences: SequenceSource, order: np.ndarray, batch_size: int, steps: int) -> "_Ring":
    """The ring of the sequences, if `batch_size` lanes can start in it."""
    spec = element_spec(sequences)
    constant = [name for name in spec if name not in arrays_over_time(spec)]
    if constant:
        raise UserError(
            f"lanes need arrays over time, but {', '.join(constant)} has one value per sequence: "
            "leave it out, or give each step its label"
        )
    if batch_size < 1 or steps < 1:
        raise UserError(f"batch_size and steps must be at least 1; got {batch_size=} and {steps=}")
    ring = _Ring(sequences, order)
    if len(ring) < batch_size:
        raise UserError(
            f"{len(ring)} steps are too few for {batch_size} lanes: make batch_size at most that"
        )
    return ring


class _Ring:
    """Sequences concatenated to a ring of steps."""

    def __init__(self, sequences: SequenceSource, order: np.ndarray):
        self._sequences = sequences
        # Sequences without steps would mark a border between two others.
        self._order = order[sequences.lengths[order] > 0]
        self._lengths = sequences.lengths[self._order]
        self.ends = np.cumsum(self._lengths)
        self._steps = int(self._lengths.sum())

    def __len__(self) -> int:
        return self._steps

    def read(self, start: int, stop: int) -> Record:
        """Steps `start` to `stop - 1`, and `"reset"`; after the end the ring starts again."""
        time, at = stop - start, start % self._steps
        place = int(self.ends.searchsorted(at, side="right"))
        first = at - (int(self.ends[place - 1]) if place else 0)
        parts, filled, reset = [], 0, np.zeros(time, bool)
        # At least one part, possibly without steps, so that the arrays exist.
        while filled < time or not parts:
            sequence = int(self._order[place])
            count = min(int(self._lengths[place]) - first, time - filled)
            parts.append(self._sequences.read(sequence, first, first + count))
            reset[filled : filled + 1] = first == 0
            filled += count
            place, first = (place + 1) % len(self._order), 0
        row = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        if "reset" in row:
            reset |= row["reset"]
        return {**row, "reset": reset}


class _Lanes(BatchRows):
    def __init__(self, ring: _Ring, batch_size: int, steps: int):
        super().__init__(batch_size)
        self._ring, self._steps = ring, steps

    def __len__(self) -> int:
        return sys.maxsize

    def row(self, step: int, place: int) -> Record:
        start = place * len(self._ring) // self.batch_size + step * self._steps
        row = self._ring.read(start, start + self._steps)
        if step == 0:
            row["reset"][0] = True
        return row


class _LanesOnce(BatchRows):
    def __init__(self, ring: _Ring, batch_size: int, steps: int):
        super().__init__(batch_size)
        self._ring, self._steps = ring, steps
        # A lane begins at the sequence border that is nearest to an equal division of the steps.
        ideal = np.arange(batch_size + 1) * len(ring) / batch_size
        ends = np.concatenate([[0], ring.ends])
        after = np.clip(np.searchsorted(ends, ideal), 1, len(ends) - 1)
        nearer = np.where(ideal - ends[after - 1] <= ends[after] - ideal, after - 1, after)
        self._borders = ends[nearer]
        self._count = int(-(-np.diff(self._borders).max() // steps))

    def __len__(self) -> int:
        return self._count * self.batch_size

    def row(self, step: int, place: int) -> Record:
        end = int(self._borders[place + 1])
        start = min(int(self._borders[place]) + step * self._steps, end)
        stop = min(start + self._steps, end)
        row = self._ring.read(start, stop)
        missing = self._steps - (stop - start)
        weight = row.get("weight", np.ones(stop - start, np.float32))
        padded = {
            name: np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))
            for name, x in {**row, "weight": weight}.items()
        }
        # Reset the state, so that it can't grow over the zeros.
        padded["reset"][stop - start : stop - start + 1] = True
        return padded
