"""The recurrence in plain XLA: one step after another, as a tree over time, or in chunks."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .._algebra import (
    Coefficient,
    add,
    cast,
    identity,
    in_double,
    multiply,
    multiply_adjoint,
    multiply_in_double,
    outer,
    sum_to,
    where,
)
from ._backward import previous


def _at(x, t):
    """Step `t` of every plane, or the only step of a time-invariant decay."""
    return jax.tree.map(
        lambda x: lax.dynamic_index_in_dim(x, t if x.shape[-2] > 1 else 0, x.ndim - 2, False), x
    )


def _put(x, t, value):
    return jax.tree.map(
        lambda x, v: lax.dynamic_update_index_in_dim(x, v.astype(x.dtype), t, x.ndim - 2), x, value
    )


def _keep(cut, t, carry):
    """The carry into step `t`, or zero where it is cut.

    The carry has to be decayed already: an infinite decay times zero would be NaN.
    """
    if cut is None:
        return carry
    return where(lax.dynamic_index_in_dim(cut, t, cut.ndim - 1), 0.0, carry)


def sequential(a, b, h0, cut, *, reverse):
    """One loop over time. It overwrites `b` in place where XLA owns its buffer."""
    steps = b.shape[-2]

    def step(i, loop):
        carry, h = loop
        t = steps - 1 - i if reverse else i
        decayed = _keep(cut, t, multiply(cast(_at(a, t), h0.dtype), carry))
        # The barrier makes the sum one value, read before the buffer is written: without it XLA
        # copies the buffer.
        carry = lax.optimization_barrier(add(decayed, cast(_at(h, t), h0.dtype)))
        return carry, _put(h, t, carry)

    last, h = lax.fori_loop(0, steps, step, (h0, b))
    return h, last


def sequential_transpose(a, h, h0, cut, g, g_last, *, reverse):
    """One loop back through time that reads every state and every cotangent once.

    It overwrites `g` in place, as `sequential` overwrites `b`.
    """
    steps = g.shape[-2]
    varying = a.shape[-2] > 1
    first = steps - 1 if reverse else 0
    dtype = h0.dtype

    def step(i, loop):
        carry, da, db = loop
        t = i if reverse else steps - 1 - i
        s = lax.optimization_barrier(add(carry, cast(_at(db, t), dtype)))
        before = cast(_at(h, jnp.clip(t + 1 if reverse else t - 1, 0, steps - 1)), dtype)
        before = _keep(cut, t, where(t == first, h0, before))
        gradient = _keep(cut, t, outer(s, before, like=a))
        da = _put(da, t, gradient) if varying else add(da, gradient)
        carry = _keep(cut, t, multiply_adjoint(cast(_at(a, t), dtype), s))
        return carry, da, _put(db, t, s)

    # The gradient is summed over the rows that share a decay first, and rounded after that.
    da_dtype = a.dtype if varying and a.shape[:-1] == g.shape[:-1] else dtype
    like = jax.eval_shape(lambda x: outer(x, x, like=a), g if varying else h0)
    da = jax.tree.map(lambda x: jnp.zeros(x.shape, da_dtype), like)
    dh0, da, db = lax.fori_loop(0, steps, step, (g_last, da, g))
    if not varying:
        da = jax.tree.map(lambda x: x[..., None, :], da)
    return sum_to(da, a), db, dh0


def associative(a, b, h0, cut, *, reverse):
    """A work-efficient tree over time: about 2 log2(time) vector operations.

    A time-invariant decay stays one step long: all spans on one level of the tree have the same
    length, so they have the same decay, a power.
    """
    out_dtype = b.dtype
    a, b = cast(a, h0.dtype), cast(b, h0.dtype)
    start = -1 if reverse else 0
    first = multiply(_at(a, start), h0)
    if cut is not None:
        first = where(cut[..., start, None], 0.0, first)
        cut = cut[..., None]
    b = jax.tree.map(lambda b, x: b.at[..., start, :].add(x), b, first)
    h = _tree(in_double(a) if a.shape[-2] == 1 else a, b, cut, reverse=reverse)
    return cast(h, out_dtype), _at(h, 0 if reverse else h.shape[-2] - 1)


def _tree(a, b, cut, *, reverse):
    """The inclusive scan of h -> a h + b along axis -2, from zero.

    Pairs of steps are combined into one step each, the sequence of half the length is scanned, and
    its states are those after the second step of each pair. From them follow the states after the
    first steps. A time-invariant `a` is in float64, and squared on each level.
    """
    steps = b.shape[-2]
    if steps == 1:
        return b
    product = multiply_in_double if a.shape[-2] == 1 else multiply
    pairs, odd = divmod(steps, 2)

    def take(x, number, count):
        """Every other step, `count` in all, beginning with the `number`th in processing order."""
        start = steps - 1 - number - 2 * (count - 1) if reverse else number
        stop = start + 2 * count - 1
        return jax.tree.map(lambda x: x[..., start:stop:2, :] if x.shape[-2] > 1 else x, x)

    def extend(carry, a, b, cut):
        decayed = multiply(cast(a, carry.dtype), carry)
        return add(b, decayed if cut is None else where(cut, 0.0, decayed))

    (a0, b0, cut0), (a1, b1, cut1) = (take((a, b, cut), number, pairs) for number in (0, 1))
    pair_cut = None if cut is None else cut0 | cut1
    pair, pair_end = _level(a, (product(a1, a0), extend(b0, a1, b1, cut1)))
    second = _level(a, _tree(pair, pair_end, pair_cut, reverse=reverse))
    first = take(b, 0, 1)
    if later := pairs + odd - 1:
        # The state after the second step of a pair is the carry into the first step of the next.
        kept = slice(pairs - later, None) if reverse else slice(later)
        carry = jax.tree.map(lambda x: x[..., kept, :], second)
        first = _join(first, extend(carry, *take((a, b, cut), 2, later)), reverse=reverse)
    return _interleave(first, second, reverse=reverse)


def _level(a, results) -> Any:
    """The results of one level of the tree. Those of varying blocks are written to memory: several
    results depend on each plane, and XLA would otherwise compute it, and all levels below it, once
    for each of them."""
    written = isinstance(a, Coefficient) and a.shape[-2] > 1
    return lax.optimization_barrier(results) if written else results


def _join(first, second, *, reverse):
    """Both along time, `first` processed first."""

    def join(x, y):
        return jnp.concatenate([y, x] if reverse else [x, y], axis=-2)

    return jax.tree.map(join, first, second)


def _interleave(first, second, *, reverse):
    """`first` and `second` in turn, beginning with `first`, which may have one step more."""

    def interleave(first, second):
        *batch, pairs, channels = second.shape
        alone = first.shape[-2] - pairs
        if reverse:
            last, first = first[..., :alone, :], first[..., alone:, :]
        else:
            first, last = first[..., :pairs, :], first[..., pairs:, :]
        both = jnp.stack([second, first] if reverse else [first, second], axis=-2)
        both = both.reshape(*batch, 2 * pairs, channels)
        return _join(both, last, reverse=reverse) if alone else both

    return jax.tree.map(interleave, first, second)


def chunked(a, b, h0, cut, *, reverse):
    """Chunks of time at once, each from zero, then corrected for the state that enters it.

    It does twice the arithmetic of `sequential` in far fewer and wider steps. That pays if one step
    takes less time than one turn of the loop.
    """
    steps = b.shape[-2]
    count = chunk_count(steps)
    length = -(-steps // count)
    padding = count * length - steps
    # The padding comes last in processing order, so that no state passes through it.
    pad = (padding, 0) if reverse else (0, padding)

    def split(x, axis):
        x = jnp.pad(x, [pad if i == x.ndim + axis else (0, 0) for i in range(x.ndim)])
        at = x.ndim + axis
        return x.reshape(*x.shape[:at], count, length, *x.shape[at + 1 :])

    out_dtype = b.dtype
    a, b = cast(a, h0.dtype), cast(b, h0.dtype)
    b = jax.tree.map(lambda x: split(x, -2), b)
    if a.shape[-2] > 1:
        empty = a = jax.tree.map(lambda x: split(x, -2), a)
    else:
        a = jax.tree.map(lambda x: x[..., None, :, :], a)
        empty = jax.tree.map(lambda x: jnp.broadcast_to(x, (*x.shape[:-2], length, x.shape[-1])), a)
    cut = None if cut is None else split(cut, -1)
    empty = jax.tree.map(jnp.zeros_like, empty)
    one = identity(_at(empty, 0))
    zero = jax.tree.map(jnp.zeros_like, _at(b, 0))

    # 1. Run every chunk from zero. Its total is the product of its decays and its last state.
    local, total = sequential(a, b, zero, cut, reverse=reverse)
    decay, total_decay = _products(a, empty, one, reverse=reverse)
    if cut is None:
        seen = total_cut = None
    else:
        seen = lax.cumsum(cut.astype(jnp.int32), axis=cut.ndim - 1, reverse=reverse) > 0
        total_cut = jnp.any(cut, axis=-1)
    # 2. Scan over the totals: the states that leave and enter the chunks.
    leaving, _ = sequential(total_decay, total, h0, total_cut, reverse=reverse)
    entering = previous(leaving, h0, None, reverse=reverse)
    # 3. Add to each state what the entering state contributes, up to the first cut.
    correction = multiply(decay, jax.tree.map(lambda x: x[..., None, :], entering))
    if seen is not None:
        correction = where(seen[..., None], 0.0, correction)

    def join(x):
        x = x.reshape(*x.shape[:-3], count * length, x.shape[-1])
        return lax.slice_in_dim(x, pad[0], pad[0] + steps, axis=x.ndim - 2)

    h = jax.tree.map(join, add(local, correction))
    return cast(h, out_dtype), _at(h, 0 if reverse else steps - 1)


def _products(a, zeros, one, *, reverse):
    """The products of the decays from the start of a chunk to each step, and the last of them."""
    if a.shape[-2] > 1:
        return sequential(a, zeros, one, None, reverse=reverse)
    with jax.enable_x64(True):
        every, last = sequential(
            in_double(a), in_double(zeros), in_double(one), None, reverse=reverse
        )
    return cast(every, one.dtype), cast(last, one.dtype)


def chunk_count(steps: int) -> int:
    """The number of chunks: the square root of the number of steps, at most 64."""
    return max(1, min(64, int(steps**0.5)))
