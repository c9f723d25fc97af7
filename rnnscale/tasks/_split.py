"""Splits of labelled records that are the same on every machine and with every NumPy version."""

import math

import numpy as np


def stratified_split(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """About 70, 10 and 20 % of the records, each with nearly the same class frequencies.

    **Arguments:**

    - `labels`: int, shape `(records,)`.

    **Returns:**

    The sorted indices of the training, validation and test records.
    """
    train, validation, test = [], [], []
    for members in _shuffled_classes(labels):
        first, second = round(0.2 * len(members)), round(0.3 * len(members))
        test.append(members[:first])
        validation.append(members[first:second])
        train.append(members[second:])
    train, validation, test = (np.sort(np.concatenate(s)) for s in (train, validation, test))
    return train, validation, test


def tenth_of_each_class(labels: np.ndarray) -> np.ndarray:
    """The sorted indices of a tenth of each class, rounded up.

    **Arguments:**

    - `labels`: int, shape `(records,)`.
    """
    classes = _shuffled_classes(labels)
    return np.sort(np.concatenate([each[: math.ceil(len(each) / 10)] for each in classes]))


def _shuffled_classes(labels: np.ndarray) -> list[np.ndarray]:
    """The indices of the records of each class, in random order."""
    # RandomState, because NumPy promises never to change its stream; Generator's may change.
    random = np.random.RandomState(0)
    return [random.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
