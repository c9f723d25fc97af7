"""Parity: whether the number of ones so far is odd, the simplest state to track."""

from functools import partial

import numpy as np

from rnnscale._errors import UserError
from rnnscale.data import Record
from rnnscale.tasks._generated import answered_at_the_end, splits_up_to
from rnnscale.tasks._task import Task

_SHORTEST = 3
# Training, validation and test records. No training run reads a record twice.
_RECORDS = (10_000_000, 1_000, 1_000)


def parity(seq_len: int = 40, *, seed: int = 0) -> Task:
    """Parity: whether the number of ones among random bits is odd.

    Inputs are int32 tokens of shape `(seq_len,)`, 0 or 1 with equal probability, padded with 0 from
    step `"lengths"` on. The label, at the last bit, is 1 for an odd number of ones. `"weight"`,
    float32 of shape `(seq_len,)`, is 1 at the last bit and 0 elsewhere. Training and validation
    records have 3 to `seq_len` bits, each length equally likely; test records have `seq_len`. To
    test how a model generalises to longer sequences, evaluate it with another `seq_len`. Records
    are computed when they are read; each depends only on the seed, the split and its index.

    **Arguments:**

    - `seq_len`: the largest number of bits, at least 3.
    - `seed`: seed of the records, 0 to 2**32 - 1.

    **Returns:** the task.

    **Raises:** `ValueError` if a number is out of range.

    **Reference:** Grazzi, Siems et al., "Unlocking state-tracking in linear RNNs through negative
    eigenvalues", ICLR 2025, and the generator published with it.

    **Differs from the paper:** the lengths there include the answer, so that there is one bit less;
    padding has no token of its own; test records have one length, not any from 40 to 256; and
    records of a few bits occur in all splits.
    """
    if seq_len < _SHORTEST:
        raise UserError(f"seq_len must be at least {_SHORTEST}; got {seq_len}")
    lengths = range(_SHORTEST, seq_len + 1)
    return Task(
        "parity",
        *splits_up_to(partial(_record, seq_len), lengths, _RECORDS, seed=seed),
        inputs="tokens",
        idim=2,
        classes=2,
        labels="step",
        seq_len=seq_len,
        metric="accuracy",
        notes={"seed": seed},
    )


def _record(seq_len: int, length: int, random: np.random.RandomState) -> Record:
    bits = random.randint(2, size=length)
    return answered_at_the_end(bits, bits.sum() % 2, seq_len)
