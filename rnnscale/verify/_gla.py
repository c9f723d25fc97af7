"""Gated linear attention: its parallel form in NumPy, and its invariants."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import PRNGKeyArray

from rnnscale.attention import GatedLinearAttention
from rnnscale.verify._check import Check
from rnnscale.verify._double import Doubles, sigmoid
from rnnscale.verify._probe import draw, with_arrays, with_normal
from rnnscale.verify._segments import layer_matches_oracle, sequence_matches_oracle


def build(key: PRNGKeyArray) -> GatedLinearAttention:
    """A small layer whose decays differ visibly from one another, and from one."""
    layer = GatedLinearAttention(5, 2, 6, key_dim=3, value_dim=4, rank=2, temperature=2.0, key=key)
    return with_normal(layer, key, decay_in=0.5, decay_out=1.0, decay_bias=1.0, scale=1.0)


def oracle(layer: Any, x: Doubles) -> Doubles:
    r"""Yang et al. 2024, section 4.1: in each head $o_t = \sum_{s \le t} w_{ts} v_s$ with
    $w_{ts} = \sum_c q_{tc} k_{sc} e^{G_{tc} - G_{sc}} / \sqrt{K}$, where $G$ is the sum of
    $\log \sigma(\cdot) / \tau$, and $y = \mathrm{RMSNorm}(o) \odot \mathrm{swish}(r)$."""
    outputs = np.zeros((len(x), layer.odim))
    later = np.triu(np.ones((len(x), len(x)), bool), 1)
    for head in range(layer.heads):
        q, k, v, r = (
            x @ weight[head].T
            for weight in (layer.query, layer.key, layer.value, layer.output_gate)
        )
        gate = x @ layer.decay_in.T @ layer.decay_out[head].T + layer.decay_bias[head]
        G = np.cumsum(-np.logaddexp(0, -gate) / layer.temperature, axis=0)
        exponent = np.where(later[:, :, None], -np.inf, G[:, None] - G[None, :])
        weights = np.einsum("tc,sc,tsc->ts", q, k, np.exp(exponent)) / np.sqrt(layer.key_dim)
        o = weights @ v
        o = o / np.sqrt((o**2).mean(axis=1, keepdims=True) + 1e-5) * layer.scale
        outputs += (o * r * sigmoid(r)) @ layer.output[:, head].T
    return outputs


def invariants(layer: GatedLinearAttention, key: PRNGKeyArray) -> Iterator[Check]:
    """Compares a layer with its oracle, with ordinary gates and with some far open or closed."""
    yield from layer_matches_oracle(oracle, layer, key, time=70, starts=[10, 11, 64])
    bias = np.broadcast_to(np.array([-100, 0, 100], np.float32), (layer.heads, 3))
    extreme = with_arrays(layer, decay_bias=bias)
    check = sequence_matches_oracle(oracle, extreme, *draw(key, (70, layer.idim)))
    yield Check("gates near -100 and 100: matches oracle", check.figure, check.bound)
