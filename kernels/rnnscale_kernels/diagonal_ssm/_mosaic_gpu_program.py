"""One program of the fused kernel: a warpgroup that sweeps over its segments, tile after tile.

Threads and tensor cores work on the same tile by turns. Shared memory is written by one and read by
the other, so a `commit_smem` stands wherever the data changes hands: it waits until all threads
have finished what they wrote or read.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from .._algebra import add, as_number, multiply, multiply_conjugate
from ..linear_scan import advance, keep
from ._mosaic_gpu_plan import LANES, TILE, Plan

_ROWS_AT_ONCE = 8  # rows that a thread loads together
_COLUMNS_AT_ONCE = 16  # columns of a product, if registers are scarce
_THREADS = plgpu.Layout.WG_STRIDED((LANES,), vec_size=1)
_PRODUCT = plgpu.Layout.WGMMA


class Program(NamedTuple):
    """A program: a group of segments, and all blocks of states or one.

    - `index`: its number.
    - `blocks`: the blocks of states that it takes.
    - `column`: the first column of `other` that it takes.
    - `given`, `results`: references to device memory, under the names that `_launch` gives them.
    - `scratch`: the buffers in shared memory (`buffers` of the plan), and their barriers.
    """

    plan: Plan
    index: Any
    blocks: Sequence
    column: Any
    given: dict[str, Any]
    results: dict[str, Any]
    scratch: dict[str, Any]

    def run(self, weight=None) -> None:
        """Sweeps over the segments. `weight` is an accumulator for the products with `other`."""
        plan, given, scratch = self.plan, self.given, self.scratch
        has_feedback = "feedback" in given
        # The matrices stay in shared memory; the first tiles are on their way with them.
        self._fetch_matrices()
        rings = {"x": self._ring("x", 0, uses=1)}
        if weight is not None:
            rings["other"] = self._ring("other", self.column, uses=1 + has_feedback)
        decay = [self._load_state(given["decay"].at[block]) for block in self.blocks]
        zero = as_number([_zero()] * plan.planes)
        starts = [
            self._load_state(given["starts"].at[self.index, block]) if "starts" in given else zero
            for block in self.blocks
        ]
        at = [given["at"][plan.group * self.index + j] for j in range(plan.group)]
        plgpu.barrier_wait(scratch["matrices_arrived"])

        def turn(i, carry):
            states, derivative = carry
            cut = self._cut(i)
            states = self._recur(i, rings["x"], decay, at, cut, states)
            if weight is not None:
                self._add_products(i, rings["other"], weight)
            if has_feedback:
                derivative = self._differentiate(i, rings["other"], decay[0], at, cut, *derivative)
            return states, derivative

        # The derivative of the state, the state before, and the sum of d_decay.
        derivative = (zero, starts[0], zero) if has_feedback else ()
        states, derivative = lax.fori_loop(0, plan.tiles, turn, (tuple(starts), derivative))
        plgpu.wait_smem_to_gmem(0)
        leaving = derivative[:1] if has_feedback else states
        for block, state in zip(self.blocks, leaving, strict=True):
            _store(self.results["leaving"].at[self.index, block], state)
            if weight is not None:
                self.results["weight"][self.index, block] = weight[...]
            if has_feedback:
                _store(self.results["d_decay"].at[self.index, block], derivative[2])

    def _fetch_matrices(self) -> None:
        given, scratch = self.given, self.scratch
        arrived = scratch["matrices_arrived"]
        for n, block in enumerate(self.blocks):
            for name in ("into", "out"):
                if name in given:
                    source = given[name].at[block]
                    plgpu.copy_gmem_to_smem(source, scratch[name].at[n], arrived)
            if "feedback" in given:
                feedback = scratch["feedback"]
                source = given["feedback"].at[block, pl.ds(self.column, feedback.shape[0])]
                plgpu.copy_gmem_to_smem(source, feedback, arrived)

    def _recur(self, i, x, decay, at, cut, states):
        """Leaves the states of the tile taken as number `i` in `rows`, if anything is to read them,
        and writes its `y`.

        Returns the states after the tile, for each block of states.
        """
        plan, scratch = self.plan, self.scratch
        group = range(plan.group)
        is_mapped, reports = "out" in self.given, "at" in self.results
        is_read = is_mapped or reports or "other" in self.given
        tiles, y, after = [None] * plan.group, [None] * plan.group, []
        for n, block in enumerate(self.blocks):
            is_last = n == len(self.blocks) - 1
            # 1. Tensor cores map the input of each segment to its drive, in `rows`.
            plgpu.commit_smem()  # the states of the last tile have been read
            for j in group:
                tiles[j] = x.take(i, j) if n == 0 else tiles[j]
                drive = _product(tiles[j], scratch["into"].at[n])
                if is_mapped and n == j == 0:
                    plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # `y` is in the same memory
                for p in range(plan.planes):
                    first = p * plan.block
                    self._columns(p, j)[...] = drive[:, first : first + plan.block]
                plgpu.commit_smem()
                if is_last:
                    x.release(i, j)
            if "inject" in self.given:
                self._at_step(i, at, partial(self._inject, block))
            if "borders" in self.results:
                pl.when(lax.rem(i, plan.chunk // TILE) == 0)(
                    partial(self._report_border, i, block, states[n])
                )

            # 2. Each thread runs the recurrence of its state down the rows, in place.
            def step(h, drive, cut, n=n):
                h = advance(h, cut, decay[n], drive)
                return h, h if is_read else None

            after.append(self._walk(cut, step, states[n]))
            plgpu.commit_smem()
            if reports and "feedback" not in self.given:
                self._at_step(i, at, partial(self._report, block))
            # 3. Tensor cores map the states on; the blocks of states add up.
            if is_mapped:
                self._narrow(group)
                for j in group:
                    part = _product(scratch["narrow"].at[j], scratch["out"].at[n])
                    y[j] = part if n == 0 else y[j] + part
                    if is_last:
                        self._write(i, j, y[j])
        return tuple(after)

    def _add_products(self, i, ring, weight) -> None:
        """Adds the products of `other` and the states in `rows`, summed over the tile."""
        for j in range(self.plan.group):
            other = ring.take(i, j)
            self._narrow([j])
            plgpu.wgmma(weight, other.T, self.scratch["narrow"].at[0])
            plgpu.wgmma_wait(0)
            plgpu.commit_smem()
            ring.release(i, j)

    def _differentiate(self, i, ring, decay, at, cut, derivative, before, total):
        """Adds the tile's part of d_decay: conj(dh_t/d decay) times the cotangent of h_t."""
        plan = self.plan

        # 1. Replace the states in `rows` by their derivatives,
        # dh_t/d decay = decay dh_{t-1}/d decay + h_{t-1}.
        def step(carry, h, cut):
            derivative, before = carry
            derivative = keep(cut, add(multiply(decay, derivative), before))
            return (derivative, h), derivative

        carry = self._walk(cut, step, (derivative, before))
        plgpu.commit_smem()
        self._at_step(i, at, partial(self._report, self.blocks[0]))
        # 2. Multiply them by the cotangents, which tensor cores find from `other`.
        for j in range(plan.group):
            cotangents = _product(ring.take(i, plan.group + j), self.scratch["feedback"])
            for c in range(0, plan.block, _COLUMNS_AT_ONCE):
                self._multiply_columns(j, c, cotangents)
            plgpu.commit_smem()
            ring.release(i, plan.group + j)
        # 3. Sum over the rows.
        total = self._walk(None, lambda total, part, cut: (add(total, part), None), total)
        return *carry, total

    def _multiply_columns(self, j: int, first: int, cotangents) -> None:
        """Replaces `rows` by conj(row) times its cotangent, for a few states."""
        planes = range(self.plan.planes)
        rows = as_number([self._load_columns(p, j, first, _COLUMNS_AT_ONCE) for p in planes])
        here = [slice(p * self.plan.block + first, None) for p in planes]
        cotangents = as_number([cotangents[:, c][:, :_COLUMNS_AT_ONCE] for c in here])
        for p, plane in enumerate(jax.tree.leaves(multiply_conjugate(rows, cotangents))):
            self._columns(p, j, first, _COLUMNS_AT_ONCE)[...] = plane

    def _walk(self, cut: Callable | None, step: Callable, carry):
        """`carry, result = step(carry, row, cut)` down the rows; results take the rows' places."""
        rows, descending = self.scratch["rows"], self.plan.descending
        groups = TILE // _ROWS_AT_ONCE
        order = range(_ROWS_AT_ONCE)[::-1] if descending else range(_ROWS_AT_ONCE)

        def first_row(k):
            return _ROWS_AT_ONCE * (groups - 1 - k if descending else k)

        def load(k):
            return [self._load_state(rows.at[:, first_row(k) + r, pl.ds(0, LANES)]) for r in order]

        def turn(k, loop):
            carry, values = loop
            # The next rows are loaded before any result is stored, since no load may move above a
            # store. Meanwhile the steps below wait for one another.
            following = load(jnp.minimum(k + 1, groups - 1))
            first, results = first_row(k), []
            is_cut = (lambda r: None) if cut is None else cut(first)
            for r, value in zip(order, values, strict=True):
                carry, result = step(carry, value, is_cut(r))
                results.append(result)
            for r, result in zip(order, results, strict=True):
                if result is not None:
                    _store(rows.at[:, first + r, pl.ds(0, LANES)], result)
            return carry, following

        carry, _ = lax.fori_loop(0, groups, turn, (carry, load(0)))
        return carry

    def _cut(self, i) -> Callable | None:
        """`cut(first)(r)`: whether row `first + r` of the tile is cut, in each thread."""
        if "cut" not in self.given:
            return None
        tile = self.plan.tile(i)
        # A thread holds one bit for each of the 64 rows, in two words.
        early, late = (_load(self.given["cut"].at[self.index, tile, w]) for w in range(2))

        def of_rows(first):
            word = jnp.where(first < TILE // 2, early, late)
            bits = lax.shift_right_logical(word, jnp.full_like(word, lax.rem(first, TILE // 2)))
            return lambda r: (bits & (1 << r)) != 0

        return of_rows

    def _at_step(self, i, at, act: Callable) -> None:
        """`act(j, row)` if the step `at[j]` of segment `j` is a row of this tile."""
        tile = self.plan.tile(i)
        for j, step in enumerate(at):
            row = step - TILE * tile
            pl.when((row >= 0) & (row < TILE))(partial(act, j, row))

    def _inject(self, block, j: int, row) -> None:
        ref = self.scratch["rows"].at[:, row, pl.ds(0, LANES)]
        added = self._load_state(self.given["inject"].at[self.index, j, block])
        _store(ref, add(self._load_state(ref), added))

    def _report_border(self, i, block, state) -> None:
        border = lax.div(i, self.plan.chunk // TILE)
        _store(self.results["borders"].at[self.index, border, block], state)

    def _report(self, block, j: int, row) -> None:
        state = self._load_state(self.scratch["rows"].at[:, row, pl.ds(0, LANES)])
        _store(self.results["at"].at[self.index, j, block], state)

    def _narrow(self, segments: Sequence[int]) -> None:
        """Leaves the states of these segments in `narrow`, in 16 bits, for tensor cores. All planes
        of a segment are side by side."""
        narrow, block = self.scratch["narrow"], self.plan.block
        planes = range(self.plan.planes)
        states = [self._load_columns(p, j).astype(narrow.dtype) for j in segments for p in planes]
        # Where `narrow` shares memory with `rows`, all threads have loaded now. Where it does not,
        # the last product is over for all threads.
        plgpu.commit_smem()
        for n, plane in enumerate(states):
            k, p = divmod(n, len(planes))
            narrow[k, :, pl.ds(p * block, block)] = plane
        plgpu.commit_smem()

    def _write(self, i, j: int, y) -> None:
        """Sends the output of segment `j` to device memory, by way of shared memory."""
        tiles = self.scratch["y"]
        tile = tiles.at[j % tiles.shape[0]]
        if j >= tiles.shape[0]:
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        tile[...] = y.astype(tile.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(tile, self._window(self.results["y"], i, j, 0, y.shape[1]))

    def _window(self, ref, i, j: int, column, width: int):
        """The tile taken as number `i` of segment `j` in device memory."""
        plan = self.plan
        segment = plan.group * self.index + j
        # A vacant place lies beyond the end of the last row: TMA reads zeros, and writes nothing.
        row = jnp.minimum(lax.div(segment, plan.segments), plan.rows - 1)
        time = (segment - plan.segments * row) * plan.length + TILE * plan.tile(i)
        return ref.at[row, pl.ds(time, TILE), pl.ds(column, width)]

    def _ring(self, name: str, column, uses: int) -> "_Ring":
        slots, arrived = self.scratch[name], self.scratch[f"{name}_arrived"]
        *_, width = slots.shape

        def window(i, j: int):
            return self._window(self.given[name], i, j, column, width)

        ring = _Ring(window, slots, arrived, self.plan.tiles, self.plan.group, uses)
        ring.start()
        return ring

    def _columns(self, p: int, j: int, first: int = 0, count: int | None = None):
        """States of segment `j` in `rows`, in plane `p`."""
        block = self.plan.block
        return self.scratch["rows"].at[p, :, pl.ds(j * block + first, count or block)]

    def _load_columns(self, *columns):
        return plgpu.load(self._columns(*columns), layout=_PRODUCT, optimized=False)

    def _load_state(self, ref):
        return as_number([_load(ref.at[p]) for p in range(self.plan.planes)])


class _Ring(NamedTuple):
    """A ring of tiles in shared memory, which TMA fills ahead of their use.

    The tiles of all segments at one time come one after another, `uses` times over, then those of
    the next time. `n` numbers them within one time.
    """

    window: Callable
    slots: Any
    arrived: Any
    tiles: int
    group: int
    uses: int

    def start(self) -> None:
        for k in range(self.slots.shape[0]):
            self.fetch(*divmod(k, self.uses * self.group))

    def slot(self, i, n: int):
        return lax.rem(self.uses * self.group * i + n, self.slots.shape[0])

    def fetch(self, i, n: int) -> None:
        """Starts the copy of a tile into its slot, if there is such a tile."""
        slot = self.slot(i, n)

        @pl.when(i < self.tiles)
        def _():
            window = self.window(i, n % self.group)
            plgpu.copy_gmem_to_smem(window, self.slots.at[slot], self.arrived.at[slot])

    def take(self, i, n: int):
        """Waits for the copy of a tile, and returns the tile."""
        slot = self.slot(i, n)
        plgpu.barrier_wait(self.arrived.at[slot])
        return self.slots.at[slot]

    def release(self, i, n: int) -> None:
        """Starts the copy of the slot's next tile. No thread may still use the present one."""
        turns, n = divmod(n + self.slots.shape[0], self.uses * self.group)
        self.fetch(i + turns, n)


def _product(left, right):
    def run(acc):
        plgpu.wgmma(acc, left, right)
        return acc[...]

    return pl.run_scoped(
        run, plgpu.WGMMAAccumulatorRef((left.shape[0], right.shape[1]), jnp.float32)
    )


def _load(ref):
    """One number for each thread."""
    return plgpu.load(ref, layout=_THREADS)


def _zero():
    return plgpu.layout_cast(jnp.zeros((LANES,), jnp.float32), _THREADS)


def _store(ref, x) -> None:
    for p, plane in enumerate(jax.tree.leaves(x)):
        ref[p] = plane
