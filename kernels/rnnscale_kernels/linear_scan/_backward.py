"""The backward pass by a scan, and the parts that other backward passes share with it."""

import jax
import jax.numpy as jnp
from jax import lax

from .._algebra import adjoint, cast, multiply_adjoint, outer_sum, where


def previous(h, h0, cut, *, reverse: bool):
    """The state that enters each step, in the dtype of `h0`; zero where it is cut."""

    def shift(h, h0):
        h, h0 = h.astype(h0.dtype), h0[..., None, :]
        parts = [h[..., 1:, :], h0] if reverse else [h0, h[..., :-1, :]]
        return jnp.concatenate(parts, axis=-2)

    carry = jax.tree.map(shift, h, h0)
    return carry if cut is None else where(cut[..., None], 0.0, carry)


def following(x, *, axis: int, reverse: bool):
    """`x` shifted by one step: entry t is that of the next step in processing order. The last step
    gets zero."""

    def shift(x):
        n, at = x.shape[axis], x.ndim + axis
        kept = lax.slice_in_dim(x, 0 if reverse else 1, n - 1 if reverse else n, axis=at)
        fill = jnp.zeros_like(lax.slice_in_dim(x, 0, 1, axis=at))
        return jnp.concatenate([fill, kept] if reverse else [kept, fill], axis=at)

    return jax.tree.map(shift, x)


def transpose_by_scan(scan, a, h, h0, cut, g, g_last, *, reverse: bool):
    """The backward pass by one scan in the other direction: `(da, db, dh0)`.

    The cotangent of the state obeys s_t = g_t + a_{t+1}^H s_{t+1}, the same recurrence with the
    adjoint of the decay moved by one step. Then db = s, da = s h_{t-1}^H and dh0 = a_0^H s_0.
    """
    first, last = (-1, 0) if reverse else (0, -1)
    decay = adjoint(a)
    if a.shape[-2] == h.shape[-2]:  # The decay of a single step enters no s, infinite or not.
        decay = following(decay, axis=-2, reverse=reverse)
    next_cut = None if cut is None else following(cut, axis=-1, reverse=reverse)
    s = jax.tree.map(lambda g, end: g.astype(end.dtype).at[..., last, :].add(end), g, g_last)
    s, _ = scan(decay, s, jax.tree.map(jnp.zeros_like, h0), next_cut, reverse=not reverse)
    # `previous` is zero where it is cut, but s may be infinite.
    kept = s if cut is None else where(cut[..., None], 0.0, s)
    da = outer_sum(kept, previous(h, h0, cut, reverse=reverse), like=a)
    a0, s0 = jax.tree.map(lambda x: x[..., first, :], (a, s))
    dh0 = multiply_adjoint(cast(a0, h0.dtype), s0)
    if cut is not None:
        dh0 = where(cut[..., first, None], 0.0, dh0)
    return da, cast(s, g.dtype), dh0
