"""The recurrence in plain XLA: a loop over time, a loop back, and the gradient of the matrix."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ._pointwise import Planes, Pointwise

_UNROLL = 8


def forward(primals, *, step: Callable, reverse: bool, target: Any = None, **_):
    """The outputs of the operation."""
    matrix, drive, extras, h0, fresh, start, valid = primals
    pointwise = pointwise_of(step, primals)

    def take(h: Planes, inputs: tuple):
        x, extra, restarts, counts = inputs
        extra = extra.astype(h[0].dtype)
        before = h if restarts is None else choose(restarts, fresh, h)
        gates = multiply(matrix, before[0]) + x
        after = pointwise.advance(before, as_planes(gates), as_planes(extra))
        after = after if counts is None else choose(counts, after, before)
        return after, (after, gates)

    inputs = _over_time(drive, extras, start, valid)
    last, (hs, gates) = lax.scan(take, h0, inputs, reverse=reverse, unroll=_UNROLL)
    hs, *others = (x.astype(drive.dtype) for x in hs)
    residuals = _rows_last(gates).astype(drive.dtype), tuple(map(_rows_last, others))
    return (jnp.moveaxis(hs, 0, 1), last), residuals


def transpose(primals, outputs, cotangents, *, step: Callable, reverse: bool, **_):
    """The cotangents of the primals."""
    matrix, drive, extras, h0, fresh, start, valid = primals
    (hs, _), (gates, others) = outputs
    g_hs, g_last = cotangents
    pointwise = pointwise_of(step, primals)
    states = hs, *(jnp.moveaxis(x, -1, 0) for x in others)
    before = states_before(states, h0, fresh, start, reverse)

    def take(carry, inputs: tuple):
        g, g_fresh = carry
        kept, extra, restarts, counts, here, g_h = inputs
        g = (g[0] + g_h, *g[1:])
        g_after = g if counts is None else choose(counts, g, _zeros(g))
        kept, extra, here = jax.tree.map(lambda x: x.astype(g[0].dtype), (kept, extra, here))
        g_before, g_gates, g_extra = pointwise.pull_back(
            here, as_planes(kept), as_planes(extra), g_after
        )
        g_gates = jnp.stack(g_gates, 1)
        g_extra = jnp.stack(g_extra, 1) if g_extra else jnp.zeros_like(extra)
        if counts is not None:
            # Selected, and not multiplied: what stands beyond a row's length may be NaN.
            unused = ~counts[:, None, None]
            g_gates, g_extra = (jnp.where(unused, 0, x) for x in (g_gates, g_extra))
        first = g_before[0] + jnp.einsum(
            "ghk,bgh->bk",
            matrix, g_gates.astype(matrix.dtype), preferred_element_type=g_gates.dtype,
        )  # fmt: skip
        g_before = (first, *g_before[1:])
        if counts is not None:
            g_before = choose(counts, g_before, g)
        if restarts is not None:
            restarted = choose(restarts, g_before, _zeros(g_before))
            g_fresh = jax.tree.map(jnp.add, g_fresh, restarted)
            g_before = choose(restarts, _zeros(g_before), g_before)
        return (g_before, g_fresh), (g_gates.astype(drive.dtype), g_extra)

    by_step = (jnp.moveaxis(gates, -1, 1), *_over_time(None, extras, start, valid)[1:])
    by_step = *by_step, *_over_time(before, g_hs)
    carry = g_last, _zeros(fresh)
    (g_h0, g_fresh), (g_gates, g_extras) = lax.scan(
        take, carry, by_step, reverse=not reverse, unroll=_UNROLL
    )
    g_gates = _time_first(g_gates)
    return (
        matrix_gradient(g_gates, before[0], matrix),
        g_gates,
        _time_first(g_extras).astype(extras.dtype),
        *(g_h0, g_fresh, None, None),
    )


def pointwise_of(step: Callable, primals: tuple) -> Pointwise:
    """The pointwise part of the steps of a call."""
    _, drive, extras, h0, *_ = primals
    return Pointwise(step, len(h0), drive.shape[2], extras.shape[2], h0[0].dtype)


def multiply(matrix, h):
    """The products of the gates, "batch gate unit", at least in float32."""
    wide = jnp.promote_types(matrix.dtype, jnp.float32)
    h = h.astype(matrix.dtype)
    return jnp.einsum("ghk,bk->bgh", matrix, h, preferred_element_type=wide)


def matrix_gradient(g_gates, h, matrix):
    """The gradient of the matrix, from "batch time gate unit" and "batch time unit"."""
    wide = jnp.promote_types(matrix.dtype, jnp.float32)
    h = h.astype(g_gates.dtype)
    sums = jnp.einsum("btgh,btk->ghk", g_gates, h, preferred_element_type=wide)
    return sums.astype(matrix.dtype)


def states_before(states: tuple, h0: tuple, fresh: tuple, start: Any, reverse: bool) -> tuple:
    """The states before all steps from those after them, all "batch time unit"."""

    def before(x, first, fresh):
        first = first[:, None].astype(x.dtype)
        shifted = [x[:, 1:], first] if reverse else [first, x[:, :-1]]
        shifted = jnp.concatenate(shifted, 1)
        if start is None:
            return shifted
        return jnp.where(start[..., None], fresh[:, None].astype(x.dtype), shifted)

    return tuple(map(before, states, h0, fresh))


def choose(condition, x: Planes, y: Planes) -> Planes:
    """`jnp.where` for states, with a condition for each row."""
    return tuple(jnp.where(condition[..., None], a, b) for a, b in zip(x, y, strict=True))


def as_planes(x) -> Planes:
    """ "batch plane unit" as planes."""
    return tuple(x[:, n] for n in range(x.shape[1]))


def _over_time(*arrays) -> tuple:
    return jax.tree.map(_time_first, arrays)


def _time_first(x):
    return jnp.swapaxes(x, 0, 1)


def _rows_last(x):
    return jnp.moveaxis(x, 1, -1)


def _zeros(tree):
    return jax.tree.map(jnp.zeros_like, tree)
