"""Sequences cut into pieces that are not too long."""

from typing import cast

import numpy as np

from rnnscale._errors import UserError
from rnnscale.data.sources import (
    ElementSpec,
    Record,
    SequenceSource,
    arrays_over_time,
    check_sequences,
    element_spec,
)


def window(sequences: SequenceSource, steps: int, *, stride: int | None = None) -> SequenceSource:
    """The sequences in pieces of at most `steps` time steps, in order.

    A sequence of `n` steps gives pieces that start at 0, `stride`, `2 * stride`, ..., and end with
    the first one that reaches its end, which may be shorter. So each step is in a piece, and with
    the default stride in one only. A sequence without steps gives none.

    **Arguments:**

    - `sequences`: all of their arrays must be over time: a label of the whole belongs to no piece.
        Only sequences of at most `steps` may have others.
    - `steps`: at least 1.
    - `stride`: from the start of a piece to that of the next, 1 to `steps`; `steps` by default.

    **Raises:** `ValueError` for a number out of range, and where a sequence with a label of the
    whole would be cut or has no steps.
    """
    check_sequences(sequences)
    stride = steps if stride is None else stride
    if not 1 <= stride <= steps:
        raise UserError(
            f"steps must be at least 1, and stride 1 to steps; got {steps=} and {stride=}"
        )
    spec = element_spec(sequences)
    whole = [name for name in spec if name not in arrays_over_time(spec)]
    lengths = sequences.lengths
    if whole and lengths.size and not (lengths.min() >= 1 and lengths.max() <= steps):
        index = int(np.flatnonzero((lengths < 1) | (lengths > steps))[0])
        raise UserError(
            f"sequence {index} has {lengths[index]} steps, and {', '.join(whole)} belongs to the "
            f"whole, so it can't be given in pieces of {steps}: make steps at least "
            f"{lengths.max()}, and leave out sequences without steps"
        )
    return cast(SequenceSource, _Pieces(sequences, steps, stride))


class _Pieces:
    def __init__(self, sequences: SequenceSource, steps: int, stride: int):
        self._sequences = sequences
        lengths = sequences.lengths
        counts = np.where(lengths > 0, 1 + np.maximum(0, -(-(lengths - steps) // stride)), 0)
        # Of each piece, its sequence and its first step there.
        self._sequence = np.repeat(np.arange(len(lengths)), counts)
        first = np.cumsum(counts) - counts
        self._start = (np.arange(len(self._sequence)) - first[self._sequence]) * stride
        self._lengths = np.minimum(lengths[self._sequence] - self._start, steps)

    @property
    def lengths(self) -> np.ndarray:
        return self._lengths

    @property
    def element_spec(self) -> ElementSpec:
        return element_spec(self._sequences)

    def __len__(self) -> int:
        return len(self._lengths)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"piece {index} of {len(self)}")
        return self.read(index, 0, int(self._lengths[index]))

    def read(self, index: int, start: int, stop: int) -> Record:
        first = int(self._start[index])
        return self._sequences.read(int(self._sequence[index]), first + start, first + stop)
