"""A chunk of linear attention as its equation is written: one step after another."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from ._chunks import Chunk, ChunkPasses, matmul, pull_back


def _chunk(state, inputs: Chunk):
    axis = inputs.value.ndim - 2

    def step(h, at):
        query, key, value, log_decay, erase, cut = at
        if cut is not None:
            h = jnp.where(cut[..., None, None], 0, h)
        if log_decay is not None:
            decay = jnp.exp(log_decay)
            h = decay.reshape(*decay.shape, *(1,) * (h.ndim - decay.ndim)) * h
        if erase is not None:
            value = value - _read(erase, h)
        h = h + key[..., :, None] * value[..., None, :]
        return h, _read(query, h)

    by_step = jax.tree.map(lambda x: jnp.moveaxis(x, axis, 0), inputs)
    leaving, y = lax.scan(step, state, by_step)
    return leaving, jnp.moveaxis(y, 0, axis)


def _read(x, h):
    return matmul(x[..., None, :], h)[..., 0, :]


PASSES = ChunkPasses(_chunk, partial(pull_back, _chunk))
