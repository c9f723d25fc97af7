"""Linear attention: its quadratic form in NumPy, and the comparison with the layer."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import PRNGKeyArray

from rnnscale.attention import LinearAttention
from rnnscale.verify._check import Check
from rnnscale.verify._double import Doubles
from rnnscale.verify._segments import layer_matches_oracle


def oracle(layer: Any, x: Doubles) -> Doubles:
    r"""Katharopoulos et al. 2020, causal, in the quadratic form, which needs no state.

    In each head $y_t = \sum_{s \le t} w_{ts} v_s / \sum_{s \le t} w_{ts}$ with
    $w_{ts} = \phi(q_t) \cdot \phi(k_s)$ and $\phi(x) = \mathrm{elu}(x) + 1$; q is not scaled. The
    output matrix is applied to the heads' y, one after the other.
    """
    outputs = []
    for query, key, value in zip(layer.query, layer.key, layer.value, strict=True):
        weights = np.tril(_elu_plus_one(x @ query.T) @ _elu_plus_one(x @ key.T).T)
        outputs.append(weights @ (x @ value.T) / weights.sum(axis=1, keepdims=True))
    return np.concatenate(outputs, axis=1) @ layer.output.reshape(layer.odim, -1).T


def _elu_plus_one(x: Doubles) -> Doubles:
    return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))


def invariants(layer: LinearAttention, key: PRNGKeyArray) -> Iterator[Check]:
    """Compares a layer with its oracle over several chunks with resets."""
    yield from layer_matches_oracle(oracle, layer, key, time=150, starts=[10, 64, 65, 140])
