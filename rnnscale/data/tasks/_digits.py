"""The handwritten digits inside scikit-learn, read pixel by pixel."""

import numpy as np

from ..sources import ArraySource
from ._split import stratified_split
from ._task import Task


def digits() -> Task:
    """1797 images of 8 x 8 pixels, one pixel a step; the label is the digit.

    Inputs are float32 of shape `(64, 1)`, row by row, `pixel / 16` in `[0, 1]`.
    """
    # Takes a second or more to import, so only when the task is loaded.
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    inputs = np.asarray(images, np.float32)[:, :, None] / 16
    labels = np.asarray(labels, np.int32)
    train, validation, test = (
        ArraySource(inputs=inputs[rows], labels=labels[rows]) for rows in stratified_split(labels)
    )
    return Task(
        name="digits",
        description="scikit-learn's 1797 digits pixel by pixel: 64 steps, 10 classes",
        train=train,
        validation=validation,
        test=test,
        inputs="features",
        idim=1,
        classes=10,
        labels="sequence",
        seq_len=64,
        metric="accuracy",
        notes={"source": "sklearn.datasets.load_digits"},
    )
