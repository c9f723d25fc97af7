"""The recurrence in plain XLA."""

import jax
import jax.numpy as jnp
from jax import lax

_PRECISION = lax.Precision.HIGHEST


def sequential(query, key, value, log_decay, erase, h0, cut, *, reverse):
    """One step after another. The steps where `cut` is true start from zero."""
    axis = query.ndim - 3

    def step(h, inputs):
        q, k, v, g, e, cut = inputs
        if cut is not None:
            h = jnp.where(cut[..., None, None, None], 0, h)
        if g is not None:
            g = g[..., None] if g.ndim == v.ndim - 1 else g
            h = jnp.exp(g)[..., None] * h
        if e is not None:
            v = v - jnp.einsum("...k,...kv->...v", e, h, precision=_PRECISION)
        h = h + k[..., :, None] * v[..., None, :]
        y = jnp.einsum("...k,...kv->...v", q, h, precision=_PRECISION)
        return h, y

    inputs = (query, key, value, log_decay, erase, cut)
    inputs = jax.tree.map(lambda x: jnp.moveaxis(x, axis, 0), inputs)
    h_last, ys = lax.scan(step, h0, inputs, reverse=reverse)
    return jnp.moveaxis(ys, 0, axis), h_last
