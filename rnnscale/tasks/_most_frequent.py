"""The simplest baseline of a classification."""

from collections.abc import Mapping

import numpy as np


def most_frequent(labels: np.ndarray) -> Mapping[str, float]:
    """The accuracy of always answering the class that is most frequent among the labels."""
    return {"most_frequent_accuracy": float(np.bincount(labels).max() / len(labels))}
