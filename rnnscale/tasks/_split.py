"""A split that is the same on every machine and with every version of NumPy."""

import numpy as np


def stratified_split(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """About 70, 10 and 20 % of the records, each with the labels in the same proportions.

    **Arguments:**

    - `labels`: int, shape `(records,)`.

    **Returns:**

    The sorted indices of the training, validation and test records.
    """
    # RandomState, because NumPy promises never to change its stream; Generator's may change.
    random = np.random.RandomState(0)
    train, validation, test = [], [], []
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        first, second = round(0.2 * len(members)), round(0.3 * len(members))
        test.append(members[:first])
        validation.append(members[first:second])
        train.append(members[second:])
    train, validation, test = (np.sort(np.concatenate(s)) for s in (train, validation, test))
    return train, validation, test
