"""Parallel streams through a corpus, for a state that is carried from batch to batch."""

import sys

import grain
import numpy as np

from rnnscale._errors import UserError
from rnnscale.data.pipelines._order import checked_seed, in_batches
from rnnscale.data.sources import (
    Record,
    SequenceSource,
    arrays_over_time,
    check_sequences,
    element_spec,
)


def lanes(sequences: SequenceSource, batch_size: int, steps: int, *, seed: int) -> grain.MapDataset:
    """Endless rows for `stream`: row `i` of each batch goes on where row `i` of the batch before
    ended.

    The sequences are laid end to end, in one random order, and closed to a ring of `n` steps. Lane
    `i` starts at step `i * n // batch_size` and goes round, `steps` at a time. `"reset"`, bool, is
    true at the first step of each sequence, and at a lane's own first step. No step is ever left
    out or padded, and no batch ends an epoch: after any number of batches all steps of the ring
    have been read equally often, to within one (two, where `batch_size` does not divide `n`).

    A model that is handed its own last state with each batch (`TrainState.create(..., carry=...)`)
    then sees every sequence as a whole, however long it is.

    **Arguments:**

    - `sequences`: see `SequenceSource`; all of their arrays are over time.
    - `batch_size`: the number of lanes, and the one that `stream` is given; at least 1.
    - `steps`: in a row, at least 1.
    - `seed`: of the order of the sequences, 0 to 2**32 - 1.

    **Returns:** a dataset whose row `step * batch_size + i` is row `i` of the batch of that step.

    **Raises:** `ValueError` for an argument out of range, a source with fewer steps than lanes, and
    one with arrays that are not over time.
    """
    check_sequences(sequences)
    order = np.random.RandomState([checked_seed(seed)]).permutation(len(sequences))
    line = _Line(sequences, order)
    _check(line, batch_size, steps)
    return in_batches(_Lanes(line, batch_size, steps), batch_size)


def lanes_once(sequences: SequenceSource, batch_size: int, steps: int) -> grain.MapDataset:
    """As `lanes`, but every step once, to evaluate: each lane has whole sequences, in order.

    The sequences are shared out among the lanes in runs that are about as long as one another.
    Where a lane has come to its end its rows are zeros, and `"weight"`, float32, is 0 there; at all
    other steps it is 1.

    **Arguments, raises:** as `lanes`.
    """
    check_sequences(sequences)
    line = _Line(sequences, np.arange(len(sequences)))
    _check(line, batch_size, steps)
    return in_batches(_LanesOnce(line, batch_size, steps), batch_size)


def _check(line: "_Line", batch_size: int, steps: int) -> None:
    if line.whole:
        raise UserError(
            f"lanes have arrays over time only, and {', '.join(line.whole)} belongs to a whole "
            "sequence: leave it out, or give each step its label"
        )
    if batch_size < 1 or steps < 1:
        raise UserError(f"batch_size and steps must be at least 1; got {batch_size=} and {steps=}")
    if len(line) < batch_size:
        raise UserError(
            f"{len(line)} steps are too few for {batch_size} lanes: make batch_size at most that"
        )


class _Line:
    """Sequences laid end to end."""

    def __init__(self, sequences: SequenceSource, order: np.ndarray):
        spec = element_spec(sequences)
        self.names = arrays_over_time(spec)
        self.whole = [name for name in spec if name not in self.names]
        self._sequences = sequences
        # Those without steps would be no border between others.
        self._order = order[sequences.lengths[order] > 0]
        self._lengths = sequences.lengths[self._order]
        self.ends = np.cumsum(self._lengths)
        self._steps = int(self._lengths.sum())

    def __len__(self) -> int:
        return self._steps

    def read(self, start: int, stop: int) -> Record:
        """Steps `start` to `stop - 1`, round and round."""
        time, at = stop - start, start % self._steps
        place = int(self.ends.searchsorted(at, side="right"))
        first = at - (int(self.ends[place - 1]) if place else 0)
        parts, filled, reset = [], 0, np.zeros(time, bool)
        # No step is a part too, of empty arrays.
        while filled < time or not parts:
            sequence = int(self._order[place])
            count = min(int(self._lengths[place]) - first, time - filled)
            parts.append(self._sequences.read(sequence, first, first + count))
            reset[filled : filled + 1] = first == 0
            filled += count
            place, first = (place + 1) % len(self._order), 0
        row = {name: np.concatenate([part[name] for part in parts]) for name in self.names}
        if "reset" in row:
            reset |= row["reset"]
        return {**row, "reset": reset}


class _Lanes:
    def __init__(self, line: _Line, batch_size: int, steps: int):
        self._line, self._batch_size, self._steps = line, batch_size, steps

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> Record:
        step, lane = divmod(index, self._batch_size)
        start = lane * len(self._line) // self._batch_size + step * self._steps
        row = self._line.read(start, start + self._steps)
        if step == 0:
            row["reset"][0] = True
        return row


class _LanesOnce:
    def __init__(self, line: _Line, batch_size: int, steps: int):
        self._line, self._batch_size, self._steps = line, batch_size, steps
        # The end of a sequence that is nearest to where a lane should begin.
        ideal = np.arange(batch_size + 1) * len(line) / batch_size
        ends = np.concatenate([[0], line.ends])
        after = np.clip(np.searchsorted(ends, ideal), 1, len(ends) - 1)
        nearer = np.where(ideal - ends[after - 1] <= ends[after] - ideal, after - 1, after)
        self._borders = ends[nearer]
        self._count = int(-(-np.diff(self._borders).max() // steps))

    def __len__(self) -> int:
        return self._count * self._batch_size

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        step, lane = divmod(index, self._batch_size)
        end = int(self._borders[lane + 1])
        start = min(int(self._borders[lane]) + step * self._steps, end)
        stop = min(start + self._steps, end)
        row = self._line.read(start, stop)
        missing = self._steps - (stop - start)
        weight = row.get("weight", np.ones(stop - start, np.float32))
        padded = {
            name: np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))
            for name, x in {**row, "weight": weight}.items()
        }
        # Afresh, so that what a state makes of zeros never grows.
        padded["reset"][stop - start : stop - start + 1] = True
        return padded
