r"""A chunk of linear attention by products of matrices.

With the row u_t = v_t - e_t^T D_t H_{t-1}, a step is H_t = D_t H_{t-1} + k_t u_t^T. Let H be the
state before the chunk, G_t the sum of the log decays of its steps up to t, and

    (X . Y)_ts = sum_c X_tc Y_sc exp(G_tc - G_sc)    for steps s < t, and zero elsewhere.

Then, with the steps as rows of Q, K, E, V and U,

    U = V - (E exp(G)) H - (E . K) U
    Y = (Q exp(G)) H + (Q . K) U + the rows (q_t^T k_t) u_t
    H_next = exp(G_C) H + (K exp(G_C - G))^T U

where the first line is solved for U.

A reset splits the chunk into segments: (X . Y) is zero between them, H enters only the first, and
only what the last one adds leaves.
"""

import jax.numpy as jnp
from jax import Array

from ._chunks import Chunk, matmul
from ._decays import decays_of
from ._isolated import Segments, isolated
from ._solve import solve


def _chunk(state: Array, inputs: Chunk) -> tuple[Array, Array]:
    query, key, value, log_decay, erase, cut = inputs
    steps = value.shape[-2]
    decays = decays_of(log_decay, by_channel=inputs.by_channel)
    earlier = jnp.tri(steps, k=-1, dtype=bool)
    segments = None if cut is None else Segments.of(cut)
    if segments is not None:
        earlier = earlier & segments.alike

    def pairs(x):
        return jnp.where(earlier, decays.pairs(x, key), 0)

    def enter(x):
        read = decays.enter(x, state)
        return read if segments is None else jnp.where(segments.first[..., None], read, 0)

    u = value
    if erase is not None:
        u = solve(pairs(erase), value - enter(erase))
    own = jnp.sum(query * key, -1, keepdims=True)
    y = enter(query) + matmul(pairs(query), u) + own * u
    leaving = decays.through(state)
    if segments is not None:
        u = jnp.where(segments.last[..., None], u, 0)
        leaving = jnp.where(segments.uncut[..., None, None], leaving, 0)
    return leaving + decays.leave(key, u), y


PASSES = isolated(_chunk)
