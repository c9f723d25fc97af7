"""k-hop induction: from a token to what followed it the last time, several times."""

from functools import partial

import numpy as np

from rnnscale._errors import UserError
from rnnscale.data import Record
from rnnscale.tasks._generated import generated_splits
from rnnscale.tasks._task import Task

# Training, validation and test records. No training run reads a record twice.
_RECORDS = (10_000_000, 1_000, 1_000)


def k_hop(seq_len: int = 40, *, hops: int = 2, vocabulary: int = 4, seed: int = 0) -> Task:
    r"""k-hop induction: at each step, the token that `hops` hops lead to.

    A hop from step i leads to the step after the last earlier occurrence of the token $x_i$:
    $\max \{j \le i : x_{j-1} = x_i\}$. Inputs are int32 of shape `(seq_len,)`, uniform in `[0,
    vocabulary)`. Labels are int32 of shape `(seq_len,)`: the token where the last hop ends, or
    `vocabulary` if a token had not occurred before. To test how a model generalises to longer
    sequences, evaluate it with another `seq_len`. Records are computed when they are read; each
    depends only on the seed, the split and its index.

    **Arguments:**

    - `seq_len`: steps in a record, at least 1.
    - `hops`: number of hops, at least 1.
    - `vocabulary`: number of distinct tokens, at least 2.
    - `seed`: seed of the records, 0 to 2**32 - 1.

    **Returns:** the task.

    **Raises:** `ValueError` if a number is out of range.

    **Reference:** Sanford, Hsu and Telgarsky, "Transformers, parallel computation, and logarithmic
    depth", ICML 2024.

    **Differs from the paper:** the number of hops is fixed, where the paper's records begin with a
    random one.
    """
    for name, value, least in (
        ("seq_len", seq_len, 1),
        ("hops", hops, 1),
        ("vocabulary", vocabulary, 2),
    ):
        if value < least:
            raise UserError(f"{name} must be at least {least}; got {value}")
    return Task(
        "k-hop",
        *generated_splits(partial(_record, seq_len, hops, vocabulary), _RECORDS, seed=seed),
        inputs="tokens",
        idim=vocabulary,
        classes=vocabulary + 1,
        labels="step",
        seq_len=seq_len,
        metric="accuracy",
        notes={"seed": seed, "hops": hops, "vocabulary": vocabulary},
    )


def _record(seq_len: int, hops: int, vocabulary: int, random: np.random.RandomState) -> Record:
    tokens = random.randint(vocabulary, size=seq_len)
    # Steps are counted from 1; a hop to 0 means that the token had not occurred before.
    hop = np.zeros(seq_len + 1, np.int64)
    after = [0] * vocabulary
    for step, token in enumerate(tokens.tolist(), 1):
        hop[step] = after[token]
        after[token] = step + 1
    ends = np.arange(1, seq_len + 1)
    for _ in range(hops):
        ends = hop[ends]
    labels = np.append(vocabulary, tokens)[ends]
    return {"inputs": tokens.astype(np.int32), "labels": labels.astype(np.int32)}
