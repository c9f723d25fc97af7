"""Tiles of time, and a pipeline of TMA copies over them, for a program of Mosaic GPU.

A program is one warpgroup. It walks through time in tiles, in either direction, with a carry in
registers. Meanwhile TMA, the copy engine of a multiprocessor, brings the next tiles into a ring in
shared memory and takes finished tiles out.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

THREADS = 128
"""Threads in a warpgroup."""

# The compiler may not move a load from shared memory above a store to it. So this many rows are
# loaded before the first of them is stored, which hides the latency of the loads.
_GROUP = 8


def one_a_thread(x):
    """`x`, which has `THREADS` elements, in float32 with one element in each thread."""
    return plgpu.layout_cast(x.astype(jnp.float32), plgpu.Layout.WG_STRIDED((THREADS,), vec_size=1))


def full(value: float):
    """`value` in every thread."""
    return one_a_thread(jnp.full((THREADS,), value, jnp.float32))


class Tiles(NamedTuple):
    """The tiles of one chunk of time.

    The sequence has `time` steps. This is chunk number `index`, with `chunk` steps, or those that
    are left. A tile has `rows` steps; only the one at the end of the sequence may have fewer. Tiles
    are numbered in the order in which they are processed.
    """

    time: int
    chunk: int
    index: Any
    rows: int
    descending: bool

    @property
    def steps(self):
        return lax.min(self.time - self.index * self.chunk, self.chunk)

    @property
    def count(self):
        return lax.div(self.steps + (self.rows - 1), self.rows)

    def begin(self, i):
        """The first step of tile `i`, in time order."""
        return self.index * self.chunk + self.rows * (self.count - 1 - i if self.descending else i)

    def valid(self, i):
        """The number of steps in tile `i`."""
        return lax.min(self.time - self.begin(i), self.rows)

    def walk(self, i, load: Callable, step: Callable, store: Callable, carry):
        """For each row: `carry, results = step(carry, time, load(row)); store(row, results)`."""
        valid = self.valid(i)

        def group(first, size, carry):
            rows = [first + j for j in range(size)]
            if self.descending:
                rows = [valid - 1 - row for row in rows]
            values = [load(row) for row in rows]
            results = []
            for row, value in zip(rows, values, strict=True):
                carry, result = step(carry, self.begin(i) + row, value)
                results.append(result)
            for row, result in zip(rows, results, strict=True):
                store(row, result)
            return carry

        # Full groups of rows first, then the rows that are left, one by one.
        most = min(_GROUP, self.rows)
        groups = lax.div(valid, most)
        carry = lax.fori_loop(0, groups, lambda j, x: group(j * most, most, x), carry)
        return lax.fori_loop(groups * most, valid, lambda j, x: group(j, 1, x), carry)


Window = Callable[[Any], Any]
"""From the number of a tile to its part of an array in device memory, with time as the first axis.

It may reach beyond the end of the array: TMA reads zeros there, and writes nothing.
"""


def pipeline(body: Callable, carry, reads, writes, *, tiles: Tiles, stages: int):
    """Runs `carry = body(i, inputs, outputs, carry)` for every tile `i`, in order.

    `reads` and `writes` are trees of `Window`s. The body receives references to shared memory in
    the same trees. Its inputs have been copied there up to `stages` turns ahead. Its outputs are
    copied to device memory while the body works on the next tile.
    """

    def rings(windows, slots: int):
        tiles = jax.tree.map(lambda window: window(0), windows)
        return jax.tree.map(lambda x: plgpu.SMEM((slots, *x.shape), x.dtype), tiles)

    def at(slot, rings):
        return jax.tree.map(lambda ring: ring.at[slot], rings)

    def each(windows, references):
        return zip(jax.tree.leaves(windows), jax.tree.leaves(references), strict=True)

    def write(i, window: Window, tile):
        target = window(i)

        def copy_tile():
            plgpu.copy_smem_to_gmem(tile, target, commit_group=False)

        def copy_rows():
            @pl.loop(0, tiles.valid(i))
            def _(row):
                one = pl.ds(row, 1)
                plgpu.copy_smem_to_gmem(tile.at[one], target.at[one], commit_group=False)

        # A window as wide as its array becomes one flat copy, which would not stop at the end of
        # the sequence but write into the next one.
        if tiles.time % tiles.rows and target.ref.shape[-1] == target.shape[-1]:
            lax.cond(tiles.valid(i) == tiles.rows, copy_tile, copy_rows)
        else:
            copy_tile()

    def run(inputs, outputs, arrived):
        def read(i):
            slot = lax.rem(i, stages)
            for window, tile in each(reads, at(slot, inputs)):
                plgpu.copy_gmem_to_smem(window(i), tile, arrived.at[slot])

        def turn(i, carry):
            # 1. Wait until the tile is here, and until the copy out of the slot for its results,
            # which began two turns ago, has read it.
            slot = lax.rem(i, stages)
            results = at(lax.rem(i, 2), outputs)
            plgpu.barrier_wait(arrived.at[slot])
            if writes:
                plgpu.wait_smem_to_gmem(1, wait_read_only=True)
            # 2. Work on it, and wait for all threads: then the results may leave, and the inputs
            # may be overwritten.
            carry = body(i, at(slot, inputs), results, carry)
            plgpu.commit_smem()
            # 3. Send the results off, and send for the tile that takes this slot next.
            for window, tile in each(writes, results):
                write(i, window, tile)
            if writes:
                plgpu.commit_smem_to_gmem_group()
            pl.when(i + stages < tiles.count)(lambda: read(i + stages))
            return carry

        pl.loop(0, lax.min(tiles.count, stages))(read)
        result = lax.fori_loop(0, tiles.count, turn, carry)
        if writes:
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        return result

    copies = len(jax.tree.leaves(reads))
    arrived = plgpu.Barrier(num_arrivals=copies, num_barriers=stages)
    return pl.run_scoped(run, rings(reads, stages), rings(writes, 2), arrived)
