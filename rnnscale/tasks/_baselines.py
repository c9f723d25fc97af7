"""The baseline of all classification tasks: always answer the most frequent class."""

from collections.abc import Mapping

import numpy as np

from rnnscale.data import Source


def most_frequent(labels: np.ndarray) -> Mapping[str, float]:
    """The accuracy of always answering the class that is most frequent among the labels.

    **Arguments:**

    - `labels`: int, shape `(records,)`.
    """
    return {"most_frequent_accuracy": float(np.bincount(labels).max() / len(labels))}


def labels_of(source: Source) -> np.ndarray:
    """The labels of all records, stacked along a new leading axis."""
    return np.stack([source[index]["labels"] for index in range(len(source))])
