"""States at the borders of segments of time, for kernels that run all segments at once."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from .._algebra import cast, in_double, multiply, power, powers, where
from ._mosaic_gpu_layout import System, by_segment
from ._mosaic_gpu_plan import Segments
from ._recurrence import stack, unstack


def entering_segments(plan: Segments, decay, first, ends, cut):
    """The state that enters each segment.

    - `first`: the state that enters the row, "row planes state".
    - `ends`: the states that would leave the segments if zero entered them, or `None` if there is
        only one segment.
    """
    if ends is None:
        return jnp.pad(first[:, None], [(0, 0), (0, plan.segments - 1), (0, 0), (0, 0)])
    order = slice(None, None, -1) if plan.descending else slice(None)
    # What entered the row, or ended a segment, decays on through the segments after it, uncut.
    sources = unstack(jnp.concatenate([first[:, None], ends[:, order][:, :-1]], 1), -2)
    segment = jnp.arange(plan.segments)
    distance = segment[:, None] - segment
    reaches = jnp.broadcast_to(distance >= 0, (plan.rows, *distance.shape))
    if cut is not None:
        cuts = jnp.any(by_segment(plan, cut), -1)[:, order]
        before = jnp.cumsum(cuts, 1) - cuts
        reaches &= before[:, :, None] == before[:, None]
    with jax.enable_x64(True):  # rounded once, at the end
        segment_decay = power(in_double(unstack(decay, 0)), plan.length)
        decays = powers(segment_decay, jnp.arange(plan.segments), plan.segments - 1)
    decayed = multiply(
        jax.tree.map(lambda x: x[jnp.maximum(distance, 0)], cast(decays, jnp.float32)),
        jax.tree.map(lambda x: x[:, None], sources),
    )
    sums = jax.tree.map(lambda x: jnp.sum(x, 2), where(~reaches[..., None], 0, decayed))
    return stack(sums, -2)[:, order]


def segment_starts(plan: Segments, borders):
    """Out of the borders, "row border planes state", those at which segments start."""
    starts = borders[:, :: plan.length // plan.chunk]
    return jnp.pad(starts, [(0, 0), (0, plan.segments - starts.shape[1]), (0, 0), (0, 0)])


def passed_on(adjoint: System, s, cut):
    """What the cotangent `s` of a state passes on to the state before."""
    decay: Any = unstack(adjoint.decay, 0)
    s = stack(multiply(decay, unstack(s, -2)), -2)
    return s if cut is None else jnp.where(cut[..., None, None], 0, s)


def trimmed(gradient, like):
    """The gradient without the padding, in the dtype of its primal."""
    parts = tuple(slice(n) for n in like.shape)
    return jax.tree.map(lambda x, like: x[parts].astype(like.dtype), gradient, like)


def fold(x, axes: int):
    """All batch axes as one; the last `axes` axes are not batch axes."""
    return None if x is None else x.reshape(-1, *x.shape[x.ndim - axes :])


def last_steps(u, lengths):
    """The index of the last step of each row; -1 for a row of length zero."""
    *batch, steps, _ = u.shape
    if lengths is None:
        return jnp.full(math.prod(batch), steps - 1, jnp.int32)
    return lengths.reshape(-1).astype(jnp.int32) - 1
