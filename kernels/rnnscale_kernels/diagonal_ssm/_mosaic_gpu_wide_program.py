"""One program of the kernel for wide layers: a producer and a consumer, a warpgroup each.

The producer has TMA bring tiles of the input into a ring. The consumer has tensor cores map them to
drives and runs the recurrence down each tile of drives. While it does so, the tensor cores already
work on the next tile.

A tile of time is divided into parts, and each thread takes one state of one part. Threads first run
their part from zero. Then they exchange the states in which the parts end, compute from these the
state that enters each part, and run their part again from there.
"""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from .._algebra import add, as_number, multiply, multiply_conjugate, where
from ..linear_scan import advance, keep
from ._mosaic_gpu_plan import TILE, WIDTH
from ._mosaic_gpu_wide_plan import CLUSTER, WidePlan

CLUSTER_AXIS = "rnnscale_slice"

# Products in the queue of the tensor cores while the consumer does something else.
_QUEUE = 2


class Place(NamedTuple):
    """Where a program works: its row, its segment of time, and its slice of the states."""

    row: Any
    segment: Any
    slice: Any

    @classmethod
    def of(cls, plan: WidePlan, index) -> "Place":
        """The place of the program that has this number among those with its index in a cluster.

        Programs of one segment come one after another, so that they find its input in the cache.
        """
        clusters = plan.slices // CLUSTER
        segment = lax.div(index, clusters)
        return cls(
            row=lax.div(segment, plan.segments),
            segment=lax.rem(segment, plan.segments),
            slice=lax.rem(index, clusters) * CLUSTER + lax.axis_index(CLUSTER_AXIS),
        )


class _Memory(NamedTuple):
    """The memory of a program, as both warpgroups use it.

    - `given`, `results`: references to device memory, under the names that `_launch` gives them.
    - `scratch`: the buffers in shared memory and their barriers (`_scratch` of the sweep).
    """

    plan: WidePlan
    place: Place
    given: dict[str, Any]
    results: dict[str, Any]
    scratch: dict[str, Any]

    @property
    def pieces(self) -> int:
        """Tiles of the input side by side, `WIDTH` inputs each."""
        return self.scratch["into"].shape[0]

    @property
    def stages(self) -> int:
        return self.scratch["x"].shape[0]

    def window(self, ref, i, column, width: int):
        """The tile taken as number `i`, in device memory."""
        plan, place = self.plan, self.place
        time = place.segment * plan.length + TILE * plan.tile(i)
        return ref.at[place.row, pl.ds(time, TILE), pl.ds(column, width)]

    def states(self, ref, i, p: int):
        """Plane `p` of the program's own states in the tile taken as number `i`."""
        plan = self.plan
        column = p * plan.states + self.place.slice * plan.block
        return self.window(ref, i, column, plan.block)


class Producer(_Memory):
    """The warpgroup that has TMA fill the ring."""

    def run(self) -> None:
        plan, scratch = self.plan, self.scratch
        for k in range(self.pieces):
            source = self.given["into"].at[self.place.slice * self.pieces + k]
            plgpu.copy_gmem_to_smem(source, scratch["into"].at[k], scratch["into_arrived"])
        total = plan.tiles * self.pieces
        lax.fori_loop(0, self.stages, lambda n, _: self._fetch(n), None)
        lax.fori_loop(self.stages, total, lambda n, _: self._fetch_again(n), None)
        # No program may end while another one of its cluster still sends to it.
        lax.fori_loop(total, total + self.stages, lambda n, _: self._await_release(n), None)
        for i in range(max(plan.tiles - 2, 0), plan.tiles) if "other" in self.given else ():
            plgpu.barrier_wait(scratch["other_released"].at[i % 2])

    def _fetch(self, n) -> None:
        """Starts the copy of number `n` of all tiles, piece by piece."""
        i, slot = lax.div(n, self.pieces), lax.rem(n, self.stages)
        column = lax.rem(n, self.pieces) * WIDTH
        plgpu.copy_gmem_to_smem(
            self.window(self.given["x"], i, column, WIDTH),
            self.scratch["x"].at[slot],
            self.scratch["x_arrived"].at[slot],
            collective_axes=(CLUSTER_AXIS,),
        )
        if "other" in self.given:
            pl.when(lax.rem(n, self.pieces) == self.pieces - 1)(partial(self._fetch_other, i))

    def _fetch_again(self, n) -> None:
        self._await_release(n)
        self._fetch(n)

    def _await_release(self, n) -> None:
        plgpu.barrier_wait(self.scratch["x_released"].at[lax.rem(n, self.stages)])

    def _fetch_other(self, i) -> None:
        slot = lax.rem(i, 2)
        arrived = self.scratch["other_arrived"].at[slot]
        pl.when(i >= 2)(lambda: plgpu.barrier_wait(self.scratch["other_released"].at[slot]))
        for p in range(self.plan.planes):
            source = self.states(self.given["other"], i, p)
            plgpu.copy_gmem_to_smem(source, self.scratch["other"].at[slot, p], arrived)


