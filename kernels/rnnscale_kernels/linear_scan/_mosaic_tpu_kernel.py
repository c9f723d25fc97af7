"""The kernel of Mosaic TPU: one tile of time of 8 streams.

The recurrence inside a tile is sequential: the products of a scan within registers would overflow
where the states themselves do not.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from .._algebra import add, where
from ._mosaic_tpu_plan import LANES, STREAMS, WINDOW, Plan


class Given(NamedTuple):
    """What the kernel reads: arrays in the call, references to blocks of them in the kernel.

    - `a`, `inputs`, `x`: tiles of sequences, "group tile width"; a time-invariant `a` is packed.
    - `cut`: a word for each step, with a bit for each row.
    - `x_beyond`: the window of `x` that the sweep takes after the tile.
    - `x0`, `entering`: packed states, "8 128".
    """

    a: Any
    inputs: Any
    cut: Any
    x: Any
    x_beyond: Any
    x0: Any
    entering: Any


def kernel(plan: Plan, step: Callable, given: Given, results, leaving) -> None:
    """Takes one tile. Tiles of a chunk follow one another on the last axis of the grid, and the
    carry waits for the next one in `leaving`, which stays in vector memory until the chunk ends."""
    n = pl.program_id(3)
    start = plan.tile_at(pl.program_id(2), n) * plan.tile
    # The last tile of the sequence may have fewer windows, or none.
    windows = lax.div(lax.clamp(0, plan.steps - start, plan.tile) + WINDOW - 1, WINDOW)
    # In every sublane the bit of its row in a word of `cut`.
    sublane = lax.broadcasted_iota(jnp.int32, (STREAMS, LANES), 0)
    row_bit = 1 << (sublane & (plan.group - 1))

    def read(tree, window: Any = slice(None)):
        return jax.tree.map(lambda ref: _by_step(ref[:, window], plan.group), tree)

    held_decay, held_x0 = _read((None if plan.varying else given.a, given.x0))
    beyond = _at(read(given.x_beyond), plan.edge)

    def take_window(i, carry):
        # 1. Load a window of every sequence and transpose it: a register for each step.
        first = (windows - 1 - i if plan.launch.descending else i) * WINDOW
        first = pl.multiple_of(first, WINDOW)
        window = pl.ds(first, WINDOW)
        sequences = given.a if plan.varying else None, given.inputs, given.x
        decay, values, xs = read(sequences, window)
        if given.x is not None:
            # `x` after the last step of this window: in the next window, here or beyond the tile.
            wanted = first + plan.following * WINDOW
            inside = pl.multiple_of(lax.clamp(0, wanted, plan.tile - WINDOW), WINDOW)
            next_x = _at(read(given.x, pl.ds(inside, WINDOW)), plan.edge)
            next_x = where(wanted == inside, next_x, beyond)
        # 2. Take the steps one after another. The loop is unrolled, so `k` is a Python integer.
        carry, sums = carry
        by_step: dict[int, list] = {}
        window_sums = jax.tree.map(jnp.zeros_like, sums)
        for k in range(WINDOW)[:: plan.following]:
            t = start + first + k
            cut = None if given.cut is None else (given.cut[0, first + k] & row_bit) != 0
            numbers = [_at(decay, k) if plan.varying else held_decay, *_at(values, k)]
            if given.x is not None:
                within = 0 <= k + plan.following < WINDOW
                numbers += [_at(xs, k + plan.following) if within else next_x, held_x0]
            new, by_step[k], terms = step(carry, t, cut, *numbers)
            new = new, add(window_sums, terms)
            if plan.steps % plan.tile:  # the steps after the end of the sequence change nothing
                new = jax.tree.map(partial(jnp.where, t < plan.steps), new, (carry, window_sums))
            carry, window_sums = new
        # 3. Transpose the results back and store them.
        in_order = [jax.tree.leaves(by_step[k]) for k in range(WINDOW)]
        for ref, *steps in zip(jax.tree.leaves(results), *in_order, strict=True):
            ref[:, window] = _by_row([x.astype(ref.dtype) for x in steps], plan.group)
        return carry, add(sums, window_sums)

    @pl.when(n == 0)
    def _():
        _write(leaving, _read(given.entering))

    _write(leaving, lax.fori_loop(0, windows, take_window, _read(leaving)))


def _by_step(x, group: int):
    """From "rows time channel" to "time 8 128". One row of a decay may stand for all."""
    x = jnp.broadcast_to(x, (group, *x.shape[1:]))
    x = jnp.concatenate([x[..., i : i + LANES] for i in range(0, x.shape[-1], LANES)])
    return jnp.swapaxes(x, 0, 1)


def _by_row(steps, group: int):
    """The inverse of `_by_step`, from a list over time."""
    x = jnp.swapaxes(jnp.stack(steps), 0, 1)
    return jnp.concatenate([x[i : i + group] for i in range(0, STREAMS, group)], axis=-1)


def _at(tree, k: int):
    """Step `k` of every register, in float32."""
    return jax.tree.map(lambda x: x[k].astype(jnp.float32), tree)


def _read(refs):
    return jax.tree.map(lambda ref: ref[...], refs)


def _write(refs, values):
    for ref, value in zip(*map(jax.tree.leaves, (refs, values)), strict=True):
        ref[...] = value
