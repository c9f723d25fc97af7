"""The mLSTM: its quadratic form in NumPy, without a state, and its invariants."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import scipy.linalg
from jaxtyping import PRNGKeyArray

from rnnscale.attention import MLSTM, UpProjectedMLSTM
from rnnscale.verify._check import Check, agrees
from rnnscale.verify._double import Doubles, sigmoid, to_double
from rnnscale.verify._laws import call_layer
from rnnscale.verify._probe import draw, with_arrays, with_normal
from rnnscale.verify._segments import layer_matches_oracle, sequence_matches_oracle

_TIME, _STARTS = 40, [10, 11, 30]


def build(key: PRNGKeyArray) -> MLSTM:
    """A small layer whose gates depend on the input, which they do not at first.

    The outputs of a head change their sign with q · k of a step if there are few others. With the
    usual epsilon, the norm makes that a jump, which hides the accuracy of bfloat16.
    """
    layer = MLSTM(5, 2, 6, key_dim=3, value_dim=7, epsilon=1.0, key=key)
    return with_normal(layer, key, gates=0.5, gate_bias=1.0, output_gate=0.5)


def _memory_oracle(q: Doubles, k: Doubles, v: Doubles, i: Doubles, f: Doubles) -> Doubles:
    r"""Beck et al. 2024, appendix A.3, for one head: the parallel form, without stabilisation.

    $y_t = \sum_s w_{ts} v_s / (\max(|\sum_s w_{ts}|, 1) + 10^{-6} e^{m_t})$ over $s \le t$, with
    $w_{ts} = e^{F_t - F_s + i_s} q_t \cdot k_s / \sqrt{K}$ and $F_t = \sum_{s \le t} \log f_s$. The
    authors' code adds the $10^{-6}$ to numbers divided by $e^{m_t}$, the largest of all gates:
    $m_t = \max(F_t, \max_s(F_t - F_s + i_s))$.
    """
    F = np.cumsum(-np.logaddexp(0, -f))
    later = np.triu(np.ones((len(F), len(F)), bool), 1)
    gates = np.where(later, -np.inf, F[:, None] - F[None, :] + i[None, :])
    m = np.maximum(F, gates.max(axis=1))
    weights = np.exp(gates) * (q @ k.T) / np.sqrt(k.shape[1])
    total = np.maximum(np.abs(weights.sum(axis=1)), 1) + 1e-6 * np.exp(m)
    return weights @ v / total[:, None]


def _head_norm(h: Doubles, scale: Doubles, epsilon: float) -> Doubles:
    """A layer norm without bias, for the outputs of one head."""
    h = h - h.mean(axis=1, keepdims=True)
    return h / np.sqrt((h**2).mean(axis=1, keepdims=True) + epsilon) * scale


def _oracle(layer: Any, x: Doubles) -> Doubles:
    """Beck et al. 2025 (xLSTM 7B), section 3.1: gates are capped, and heads go through a layer norm
    and the output gate."""
    outputs, cap = 0, layer.gate_cap
    for head in range(layer.heads):
        i, f = (
            cap * np.tanh((x @ weight[head] + bias[head]) / cap)
            for weight, bias in zip(layer.gates, layer.gate_bias, strict=True)
        )
        q, k, v, o = (
            x @ weight[head].T
            for weight in (layer.query, layer.key, layer.value, layer.output_gate)
        )
        h = _head_norm(_memory_oracle(q, k, v, i, f), layer.scale[head], layer.epsilon)
        outputs = outputs + (sigmoid(o) * h) @ layer.output[:, head].T
    return np.asarray(outputs)


def build_up_projected(key: PRNGKeyArray) -> UpProjectedMLSTM:
    """A small layer whose gates depend on the input, which they do not at first."""
    layer = UpProjectedMLSTM(6, 2, 5, expand=2, block_size=3, conv_width=3, key=key)
    return with_normal(layer, key, gates=0.3, gate_bias=1.0, scale=1.0, skip=1.0)


def _up_projected_oracle(layer: Any, x: Doubles) -> Doubles:
    """Beck et al. 2024, figure 11: the block of the mLSTM without its norm and residual."""
    inner, z = (x @ weight.reshape(-1, layer.idim).T for weight in layer.up)
    taps = zip(inner.T, layer.conv.weight, layer.conv.bias, strict=True)
    u = np.stack([np.convolve(each, w)[: len(x)] + b for each, w, b in taps], axis=1)
    u = u * sigmoid(u)
    q, k, v = (
        features @ np.asarray(scipy.linalg.block_diag(*blocks)).T
        for features, blocks in zip((u, u, inner), layer.qkv, strict=True)
    )
    i, f = (
        np.concatenate([q, k, v], axis=1) @ weight.T + bias
        for weight, bias in zip(layer.gates, layer.gate_bias, strict=True)
    )
    heads = [np.split(each, layer.heads, axis=1) for each in (q, k, v)]
    h = [
        _head_norm(_memory_oracle(*each), layer.scale[head], 1e-5)
        for head, each in enumerate(zip(*heads, i.T, f.T, strict=True))
    ]
    h = np.concatenate(h, axis=1) + layer.skip.reshape(-1) * u
    return (h * z * sigmoid(z)) @ layer.down.reshape(layer.odim, -1).T


def up_projected_invariants(layer: UpProjectedMLSTM, key: PRNGKeyArray) -> Iterator[Check]:
    yield from layer_matches_oracle(
        _up_projected_oracle, layer, key, time=_TIME, starts=_STARTS, gradient_bound=1e-5
    )


def invariants(layer: MLSTM, key: PRNGKeyArray) -> Iterator[Check]:
    # No gradient goes through m, on which the summand 1e-6 in the denominator depends.
    yield from layer_matches_oracle(
        _oracle, layer, key, time=_TIME, starts=_STARTS, gradient_bound=1e-5
    )
    yield _any_stabiliser(layer, key)
    for i_bias, f_bias in ((30, 30), (30, -30), (-30, 30), (-30, -30)):
        yield _extreme_gates(layer, key, i_bias, f_bias)


def _any_stabiliser(layer: MLSTM, key: PRNGKeyArray) -> Check:
    """The output does not depend on m: it is the same for (C, n, m) and (C / e³, n / e³, m + 3)."""
    xs, rest = draw(key, (20, layer.idim), (20, layer.idim))
    with jax.enable_x64(True):
        layer, xs, rest = to_double((layer, xs, rest))
        state, _ = call_layer(layer, xs)
        shifted = state._replace(
            memory=state.memory * np.exp(-3),
            normaliser=state.normaliser * np.exp(-3),
            stabiliser=state.stabiliser + 3,
        )
        _, expected = call_layer(layer, rest, state)
        _, ys = call_layer(layer, rest, shifted)
    # They differ by the summand 1e-6 in the denominator.
    return agrees("the output does not depend on m", ys, expected, 1e-5)


def _extreme_gates(layer: MLSTM, key: PRNGKeyArray, i_bias: float, f_bias: float) -> Check:
    """Gates that are far open or closed, and so little capped that their exponentials span e⁶⁰."""
    bias = np.array([[i_bias] * 2, [f_bias] * 2], np.float32)
    layer = with_arrays(layer, gate_bias=bias, gate_cap=np.float32(1e3))
    (xs,) = draw(key, (_TIME, layer.idim))
    check = sequence_matches_oracle(_oracle, layer, xs)
    # A gate of 30 is rounded by 2e-6, and so is its exponential.
    return Check(f"i near {i_bias}, f near {f_bias}: matches oracle", check.figure, 3e-5)
