"""Tiles of time, and a pipeline of TMA copies over them, for a warpgroup of Mosaic GPU.

A warpgroup walks through time in tiles, in either direction, with a carry in registers. Meanwhile
TMA, the copy engine of a multiprocessor, brings the next tiles into a ring in shared memory and
takes finished tiles out.
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

WARPGROUP = "rnnscale_warpgroup"
"""The axis of a kernel along which its warpgroups are numbered."""

_TMA_BYTES = 128  # TMA writes to addresses in shared memory that are multiples of this.


def one_a_thread(x):
    """`x`, which has `THREADS` elements, in float32 with one element in each thread."""
    return plgpu.layout_cast(x.astype(jnp.float32), layout_of(x.shape))


def layout_of(shape: tuple[int, ...]):
    """The layout of an array with one element in each thread."""
    return plgpu.Layout.WG_STRIDED(shape, vec_size=1)


class Tiles(NamedTuple):
    """The tiles of time that one warpgroup takes.

    A tile has `parts` parts, and a part has `rows` steps. Each part is walked by threads of its
    own, at the same time, one thread for each of its `lanes` channels. The tile at the end of the
    sequence of `time` steps may have fewer steps.

    The warpgroups of a team of `team` take tiles in turns: in turn `i` they take `team` tiles that
    follow one another, this one its tile number `member` in the order of processing.
    """

    time: int
    rows: int
    parts: int
    descending: bool
    team: int
    member: Any

    @property
    def steps(self) -> int:
        """Steps in a tile."""
        return self.rows * self.parts

    @property
    def total(self) -> int:
        """The number of tiles of the sequence."""
        return -(-self.time // self.steps)

    @property
    def count(self) -> int:
        """The number of turns, the same for all members."""
        return -(-self.total // self.team)

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of an array with one element in each thread: parts and lanes."""
        return self.parts, THREADS // self.parts

    @property
    def may_be_partial(self) -> bool:
        """Whether some tile has fewer steps than others, or a member lacks one in the last turn."""
        return self.time % (self.steps * self.team) != 0

    def _number(self, i):
        n = i * self.team + self.member
        return self.total - 1 - n if self.descending else n

    def begin(self, i):
        """The first step of the tile in turn `i`, in time order. If there is no such tile, it is
        that of another one."""
        return self.steps * lax.clamp(0, self._number(i), self.total - 1)

    def valid(self, i):
        """The number of steps of the tile in turn `i`."""
        n = self._number(i)
        exists = (n >= 0) & (n < self.total)
        return jnp.where(exists, lax.min(self.time - n * self.steps, self.steps), 0)

    def part(self):
        """For each thread the number of its part, in the order of processing."""
        part = plgpu.broadcasted_iota(jnp.int32, self.shape, 0, layout=layout_of(self.shape))
        return self.parts - 1 - part if self.descending else part

    def by_part(self, values):
        """For each thread the value of its part, out of a list of scalars in time order."""
        result = jnp.broadcast_to(values[0], self.shape)
        for i, value in enumerate(values[1:], 1):
            mine = self.part() == (self.parts - 1 - i if self.descending else i)
            result = jnp.where(mine, jnp.broadcast_to(value, self.shape), result)
        return result

    def valid_rows(self, i):
        """For each thread the number of steps of its part of the tile in turn `i`."""
        valid = self.valid(i)
        return self.by_part(
            [lax.clamp(0, valid - p * self.rows, self.rows) for p in range(self.parts)]
        )

    def walk(self, i, load: Callable, step: Callable, store: Callable, carry):
        """Takes the rows of each part of the tile in turn `i`, one after another:
        `carry, results = step(carry, row, load(row, last)); store(row, results)`.

        `last` is false if it is known that this is not the last row of the part.
        """

        def walk_rows(carry, *, partial: bool):
            valid = self.valid_rows(i) if partial else None
            size = min(_GROUP, self.rows)

            def group(j, carry):
                rows = [j * size + k for k in range(size)]
                if self.descending:
                    rows = [self.rows - 1 - row for row in rows]
                values = [load(row, k == size - 1) for k, row in enumerate(rows)]
                results = []
                for row, value in zip(rows, values, strict=True):
                    new, result = step(carry, row, value)
                    if valid is not None:  # steps after the end of the sequence change nothing
                        new = jax.tree.map(
                            lambda x, y, row=row: jnp.where(row < valid, x, y), new, carry
                        )
                    carry = new
                    results.append(result)
                for row, result in zip(rows, results, strict=True):
                    store(row, result)
                return carry

            return lax.fori_loop(0, self.rows // size, group, carry)

        if not self.may_be_partial:
            return walk_rows(carry, partial=False)
        return lax.cond(
            self.valid(i) == self.steps,
            lambda carry: walk_rows(carry, partial=False),
            lambda carry: walk_rows(carry, partial=True),
            carry,
        )


Window = Callable[[Any], Any]
"""From the first step of a part to a reference to its part of an array in device memory, with time
as the first axis.

It may reach beyond the end of the array: TMA reads zeros there, and writes nothing.
"""


def pipeline(
    body: Callable, carry, reads, writes, *, tiles: Tiles, stages: int, warpgroups: int, warpgroup
):
    """Runs `carry = body(i, inputs, outputs, carry)` for every turn `i`, in order, in each of the
    warpgroups of a program.

    `reads` and `writes` are trees of `Window`s. The body receives references to shared memory in
    the same trees, with an axis for the parts of the tile in front. Its inputs have been copied
    there up to `stages` turns ahead. Its outputs are copied to device memory while the body works
    on the next tile.
    """

    def rings(windows, slots: int):
        def ring(window):
            window = window(0)
            rows, *rest = window.shape
            row_bytes = window.dtype.itemsize * (rest[0] if rest else 1)
            return plgpu.SMEM(
                (warpgroups, slots, tiles.parts, round_up_rows(rows, row_bytes), *rest),
                window.dtype,
            )

        return jax.tree.map(ring, windows)

    def at(slot, rings):
        return jax.tree.map(lambda ring: ring.at[warpgroup, slot], rings)

    def each(windows, references):
        windows = jax.tree.leaves(windows)
        return zip(windows, jax.tree.leaves(references), strict=True)

    def run(inputs, outputs, arrived):
        def barrier(slot):
            return arrived.at[warpgroup * stages + slot]

        def read(i):
            slot = lax.rem(i, stages)
            for window, tile in each(reads, at(slot, inputs)):
                for part in range(tiles.parts):
                    source = window(tiles.begin(i) + part * tiles.rows)
                    target = tile.at[part, pl.ds(0, source.shape[0])]
                    plgpu.copy_gmem_to_smem(source, target, barrier(slot))

        def turn(i, carry):
            # 1. Wait until the tile is here, and until the copy out of the slot for its results,
            # which began two turns ago, has read it.
            slot = lax.rem(i, stages)
            results = at(lax.rem(i, 2), outputs)
            plgpu.barrier_wait(barrier(slot))
            if writes:
                plgpu.wait_smem_to_gmem(1, wait_read_only=True)
            # 2. Work on it, and wait for all threads: then the results may leave, and the inputs
            # may be overwritten.
            carry = body(i, at(slot, inputs), results, carry)
            plgpu.commit_smem()
            # 3. Send the results off, and send for the tile that takes this slot next.
            for window, tile in each(writes, results):
                for part in range(tiles.parts):
                    _copy_out(tiles, i, part, window, tile.at[part])
            if writes:
                plgpu.commit_smem_to_gmem_group()
            pl.when(i + stages < tiles.count)(lambda: read(i + stages))
            return carry

        pl.loop(0, min(tiles.count, stages))(read)
        result = lax.fori_loop(0, tiles.count, turn, carry)
        if writes:
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        return result

    copies = len(jax.tree.leaves(reads)) * tiles.parts
    arrived = plgpu.Barrier(num_arrivals=copies, num_barriers=warpgroups * stages)
    return pl.run_scoped(
        run, rings(reads, stages), rings(writes, 2), arrived, collective_axes=WARPGROUP
    )


def _copy_out(tiles: Tiles, i, part: int, window: Window, tile) -> None:
    """Starts the copy of a part of tile `i` from shared to device memory."""
    target = window(tiles.begin(i) + part * tiles.rows)
    valid = lax.clamp(0, tiles.valid(i) - part * tiles.rows, tiles.rows)

    def copy_part():
        plgpu.copy_smem_to_gmem(tile, target, commit_group=False)

    def copy_rows():
        @pl.loop(0, valid)
        def _(row):
            one = pl.ds(row, 1)
            plgpu.copy_smem_to_gmem(tile.at[one], target.at[one], commit_group=False)

    # A window as wide as its array becomes one flat copy, which would not stop at the end of the
    # sequence but write into the next one.
    if not tiles.may_be_partial:
        copy_part()
    elif target.ref.shape[-1] == target.shape[-1]:
        lax.cond(valid == tiles.rows, copy_part, copy_rows)
    else:
        pl.when(valid > 0)(copy_part)


def round_up_rows(rows: int, row_bytes: int) -> int:
    """Rows such that what follows them begins where TMA can write."""
    while rows * row_bytes % _TMA_BYTES:
        rows += 1
    return rows
