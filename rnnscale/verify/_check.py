"""The result of a check, and measures of how far results are from what is expected."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import scipy.special

from rnnscale.verify._double import Doubles


@dataclass(frozen=True)
class Check:
    """A figure and the bound that it must not exceed.

    **Attributes:**

    - `name`: what was checked.
    - `figure`: what was measured.
    - `bound`: the largest figure that passes.
    """

    name: str
    figure: float
    bound: float

    @property
    def passed(self) -> bool:
        """Whether the figure is within the bound, which NaN never is."""
        return self.figure <= self.bound

    def __str__(self) -> str:
        verdict = "ok" if self.passed else "FAILED"
        return f"{self.name}: {self.figure:.3g} (at most {self.bound:.3g}) {verdict}"


def relative_error(got: Any, expected: Any) -> float:
    """The largest error in a tree, each leaf relative to its largest expected entry.

    Infinite if structures or shapes differ, or if a number is not finite.
    """
    got_leaves, got_tree = jax.tree.flatten(got)
    expected_leaves, expected_tree = jax.tree.flatten(expected)
    if got_tree != expected_tree:
        return float("inf")
    return max(map(_leaf_error, got_leaves, expected_leaves), default=0.0)


def agrees(name: str, got: Any, expected: Any, bound: float) -> Check:
    """The check that two trees differ by at most a relative error."""
    return Check(name, relative_error(got, expected), bound)


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


def _leaf_error(got: Any, expected: Any) -> float:
    got, expected = (np.asarray(x).astype(np.complex128) for x in (got, expected))
    if got.shape != expected.shape:
        return float("inf")
    if not got.size:
        return 0.0
    scale = max(np.max(np.abs(expected)), np.finfo(np.float32).tiny)
    error = np.max(np.abs(got - expected)) / scale
    return float(error) if np.isfinite(error) else float("inf")
