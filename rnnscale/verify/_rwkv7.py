"""RWKV-7: its equations in NumPy, one step after another, and the comparison."""

from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from rnnscale.attention import RWKV7
from rnnscale.verify._check import Check, agrees
from rnnscale.verify._double import Doubles, sigmoid, to_double
from rnnscale.verify._laws import call_layer
from rnnscale.verify._probe import OPEN, draw


def awake(key: PRNGKeyArray) -> RWKV7:
    """A small layer, none of whose arrays are zero as some are at the start."""
    layer = RWKV7(5, 2, 6, key_dim=3, decay_rank=4, rate_rank=2, gate_rank=3, key=key)
    leaves, structure = jax.tree.flatten(layer)
    keys = jax.random.split(jax.random.fold_in(key, 1), len(leaves))
    moved = [x + 0.5 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(structure, moved)


def _oracle(layer: Any, xs: Doubles) -> tuple[Doubles, Doubles]:
    """Peng et al. 2025, section 4, for the first layer, which has no values to mix in.

    **Returns:** the matrix of each head after the last step, and the outputs.
    """
    heads, size = layer.removal.shape
    state, before, ys = np.zeros((heads, size, size)), np.zeros(layer.idim), []
    for x in xs:
        xr, xw, xk, xv, xa, xg = (x + mu * (before - x) for mu in layer.mix)
        before = x
        total = np.zeros(layer.odim)
        for h in range(heads):
            r, k, v = layer.query[h] @ xr, layer.key[h] @ xk, layer.value[h] @ xv
            d = layer.decay.up[h] @ np.tanh(layer.decay.down @ xw) + layer.decay.bias[h]
            w = np.exp(-np.exp(-0.5) * sigmoid(d))
            a = sigmoid(layer.rate.up[h] @ (layer.rate.down @ xa) + layer.rate.bias[h])
            g = layer.gate.up[h] @ sigmoid(layer.gate.down @ xg)
            kappa = k * layer.removal[h]
            kappa = kappa / np.linalg.norm(kappa)
            k = k * (1 + (a - 1) * layer.replacement[h])
            # The paper's state is the transpose of ours: values by keys.
            s = state[h].T @ (np.diag(w) - np.outer(kappa, a * kappa)) + np.outer(v, k)
            state[h] = s.T
            y = s @ r
            y = (y - y.mean()) / np.sqrt(y.var() + 1e-5 * size)
            y = layer.scale[h] * y + layer.shift[h] + np.dot(r, layer.bonus[h] * k) * v
            total += layer.output[:, h] @ (g * y)
        ys.append(total)
    return state, np.stack(ys)


def invariants(layer: RWKV7, key: PRNGKeyArray) -> Iterator[Check]:
    """Compares a layer with the oracle over segments, in both precisions."""
    (xs,) = draw(key, (40, layer.idim))
    reset = np.zeros(40, bool)
    reset[[3, 4, 30]] = True
    for x64, bound in ((False, 1e-5), (True, 1e-10)):
        with jax.enable_x64(x64):
            double, wide = to_double((layer, xs))
            state, ys = call_layer(*((double, wide) if x64 else (layer, xs)), reset=reset)
        results = [_oracle(double, each) for each in np.split(wide, np.flatnonzero(reset))]
        expected = results[-1][0], np.concatenate([ys for _, ys in results])
        yield agrees("RWKV7 matches oracle", (state.memory, ys), expected, bound)
    yield _replaces(layer, key)
    yield _starts_as_zero(key)


def _replaces(layer: RWKV7, key: PRNGKeyArray) -> Check:
    """Without decay, and with an open rate, reading along the removed key gives what was written,
    whatever the memory held."""
    x, memory = draw(key, (layer.idim,), layer.init_state().memory.shape)
    shut, full = np.full_like(layer.rate.bias, -OPEN), np.full_like(layer.rate.bias, OPEN)
    layer = eqx.tree_at(lambda each: (each.decay.bias, each.rate.bias), layer, (shut, full))
    before = layer.init_state()._replace(memory=memory)
    state, _ = call_layer(layer, x[None], before)
    double, x = to_double((layer, x))
    mixed = [x - mu * x for mu in double.mix]
    got, expected = [], []
    for h in range(layer.heads):
        k, v = double.key[h] @ mixed[2], double.value[h] @ mixed[3]
        kappa = k * double.removal[h] / np.linalg.norm(k * double.removal[h])
        got.append(state.memory[h].T @ kappa)
        expected.append(np.dot(k, kappa) * v)
    return agrees("an open rate replaces", np.stack(got), np.stack(expected), 1e-5)


def _starts_as_zero(key: PRNGKeyArray) -> Check:
    """The output starts at zero, so that a residual block starts as the identity."""
    _, ys = RWKV7(6, 2, key=key)(jnp.ones((3, 6)))
    return Check("output starts at zero", float(np.max(np.abs(ys))), 0.0)
