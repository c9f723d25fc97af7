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

from typing import Any

import jax
import jax.numpy as jnp

from .._algebra import conjugate, multiply_conjugate
from .._target import needs_hopper
from ._mosaic_gpu_layout import System, by_segment, fold_state, unfold_state
from ._mosaic_gpu_plan import Plan, padded_time, padded_width, too_large, weight_group
from ._recurrence import unstack
from ._segments import entering_segments, fold, last_steps, passed_on, segment_starts, trimmed

unavailable = needs_hopper


def unsupported(spec) -> str | None:
    """Why the kernel cannot take these arguments, or `None`."""
    return unsupported_numbers(spec) or too_large(spec)


def unsupported_numbers(spec) -> str | None:
    """Why a kernel with products on tensor cores cannot take arguments of these dtypes and sizes,
    or `None`."""
    if spec.dtype not in ("bfloat16", "float16"):
        return f"its products take bfloat16 or float16, the input is {spec.dtype}"
    if spec.state_dtype != "float32":
        return f"its states are float32, not {spec.state_dtype}"
    if 0 in (spec.batch, spec.idim, spec.state, spec.odim):
        return "a kernel needs something to compute"
    return None


def unsuited(target, spec) -> str | None:
    """Why another implementation would be faster, or `None`."""
    shape = spec.time, spec.idim, spec.odim
    if shape != (padded_time(spec.time), padded_width(spec.idim), padded_width(spec.odim)):
        return "{} steps from {} inputs to {} outputs would be copied to widen them".format(*shape)
    return None


def forward(primals, *, chunk, target):
    """The forward pass of the operation."""
    u, decay, b, c, h0, cut, lengths = primals
    plan = Plan.of(u, decay, chunk, target)
    system = System.of(decay, b, c, plan.states, u.dtype)
    x, cut, last = fold(u, 2), fold(cut, 1), last_steps(u, lengths)
    first = fold_state(plan, h0)
    _, swept = _sweep_from(first, plan, system, x, cut, last, outputs=c.shape[0], at_last=True)
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
    x, cut, last = fold(u, 2), fold(cut, 1), last_steps(u, lengths)
    g, g_last = fold(cotangents[0], 2), fold_state(plan, cotangents[1])

    # 1. The cotangents s of the states, and du. The adjoint system runs back. If a step is cut, s
    # is not passed on to the step before. The cotangent of h_last comes in at each row's last step.
    back, cut_after, zero = plan._replace(descending=True), _cut_after(cut), jnp.zeros_like(g_last)
    s_starts, swept = _sweep_from(
        zero, back, adjoint, g, cut_after, last, inject=g_last, outputs=u.shape[-1]
    )
    du = swept["y"].reshape(u.shape)

    # 2. dh0: what the cotangent of the first state passes on; all of it in a row of length zero.
    dh0 = passed_on(adjoint, swept["leaving"][:, 0], None if cut is None else cut[:, 0])
    dh0 = dh0 + jnp.where((last < 0)[:, None, None], g_last, 0)

    # 3. dc and the inner part of d_decay need the states once more, and db their cotangents.
    group = weight_group(plan.planes)
    plan, back = plan._replace(group=group), back._replace(group=group)
    h_starts = segment_starts(plan, fold_state(plan, outputs[1], 1))
    swept = sweep(
        plan, system, x, h_starts, cut, last, other=g, feedback=adjoint.into, at_last=True
    )
    dc = conjugate(unstack(swept["weight"], 1))
    db = sweep(back, adjoint, g, s_starts, cut_after, last, inject=g_last, other=x)["weight"]

    # 4. The outer part of d_decay: the cotangents that enter a segment from the ones after it, and
    # from h_last, times the derivatives of the states there.
    cut_at_end = None if cut_after is None else by_segment(plan, cut_after)[..., -1]
    coming = jnp.concatenate([passed_on(adjoint, s_starts, cut_at_end), g_last[:, None]], 1)
    at_last = jnp.where((last >= 0)[:, None, None], swept["at"], 0)
    derivatives: Any = unstack(jnp.concatenate([swept["leaving"], at_last[:, None]], 1), -2)
    outer = multiply_conjugate(derivatives, unstack(coming, -2))
    inner = unstack(swept["d_decay"], 0)
    d_decay = jax.tree.map(lambda x, y: x + jnp.sum(y, (0, 1)), inner, outer)
    return (
        du,
        trimmed(d_decay, decay),
        trimmed(jax.tree.map(jnp.transpose, unstack(db, 1)), b),
        trimmed(dc, c),
        unfold_state(plan, dh0, h0),
        None,
        None,
    )


def totals(primals, *, chunk, target):
    """The reduction `totals` of the operation: nothing of the size of the sequence is written."""
    u, decay, b, c, h0, cut, lengths = primals
    plan = Plan.of(u, decay, chunk, target)
    system = System.of(decay, b, c, plan.states, u.dtype)
    last, zero = last_steps(u, lengths), jnp.zeros_like(fold_state(plan, h0))
    _, swept = _sweep_from(zero, plan, system, fold(u, 2), fold(cut, 1), last, at_last=True)
    return unfold_state(plan, jnp.where((last >= 0)[:, None, None], swept["at"], 0), h0)


def transpose_totals(primals, g, *, chunk, target):
    """The reduction `transpose_totals` of the operation."""
    u, decay, b, c, h0, cut, lengths = primals
    plan = Plan.of(u, decay, chunk, target)._replace(descending=True)
    adjoint = System.adjoint_of(decay, b, c, plan.states, u.dtype)
    cut, last, zero = fold(cut, 1), last_steps(u, lengths), jnp.zeros_like(fold_state(plan, h0))
    _, swept = _sweep_from(zero, plan, adjoint, fold(g, 2), _cut_after(cut), last)
    first = None if cut is None else cut[:, 0]
    return unfold_state(plan, passed_on(adjoint, swept["leaving"][:, 0], first), h0)


def _sweep_from(first, plan: Plan, system: System, x, cut, last, *, inject=None, **wanted):
    """The states that enter the segments when `first` enters the rows, and the results of the sweep
    from there. The other arguments are those of `sweep`."""
    from ._mosaic_gpu_sweep import sweep

    ends = None
    if plan.segments > 1:
        ends = sweep(plan, system, x, None, cut, last, inject=inject)["leaving"]
    starts = entering_segments(plan, system.decay, first, ends, cut)
    return starts, sweep(plan, system, x, starts, cut, last, inject=inject, **wanted)


def _cut_after(cut):
    """The steps after which the next one is cut: the cuts of the adjoint system."""
    return None if cut is None else jnp.pad(cut[:, 1:], [(0, 0), (0, 1)])
