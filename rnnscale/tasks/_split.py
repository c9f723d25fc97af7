"""Splits of labelled records that are the same on every machine and with every NumPy version."""

import math

import numpy as np


def stratified_split(
    labels: np.ndarray, validation: float = 0.1, test: float = 0.2
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training, validation and test records, each with nearly the same class frequencies.

    **Arguments:**

    - `labels`: int, shape `(records,)`; all the same for a split that does not look at classes.
    - `validation`, `test`: the fractions of these splits.

    **Returns:**

    The sorted indices of the training, validation and test records.
    """
    # Rounded, since 0.1 + 0.2 is a little more than 0.3.
    held_out = round(validation + test, 9)
    train, validated, tested = [], [], []
    for members in _shuffled_classes(labels):
        first, second = round(test * len(members)), round(held_out * len(members))
        tested.append(members[:first])
        validated.append(members[first:second])
        train.append(members[second:])
    train, validated, tested = (np.sort(np.concatenate(s)) for s in (train, validated, tested))
    return train, validated, tested


def part_of_each_class(labels: np.ndarray, fraction: float = 0.1) -> np.ndarray:
    """The sorted indices of a fraction of each class, rounded up. The last record of a class is
    not taken, unless all classes have only one.

    **Arguments:**

    - `labels`: int, shape `(records,)`; all the same for a part that does not look at classes.
    - `fraction`: 0 to 1.
    """
    classes = _shuffled_classes(labels)
    keep = int(any(len(c) > 1 for c in classes))
    # Rounded, since 30 * 0.1 is a little more than 3.
    parts = [c[: min(math.ceil(round(len(c) * fraction, 9)), len(c) - keep)] for c in classes]
    return np.sort(np.concatenate(parts))


def _shuffled_classes(labels: np.ndarray) -> list[np.ndarray]:
    """The indices of the records of each class, in random order."""
    # RandomState, because NumPy promises never to change its stream; Generator's may change.
    random = np.random.RandomState(0)
    return [random.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
