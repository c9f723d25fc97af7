"""Selective copying: repeat symbols that lie at random places among blanks."""

import math
from collections.abc import Mapping
from functools import partial

import numpy as np

from rnnscale._errors import UserError
from rnnscale.data import Record
from rnnscale.tasks._generated import generated_splits
from rnnscale.tasks._task import Task

_RECALLED = 16
# Token 0 is the blank, 1 to 14 are the symbols, and 15 asks for the next symbol.
_BLANK, _MARK = 0, 15
# Training, validation and test records.
_RECORDS = (100_000, 1_000, 10_000)


def selective_copy(seq_len: int = 4096, *, seed: int = 0) -> Task:
    r"""Selective copying: repeat 16 symbols that lie at random places among blanks.

    Inputs are int32 tokens of shape `(seq_len,)` in `[0, 16)`: `seq_len - 16` steps of blanks (0)
    with 16 symbols (1 to 14) at distinct random places, then 16 marks (15). Labels are int32 of
    shape `(seq_len,)`: the symbols in their order at the marks, 0 elsewhere. `"weight"`, float32 of
    shape `(seq_len,)`, is 1 at the marks and 0 elsewhere. Records are computed when they are read;
    each depends only on the seed, the split and its index.

    **Arguments:**

    - `seq_len`: steps in a record, the marks included, at least 32.
    - `seed`: seed of the records, 0 to 2**32 - 1.

    **Returns:**

    The task. Its `baseline` is a model without memory, for which all symbols are equally likely: a
    loss of $\ln 14$ and an accuracy of 1/14.

    **Raises:** `ValueError` if a number is out of range.

    **Reference:** Gu and Dao, "Mamba: Linear-time sequence modeling with selective state spaces",
    2023, section 3.1 and appendix E.1; after Jing et al., "Gated orthogonal recurrent units",
    Neural Computation 31 (2019).

    **Differs from the paper:** the paper gives 4096 steps, 16 tokens including the blank, and 16
    symbols to recall. It does not say whether the 4096 steps include those at which the model
    answers, nor how these are marked; here they are included and marked by their own token, as in
    the code of S4.
    """
    if seq_len < 2 * _RECALLED:
        raise UserError(
            f"seq_len must be at least {2 * _RECALLED}: {_RECALLED} symbols to read and "
            f"{_RECALLED} to recall; got {seq_len}"
        )

    def baseline() -> Mapping[str, float]:
        symbols = _MARK - 1
        return {"memoryless_loss": math.log(symbols), "memoryless_accuracy": 1 / symbols}

    return Task(
        "selective-copy",
        *generated_splits(partial(_record, seq_len), _RECORDS, seed=seed),
        inputs="tokens",
        idim=_MARK + 1,
        classes=_MARK,
        labels="step",
        seq_len=seq_len,
        metric="accuracy",
        notes={"seed": seed},
        baseline=baseline,
    )


def _record(seq_len: int, random: np.random.RandomState) -> Record:
    symbols = random.randint(1, _MARK, size=_RECALLED)
    places = np.sort(random.permutation(seq_len - _RECALLED)[:_RECALLED])
    inputs = np.full(seq_len, _BLANK, np.int32)
    inputs[places] = symbols
    inputs[-_RECALLED:] = _MARK
    labels = np.zeros(seq_len, np.int32)
    labels[-_RECALLED:] = symbols
    return {
        "inputs": inputs,
        "labels": labels,
        "weight": (inputs == _MARK).astype(np.float32),
    }
