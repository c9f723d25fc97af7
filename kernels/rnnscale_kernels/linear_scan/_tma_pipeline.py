"""What the Mosaic GPU kernels share: tiles of time, and a pipeline of TMA copies over them.

A program is one warpgroup. It walks through time in tiles, in either direction, with a carry in
registers, while TMA brings the next tiles into a ring in shared memory and takes finished ones out.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

THREADS = 128
"""Of a warpgroup."""

# Loads from shared memory may not move above stores to it: a group of rows is loaded before any of
# it is stored.
_GROUP = 8


def one_a_thread(x):
    """`x`, of `THREADS` elements, in float32 and spread over the threads."""
    return plgpu.layout_cast(x.astype(jnp.float32), plgpu.Layout.WG_STRIDED((THREADS,), vec_size=1))


def full(value: float):
    """`value` in every thread."""
    return one_a_thread(jnp.full((THREADS,), value, jnp.float32))


class Tiles(NamedTuple):
    """Chunk number `index` of `time` steps in tiles of `rows`.

    A chunk has `chunk` steps, or those that are left; only the tile at the end of time may be
    partial. Tiles are numbered in the order in which they are processed.
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
        """The earliest time of tile `i`."""
        return self.index * self.chunk + self.rows * (self.count - 1 - i if self.descending else i)

    def valid(self, i):
        """How many rows of tile `i` there are."""
        return lax.min(self.time - self.begin(i), self.rows)

    def walk(self, i, load: Callable, step: Callable, store: Callable, carry):
        """Row by row: carry, results = step(carry, time, load(row)); store(row, results)."""
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

        whole = lax.div(valid, _GROUP)
        carry = lax.fori_loop(0, whole, lambda j, x: group(j * _GROUP, _GROUP, x), carry)
        return lax.fori_loop(whole * _GROUP, valid, lambda j, x: group(j, 1, x), carry)


Window = Callable[[Any], Any]
"""Of the number of a tile: its part of an array in device memory, with time as the first axis.

It may reach beyond the array's end: zeros are read there, and nothing is written.
"""


def pipeline(body: Callable, carry, reads, writes, *, tiles: Tiles, stages: int):
    """carry = body(i, inputs, outputs, carry) for every tile i, in order.

    The body gets references to shared memory, in trees like `reads` and `writes`, which are trees
    of `Window`s. Its inputs have been brought there, by the copies of the last `stages` turns; its
    outputs are taken from there while the next tile is worked on.
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

        def whole():
            plgpu.copy_smem_to_gmem(tile, target, commit_group=False)

        def row_by_row():
            @pl.loop(0, tiles.valid(i))
            def _(row):
                one = pl.ds(row, 1)
                plgpu.copy_smem_to_gmem(tile.at[one], target.at[one], commit_group=False)

        # Whole rows of an array make one flat copy, which would not stop at the end of time.
        if tiles.time % tiles.rows and target.ref.shape[-1] == target.shape[-1]:
            lax.cond(tiles.valid(i) == tiles.rows, whole, row_by_row)
        else:
            whole()

    def run(inputs, outputs, arrived):
        def read(i):
            slot = lax.rem(i, stages)
            for window, tile in each(reads, at(slot, inputs)):
                plgpu.copy_gmem_to_smem(window(i), tile, arrived.at[slot])

        def turn(i, carry):
            slot = lax.rem(i, stages)
            results = at(lax.rem(i, 2), outputs)
            plgpu.barrier_wait(arrived.at[slot])
            if writes:  # of the last turn but one
                plgpu.wait_smem_to_gmem(1, wait_read_only=True)
            carry = body(i, at(slot, inputs), results, carry)
            plgpu.commit_smem()  # no thread is behind: outputs may go, inputs be overwritten
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
