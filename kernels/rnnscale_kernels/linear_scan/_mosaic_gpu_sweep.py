"""The sweep of Mosaic GPU: the shapes of the kernel's arguments and results, and the kernel.

A program takes one row, one chunk of time and 128 channels. Each of its threads keeps the state of
one channel in a register, in float32, while TMA streams tiles of time through shared memory.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from .._algebra import as_number
from .._sizes import round_up
from ._kernels import Launch, SideBySide
from ._mosaic_gpu_plan import CHANNELS, Plan
from ._steps import carries
from ._tma_pipeline import Tiles, full, one_a_thread, pipeline

_GRID = ("block", "chunk", "row")


class _Given(NamedTuple):
    """What the kernel reads: as arrays for the call, as references to memory inside."""

    a: Any
    inputs: Any
    cut: Any  # "B L" integers
    x: Any
    x0: Any
    entering: Any  # the arrays among the carries


def sweep(step, a, inputs, entering, cut, launch: Launch, *, name, outputs=(), before=None):
    """See `SweepKernels.sweep`."""
    x, x0 = (None, None) if before is None else before
    plan = Plan.of(a, [*inputs, *([] if x is None else [x])], launch)
    given = _Given(
        a=_padded(a, plan.width if plan.varying else plan.block_width),
        inputs=_padded(inputs, plan.width),
        # TMA takes rows of a multiple of 16 bytes.
        cut=None if cut is None else _padded(cut.astype(jnp.int32), round_up(plan.steps, 4)),
        x=_padded(x, plan.width),
        x0=_padded(x0, plan.block_width),
        entering=[
            _padded(leaf, plan.block_width)
            for leaf in jax.tree.leaves(entering)
            if not isinstance(leaf, float)
        ],
    )

    def sequence(dtype):
        if isinstance(dtype, SideBySide):
            shape = plan.rows, plan.steps, 2 * plan.width
            return SideBySide(jax.ShapeDtypeStruct(shape, dtype.array))
        return jax.ShapeDtypeStruct((plan.rows, plan.steps, plan.width), dtype)

    state = jax.ShapeDtypeStruct((plan.rows, plan.chunks, plan.block_width), jnp.float32)
    run = plgpu.kernel(
        partial(_kernel, plan, launch, step, entering),
        out_type=(
            _map_sequences(sequence, list(outputs)),
            jax.tree.map(lambda _: state, entering),
        ),
        # Rows come last, so that those that share a decay run together and find it in the cache.
        grid=(plan.blocks, plan.chunks, plan.rows),
        grid_names=_GRID,
        # A thread reads nothing that another thread writes, other than through TMA.
        compiler_params=plgpu.CompilerParams(unsafe_no_auto_barriers=True),
        interpret=plgpu.InterpretGPUParams() if launch.target.interpret else None,
        kernel_name=name,
    )
    return _map_sequences(
        lambda x: x if isinstance(x, SideBySide) else x[..., : plan.channels], run(given)
    )


def _kernel(plan: Plan, launch: Launch, step: Callable, entering, given: _Given, results, leaving):
    """One program: `step` over one chunk of one row, for 128 channels."""
    # Where the program works.
    block, chunk, row = (lax.axis_index(axis) for axis in _GRID)
    decay_row = lax.rem(lax.div(row, launch.inner), plan.decays)
    lanes = pl.ds(block * CHANNELS, CHANNELS)
    tiles = Tiles(plan.steps, launch.chunk, chunk, plan.tile_rows, launch.descending)
    ahead = -1 if launch.descending else 1

    def windows(tree, row, ahead=0):
        """For every array, the function from the number of a tile to that tile in memory."""

        def window(ref, lanes, i):
            # A tile that would begin before time zero begins there; `load` makes up for it.
            first = lax.max(tiles.begin(i) + ahead, 0) if ahead else tiles.begin(i)
            return ref.at[row, pl.ds(first, plan.tile_rows), lanes]

        def of_sequence(x):
            if isinstance(x, SideBySide):
                imaginary = pl.ds(plan.width + block * CHANNELS, CHANNELS)
                return as_number([partial(window, x.array, plane) for plane in (lanes, imaginary)])
            return partial(window, x, lanes)

        return _map_sequences(of_sequence, tree)

    def cut_window(i):
        # TMA writes to addresses that are multiples of 128 bytes.
        return given.cut.at[row, pl.ds(tiles.begin(i), max(plan.tile_rows, 32))]

    def read(tree, *index):
        """One number for each thread, in float32."""
        return jax.tree.map(lambda ref: one_a_thread(ref[index]), tree)

    # What stays in registers: a time-invariant decay, the state before the row, and the carry.
    held_decay = None if plan.varying else read(given.a, decay_row, 0, lanes)
    held_x0 = read(given.x0, row, lanes)
    arrays = iter(given.entering)
    carry = carries(entering, full, lambda _: read(next(arrays), row, chunk, lanes))

    def body(i, tile, results, carry):
        """Takes the steps of tile `i`, which is in shared memory, one after another."""
        a, inputs, x, cut = tile
        shift = lax.min(tiles.begin(i) + ahead, 0) if launch.descending else 0

        def load(r):
            numbers = [
                None if cut is None else jnp.broadcast_to(cut[r], CHANNELS) != 0,
                read(a, r) if plan.varying else held_decay,
                *read(inputs, r),
            ]
            if x is not None:
                numbers += [read(x, lax.max(r + shift, 0)), held_x0]
            return numbers

        def advance(carry, t, numbers):
            return step(carry, jnp.broadcast_to(t, CHANNELS), *numbers)

        def store(r, values):
            for ref, value in zip(*map(jax.tree.leaves, (results, values)), strict=True):
                ref[r] = value.astype(ref.dtype)

        return tiles.walk(i, load, advance, store, carry)

    reads = (
        windows(given.a, decay_row) if plan.varying else None,
        windows(given.inputs, row),
        windows(given.x, row, ahead),
        None if given.cut is None else cut_window,
    )
    writes = [windows(tree, row) for tree in results]
    carry = pipeline(body, carry, reads, writes, tiles=tiles, stages=plan.stages)
    for ref, value in zip(*map(jax.tree.leaves, (leaving, carry)), strict=True):
        ref[row, chunk, lanes] = value


def _padded(tree, width: int):
    """Zeros added to the last axis."""

    def pad(x):
        if isinstance(x, SideBySide):  # its channels fill their blocks
            return x
        return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, width - x.shape[-1])])

    return _map_sequences(pad, tree)


def _map_sequences(function: Callable, tree):
    """`jax.tree.map`, with planes that are side by side as one leaf."""
    return jax.tree.map(function, tree, is_leaf=lambda x: isinstance(x, SideBySide))
