"""Attention within a window: over all pairs of steps in NumPy, compared with the layer."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import scipy.special
from jaxtyping import PRNGKeyArray

from rnnscale.attention import LocalAttention
from rnnscale.verify._check import Check, agrees
from rnnscale.verify._double import Doubles, to_double
from rnnscale.verify._laws import call_layer
from rnnscale.verify._probe import build, draw, with_normal


def _oracle(layer: Any, xs: Doubles) -> Doubles:
    """Vaswani et al. 2017 with a band for a mask, rotary positions of Su et al. 2021 and shared
    keys and values of Ainslie et al. 2023, one head after the other.

    Features of a pair are a complex number, which a position turns by an angle.
    """
    time, (heads, key_dim, _) = len(xs), layer.query.shape
    pairs = layer.rotated // 2
    rates = layer.rotary_base ** (-2 * np.arange(pairs) / max(1, layer.rotated))
    turns = np.exp(1j * np.outer(np.arange(time), rates))

    def rotated(x: Doubles) -> Doubles:
        pair = (x[:, :pairs] + 1j * x[:, pairs : 2 * pairs]) * turns
        return np.concatenate([pair.real, pair.imag, x[:, 2 * pairs :]], axis=1)

    age = np.subtract.outer(np.arange(time), np.arange(time))
    seen = (age >= 0) & (age < layer.window)
    y = np.zeros((time, layer.odim)) + (0 if layer.bias is None else layer.bias)
    for head in range(heads):
        shared = head // (heads // len(layer.key))
        query = rotated(xs @ layer.query[head].T)
        key = rotated(xs @ layer.key[shared].T)
        logits = np.where(seen, query @ key.T / np.sqrt(key_dim), -np.inf)
        weights = scipy.special.softmax(logits, axis=1)
        y += weights @ (xs @ layer.value[shared].T) @ layer.output[:, head].T
    return y


def _matches_oracle(layer: LocalAttention, key: PRNGKeyArray) -> Iterator[Check]:
    """Over several blocks and segments, in both precisions. Softmax is in float32 in both."""
    (xs,) = draw(key, (25, layer.idim))
    reset = np.zeros(25, bool)
    reset[[0, 7, 8, 12]] = True
    for x64 in (False, True):
        with jax.enable_x64(x64):
            double, wide = to_double((layer, xs))
            _, ys = call_layer(*((double, wide) if x64 else (layer, xs)), reset=reset)
        segments = np.split(np.asarray(wide), np.flatnonzero(reset)[1:])
        expected = np.concatenate([_oracle(double, segment) for segment in segments])
        yield agrees("LocalAttention matches oracle", ys, expected, 1e-6 if x64 else 1e-5)


def invariants(layer: LocalAttention, key: PRNGKeyArray) -> Iterator[Check]:
    """Compares the layer, and one with other heads and all features rotated, with the oracle."""
    yield from _matches_oracle(layer, key)
    other = build(lambda key: LocalAttention(6, 3, 5, 2, key_dim=2, use_bias=True, key=key), key)
    yield from _matches_oracle(with_normal(other, key, bias=1.0), key)
