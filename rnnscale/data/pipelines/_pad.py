"""Sequences padded with zeros to one length."""

from functools import partial

import grain
import numpy as np

from rnnscale._checks import Size, check_arguments
from rnnscale._errors import UserError
from rnnscale.data.sources._padded import with_zeros
from rnnscale.data.sources._source import (
    Record,
    SequenceSource,
    arrays_over_time,
    element_spec,
)


@check_arguments
def pad(sequences: SequenceSource, steps: Size | None = None) -> grain.MapDataset:
    """The sequences, padded with zeros to one length; `"lengths"`, int32, is their own length.

    **Arguments:**

    - `sequences`: see `SequenceSource`.
    - `steps`: the length after padding; by default, the length of the longest sequence.

    **Raises:** `ValueError` if a sequence is longer, or there are no sequences.
    """
    if not len(sequences):
        raise UserError("there is nothing to pad: the source has no sequences")
    longest = int(sequences.lengths.max())
    steps = longest if steps is None else steps
    if steps < max(longest, 1):
        index = int(sequences.lengths.argmax())
        raise UserError(
            f"sequence {index} has {longest} steps, more than {steps=}: make that larger, or cut "
            "the sequences with window"
        )
    return grain.MapDataset.range(len(sequences)).map(
        partial(padded_record, sequences, steps=steps)
    )


def padded_record(sequences: SequenceSource, index: int, steps: int) -> Record:
    """A sequence padded with zeros to `steps`, and `"lengths"`."""
    record = sequences[index]
    time = int(sequences.lengths[index])
    longer = {
        name: with_zeros(record[name], steps - time)
        for name in arrays_over_time(element_spec(sequences))
    }
    return {**record, **longer, "lengths": np.asarray(time, np.int32)}
