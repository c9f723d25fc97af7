"""Sequences cut into windows of a limited length."""

import numpy as np

from rnnscale._checks import check_arguments
from rnnscale._errors import UserError
from rnnscale.data.sources._source import (
    AbstractSequences,
    Record,
    SequenceSource,
    arrays_over_time,
    element_spec,
)


@check_arguments
def window(sequences: SequenceSource, steps: int, *, stride: int | None = None) -> SequenceSource:
    """The sequences in windows of at most `steps` time steps, in order.

    The windows of a sequence start at 0, `stride`, `2 * stride`, ..., up to the first one that
    reaches the end of the sequence, which may be shorter. So each step is in a window, with the
    default stride in exactly one. A sequence without steps has no windows.

    **Arguments:**

    - `sequences`: see `SequenceSource`. If they have arrays that are not over time, such as one
        label per sequence, each sequence must have 1 to `steps` steps.
    - `steps`: at least 1.
    - `stride`: steps between the starts of two windows, 1 to `steps`; `steps` by default.

    **Returns:** the windows, as sequences.

    **Raises:** `ValueError` if a number is out of range, or a sequence with a label of its own
    would be cut or has no steps.
    """
    stride = steps if stride is None else stride
    if not 1 <= stride <= steps:
        raise UserError(
            f"steps must be at least 1, and stride 1 to steps; got {steps=} and {stride=}"
        )
    spec = element_spec(sequences)
    constant = [name for name in spec if name not in arrays_over_time(spec)]
    lengths = sequences.lengths
    if constant and lengths.size and not (lengths.min() >= 1 and lengths.max() <= steps):
        index = int(np.flatnonzero((lengths < 1) | (lengths > steps))[0])
        raise UserError(
            f"sequence {index} has {lengths[index]} steps and can't be cut into windows of "
            f"{steps}, because {', '.join(constant)} has one value per sequence: make steps at "
            f"least {lengths.max()}, and leave out sequences without steps"
        )
    return _Windows(sequences, steps, stride)


class _Windows(AbstractSequences):
    def __init__(self, sequences: SequenceSource, steps: int, stride: int):
        self._sequences = sequences
        lengths = sequences.lengths
        counts = np.where(lengths > 0, 1 + np.maximum(0, -(-(lengths - steps) // stride)), 0)
        # The sequence of each window, and the window's first step in it.
        self._sequence = np.repeat(np.arange(len(lengths)), counts)
        first = np.cumsum(counts) - counts
        self._start = (np.arange(len(self._sequence)) - first[self._sequence]) * stride
        self.lengths = np.minimum(lengths[self._sequence] - self._start, steps)
        self.element_spec = element_spec(sequences)

    def read(self, index: int, start: int, stop: int) -> Record:
        first = int(self._start[index])
        return self._sequences.read(int(self._sequence[index]), first + start, first + stop)
