"""The linear part of a state-space layer on Hopper GPUs, in Pallas Mosaic GPU: its passes.

A program is one warpgroup. It takes time in tiles: tensor cores map a tile of the input to its
drive, in shared memory in float32; the threads run the recurrence down the tile in place, with one
state each; tensor cores map the states to the output. The states never reach device memory.

Rows alone do not fill a GPU, so time is split into segments. A first sweep finds the state in which
each segment would end if it started from zero, which tells in which state each segment starts. The
backward pass consists of the same sweeps, half of them over the adjoint system, which runs the
other way:

    s_t = conj(decay) s_{t+1} + C^H g_t,    du_t = Re(B^H s_t).

The sweep is in `_mosaic_gpu_sweep`, which loads Pallas and is imported when it is first lowered.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from .._algebra import (
    cast,
    conjugate,
    in_double,
    multiply,
    multiply_conjugate,
    power,
    powers,
    where,
)
from ._mosaic_gpu_layout import System, by_segment, fold_state, unfold_state
from ._mosaic_gpu_plan import Plan, padded_time, padded_width, too_large, weight_group
from ._recurrence import stack, unstack


def unavailable(target) -> str | None:
    """Why the kernel cannot run on the target, or `None`."""
    if target.platform != "cuda":
        return "it is for NVIDIA GPUs"
    if target.capability is None:
        return "the GPU's compute capability is not known"
    if target.capability[0] != 9:
        return "it needs compute capability 9.0, this is {}.{}".format(*target.capability)
    return None


def unsupported(spec) -> str | None:
    """Why the kernel cannot take these arguments, or `None`."""
    if spec.dtype not in ("bfloat16", "float16"):
        return f"its products take bfloat16 or float16, the input is {spec.dtype}"
    if spec.state_dtype != "float32":
        return f"its states are float32, not {spec.state_dtype}"
    if 0 in (spec.batch, spec.idim, spec.state, spec.odim):
        return "a kernel needs something to compute"
    return too_large(spec)


def unsuited(target, spec) -> str | None:
    """Why another implementation would be faster, or `None`."""
    shape = spec.time, spec.idim, spec.odim
    if shape != (padded_time(spec.time), padded_width(spec.idim), padded_width(spec.odim)):
        return "{} steps from {} inputs to {} outputs would be copied to widen them".format(*shape)
    return None


def forward(primals, *, chunk, target):
    """The forward pass of the operation."""
    from ._mosaic_gpu_sweep import sweep

    u, decay, b, c, h0, cut, lengths = primals
    plan = Plan.of(u, decay, chunk, target)
    system = System.of(decay, b, c, plan.states, u.dtype)
    x, cut, last = _fold(u, 2), _fold(cut, 1), _last_steps(u, lengths)
    first = fold_state(plan, h0)

    # 1. Find the state that enters each segment.
    ends = sweep(plan, system, x, None, cut, last)["leaving"] if plan.segments > 1 else None
    starts = _starts(plan, system.decay, first, ends, cut)
    # 2. Run all segments from there.
    swept = sweep(plan, system, x, starts, cut, last, outputs=c.shape[0])
    y = swept["y"].reshape(*u.shape[:-1], -1)
    h_last = jnp.where((last >= 0)[:, None, None], swept["at"], first)
    borders = jnp.moveaxis(swept["borders"][:, : -(-plan.steps // chunk)], 1, 0)
    return (y, unfold_state(plan, h_last, h0)), unfold_state(plan, borders, h0)


def transpose(primals, outputs, cotangents, *, chunk, target):
    """The backward pass of the operation."""
    from ._mosaic_gpu_sweep import sweep

    u, decay, b, c, h0, cut, lengths = primals
    plan = Plan.of(u, decay, chunk, target)
    system = System.of(decay, b, c, plan.states, u.dtype)
    adjoint = System.adjoint_of(decay, b, c, plan.states, u.dtype)
    x, cut, last = _fold(u, 2), _fold(cut, 1), _last_steps(u, lengths)
    g, g_last = _fold(cotangents[0], 2), fold_state(plan, cotangents[1])

    # 1. The cotangents s of the states, and du. The adjoint system runs back. If a step is cut, s
    # is not passed on to the step before. The cotangent of h_last comes in at each row's last step.
    back = plan._replace(descending=True)
    cut_after = None if cut is None else jnp.pad(cut[:, 1:], [(0, 0), (0, 1)])
    ends = None
    if plan.segments > 1:
        ends = sweep(back, adjoint, g, None, cut_after, last, inject=g_last)["leaving"]
    s_starts = _starts(back, adjoint.decay, jnp.zeros_like(g_last), ends, cut_after)
    swept = sweep(back, adjoint, g, s_starts, cut_after, last, inject=g_last, outputs=u.shape[-1])
    du = swept["y"].reshape(u.shape)

    # 2. dh0: what the cotangent of the first state passes on; all of it in a row of length zero.
    dh0 = _passed_on(adjoint, swept["leaving"][:, 0], None if cut is None else cut[:, 0])
    dh0 = dh0 + jnp.where((last < 0)[:, None, None], g_last, 0)

    # 3. dc and the inner part of d_decay need the states once more, and db their cotangents.
    group = weight_group(plan.planes)
    plan, back = plan._replace(group=group), back._replace(group=group)
    h_starts = _segment_starts(plan, fold_state(plan, outputs[1], 1))
    swept = sweep(plan, system, x, h_starts, cut, last, other=g, feedback=adjoint.into)
    dc = conjugate(unstack(swept["weight"], 1))
    db = sweep(back, adjoint, g, s_starts, cut_after, last, inject=g_last, other=x)["weight"]

    # 4. The outer part of d_decay: the cotangents that enter a segment from the ones after it, and
    # from h_last, times the derivatives of the states there.
    cut_at_end = None if cut_after is None else by_segment(plan, cut_after)[..., -1]
    coming = jnp.concatenate([_passed_on(adjoint, s_starts, cut_at_end), g_last[:, None]], 1)
    at_last = jnp.where((last >= 0)[:, None, None], swept["at"], 0)
    derivatives: Any = unstack(jnp.concatenate([swept["leaving"], at_last[:, None]], 1), -2)
    outer = multiply_conjugate(derivatives, unstack(coming, -2))
    inner = unstack(swept["d_decay"], 0)
    d_decay = jax.tree.map(lambda x, y: x + jnp.sum(y, (0, 1)), inner, outer)
    return (
        du,
        _trimmed(d_decay, decay),
        _trimmed(jax.tree.map(jnp.transpose, unstack(db, 1)), b),
        _trimmed(dc, c),
        unfold_state(plan, dh0, h0),
        None,
        None,
    )


def _starts(plan: Plan, decay, first, ends, cut):
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


def _segment_starts(plan: Plan, borders):
    """Out of the borders, "row border planes state", those at which segments start."""
    starts = borders[:, :: plan.length // plan.chunk]
    return jnp.pad(starts, [(0, 0), (0, plan.segments - starts.shape[1]), (0, 0), (0, 0)])


def _passed_on(adjoint: System, s, cut):
    """What the cotangent `s` of a state passes on to the state before."""
    decay: Any = unstack(adjoint.decay, 0)
    s = stack(multiply(decay, unstack(s, -2)), -2)
    return s if cut is None else jnp.where(cut[..., None, None], 0, s)


def _trimmed(gradient, like):
    """The gradient without the padding, in the dtype of its primal."""
    parts = tuple(slice(n) for n in like.shape)
    return jax.tree.map(lambda x, like: x[parts].astype(like.dtype), gradient, like)


def _fold(x, axes: int):
    """All batch axes as one; the last `axes` axes are not batch axes."""
    return None if x is None else x.reshape(-1, *x.shape[x.ndim - axes :])


def _last_steps(u, lengths):
    """The index of the last step of each row; -1 for a row of length zero."""
    *batch, steps, _ = u.shape
    if lengths is None:
        return jnp.full(math.prod(batch), steps - 1, jnp.int32)
    return lengths.reshape(-1).astype(jnp.int32) - 1
