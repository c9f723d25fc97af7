"""The recurrence in plain XLA: a loop over time, and a loop back."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .._algebra import cast, sum_to
from ..linear_scan import previous
from ._steps import add, advance, advance_adjoint, joined, parted, pullback

# Steps in one turn of the loop, whose arithmetic XLA fuses.
_UNROLL = 8


def forward(
    primals, *, step: Callable, reverse: bool, returned: tuple[int, ...], target: Any = None
):
    """The outputs of the operation."""
    weights, inputs, h0, fresh, *_ = primals

    def take(h, inputs_t):
        start, valid, x = inputs_t
        h = advance(step, weights, fresh, h, start, valid, cast(x, carry_dtype(h0)))
        return h, cast(h, input_dtype(inputs))

    last, h = lax.scan(take, h0, _by_step(primals), reverse=reverse, unroll=_UNROLL)
    h, rest = parted(_batch_major(h), returned)
    return (h, last), rest


def transpose(
    primals, outputs, cotangents,
    *, step: Callable, reverse: bool, returned: tuple[int, ...], target: Any = None,
):  # fmt: skip
    """The cotangents of the primals."""
    weights, inputs, h0, fresh, cut, _ = primals
    (h, _), rest = outputs
    g_h, g_last = cotangents
    h = joined(h, rest, h0)
    before = jax.tree.map(lambda h, h0: previous(h, h0, None, reverse=reverse), h, h0)
    # A gradient for each row, which are summed after the loop.
    rows = jax.tree.leaves(h0)[0].shape
    of_rows = jax.tree.map(lambda w: jnp.broadcast_to(w, rows), weights)

    def take(carry, inputs_t):
        g, g_weights, g_fresh = carry
        (start, valid, x), others = inputs_t
        x, h, g_h = cast((x, *others), carry_dtype(h0))
        added, added_fresh, g, g_x = advance_adjoint(
            pullback(step), of_rows, fresh, add(g, g_h), h, start, valid, x
        )
        sums = add((g_weights, g_fresh), (added, added_fresh))
        return (g, *sums), cast(g_x, input_dtype(inputs))

    zeros = partial(jax.tree.map, jnp.zeros_like)
    carry = g_last, zeros(of_rows), None if cut is None else zeros(fresh)
    by_step = _by_step(primals), _time_major((before, g_h))
    (g_h0, g_weights, g_fresh), g_inputs = lax.scan(
        take, carry, by_step, reverse=not reverse, unroll=_UNROLL
    )
    g_weights, g_fresh = sum_to(g_weights, weights), zeros(fresh) if cut is None else g_fresh
    return g_weights, _batch_major(g_inputs), g_h0, g_fresh, None, None


def carry_dtype(h0):
    return jax.tree.leaves(h0)[0].dtype


def input_dtype(inputs):
    return jax.tree.leaves(inputs)[0].dtype


def _by_step(primals):
    """`(start, valid, x)` of all steps, with time as the first axis."""
    _, inputs, _, _, cut, lengths = primals
    valid = None
    if lengths is not None:
        valid = jnp.arange(jax.tree.leaves(inputs)[0].shape[-2]) < lengths[..., None]
    flags = jax.tree.map(lambda x: x[..., None], (cut, valid))
    return _time_major((*flags, inputs))


def _time_major(tree):
    return jax.tree.map(lambda x: jnp.moveaxis(x, -2, 0), tree)


def _batch_major(tree):
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, -2), tree)
