"""Griffin's recurrent layer: its equations in NumPy, step by step, and the comparison."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import scipy.linalg
from jaxtyping import PRNGKeyArray

from rnnscale.layers import GriffinRecurrence
from rnnscale.verify._check import Check, agrees
from rnnscale.verify._double import Doubles, sigmoid, to_double
from rnnscale.verify._laws import call_layer
from rnnscale.verify._probe import draw, with_normal


def _oracle(layer: Any, xs: Doubles) -> Doubles:
    """De et al. 2024, section 2 and appendix A, with recurrentgemma's first step, which has 1 in
    the place of the root. The last tap of the convolution belongs to the oldest input."""
    (W_x, W_y), (b_x, b_y) = layer.w_in, layer.b_in
    gates: Any = [scipy.linalg.block_diag(*blocks) for blocks in layer.cell.gates]
    W_a, W_i = gates
    b_a, b_i = layer.cell.bias
    taps = layer.conv.weight
    inputs = [W_x @ x + b_x for x in xs]
    h, ys = np.zeros(layer.hdim), []
    for t, x in enumerate(xs):
        past = range(min(t + 1, taps.shape[1]))
        u = layer.conv.bias + sum(taps[:, j] * inputs[t - j] for j in past)
        r, i = sigmoid(W_a @ u + b_a), sigmoid(W_i @ u + b_i)
        a = np.exp(-8 * np.logaddexp(0, layer.cell.decay) * r)
        h = i * u if t == 0 else a * h + np.sqrt(1 - a**2) * (i * u)
        gate = W_y @ x + b_y
        gelu = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
        ys.append(layer.w_out @ (h * gelu) + layer.b_out)
    return np.stack(ys)


def invariants(layer: GriffinRecurrence, key: PRNGKeyArray) -> Iterator[Check]:
    """Compares a layer with the oracle over segments, in both precisions."""
    layer = with_normal(layer, key, b_in=1.0, b_out=1.0)
    (xs,) = draw(key, (20, layer.idim))
    reset = np.zeros(20, bool)
    reset[[0, 4, 5]] = True
    for x64, bound in ((False, 1e-5), (True, 1e-10)):
        with jax.enable_x64(x64):
            double, wide = to_double((layer, xs))
            _, ys = call_layer(*((double, wide) if x64 else (layer, xs)), reset=reset)
        segments = np.split(np.asarray(wide), np.flatnonzero(reset)[1:])
        expected = np.concatenate([_oracle(double, segment) for segment in segments])
        yield agrees("GriffinRecurrence matches oracle", ys, expected, bound)
