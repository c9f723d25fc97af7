"""Linear attention: its quadratic form in NumPy, and the comparison with the layer."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from numpy.typing import NDArray

from rnnscale.attention import LinearAttention
from rnnscale.verify._check import Check, agrees
from rnnscale.verify._double import Doubles, to_double
from rnnscale.verify._laws import call_layer
from rnnscale.verify._probe import draw


def _oracle(layer: Any, x: Doubles) -> Doubles:
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


def linear_attention_matches_oracle(
    layer: LinearAttention,
    xs: Float[Array, "time idim"] | NDArray[np.floating],
    reset: NDArray[np.bool_] | None = None,
    bound: float = 1e-5,
) -> Check:
    """Compares the outputs of one sequence with the quadratic form in double precision.

    With resets, each segment is a sequence of its own.
    """
    _, ys = call_layer(layer, xs, reset=reset)
    double, xs = to_double((layer, xs))
    starts = [] if reset is None else np.flatnonzero(reset)
    segments = [_oracle(double, segment) for segment in np.split(xs, starts) if len(segment)]
    return agrees("LinearAttention matches oracle", ys, np.concatenate(segments), bound)


def invariants(layer: LinearAttention, key: PRNGKeyArray) -> Iterator[Check]:
    """Compares a layer with its oracle over several chunks with resets, in both precisions."""
    (xs,) = draw(key, (150, layer.idim))
    reset = np.zeros(150, bool)
    reset[[10, 64, 65, 140]] = True
    yield linear_attention_matches_oracle(layer, xs, reset)
    with jax.enable_x64(True):
        layer, xs = to_double((layer, xs))
        yield linear_attention_matches_oracle(layer, xs, reset, bound=1e-10)
