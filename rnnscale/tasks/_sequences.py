"""Classification of sequences of different lengths that fit in memory."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from rnnscale.data import PaddedSource, SequenceArrays
from rnnscale.tasks._baselines import most_frequent
from rnnscale.tasks._task import Task


def sequences_task(
    name: str,
    splits: Mapping[str, tuple[list[np.ndarray], np.ndarray]],
    classes: int,
    notes: Mapping[str, Any],
) -> Task:
    """A classification task of sequences that are normalised and padded to the longest.

    Each channel is shifted and scaled by its mean and standard deviation in the training split.

    **Arguments:**

    - `splits`: for `"train"`, `"validation"` and `"test"`, in this order, the sequences, of shape
        `(time, channels)`, and their classes.
    - `classes`, `notes`: see `Task`.
    """
    training = np.concatenate(splits["train"][0], dtype=np.float64)
    mean, std = training.mean(axis=0), training.std(axis=0)
    sequences = {
        split: SequenceArrays(
            {"inputs": [((x - mean) / std).astype(np.float32) for x in inputs]},
            {"labels": labels.astype(np.int32)},
        )
        for split, (inputs, labels) in splits.items()
    }
    longest = max(int(each.lengths.max()) for each in sequences.values())
    return Task(
        name,
        *(PaddedSource(each, longest, per_step=("inputs",)) for each in sequences.values()),
        sequences=sequences,
        inputs="features",
        idim=len(mean),
        classes=classes,
        labels="sequence",
        seq_len=longest,
        metric="accuracy",
        notes=notes,
        baseline=lambda: most_frequent(splits["test"][1]),
    )
