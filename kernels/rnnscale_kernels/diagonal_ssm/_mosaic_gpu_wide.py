"""The linear part of a wide state-space layer on Hopper GPUs, in Pallas Mosaic GPU: its passes.

Matrices of more than 128 states do not fit on a multiprocessor. Here a program holds the rows of B
for a slice of the states. Tensor cores map the input to the drives of these states, threads run the
recurrence, and the states go to memory in 16 bits; the drives stay on chip. The output map is one
matrix product, with real and imaginary parts side by side.

The backward pass runs the same kernel on the adjoint system, which gives the cotangents s of all
states, and on the system once more, for the states: the gradients of u, B and C are then a product
each. The second run also sums s_t conj(h_{t-1}), the gradient of the decay. Segments of time are
those of `_mosaic_gpu`.

The sweep is in `_mosaic_gpu_wide_sweep`, which loads Pallas and is imported when it is first
lowered.
"""

from typing import Any

import jax
import jax.numpy as jnp

from .._algebra import conjugate
from ._mosaic_gpu import unsupported_numbers
from ._mosaic_gpu_layout import System, fold_state, unfold_state
from ._mosaic_gpu_plan import TILE
from ._mosaic_gpu_wide_plan import WidePlan, too_wide
from ._recurrence import unstack
from ._segments import entering_segments, fold, last_steps, passed_on, segment_starts, trimmed
from ._xla import product


def unsupported(spec) -> str | None:
    """Why the kernel cannot take these arguments, or `None`."""
    return unsupported_numbers(spec) or too_wide(spec)


def unsuited(target, spec) -> str | None:
    """Why another implementation would be faster, or `None`.

    Inputs are copied if their sizes have to be padded. That moves fewer bytes than drives in
    memory would.
    """
    if spec.time < TILE:
        return f"{spec.time} steps do not fill a tile of {TILE}"
    return None


def forward(primals, *, chunk, target):
    """The forward pass of the operation."""
    u, decay, b, c, h0, cut, lengths = primals
    plan = WidePlan.of(primals, chunk, target)
    system = System.of(decay, b, c, plan.states, u.dtype)
    swept, first, last = _states(plan, system, u, h0, cut, lengths, states=True, borders=True)
    y = _map_out(swept["states"], system, c.shape[0]).reshape(*u.shape[:-1], -1)
    h_last = jnp.where((last >= 0)[:, None, None], swept["at"], first)
    borders = jnp.moveaxis(swept["borders"][:, : -(-plan.steps // chunk)], 1, 0)
    return (y, unfold_state(plan, h_last, h0)), unfold_state(plan, borders, h0)


def totals(primals, *, chunk, target):
    """The reduction `totals` of the operation: no state is written."""
    u, decay, b, c, h0, cut, lengths = primals
    plan = WidePlan.of(primals, chunk, target)
    system = System.of(decay, b, c, plan.states, u.dtype)
    zero = jax.tree.map(jnp.zeros_like, h0)
    swept, first, last = _states(plan, system, u, zero, cut, lengths)
    return unfold_state(plan, jnp.where((last >= 0)[:, None, None], swept["at"], first), h0)


def transpose(primals, outputs, cotangents, *, chunk, target):
    """The backward pass of the operation."""
    from ._mosaic_gpu_wide_sweep import sweep

    u, decay, b, c, h0, cut, lengths = primals
    g_y, g_last = cotangents
    plan = WidePlan.of(primals, chunk, target)
    system = System.of(decay, b, c, plan.states, u.dtype)
    adjoint = System.adjoint_of(decay, b, c, plan.states, u.dtype)
    # 1. The cotangents s of the states, and from them du and dh0.
    swept, dh0 = _cotangents(plan, adjoint, g_y, g_last, cut, lengths, states=True)
    s = swept["states"]
    du = _map_out(s, adjoint, u.shape[-1]).reshape(u.shape)
    # 2. The states again, and d_decay where they meet their cotangents.
    x, g = fold(u, 2), fold(g_y, 2)
    starts = segment_starts(plan, fold_state(plan, outputs[1], 1))
    swept = sweep(
        plan, system, x, starts, fold(cut, 1), last_steps(u, lengths), other=s, states=True
    )
    # 3. The gradients of the matrices: products over rows and time.
    db, dc = _map_gradient(plan, x, s), _map_gradient(plan, g, swept["states"])
    return (
        du,
        trimmed(unstack(swept["d_decay"], 0), decay),
        trimmed(jax.tree.map(jnp.transpose, db), b),
        trimmed(conjugate(dc), c),
        unfold_state(plan, dh0, h0),
        None,
        None,
    )


def transpose_totals(primals, g, *, chunk, target):
    """The reduction `transpose_totals` of the operation: no cotangent of a state is written."""
    u, decay, b, c, h0, cut, lengths = primals
    plan = WidePlan.of(primals, chunk, target)
    adjoint = System.adjoint_of(decay, b, c, plan.states, u.dtype)
    zero = jax.tree.map(jnp.zeros_like, h0)
    _, dh0 = _cotangents(plan, adjoint, g, zero, cut, lengths)
    return unfold_state(plan, dh0, h0)


def _states(plan: WidePlan, system: System, u, h0, cut, lengths, **wanted):
    """`(swept, first, last)`: the results of the sweep over the states, the state that enters each
    row, and its last step."""
    from ._mosaic_gpu_wide_sweep import sweep

    x, cut, last, first = fold(u, 2), fold(cut, 1), last_steps(u, lengths), fold_state(plan, h0)
    # Find the state that enters each segment, then run all segments from there.
    ends = sweep(plan, system, x, None, cut, last)["leaving"] if plan.segments > 1 else None
    starts = entering_segments(plan, system.decay, first, ends, cut)
    return sweep(plan, system, x, starts, cut, last, **wanted), first, last


def _cotangents(plan: WidePlan, adjoint: System, g_y, g_last, cut, lengths, **wanted):
    """`(swept, dh0)`: the results of the sweep over the cotangents of the states, and what they
    pass on to the state before the row.

    The adjoint system runs back. If a step is cut, s is not passed on to the step before. The
    cotangent of h_last comes in at each row's last step.
    """
    from ._mosaic_gpu_wide_sweep import sweep

    back = plan._replace(descending=True)
    g, cut, last, g_last = (
        fold(g_y, 2),
        fold(cut, 1),
        last_steps(g_y, lengths),
        fold_state(plan, g_last),
    )
    cut_after = None if cut is None else jnp.pad(cut[:, 1:], [(0, 0), (0, 1)])
    ends = None
    if plan.segments > 1:
        ends = sweep(back, adjoint, g, None, cut_after, last, inject=g_last)["leaving"]
    starts = entering_segments(back, adjoint.decay, jnp.zeros_like(g_last), ends, cut_after)
    swept = sweep(back, adjoint, g, starts, cut_after, last, inject=g_last, **wanted)
    dh0 = passed_on(adjoint, swept["leaving"][:, 0], None if cut is None else cut[:, 0])
    # A row of length zero returns its initial state unchanged.
    return swept, dh0 + jnp.where((last < 0)[:, None, None], g_last, 0)


def _map_out(states, system: System, width: int):
    """The outputs, "row time output", of states "row time planes*state"."""
    out = system.out.reshape(-1, system.out.shape[-1])[:, :width]
    return product("rts,so->rto", states, out, states.dtype, states.dtype)


def _map_gradient(plan: WidePlan, x, states) -> Any:
    """The sum of the outer products of `x` and the states, "input state"."""
    total = product("rti,rts->is", x, states, states.dtype)
    return unstack(total.reshape(-1, plan.planes, plan.states), 1)
