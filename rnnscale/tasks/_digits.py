"""The handwritten digits inside scikit-learn, read pixel by pixel."""

import numpy as np

from rnnscale.data.sources import ArraySource
from rnnscale.tasks._split import stratified_split
from rnnscale.tasks._task import Task

# As for `mnist5k-permuted`.
_PERMUTATION_SEED = 92916


def digits() -> Task:
    """1797 images of 8 x 8 pixels, one pixel a step; the label is the digit.

    Inputs are float32 of shape `(64, 1)`, row by row, `pixel / 16` in `[0, 1]`.
    """
    return _task("digits", "pixel by pixel", np.arange(64), {})


def digits_permuted() -> Task:
    """`digits` with its pixels in one fixed random order, the same for every image."""
    return _task(
        "digits-permuted",
        "in a fixed random order",
        # RandomState, because NumPy promises never to change its stream; Generator's may change.
        np.random.RandomState(_PERMUTATION_SEED).permutation(64),
        {"permutation_seed": _PERMUTATION_SEED},
    )


def _task(name: str, reading: str, order: np.ndarray, notes: dict[str, int]) -> Task:
    # Takes a second or more to import, so only when the task is loaded.
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    inputs = np.asarray(images, np.float32)[:, order, None] / 16
    labels = np.asarray(labels, np.int32)
    train, validation, test = (
        ArraySource(inputs=inputs[rows], labels=labels[rows]) for rows in stratified_split(labels)
    )
    return Task(
        name=name,
        description=f"scikit-learn's 1797 digits {reading}: 64 steps, 10 classes",
        train=train,
        validation=validation,
        test=test,
        inputs="features",
        idim=1,
        classes=10,
        labels="sequence",
        seq_len=64,
        metric="accuracy",
        notes={"source": "sklearn.datasets.load_digits", **notes},
    )
