"""Whether initial parameters follow the distribution that their paper gives."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.special

from rnnscale.verify._check import Check
from rnnscale.verify._double import Doubles


def follows(name: str, values: Any, cdf: Callable[[Doubles], Doubles]) -> Check:
    """Measures the Kolmogorov-Smirnov distance between a sample and a distribution.

    A sample of that distribution exceeds the bound three times in a million.
    """
    expected = cdf(np.sort(np.asarray(values, np.float64).ravel()))
    ranks = np.arange(expected.size + 1) / expected.size
    distance = max(np.max(expected - ranks[:-1]), np.max(ranks[1:] - expected))
    return Check(f"distribution of {name}", float(distance), 2.6 / math.sqrt(expected.size))


def uniform(low: float, high: float) -> Callable[[Doubles], Doubles]:
    """The cumulative distribution function of the uniform distribution on an interval."""
    return lambda x: np.clip((x - low) / (high - low), 0, 1)


def normal(std: float) -> Callable[[Doubles], Doubles]:
    """The cumulative distribution function of the normal distribution with mean zero."""
    return lambda x: scipy.special.ndtr(x / std)


def parameters_follow(cell: Any, cdf: Callable[[Doubles], Doubles], *names: str) -> list[Check]:
    """`follows` for the named arrays of a cell, all with the same distribution."""
    return [follows(f"initial {name}", getattr(cell, name), cdf) for name in names]
