"""The recurrence inside a chunk, on states whose planes are stacked.

A state is one array "*batch planes state", with two planes if it is complex. So the map into it and
the map out of it are one matrix product each, and a loop over time updates one buffer.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .._algebra import Planar, as_number, conjugate
from .._target import Target
from ..linear_scan import scan, time_invariant, transpose as scan_transpose


def stack(x, axis: int):
    """The planes of `x` as one array, with an axis for them."""
    return jnp.stack(jax.tree.leaves(x), axis)


def unstack(x, axis: int):
    """The inverse of `stack`."""
    return as_number([lax.index_in_dim(x, i, axis, keepdims=False) for i in range(x.shape[axis])])


class ChunkPasses(NamedTuple):
    """The two passes of h_t = decay h_{t-1} + drive_t within a chunk.

    - `forward(decay, drive, entering, cut)`: `(h, leaving)`.
    - `transpose(decay, h, entering, cut, g, g_leaving)`: `(d_decay, d_drive, d_entering)`.

    `decay` and `d_decay` are as in the operation, "state". All others are stacked; `drive`, `h` and
    `g` are "*batch time planes state".
    """

    forward: Callable[..., Any]
    transpose: Callable[..., Any]


def passes_for(target: Target, entering) -> ChunkPasses:
    """The loops below on CPUs, if states are complex; otherwise `linear_scan`."""
    if target.platform == "cpu" and entering.shape[-2] == 2:
        return ChunkPasses(_loop, _loop_transpose)
    return ChunkPasses(_scan, _scan_transpose)


def _scan(decay, drive, entering, cut):
    h, leaving = scan(
        time_invariant(decay, drive.ndim - 1), unstack(drive, -2), unstack(entering, -2), cut,
        reverse=False,
    )  # fmt: skip
    return stack(h, -2), stack(leaving, -2)


def _scan_transpose(decay, h, entering, cut, g, g_leaving):
    decay = time_invariant(decay, g.ndim - 1)
    h, entering, g, g_leaving = (unstack(x, -2) for x in (h, entering, g, g_leaving))
    d_decay, d_drive, d_entering = scan_transpose(
        decay, h, entering, cut, g, g_leaving, reverse=False
    )
    d_decay = jax.tree.map(lambda x: x.reshape(x.shape[-1]), d_decay)
    return d_decay, stack(d_drive, -2), stack(d_entering, -2)


def _at(x, t, axis: int = -3):
    # Not `dynamic_index_in_dim`, which first finds out whether an index counts from the end.
    return lax.squeeze(lax.dynamic_slice_in_dim(x, t, 1, axis), (x.ndim + axis,))


def _put(x, t, value):
    axis = x.ndim - 3
    return lax.dynamic_update_slice_in_dim(x, jnp.expand_dims(value, axis), t, axis)


def _keep(cut, t, carry):
    """`carry`, or zero where step `t` is cut."""
    return carry if cut is None else jnp.where(_at(cut, t, -1)[..., None, None], 0, carry)


def _factors(decay: Planar):
    """`(p, q)` such that decay * z is p z + q swap(z) on stacked planes."""
    return decay.re, jnp.stack([-decay.im, decay.im])


def _swap(z):
    return jnp.flip(z, -2)


def _times(factors, z):
    p, q = factors
    return p * z + q * _swap(z)


def _loop(decay, drive, entering, cut):
    """One loop over time that overwrites the drive with the states."""
    factors = _factors(decay)

    def step(t, loop):
        carry, h = loop
        # The barrier makes the sum one value, read before the buffer is written: without it XLA
        # copies the buffer.
        carry = lax.optimization_barrier(_keep(cut, t, _times(factors, carry)) + _at(h, t))
        return carry, _put(h, t, carry)

    leaving, h = lax.fori_loop(0, drive.shape[-3], step, (entering, drive))
    return h, leaving


def _loop_transpose(decay, h, entering, cut, g, g_leaving):
    """One loop back through time that overwrites the cotangents of h with those of the drive."""
    factors = _factors(conjugate(decay))
    steps = g.shape[-3]

    def step(i, loop):
        carry, straight, crossed, s_all = loop
        t = steps - 1 - i
        s = lax.optimization_barrier(carry + _at(s_all, t))
        before = jnp.where(t == 0, entering, _at(h, jnp.maximum(t - 1, 0)))
        straight = straight + _keep(cut, t, s * before)
        crossed = crossed + _keep(cut, t, _swap(s) * before)
        return _keep(cut, t, _times(factors, s)), straight, crossed, _put(s_all, t, s)

    zeros = jnp.zeros_like(entering)
    d_entering, straight, crossed, s_all = lax.fori_loop(
        0, steps, step, (g_leaving, zeros, zeros, g)
    )
    rows = tuple(range(entering.ndim - 2))
    straight, crossed = jnp.sum(straight, rows), jnp.sum(crossed, rows)
    # s conj(before): from the products plane by plane, and those with the planes of s swapped.
    d_decay = Planar(straight[0] + straight[1], crossed[0] - crossed[1])
    return d_decay, s_all, d_entering