class Consumer(_Memory):
    """The warpgroup that has tensor cores compute the drives, and runs the recurrence."""

    def run(self) -> None:
        plan, place, given = self.plan, self.place, self.given
        decay, part_decay = (self._load(given["decay"].at[place.slice, n]) for n in range(2))
        state = self._load(given["starts"].at[place.row, place.segment, place.slice])
        plgpu.barrier_wait(self.scratch["into_arrived"])
        accumulator = plgpu.WGMMAAccumulatorRef((TILE, plan.columns), jnp.float32)

        def first(sums) -> None:
            self._finish(_Products(self, 0, sums))

        def turn(i, carry):
            def both(sums):
                products = _Products(self, i + 1, sums)
                after = self._walk(i, carry, decay, part_decay, products.advance)
                self._finish(products)
                return after

            return pl.run_scoped(both, accumulator)

        # The drives of the next tile come while the recurrence runs down the present one.
        pl.run_scoped(first, accumulator)
        total = as_number([self._zero()] * plan.planes) if "other" in given else None
        carry = lax.fori_loop(0, plan.tiles - 1, turn, (state, total))
        state, total = self._walk(plan.tiles - 1, carry, decay, part_decay, lambda count: None)
        plgpu.wait_smem_to_gmem(0)
        here = place.row, place.segment, place.slice
        self._store(self.results["leaving"].at[here], state)
        if total is not None:
            self._store(self.results["d_decay"].at[here], total)

    def _finish(self, products: "_Products") -> None:
        """Leaves the drives in `rows`, once all products of a tile are there."""
        sums = products.result()
        rows, plan = self.scratch["rows"], self.plan
        for p in range(plan.planes):
            rows[p, :, pl.ds(0, plan.block)] = sums[:, p * plan.block : (p + 1) * plan.block]

    def _walk(self, i, carry, decay, part_decay, busy: Callable[[int], None]):
        """Runs down the tile of drives in `rows`, and returns the state after it.

        `busy(count)` is called between the steps to keep the tensor cores busy.
        """
        state, total = carry
        order = self.plan.in_order(self.plan.part_rows)
        busy(_QUEUE)
        plgpu.commit_smem()  # all drives are there, and the last exchange is over
        row = self._rows(self.scratch["rows"])
        drives = self._inject(i, [row(r) for r in range(self.plan.part_rows)])
        cut, part_is_cut = self._cuts(i)

        # 1. Every part from zero, to find the state that it would end with.
        end = drives[order[0]]
        for r in order[1:]:
            end = advance(end, cut(r), decay, drives[r])
        busy(1)
        # 2. From part to part: each starts with what the one before ends with. All threads do it
        # for all parts, so that they all know the state after the tile.
        start, after = self._exchange(end, state, part_decay, part_is_cut)
        busy(1)
        # 3. Every part from its start.
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        self._note_border(i, state)
        total = self._run_parts(i, start, total, decay, cut, drives)
        plgpu.commit_smem()
        self._send(i)
        self._report(i, start, decay, cut, drives)
        return after, total

    def _exchange(self, end, state, part_decay, part_is_cut: Callable):
        """The state that enters each thread's part, and the one after the tile."""
        plan, ends = self.plan, self.scratch["ends"]
        for copy in range(plan.parts):
            self._store(ends.at[:, copy], end)
        plgpu.commit_smem()
        start = state
        for n, j in enumerate(plan.in_order(plan.parts)):
            if n:
                start = where(self._is_part(j), state, start)
            passed = keep(part_is_cut(j), multiply(part_decay, state))
            state = add(passed, self._load(ends.at[:, :, j]))
        return start, state

    def _run_parts(self, i, state, total: Any, decay, cut: Callable, drives):
        """Runs all parts from their states, notes the states, and adds up the tile's d_decay."""
        scratch, slot = self.scratch, lax.rem(i, 2)
        order = self.plan.in_order(len(drives))
        states, before = {}, {}
        for r in order:
            before[r] = keep(cut(r), state)
            state = states[r] = advance(state, cut(r), decay, drives[r])
        if total is not None:
            plgpu.barrier_wait(scratch["other_arrived"].at[slot])
            other = self._rows(scratch["other"].at[slot])
            products = [multiply_conjugate(before[r], other(r)) for r in order]
            plgpu.barrier_arrive(scratch["other_released"].at[slot])
            total = add(total, reduce(add, products))
        if "states" in scratch:
            self._store_tile(scratch["states"], [states[r] for r in sorted(order)])
        return total

    def _send(self, i) -> None:
        """Has TMA write the states of the tile, and the border before it, to device memory."""
        plan, place, results = self.plan, self.place, self.results
        for p in range(plan.planes):
            if "states" in results:
                target = self.states(results["states"], i, p)
                plgpu.copy_smem_to_gmem(self.scratch["states"].at[p], target)
            if "borders" in results:
                column = pl.ds(place.slice * plan.block, plan.block)
                target = results["borders"].at[place.row, self._border(i), p, column]
                self._at_border(
                    i, partial(plgpu.copy_smem_to_gmem, self.scratch["border"].at[p, 0], target)
                )

    def _note_border(self, i, state) -> None:
        if "borders" in self.results:
            self._at_border(i, lambda: self._store(self.scratch["border"], state))

    def _at_border(self, i, act: Callable[[], None]) -> None:
        pl.when(lax.rem(i, self.plan.chunk // TILE) == 0)(act)

    def _border(self, i):
        plan = self.plan
        first = self.place.segment * (plan.length // plan.chunk)
        return first + lax.div(plan.tile(i), plan.chunk // TILE)

    def _at(self, i):
        """`(part, row, is_here)`: where in the tile the step `at` is, and whether it is there."""
        plan = self.plan
        first = self.place.segment * plan.length + TILE * plan.tile(i)
        step = self.given["at"][self.place.row] - first
        is_here = (step >= 0) & (step < TILE)
        return lax.div(step, plan.part_rows), lax.rem(step, plan.part_rows), is_here

    def _inject(self, i, drives: list) -> list:
        """The drives, with `inject` added at the step `at` of the row."""
        if "inject" not in self.given:
            return drives
        added = self._load(self.given["inject"].at[self.place.row, self.place.slice])
        part, row, is_here = self._at(i)

        def add_at(drives):
            def added_at(r):
                is_elsewhere = ~(self._is_part(part) & self._everywhere(row == r))
                return where(is_elsewhere, 0.0, added)

            return [add(x, added_at(r)) for r, x in enumerate(drives)]

        return lax.cond(is_here, add_at, lambda drives: drives, drives)

    def _report(self, i, state, decay, cut: Callable, drives) -> None:
        """Writes the state at the step `at`, in every part at the same row."""
        if "at" not in self.results:
            return
        _, row, is_here = self._at(i)

        def report() -> None:
            here = h = state
            for r in self.plan.in_order(len(drives)):
                h = advance(h, cut(r), decay, drives[r])
                here = where(self._everywhere(row == r), h, here)
            self._store(self.results["at"].at[self.place.row, self.place.slice], here)

        pl.when(is_here)(report)

    def _cuts(self, i) -> tuple[Callable, Callable]:
        """Whether row `r` of the thread's part is cut, and whether part `j` is cut anywhere."""
        if "cut" not in self.given:
            return lambda r: None, lambda j: None
        plan, place = self.plan, self.place
        words = self.given["cut"].at[place.row, place.segment * plan.tiles + plan.tile(i)]
        own = plgpu.load(words, layout=self._threads)
        any_cut = [words[j, 0] != 0 for j in range(plan.parts)]

        def is_cut(r):
            bit = 1 << r if r < 31 else -(1 << 31)
            return (own & bit) != 0

        return is_cut, lambda j: self._everywhere(any_cut[j])

    @property
    def _shape(self) -> tuple[int, int]:
        return self.plan.parts, self.plan.block

    @property
    def _threads(self):
        return plgpu.Layout.WG_STRIDED(self._shape, vec_size=1)

    def _is_part(self, j):
        """Whether a thread has part `j` of the tile."""
        parts = plgpu.broadcasted_iota(jnp.int32, self._shape, 0, layout=self._threads)
        return parts == self._everywhere(jnp.asarray(j, jnp.int32))

    def _everywhere(self, x):
        return jnp.broadcast_to(x, self._shape)

    def _rows(self, ref) -> Callable[[int], Any]:
        """The function from `r` to row `r` of every part of a tile, "planes step column"."""
        plan = self.plan
        shape = plan.planes, plan.parts, plan.part_rows, ref.shape[-1]
        if plan.interpret:  # it has no references with another shape, and needs no layouts
            values = ref[...].reshape(shape)[..., : plan.block].astype(jnp.float32)
            return lambda r: as_number([values[p, :, r] for p in range(plan.planes)])
        return lambda r: self._load(ref.reshape(shape).at[:, :, r, pl.ds(0, plan.block)])

    def _store_tile(self, ref, states: list) -> None:
        """Sets all rows of a tile."""
        plan = self.plan
        if plan.interpret:
            values = jnp.stack([jnp.stack(jax.tree.leaves(x)) for x in states], 2)
            ref[...] = values.reshape(ref.shape).astype(ref.dtype)
            return
        shape = plan.planes, plan.parts, plan.part_rows, plan.block
        for r, x in enumerate(states):
            self._store(ref.reshape(shape).at[:, :, r], x)

    def _load(self, ref):
        """A number for each thread, in float32."""
        planes = [plgpu.load(ref.at[p], layout=self._threads) for p in range(self.plan.planes)]
        return as_number([plane.astype(jnp.float32) for plane in planes])

    def _store(self, ref, x) -> None:
        for p, plane in enumerate(jax.tree.leaves(x)):
            ref[p] = plane.astype(ref.dtype)

    def _zero(self):
        return plgpu.layout_cast(jnp.zeros(self._shape, jnp.float32), self._threads)


class _Products:
    """The products that give the drives of tile number `i`, which tensor cores compute in order.

    A piece of the tile leaves the ring when `_QUEUE` later products have begun, so that the tensor
    cores always have work.
    """

    def __init__(self, memory: _Memory, i, sums):
        self._memory, self._sums = memory, sums
        self._first = i * memory.pieces
        self._begun = 0

    def advance(self, count: int) -> None:
        """Begins the next `count` products, or those that are left."""
        for _ in range(min(count, self._memory.pieces - self._begun)):
            self._begin(self._begun)
            if self._begun >= _QUEUE:
                self._release(self._begun - _QUEUE)
            self._begun += 1

    def result(self):
        """The sum of all products."""
        self.advance(_QUEUE - self._begun)

        def turn(k, _):
            self._begin(k)
            self._release(k - _QUEUE)

        pieces = self._memory.pieces
        lax.fori_loop(self._begun, pieces, turn, None)
        sums = self._sums[...]
        for k in range(max(pieces - _QUEUE, 0), pieces):
            self._arrive(k)
        return sums

    def _begin(self, k) -> None:
        scratch, slot = self._memory.scratch, self._slot(k)
        plgpu.barrier_wait(scratch["x_arrived"].at[slot])
        plgpu.wgmma(self._sums, scratch["x"].at[slot], scratch["into"].at[k])

    def _release(self, k) -> None:
        """Waits for the product of piece `k`, and gives its slot back."""
        plgpu.wgmma_wait(_QUEUE)
        self._arrive(k)

    def _arrive(self, k) -> None:
        plgpu.barrier_arrive(self._memory.scratch["x_released"].at[self._slot(k)])

    def _slot(self, k):
        return lax.rem(self._first + k, self._memory.stages)
