"""Selective copying: symbols at random places among blanks are wanted at the end, in order."""

import math
from collections.abc import Mapping
from functools import partial

import numpy as np

from rnnscale._errors import UserError
from rnnscale.data.sources import Record
from rnnscale.tasks._generated import GeneratedSource
from rnnscale.tasks._task import Task

_RECALLED = 16
# The blank, the symbols between the two, and the mark at which a symbol is wanted.
_BLANK, _MARK = 0, 15
_RECORDS = {"train": 100_000, "validation": 1_000, "test": 10_000}


def selective_copy(seq_len: int = 4096, *, seed: int = 0) -> Task:
    r"""Selective copying: 16 symbols lie at random places among blanks, then are to be repeated.

    Inputs are int32 tokens of shape `(seq_len,)` in `[0, 16)`: `seq_len - 16` steps of blanks (0)
    with 16 symbols (1 to 14) at places drawn without replacement, then 16 marks (15). Labels are
    int32 of shape `(seq_len,)`: the symbols in their order at the marks, 0 elsewhere. `"weight"`,
    float32 of shape `(seq_len,)`, is 1 at the marks and 0 elsewhere. Records are made when they are
    asked for; each is a function of the seed, the split and its index only.

    **Arguments:**

    - `seq_len`: steps in a record, the marks included, at least 32.
    - `seed`: of the records, 0 to 2**32 - 1.

    **Returns:**

    The task. Its `baseline` is a model without memory: each symbol is as likely as the others, a
    loss of $\ln 14$ and an accuracy of 1/14.

    **Raises:** `ValueError` for a number out of range.

    **Reference:** Gu and Dao, "Mamba: Linear-time sequence modeling with selective state spaces",
    2023, section 3.1 and appendix E.1; after Jing et al., "Gated orthogonal recurrent units",
    Neural Computation 31 (2019).

    **Differs from the paper:** it gives 4096 steps, 16 tokens with the blank among them and 16
    symbols to recall. It says neither whether the steps at which one recalls are among the 4096 nor
    how they are marked; here they are, and by a token of their own, as in the code of S4.
    """
    if seq_len < 2 * _RECALLED:
        raise UserError(
            f"seq_len must be at least {2 * _RECALLED}: {_RECALLED} symbols to read and "
            f"{_RECALLED} to recall; got {seq_len}"
        )
    make = partial(_record, seq_len)
    train, validation, test = (
        GeneratedSource(make, count, seed=seed, split=split)
        for split, count in enumerate(_RECORDS.values())
    )

    def baseline() -> Mapping[str, float]:
        symbols = _MARK - 1
        return {"memoryless_loss": math.log(symbols), "memoryless_accuracy": 1 / symbols}

    return Task(
        name="selective-copy",
        description=f"{_RECALLED} symbols that lie among blanks, in order: {seq_len} steps",
        train=train,
        validation=validation,
        test=test,
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
