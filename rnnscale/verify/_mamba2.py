"""Mamba-2: its equations in NumPy, and its invariants."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from rnnscale.sharding import linear_attention, selective_scan
from rnnscale.ssm import Mamba2
from rnnscale.verify._check import Check, agrees, follows, uniform
from rnnscale.verify._double import Doubles
from rnnscale.verify._mamba import (
    convolved,
    in_both_precisions,
    initial_steps,
    silu,
    softplus,
)
from rnnscale.verify._probe import build, draw


def _oracle(layer: Any, v: Doubles) -> Doubles:
    """Dao and Gu 2024, one head and one step after another, in the block of figure 6."""
    z, x = (np.einsum("ti,hpi->thp", v, matrix) for matrix in layer.zx_proj)
    maps = silu(convolved(layer.conv_maps, v @ layer.bc_proj.reshape(-1, layer.idim).T))
    x = silu(convolved(layer.conv, x.reshape(len(v), -1))).reshape(x.shape)
    b, c = np.moveaxis(maps.reshape(len(v), 2, layer.groups, layer.state_dim), 1, 0)
    delta = softplus(v @ layer.dt_proj.T + layer.dt_bias)
    y = np.zeros_like(x)
    for head in range(layer.heads):
        group = head // (layer.heads // layer.groups)
        state = np.zeros((layer.head_dim, layer.state_dim))
        for t in range(len(v)):
            step = min(max(delta[t, head], layer.dt_limit[0]), layer.dt_limit[1])
            decay = np.exp(-step * np.exp(layer.a_log[head]))
            state = decay * state + step * np.outer(x[t, head], b[t, group])
            y[t, head] = state @ c[t, group] + layer.d[head] * x[t, head]
    y = (y * silu(z)).reshape(len(v), layer.norm_groups, -1)
    y = y / np.sqrt(np.mean(y**2, axis=-1, keepdims=True) + 1e-5)
    y = y.reshape(len(v), -1) * layer.norm_scale.reshape(-1)
    return y @ layer.out_proj.reshape(layer.odim, -1).T


def invariants(layer: Any, key: PRNGKeyArray) -> Iterator[Check]:
    """The checks of values, of initial parameters, and of the relation to Mamba's recurrence."""
    yield from in_both_precisions(_oracle, layer, key)
    wide = build(lambda key: Mamba2(2048, 2, head_dim=1, key=key), key)
    yield initial_steps("Mamba2", wide.dt_bias)
    yield follows("-A", np.exp(wide.a_log), uniform(1, 16))
    yield _is_a_selective_scan(key)


def _is_a_selective_scan(key: PRNGKeyArray) -> Check:
    """A head is the recurrence of Mamba whose channels share one step, and all modes one
    eigenvalue."""
    time, modes, value = 40, 3, 4
    x, b, c, delta = draw(key, (time, 1, value), (time, 1, modes), (time, 1, modes), (time, 1))
    delta, a = np.exp(delta - 2), np.float32(-0.7)
    attended = jax.jit(linear_attention)(c, b, delta[..., None] * x, delta * a)
    y, hidden = jax.jit(selective_scan)(
        x[:, 0], np.tile(delta, (1, value)), np.full((value, modes), a), b[:, 0], c[:, 0]
    )
    return agrees("a head is a selective scan", attended, (y[:, None], hidden.T[None]), 1e-5)
