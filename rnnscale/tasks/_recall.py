"""Multi-query associative recall: keys and their values come first, then keys alone."""

import math
from collections.abc import Mapping
from functools import partial

import numpy as np

from rnnscale._errors import UserError
from rnnscale.data.sources import Record
from rnnscale.tasks._generated import GeneratedSource
from rnnscale.tasks._task import Task

# As many for training and test as in Arora et al.
_RECORDS = {"train": 100_000, "validation": 1_000, "test": 3_000}


def recall(
    seq_len: int = 128,
    *,
    pairs: int = 8,
    vocabulary: int = 8192,
    power: float = 0.01,
    seed: int = 0,
) -> Task:
    r"""Multi-query associative recall: at each key that comes again, the value that it had.

    Inputs are int32 tokens of shape `(seq_len,)`. The first `2 * pairs` are keys, each followed by
    its value: distinct keys from `[1, vocabulary // 2)`, distinct values from `[vocabulary // 2,
    vocabulary)`. In what follows each key comes once more, at an even distance $2g$ from the end of
    the pairs, with different $g$ drawn by a power law, $p(g) \propto (g + 1)^{a - 1}$, where $a$
    is `power`; all other tokens are drawn uniformly from the vocabulary. Labels are int32 of shape
    `(seq_len,)`: at these keys their values, 0 elsewhere. `"weight"`, float32 of shape
    `(seq_len,)`, is 1 at these keys and 0 elsewhere. Records are made when they are asked for; each
    is a function of the seed, the split and its index only.

    **Arguments:**

    - `seq_len`: steps in a record, even and at least `4 * pairs`.
    - `pairs`: of keys and values, at least 1. The paper has 4, 8, 16 and 64 for 64, 128, 256 and
        512 steps.
    - `vocabulary`: distinct tokens, enough for the keys: at least `2 * pairs + 2`.
    - `power`: of the law of distances, positive: with 1 they are uniform, with less keys come again
        soon.
    - `seed`: of the records, 0 to 2**32 - 1.

    **Returns:**

    The task. Its `baseline` is a model that knows the values but not whose they are: a loss of
    $\ln$ `pairs` and an accuracy of `1 / pairs`.

    **Raises:** `ValueError` for a number out of range.

    **Reference:** Arora, Eyuboglu et al., "Zoology: Measuring and improving recall in efficient
    language models", ICLR 2024, and the generator published with it.

    **Differs from the paper:** of 512 steps and more, ask for more pairs: 8 is the default
    whatever the length. The other tokens are random, the default of the published generator; the
    settings of the paper's figure 2 leave them 0.
    """
    if pairs < 1:
        raise UserError(f"pairs must be at least 1; got {pairs}")
    if seq_len < 4 * pairs or seq_len % 2:
        raise UserError(
            f"seq_len must be even and at least 4 * pairs = {4 * pairs}: {pairs} keys and values, "
            f"and room for the keys again; got {seq_len}"
        )
    if vocabulary < 2 * pairs + 2:
        raise UserError(
            f"vocabulary must be at least 2 * pairs + 2 = {2 * pairs + 2}, for as many distinct "
            f"keys and values; got {vocabulary}"
        )
    if not power > 0:
        raise UserError(f"power must be positive; got {power}")
    make = partial(_record, seq_len, pairs, vocabulary, power)
    train, validation, test = (
        GeneratedSource(make, count, seed=seed, split=split)
        for split, count in enumerate(_RECORDS.values())
    )

    def baseline() -> Mapping[str, float]:
        return {"any_value_loss": math.log(pairs), "any_value_accuracy": 1 / pairs}

    return Task(
        name="recall",
        description=f"the values of {pairs} keys that come again: {seq_len} steps",
        train=train,
        validation=validation,
        test=test,
        inputs="tokens",
        idim=vocabulary,
        classes=vocabulary,
        labels="step",
        seq_len=seq_len,
        metric="accuracy",
        notes={"seed": seed, "pairs": pairs, "vocabulary": vocabulary, "power": power},
        baseline=baseline,
    )


def _record(
    seq_len: int, pairs: int, vocabulary: int, power: float, random: np.random.RandomState
) -> Record:
    half = vocabulary // 2
    keys = 1 + random.permutation(half - 1)[:pairs]
    values = half + random.permutation(vocabulary - half)[:pairs]
    likely = np.arange(1, (seq_len - 2 * pairs) // 2 + 1) ** (power - 1.0)
    gaps = random.choice(len(likely), size=pairs, replace=False, p=likely / likely.sum())
    places = 2 * pairs + 2 * gaps
    inputs = random.randint(vocabulary, size=seq_len).astype(np.int32)
    inputs[0 : 2 * pairs : 2] = keys
    inputs[1 : 2 * pairs : 2] = values
    inputs[places] = keys
    labels = np.zeros(seq_len, np.int32)
    labels[places] = values
    weight = np.zeros(seq_len, np.float32)
    weight[places] = 1
    return {"inputs": inputs, "labels": labels, "weight": weight}
