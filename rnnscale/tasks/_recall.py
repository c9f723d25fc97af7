"""Multi-query associative recall: keys with values, then keys whose values are wanted."""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from rnnscale._errors import UserError
from rnnscale.data import Record
from rnnscale.tasks._generated import generated_splits
from rnnscale.tasks._task import Task

# Training, validation and test records; training and test as in Arora et al.
_RECORDS = (100_000, 1_000, 3_000)


def recall(
    seq_len: int = 128,
    *,
    pairs: int = 8,
    vocabulary: int = 8192,
    power: float = 0.01,
    seed: int = 0,
) -> Task:
    r"""Multi-query associative recall: at each repeated key, the value that came with it.

    Inputs are int32 tokens of shape `(seq_len,)`. The first `2 * pairs` are keys, each followed by
    its value: distinct keys from `[1, vocabulary // 2)`, distinct values from `[vocabulary // 2,
    vocabulary)`. After the pairs each key comes once more, at an even distance $2g$ from the end of
    the pairs; the $g$ are distinct and follow a power law, $p(g) \propto (g + 1)^{a - 1}$, where
    $a$ is `power`. All other tokens are uniform over the vocabulary. Labels are int32 of shape
    `(seq_len,)`: at the repeated keys their values, 0 elsewhere. `"weight"`, float32 of shape
    `(seq_len,)`, is 1 at the repeated keys and 0 elsewhere. Records are computed when they are
    read; each depends only on the seed, the split and its index.

    **Arguments:**

    - `seq_len`: steps in a record, even and at least `4 * pairs`.
    - `pairs`: number of keys, at least 1. The paper has 4, 8, 16 and 64 for 64, 128, 256 and 512
        steps.
    - `vocabulary`: number of distinct tokens, at least `2 * pairs + 2`.
    - `power`: exponent of the law of distances, positive. 1 makes all distances equally likely;
        smaller values make keys come again sooner.
    - `seed`: seed of the records, 0 to 2**32 - 1.

    **Returns:**

    The task. Its `baseline` is a model that knows the values but not which key each belongs to: a
    loss of $\ln$ `pairs` and an accuracy of `1 / pairs`.

    **Raises:** `ValueError` if a number is out of range.

    **Reference:** Arora, Eyuboglu et al., "Zoology: Measuring and improving recall in efficient
    language models", ICLR 2024, and the generator published with it.

    **Differs from the paper:** `pairs` is 8 by default whatever the length; pass more for 512 steps
    and longer. The other tokens are random, the default of the published generator; the settings
    of the paper's figure 2 leave them 0.
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

    def baseline() -> Mapping[str, float]:
        return {"any_value_loss": math.log(pairs), "any_value_accuracy": 1 / pairs}

    return Task(
        "recall",
        *generated_splits(make, _RECORDS, seed=seed),
        inputs="tokens",
        idim=vocabulary,
        classes=vocabulary,
        labels="step",
        seq_len=seq_len,
        metric="accuracy",
        notes={"seed": seed, "pairs": pairs, "vocabulary": vocabulary, "power": power},
        baseline=baseline,
    )


def recall_small(seq_len: int = 40, *, seed: int = 0) -> Task:
    """`recall` with four keys and 64 tokens, which a small model learns in minutes.

    **Arguments:**

    - `seq_len`: steps in a record, even and at least 16.
    - `seed`: seed of the records, 0 to 2**32 - 1.

    **Returns:** the task; see `recall`.

    **Raises:** `ValueError` if a number is out of range.
    """
    return replace(recall(seq_len, pairs=4, vocabulary=64, seed=seed), name="recall-small")


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
