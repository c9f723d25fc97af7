"""The adding problem: add two marked numbers among many."""

from collections.abc import Mapping
from functools import partial

import numpy as np

from rnnscale._errors import UserError
from rnnscale.data import Record
from rnnscale.tasks._baselines import labels_of
from rnnscale.tasks._generated import generated_splits
from rnnscale.tasks._task import Task

# Training, validation and test records; training and test as in Arjovsky et al.
_RECORDS = (100_000, 1_000, 10_000)


def adding(seq_len: int = 500, *, seed: int = 0) -> Task:
    r"""The adding problem: the sum of two marked numbers, in `[0, 2)`.

    Inputs are float32 of shape `(seq_len, 2)`. Column 0 has independent uniform numbers in
    `[0, 1)`. Column 1 is 1 at one random step of the first half (`seq_len // 2` steps) and at one
    of the second half, and 0 elsewhere. The label is the sum of the two marked numbers, float32 of
    shape `(1,)`. Records are computed when they are read; each depends only on the seed, the split
    and its index.

    **Arguments:**

    - `seq_len`: steps in a record, at least 2.
    - `seed`: seed of the records, 0 to 2**32 - 1.

    **Returns:**

    The task. Its `baseline` is the mean squared error of always answering 1, the mean: about 1/6.

    **Raises:** `ValueError` if a number is out of range.

    **Reference:** Hochreiter and Schmidhuber, "Long short-term memory", Neural Computation 9
    (1997), experiment 4; in the form of Arjovsky, Shah and Bengio, "Unitary evolution recurrent
    neural networks", ICML 2016.

    **Differs from the paper:** Hochreiter and Schmidhuber draw numbers in `[-1, 1]`, use varying
    lengths, and place one of the marks within the first ten steps.
    """
    if seq_len < 2:
        raise UserError(f"seq_len must be at least 2, a step for each mark; got {seq_len}")
    splits = generated_splits(partial(_record, seq_len), _RECORDS, seed=seed)

    def baseline() -> Mapping[str, float]:
        errors = np.square(labels_of(splits[2]) - 1)
        return {"constant_mse": float(np.mean(errors, dtype=np.float64))}

    return Task(
        "adding",
        *splits,
        inputs="features",
        idim=2,
        odim=1,
        labels="sequence",
        seq_len=seq_len,
        metric="mse",
        notes={"seed": seed},
        baseline=baseline,
    )


def _record(seq_len: int, random: np.random.RandomState) -> Record:
    half = seq_len // 2
    marked = [random.randint(half), random.randint(half, seq_len)]
    inputs = np.zeros((seq_len, 2), np.float32)
    # Multiples of 2**-24, which float32 holds exactly; rounding other numbers could give 1.
    inputs[:, 0] = np.floor(random.random_sample(seq_len) * 2**24) / 2**24
    inputs[marked, 1] = 1
    return {"inputs": inputs, "labels": inputs[marked, 0].sum(keepdims=True)}
