"""The copy problem: repeat ten symbols after a long wait."""

import math
from collections.abc import Mapping
from functools import partial

import numpy as np

from rnnscale._errors import UserError
from rnnscale.data import Record
from rnnscale.tasks._generated import generated_splits
from rnnscale.tasks._task import Task

_SYMBOLS, _RECALLED = 8, 10
_BLANK, _DELIMITER = _SYMBOLS, _SYMBOLS + 1
# Training, validation and test records; training and test as in Arjovsky et al.
_RECORDS = (100_000, 1_000, 10_000)


def copy_memory(seq_len: int = 120, *, seed: int = 0) -> Task:
    r"""The copy problem: ten symbols, a wait of $T$ = `seq_len - 20` steps, the ten symbols again.

    Inputs are one-hot, float32 of shape `(seq_len, 10)`: ten symbols drawn from eight, $T - 1$
    blanks (8), one delimiter (9), ten blanks. Labels are int32 of shape `(seq_len,)`: $T + 10$
    blanks, then the ten symbols. `"scored"`, bool of shape `(seq_len,)`, is true at the last ten
    steps: accuracy counts the recalled symbols only, while the loss is the mean over all steps, as
    in the paper. Records are computed when they are read; each depends only on the seed, the split
    and its index.

    **Arguments:**

    - `seq_len`: steps in a record, at least 21.
    - `seed`: seed of the records, 0 to 2**32 - 1.

    **Returns:**

    The task. Its `baseline` is the best that a model without memory can do: blanks at the blanks,
    then each symbol with equal probability; a loss of $10 \ln 8 / (T + 20)$ and an accuracy of 1/8.

    **Raises:** `ValueError` if a number is out of range.

    **Reference:** Arjovsky, Shah and Bengio, "Unitary evolution recurrent neural networks", ICML
    2016, section 5.1; after Hochreiter and Schmidhuber, "Long short-term memory", Neural
    Computation 9 (1997).
    """
    if seq_len <= 2 * _RECALLED:
        raise UserError(
            f"seq_len must be at least {2 * _RECALLED + 1}: {_RECALLED} symbols to read, "
            f"{_RECALLED} to recall, and a wait between them; got {seq_len}"
        )

    def baseline() -> Mapping[str, float]:
        return {
            "memoryless_loss": _RECALLED * math.log(_SYMBOLS) / seq_len,
            "memoryless_accuracy": 1 / _SYMBOLS,
        }

    return Task(
        "copy",
        *generated_splits(partial(_record, seq_len), _RECORDS, seed=seed),
        inputs="features",
        idim=_SYMBOLS + 2,
        classes=_SYMBOLS + 1,
        labels="step",
        seq_len=seq_len,
        metric="accuracy",
        notes={"seed": seed},
        baseline=baseline,
    )


def _record(seq_len: int, random: np.random.RandomState) -> Record:
    symbols = random.randint(_SYMBOLS, size=_RECALLED)
    tokens = np.full(seq_len, _BLANK)
    tokens[:_RECALLED] = symbols
    tokens[-_RECALLED - 1] = _DELIMITER
    labels = np.full(seq_len, _BLANK, np.int32)
    labels[-_RECALLED:] = symbols
    return {
        "inputs": np.eye(_SYMBOLS + 2, dtype=np.float32)[tokens],
        "labels": labels,
        "scored": np.arange(seq_len) >= seq_len - _RECALLED,
    }
