"""The backward pass by a scan, and the parts that other backward passes share with it."""

import jax
import jax.numpy as jnp
from jax import lax

from .._planar import cast, conjugate, multiply_conjugate, where


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


def sum_to(x, like):
    """`x` summed over the axes along which `like` has size 1, in the dtype of `like`."""

    def one(x, like):
        axes = tuple(i for i, n in enumerate(like.shape) if n == 1 and x.shape[i] != 1)
        return jnp.sum(x, axes, keepdims=True).astype(like.dtype)

    return jax.tree.map(one, x, like)


def transpose_by_scan(scan, a, h, h0, cut, g, g_last, *, reverse: bool):
    """The backward pass by one scan in the other direction: `(da, db, dh0)`.

    The cotangent of the state obeys s_t = g_t + conj(a_{t+1}) s_{t+1}, the same recurrence with
    the decay moved by one step. Then db = s, da = s conj(h_{t-1}) and dh0 = conj(a_0) s_0.
    """
    first, last = (-1, 0) if reverse else (0, -1)
    decay = conjugate(a)
    if a.shape[-2] > 1:
        decay = following(decay, axis=-2, reverse=reverse)
    next_cut = None if cut is None else following(cut, axis=-1, reverse=reverse)
    s = jax.tree.map(lambda g, end: g.astype(end.dtype).at[..., last, :].add(end), g, g_last)
    s, _ = scan(decay, s, jax.tree.map(jnp.zeros_like, h0), next_cut, reverse=not reverse)
    da = multiply_conjugate(previous(h, h0, cut, reverse=reverse), s)
    if cut is not None:  # `previous` is zero there, but s may be infinite
        da = where(cut[..., None], 0.0, da)
    a0, s0 = jax.tree.map(lambda x: x[..., first, :], (a, s))
    dh0 = multiply_conjugate(cast(a0, h0.dtype), s0)
    if cut is not None:
        dh0 = where(cut[..., first, None], 0.0, dh0)
    return sum_to(da, a), cast(s, g.dtype), dh0
