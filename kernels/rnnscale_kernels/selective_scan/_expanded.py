"""The selective scan by `linear_scan`, with the states of all its steps in memory.

This is the definition of the operation, from which its derivatives come. Where `linear_scan` has a
kernel, it also runs each chunk of time.
"""

import jax
import jax.numpy as jnp

from ..linear_scan import scan


def states(primals):
    """`(y, h, h_last)`, with h "*batch time state"."""
    u, delta, a, b, c, h0, cut = primals
    wide = h0.dtype
    delta, b, c = (x.astype(wide) for x in (delta, b, c))
    decay = jnp.exp(delta[..., None] * a[..., None, :, :])
    drive = (delta * u.astype(wide))[..., None] * b[..., None, :]
    steps = (*u.shape[:-1], h0.shape[-1])
    h, h_last = scan(decay.reshape(steps), drive.reshape(steps), h0, cut, reverse=False)
    y = jnp.sum(h.reshape(drive.shape) * c[..., None, :], axis=-1)
    return y.astype(u.dtype), h, h_last


def public(primals):
    """The public outputs of the operation, `(y, h_last)`."""
    y, _, h_last = states(primals)
    return y, h_last


def tangent(primals, outputs, tangents, **_):
    """The tangents of `(y, h_last)`."""
    *values, cut = primals
    directions = list(tangents[: len(values)])
    return jax.jvp(lambda *values: public((*values, cut)), values, directions)[1]


def transpose(primals, outputs, cotangents, **_):
    """The cotangents of the primals."""
    *values, cut = primals
    _, pull = jax.vjp(lambda *values: public((*values, cut)), *values)
    return *pull(tuple(cotangents)), None
