"""The kernel of `_mosaic_gpu`: a sweep over time, and what is asked of the states on the way."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from .._planar import add, as_number, multiply, multiply_conjugate, where
from ._mosaic_gpu import (
    LANES,
    SHARED_BYTES,
    TILE,
    WIDTH,
    Plan,
    buffers,
    columns_at_once,
    shared_bytes,
)

_GROUP = 8  # rows that a thread loads before it stores any: no load may move above a store
_AT_ONCE = 16  # columns of a product, where registers are scarce
# Tiles on their way, where there is room for them. Were it a divisor of the segments of a program,
# each would have a slot of its own, and the compiler would keep all their addresses in registers.
_STAGES = 3
_THREADS = plgpu.Layout.WG_STRIDED((LANES,), vec_size=1)
_PRODUCT = plgpu.Layout.WGMMA


def sweep(
    plan: Plan, x, weights: dict[str, Any], starts, cut, at,
    *, inject=None, width: int = 0, borders: bool = False, other=None,
) -> dict[str, Any]:  # fmt: skip
    """Runs h_t = decay h_{t-1} + into(x_t) over each segment. All arguments have `Plan`'s forms.

    - `x`: "row time input".
    - `weights`: `decay` and `into`, perhaps `out` or `feedback`, maps from states and of `other`.
    - `starts`: the state that enters each segment. `cut`: bits that say where none comes in.
    - `at`: a step of each segment, none if negative. `inject` is added to the state there;
        otherwise that state is a result.

    Results:

    - `leaving`, the state that leaves each segment, and `at`, the state at that step;
    - with `out`: `y`, "row time width"; with `borders`: the state that enters each chunk;
    - with `other`, "row time other": `weight`, its products with the states, added up over time;
    - with `feedback`: `d_decay`, of what has the cotangents that it gives for the states; `leaving`
        and `at` are then of dh_t/d decay.
    """
    mapped, fed = "out" in weights, "feedback" in weights
    inputs = weights["into"].shape[1]
    outputs = weights["out"].shape[2] if mapped else 0
    others = 0 if other is None else -(-other.shape[-1] // WIDTH) * WIDTH
    columns = columns_at_once(others)
    parts = others // columns if others else 1

    def shapes(stages: int):
        return buffers(
            plan.planes, plan.states, plan.group, inputs,
            outputs=outputs, others=columns, feedback=fed, stages=stages,
        )  # fmt: skip

    stages = _STAGES if shared_bytes(shapes(_STAGES)) <= SHARED_BYTES else 1
    scratch: dict[str, Any] = {}
    for name, shape in shapes(stages).items():
        if name == "rows":
            scratch[name] = plgpu.SMEM(shape, jnp.float32)
            continue
        # A plane of states may be half of `WIDTH`.
        row = plan.block if others and name in ("narrow", "other", "feedback") else WIDTH
        scratch[name] = plgpu.SMEM(shape, x.dtype, transforms=_swizzled(row))
        if name in ("x", "other"):
            scratch[f"{name}_arrived"] = plgpu.Barrier(num_barriers=stages)
    held = plan.blocks if mapped else 1
    scratch["held"] = plgpu.Barrier(num_arrivals=2 * held if mapped else held + fed)

    given = {
        "x": x, "other": other, "starts": starts, "cut": cut, "at": at, "inject": inject, **weights
    }  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None}
    results: dict[str, tuple[int, ...]] = {}
    results["leaving"] = (parts, plan.programs, plan.blocks, plan.planes, LANES)
    if inject is None:
        results["at"] = (parts, plan.programs, plan.group, plan.blocks, plan.planes, LANES)
    if mapped:
        results["y"] = (*x.shape[:2], width)
    if borders:
        count = plan.length // plan.chunk
        results["borders"] = (plan.programs, count, plan.blocks, plan.planes, LANES)
    if others:
        results["weight"] = (parts, plan.programs, plan.blocks, columns, plan.planes * plan.block)
    if fed:
        results["d_decay"] = (parts, plan.programs, plan.blocks, plan.planes, LANES)

    def kernel(given, results, **scratch):
        part = lax.axis_index("part")
        by_part = {
            name: ref if name in ("y", "borders") else ref.at[part] for name, ref in results.items()
        }
        state_blocks = range(plan.blocks) if mapped else [lax.axis_index("block")]
        program = _Program(
            plan, lax.axis_index("program"), state_blocks, part * columns, borders, given, by_part,
            scratch,
        )  # fmt: skip
        if others:
            pl.run_scoped(
                program.run,
                plgpu.WGMMAAccumulatorRef((columns, plan.planes * plan.block), jnp.float32),
            )
        else:
            program.run()

    run = plgpu.kernel(
        kernel,
        out_type={
            name: jax.ShapeDtypeStruct(shape, x.dtype if name == "y" else jnp.float32)
            for name, shape in results.items()
        },
        # The last axis may be the longest: CUDA allows 65,535 of the others.
        grid=(parts, 1 if mapped else plan.blocks, plan.programs),
        grid_names=("part", "block", "program"),
        scratch_types=scratch,
        compiler_params=plgpu.CompilerParams(
            unsafe_no_auto_barriers=True, lowering_semantics=plgpu.LoweringSemantics.Lane
        ),
        interpret=plgpu.InterpretGPUParams() if plan.interpret else None,
        kernel_name="diagonal_ssm",
    )
    with jax.enable_x64(False):  # indices are 32-bit
        return run(given)


class _Program(NamedTuple):
    """One program: a group of segments, all blocks of states or one."""

    plan: Plan
    index: Any
    blocks: Any
    column: Any  # the first of `other` that is this program's
    borders: bool
    given: dict[str, Any]
    results: dict[str, Any]
    scratch: dict[str, Any]

    def run(self, weight=None) -> None:
        plan, given, scratch = self.plan, self.given, self.scratch
        fed = "feedback" in scratch
        for n, block in enumerate(self.blocks):
            for name in ("into", "out"):
                if name in scratch:
                    source = given[name].at[block]
                    plgpu.copy_gmem_to_smem(source, scratch[name].at[n], scratch["held"])
            if fed:
                feedback = scratch["feedback"]
                source = given["feedback"].at[block, pl.ds(self.column, feedback.shape[0])]
                plgpu.copy_gmem_to_smem(source, feedback, scratch["held"])
        rings = {"x": self.ring("x", 0, 1)}
        if weight is not None:
            rings["other"] = self.ring("other", self.column, 1 + fed)
        decay = [self.load_state(given["decay"].at[block]) for block in self.blocks]
        starts = [self.load_state(given["starts"].at[self.index, block]) for block in self.blocks]
        at = [given["at"][plan.group * self.index + j] for j in range(plan.group)]
        plgpu.barrier_wait(scratch["held"])

        def turn(i, carry):
            states, derivative = carry
            keep = self.keep(i)
            states = self.recur(i, rings["x"], decay, at, keep, states)
            if weight is not None:
                self.add_products(i, rings["other"], weight)
            if fed:
                derivative = self.differentiate(i, rings["other"], decay[0], at, keep, *derivative)
            return states, derivative

        zero = as_number([_zero()] * plan.planes)
        states, derivative = lax.fori_loop(
            0, plan.tiles, turn, (tuple(starts), (zero, starts[0], zero) if fed else ())
        )
        plgpu.wait_smem_to_gmem(0)
        for block, state in zip(self.blocks, derivative[:1] if fed else states, strict=True):
            _store(self.results["leaving"].at[self.index, block], state)
            if weight is not None:
                self.results["weight"][self.index, block] = weight[...]
            if fed:
                _store(self.results["d_decay"].at[self.index, block], derivative[2])

    def recur(self, i, x, decay, at, keep, states):
        """The states of the tile that is `i`-th in order, in `rows`, and `y` of them."""
        plan, scratch = self.plan, self.scratch
        tiles, y, after = [None] * plan.group, [None] * plan.group, []
        for n, block in enumerate(self.blocks):
            is_last = n == len(self.blocks) - 1
            plgpu.commit_smem()  # nobody reads the last states any more
            for j in range(plan.group):
                tiles[j] = x.take(i, j) if n == 0 else tiles[j]
                self.drive(tiles[j], scratch["into"].at[n], j)
                plgpu.commit_smem()
                if is_last:
                    x.release(i, j)
            if "inject" in self.given:
                self.at_step(i, at, partial(self.inject, block))
            if self.borders:
                pl.when(lax.rem(i, plan.chunk // TILE) == 0)(
                    partial(self.report_border, i, block, states[n])
                )
            advance = partial(_advance, decay[n])
            after.append(self.walk(keep, advance, states[n]))
            plgpu.commit_smem()
            if "at" in self.results and "feedback" not in scratch:
                self.at_step(i, at, partial(self.report, block))
            for j in range(plan.group) if "out" in scratch else ():
                part = self.map_out(scratch["out"].at[n], j)
                y[j] = part if n == 0 else y[j] + part
                if is_last:
                    self.write(i, j, y[j])
        return tuple(after)

    def drive(self, x, into, j: int) -> None:
        plan = self.plan
        wide = max(plan.block, WIDTH)  # one plane, or two narrow ones
        for first in range(0, plan.planes * plan.block, wide):
            drive = _product(x, into.at[:, pl.ds(first, wide)])
            for c in range(0, wide, plan.block):
                p = (first + c) // plan.block
                self.columns(p, j)[...] = drive[:, c : c + plan.block]

    def add_products(self, i, ring, weight) -> None:
        """Adds those of `other` and the states in `rows`."""
        for j in range(self.plan.group):
            other = ring.take(i, j)
            plgpu.wgmma(weight, other.T, self.narrow(range(self.plan.planes), j))
            plgpu.wgmma_wait(0)
            plgpu.commit_smem()
            ring.release(i, j)

    def differentiate(self, i, ring, decay, at, keep, derivative, before, total):
        """Adds the tile's part of d_decay: conj(dh_t/d decay) times the cotangent of h_t."""
        plan = self.plan

        def advance(carry, h, keep):
            derivative, before = carry
            derivative = keep(add(multiply(decay, derivative), before))
            return (derivative, h), derivative

        carry = self.walk(keep, advance, (derivative, before))
        plgpu.commit_smem()
        self.at_step(i, at, partial(self.report, self.blocks[0]))
        for j in range(plan.group):
            cotangents = _product(ring.take(i, plan.group + j), self.scratch["feedback"])
            for c in range(0, plan.block, _AT_ONCE):
                self.multiply_columns(j, c, cotangents)
            plgpu.commit_smem()
            ring.release(i, plan.group + j)
        total = self.walk(None, lambda total, part, keep: (add(total, part), None), total)
        return *carry, total

    def multiply_columns(self, j: int, first: int, cotangents) -> None:
        """conj(row) times its cotangent in place of the rows, for a few states."""
        planes = range(self.plan.planes)
        rows = as_number([self.load_columns(p, j, first, _AT_ONCE) for p in planes])
        here = [slice(p * self.plan.block + first, None) for p in planes]
        cotangents = as_number([cotangents[:, c][:, :_AT_ONCE] for c in here])
        for p, plane in enumerate(jax.tree.leaves(multiply_conjugate(rows, cotangents))):
            self.columns(p, j, first, _AT_ONCE)[...] = plane

    def load_state(self, ref):
        return as_number([_load(ref.at[p]) for p in range(self.plan.planes)])

    def window(self, name: str, i, j: int, column, width: int):
        """Tile `i` of segment `j` in device memory."""
        plan = self.plan
        sequence = plan.group * self.index + j
        tile = plan.tiles - 1 - i if plan.descending else i
        time = lax.rem(sequence, plan.segments) * plan.length + TILE * tile
        row = lax.div(sequence, plan.segments)
        refs = self.results if name == "y" else self.given
        return refs[name].at[row, pl.ds(time, TILE), pl.ds(column, width)]

    def ring(self, name: str, column, uses: int) -> "_Ring":
        slots, arrived = self.scratch[name], self.scratch[f"{name}_arrived"]
        *_, width = slots.shape

        def window(i, j: int):
            return self.window(name, i, j, column, width)

        ring = _Ring(window, slots, arrived, self.plan.tiles, self.plan.group, uses)
        ring.start()
        return ring

    def keep(self, i):
        """keep(first, r, x): zero where the row `first` + r of tile `i` is cut, else x."""
        if "cut" not in self.given:
            return None
        tile = self.plan.tiles - 1 - i if self.plan.descending else i
        early, late = (_load(self.given["cut"].at[self.index, tile, w]) for w in range(2))

        def of_rows(first):
            word = jnp.where(first < TILE // 2, early, late)
            bits = lax.shift_right_logical(word, jnp.full_like(word, lax.rem(first, TILE // 2)))
            return lambda r: lambda x: where((bits & (1 << r)) != 0, 0.0, x)

        return of_rows

    def walk(self, keep, step: Callable, carry):
        """carry, result = step(carry, row, keep) down the rows; results take the rows' places."""
        rows, descending = self.scratch["rows"], self.plan.descending
        groups = TILE // _GROUP
        order = range(_GROUP)[::-1] if descending else range(_GROUP)

        def turn(k, carry):
            first = _GROUP * (groups - 1 - k if descending else k)
            keep_row = (lambda r: lambda x: x) if keep is None else keep(first)
            values = [self.load_state(rows.at[:, first + r, pl.ds(0, LANES)]) for r in order]
            results = []
            for r, value in zip(order, values, strict=True):
                carry, result = step(carry, value, keep_row(r))
                results.append(result)
            for r, result in zip(order, results, strict=True):
                if result is not None:
                    _store(rows.at[:, first + r, pl.ds(0, LANES)], result)
            return carry

        return lax.fori_loop(0, groups, turn, carry)

    def at_step(self, i, at, act: Callable) -> None:
        """act(j, row) if the step `at[j]` of segment `j` is a row of this tile."""
        tile = self.plan.tiles - 1 - i if self.plan.descending else i
        for j, step in enumerate(at):
            row = step - TILE * tile
            pl.when((row >= 0) & (row < TILE))(partial(act, j, row))

    def inject(self, block, j: int, row) -> None:
        ref = self.scratch["rows"].at[:, row, pl.ds(0, LANES)]
        added = self.load_state(self.given["inject"].at[self.index, j, block])
        _store(ref, add(self.load_state(ref), added))

    def report_border(self, i, block, state) -> None:
        border = lax.div(i, self.plan.chunk // TILE)
        _store(self.results["borders"].at[self.index, border, block], state)

    def report(self, block, j: int, row) -> None:
        state = self.load_state(self.scratch["rows"].at[:, row, pl.ds(0, LANES)])
        _store(self.results["at"].at[self.index, j, block], state)

    def columns(self, p: int, j: int, first: int = 0, count: int | None = None):
        """A plane of states of segment `j` in this tile."""
        block = self.plan.block
        return self.scratch["rows"].at[p, :, pl.ds(j * block + first, count or block)]

    def load_columns(self, *columns):
        return plgpu.load(self.columns(*columns), layout=_PRODUCT, optimized=False)

    def narrow(self, planes, j: int):
        """Planes of the states of segment `j` side by side, in 16 bits, for tensor cores."""
        block, narrow = self.plan.block, self.scratch["narrow"]
        plgpu.commit_smem()  # the last product is over for all threads
        for n, p in enumerate(planes):
            narrow[:, pl.ds(n * block, block)] = self.load_columns(p, j).astype(narrow.dtype)
        plgpu.commit_smem()
        return narrow.at[:, pl.ds(0, len(planes) * block)]

    def map_out(self, out, j: int):
        block = self.plan.block

        def run(acc):
            for p in range(self.plan.planes):
                plgpu.wgmma(acc, self.narrow([p], j), out.at[pl.ds(p * block, block)])
                plgpu.wgmma_wait(0)
            return acc[...]

        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        return pl.run_scoped(run, plgpu.WGMMAAccumulatorRef((TILE, out.shape[-1]), jnp.float32))

    def write(self, i, j: int, y) -> None:
        tile = self.scratch["y" if "y" in self.scratch else "narrow"]
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        tile[...] = y.astype(tile.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(tile, self.window("y", i, j, 0, y.shape[1]))


class _Ring(NamedTuple):
    """Tiles that TMA brings, each `uses` times: all segments' of a tile of time, then again."""

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
        slot = self.slot(i, n)

        @pl.when(i < self.tiles)
        def _():
            window = self.window(i, n % self.group)
            plgpu.copy_gmem_to_smem(window, self.slots.at[slot], self.arrived.at[slot])

    def take(self, i, n: int):
        slot = self.slot(i, n)
        plgpu.barrier_wait(self.arrived.at[slot])
        return self.slots.at[slot]

    def release(self, i, n: int) -> None:
        """After all threads have used it."""
        turns, n = divmod(n + self.slots.shape[0], self.uses * self.group)
        self.fetch(i + turns, n)


def _advance(decay, h, drive, keep):
    h = add(keep(multiply(decay, h)), drive)
    return h, h


def _product(left, right):
    def run(acc):
        plgpu.wgmma(acc, left, right)
        return acc[...]

    return pl.run_scoped(
        run, plgpu.WGMMAAccumulatorRef((left.shape[0], right.shape[1]), jnp.float32)
    )


def _load(ref):
    """One number a thread."""
    return plgpu.load(ref, layout=_THREADS)


def _zero():
    return plgpu.layout_cast(jnp.zeros((LANES,), jnp.float32), _THREADS)


def _store(ref, x) -> None:
    for p, plane in enumerate(jax.tree.leaves(x)):
        ref[p] = plane


def _swizzled(row: int):
    """As tensor cores read tiles with rows of so many 16-bit numbers."""
    tiling = plgpu.TilingTransform((8, row))  # pyright: ignore[reportAbstractUsage]
    return tiling, plgpu.SwizzleTransform(2 * row)  # pyright: ignore[reportAbstractUsage]
