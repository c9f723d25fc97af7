"""The fused kernels for TPUs: what they do with one tile of time.

The walk over time needs a step of all streams in one register, products need the steps as a matrix:
see `_mosaic_tpu_plan`. What is read, and lane blocks, are described in `_mosaic_tpu_layout`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from .._algebra import add, as_number, conjugate, multiply, multiply_conjugate, where
from ._mosaic_tpu_layout import Given
from ._mosaic_tpu_plan import LANES, STREAMS, UNROLL, Plan, columns_at_once


class Outputs(NamedTuple):
    """The results of the forward kernel. `y` and `borders` are `None` if they are not wanted.

    - `y`: a tile of the output, "group tile output".
    - `at`: for each plane, the state at the step `last`, "group state".
    - `borders`: for each plane, the state that enters the tile, "group state".
    """

    y: Any
    at: Any
    borders: Any


class Gradients(NamedTuple):
    """The results of the backward kernel.

    - `dx`: a tile, "group tile input".
    - `d_into`, "input width", and `d_out`, "output width": sums over all tiles of a core.
    - `d_decay`: the same for each sublane, "lane_block 8 128".
    - `passed_on`: for each plane, what the first step passes on, "group state".
    """

    dx: Any
    d_into: Any
    d_out: Any
    d_decay: Any
    passed_on: Any


class Scratch(NamedTuple):
    """Vector memory of a kernel.

    - `carry`: what one tile passes on to the next, "lane_block 8 128".
    - `states`, `cotangents`: some lane blocks in float32, "lane_block line 128". A stream has a
        line for the state that enters it, and one for each step.
    - `narrow_states`, `narrow_cotangents`: all lane blocks, "time width", as products take them.
    - `x_turned`, `g_turned`: tiles of the sequences with time last.
    """

    carry: Any
    states: Any
    narrow_states: Any
    cotangents: Any = None
    narrow_cotangents: Any = None
    x_turned: Any = None
    g_turned: Any = None


def forward(plan: Plan, given: Given, results: Outputs, scratch: Scratch) -> None:
    """Takes one tile of h_t = decay h_{t-1} + into x_t, y_t = out h_t, in the plan's direction."""
    tile = _Tile(plan, given, scratch)

    @pl.when(pl.program_id(2) == 0)
    def _():
        for block in range(plan.blocks):
            tile.put_carry(block, tile.spread(given.start, block))
        for at, start in zip(results.at, given.start, strict=True):
            at[...] = start[...]

    if results.borders is not None:
        tile.put_rows(results.borders)

    def take(first):
        tile.product(given.x, given.into, first, scratch.states)
        carry = [tile.carry(first + i) for i in range(plan.blocks_at_once)]
        tile.walk_states(first, carry, descending=plan.descending, pass_on=True)
        tile.report(first, results.at)
        if results.y is not None:
            tile.narrow(scratch.states, first, scratch.narrow_states)

    _in_turns(plan.blocks, plan.blocks_at_once, take)
    if results.y is None:
        return

    def map_out(columns):
        y = _dot(scratch.narrow_states[...], given.out[:, columns])
        results.y[:, :, columns] = tile.by_row(y).astype(results.y.dtype)

    _by_columns(results.y.shape[-1], map_out)


def backward(plan: Plan, given: Given, results: Gradients, scratch: Scratch) -> None:
    """Takes one tile of the backward pass: its states again, their cotangents, all gradients."""
    tile = _Tile(plan, given, scratch)
    i, n = pl.program_id(1), pl.program_id(2)

    @pl.when((i == 0) & (n == 0))
    def _():
        for ref in (results.d_into, results.d_out, results.d_decay):
            ref[...] = jnp.zeros_like(ref)

    @pl.when(n == 0)
    def _():
        scratch.carry[...] = jnp.zeros_like(scratch.carry)

    scratch.x_turned[...] = tile.matrix(given.x).T
    scratch.g_turned[...] = tile.matrix(given.g).T

    def take(first):
        tile.product(given.x, given.into, first, scratch.states)
        tile.product_turned(given.g, given.out, first, scratch.cotangents)
        tile.inject(first)
        start = [tile.spread(given.start, first + i) for i in range(plan.blocks_at_once)]
        tile.walk_states(first, start, descending=False, pass_on=False)
        tile.walk_cotangents(first, results.d_decay)
        tile.narrow(scratch.states, first, scratch.narrow_states)
        tile.narrow(scratch.cotangents, first, scratch.narrow_cotangents)

    _in_turns(plan.blocks, plan.blocks_at_once, take)
    tile.put_rows(results.passed_on)

    def sum_products(columns):
        s, h = scratch.narrow_cotangents[:, columns], scratch.narrow_states[:, columns]
        results.d_into[:, columns] += _dot(scratch.x_turned[...], s)
        results.d_out[:, columns] += _dot(scratch.g_turned[...], h)

    def map_back(columns):
        dx = _dot_turned(scratch.narrow_cotangents[...], given.into[columns, :])
        results.dx[:, :, columns] = tile.by_row(dx).astype(results.dx.dtype)

    _by_columns(plan.width, sum_products)
    _by_columns(results.dx.shape[-1], map_back)


class _Tile:
    """One tile: its place in the sequence, and the steps of both kernels.

    `first` is the first of `plan.blocks_at_once` blocks of states that a step takes.
    """

    def __init__(self, plan: Plan, given: Given, scratch: Scratch):
        self.plan, self.given, self.scratch = plan, given, scratch
        self.start = plan.tile_at(pl.program_id(2)) * plan.tile
        self.sublane = lax.broadcasted_iota(jnp.int32, (STREAMS, LANES), 0)

    def matrix(self, ref):
        """A tile of a sequence as "time width". In the backward pass it is zero beyond the end."""
        x = ref[...]
        if self.given.g is not None and self.plan.ragged:
            step = self.start + lax.broadcasted_iota(jnp.int32, x.shape, 1)
            x = jnp.where(step < self.plan.steps, x.astype(jnp.float32), 0).astype(x.dtype)
        return x.reshape(-1, x.shape[-1])

    def by_row(self, x):
        """The inverse of `matrix`."""
        return x.reshape(self.plan.group, self.plan.tile, x.shape[-1])

    def product(self, x, into, first, rows) -> None:
        """Puts the product of a sequence and lane blocks of a matrix "input width" into `rows`."""

        def put(i, columns):
            self._put_product(_dot(self.matrix(x), into[:, columns]), i, rows)

        self._by_block(first, put)

    def product_turned(self, x, out, first, rows) -> None:
        """The same for the transpose of a matrix "width input"."""

        def put(i, columns):
            self._put_product(_dot_turned(self.matrix(x), out[columns, :]), i, rows)

        self._by_block(first, put)

    def narrow(self, rows, first, narrow) -> None:
        """Casts lane blocks of `rows` to the dtype of products, without the rows that enter."""
        plan = self.plan

        def put(i, columns):
            for stream in range(STREAMS):
                steps = pl.ds(stream * plan.pitch + 1, plan.length)
                planes = [rows[plan.planes * i + p, steps, :] for p in range(plan.planes)]
                at = pl.ds(stream * plan.length, plan.length)
                narrow[at, columns] = jnp.concatenate(planes, 1).astype(narrow.dtype)

        self._by_block(first, put)

    def walk_states(self, first, carry, *, descending: bool, pass_on: bool) -> None:
        """Replaces the drive of some blocks by their states, from the states `carry` that enter."""
        rows = self.scratch.states
        decay = self._coefficients(self.given.decay, first)

        def step(k, states, keep=True):
            cut = self._cut(k)
            states = [
                add(multiply(a, _unless(cut, h)), drive)
                for a, h, drive in zip(decay, states, self._load(rows, k), strict=True)
            ]
            if keep:
                self._store(rows, k, states)
            return states

        def step_only(k, states):
            return step(k, states, keep=False)

        jumps = self._coefficients(self.given.jump, first)
        carry = self._enter_parts(carry, step_only, jumps, descending=descending)
        self._store(rows, -1, carry)
        leaving = self._loop(step, carry, descending=descending)
        if pass_on:
            self._pass_on(first, leaving, descending=descending)

    def walk_cotangents(self, first, d_decay) -> None:
        """Replaces the cotangents that come from the output by all of them, and adds to d_decay.

        What a step passes on to the step before is the carry: c = conj(decay) (g + c).
        """
        rows = self.scratch.cotangents
        decay = [conjugate(a) for a in self._coefficients(self.given.decay, first)]

        def step_only(k, carry):
            cut, g = self._cut(k), self._load(rows, k)
            return [
                _unless(cut, multiply(a, add(c, g)))
                for a, c, g in zip(decay, carry, g, strict=True)
            ]

        def step(k, carry):
            passed_on, sums = carry
            cut = self._cut(k)
            s = [add(c, g) for c, g in zip(passed_on, self._load(rows, k), strict=True)]
            self._store(rows, k, s)
            before = self._load(self.scratch.states, k - 1)
            products = [
                _unless(cut, multiply_conjugate(h, s)) for h, s in zip(before, s, strict=True)
            ]
            passed_on = [_unless(cut, multiply(a, s)) for a, s in zip(decay, s, strict=True)]
            return passed_on, [add(x, y) for x, y in zip(sums, products, strict=True)]

        carry = [self.carry(first + i) for i in range(self.plan.blocks_at_once)]
        jumps = [conjugate(a) for a in self._coefficients(self.given.jump, first)]
        carry = self._enter_parts(carry, step_only, jumps, descending=True)
        zeros = jax.tree.map(jnp.zeros_like, carry)
        carry, sums = self._loop(step, (carry, zeros), descending=True)
        self._pass_on(first, carry, descending=True)
        for i, sum_ in enumerate(sums):
            for p, plane in enumerate(jax.tree.leaves(sum_)):
                d_decay[self.plan.planes * (first + i) + p] += plane

    def report(self, first, at) -> None:
        """Copies the states at the step `last` of each row that has it in this tile."""

        def copy(row, line, block, p, columns):
            at[p][pl.ds(row, 1), columns] = self.scratch.states[block, line, :]

        self._at_last(first, copy)

    def inject(self, first) -> None:
        """Adds the cotangents of these states."""

        def add_to(row, line, block, p, columns):
            value = self.given.g_last[p][pl.ds(row, 1), columns]
            self.scratch.cotangents[block, line, :] += value

        self._at_last(first, add_to)

    def carry(self, block):
        """The carry of a block of states."""
        planes = range(self.plan.planes)
        return as_number([self.scratch.carry[self.plan.planes * block + p] for p in planes])

    def put_carry(self, block, value) -> None:
        for p, plane in enumerate(jax.tree.leaves(value)):
            self.scratch.carry[self.plan.planes * block + p] = plane

    def put_rows(self, refs) -> None:
        """Writes the carry, for each plane "group state"."""
        plan = self.plan
        for block in range(plan.blocks):
            columns = pl.ds(block * LANES, LANES)
            for p, ref in enumerate(refs):
                for row in range(plan.group):
                    stream = plan.first_stream(row)
                    line = self.scratch.carry[plan.planes * block + p, pl.ds(stream, 1), :]
                    ref[pl.ds(row, 1), columns] = line

    def spread(self, refs, block):
        """A block of states, for each plane "group state", with the state of a row in each of its
        streams."""
        plan = self.plan
        row = self.sublane // plan.parts

        def one(ref):
            x = ref[:, _lanes(block)]
            spread = jnp.broadcast_to(x[:1], (STREAMS, LANES))
            for i in range(1, plan.group):
                spread = jnp.where(row == i, x[i : i + 1], spread)
            return spread

        return as_number([one(ref) for ref in refs])

    def _put_product(self, product, i, rows) -> None:
        plan = self.plan
        for p in range(plan.planes):
            for stream in range(STREAMS):
                steps = slice(stream * plan.length, (stream + 1) * plan.length)
                at = pl.ds(stream * plan.pitch + 1, plan.length)
                rows[plan.planes * i + p, at, :] = product[steps, p * LANES : (p + 1) * LANES]

    def _by_block(self, first, act: Callable[[Any, Any], None]) -> None:
        """`act(i, columns)` for each of some blocks: its number, and its columns of a matrix."""
        width = self.plan.planes * LANES
        _in_turns(
            self.plan.blocks_at_once,
            1,
            lambda i: act(i, pl.ds(pl.multiple_of((first + i) * width, width), width)),
        )

    def _coefficients(self, ref, first) -> list:
        if ref is None:
            return []
        plan = self.plan

        def plane(block, p):
            return jnp.broadcast_to(ref[plan.planes * block + p], (STREAMS, LANES))

        return [
            as_number([plane(first + i, p) for p in range(plan.planes)])
            for i in range(plan.blocks_at_once)
        ]

    def _cut(self, k):
        """Which streams are cut at step `k`, or `None`."""
        if self.given.cut is None:
            return None
        return (self.given.cut[0, k] >> self.sublane & 1) != 0

    def _load(self, rows, k) -> list:
        """Step `k` of all streams; -1 is the state that enters."""
        plan = self.plan
        at = pl.ds(k + 1, STREAMS, stride=plan.pitch)
        return [
            as_number([rows[plan.planes * i + p, at, :] for p in range(plan.planes)])
            for i in range(plan.blocks_at_once)
        ]

    def _store(self, rows, k, values: Sequence) -> None:
        at = pl.ds(k + 1, STREAMS, stride=self.plan.pitch)
        for block, plane in enumerate(jax.tree.leaves(values)):
            rows[block, at, :] = plane

    def _loop(self, step: Callable, carry, *, descending: bool):
        """`carry = step(k, carry)` for all steps of a stream."""
        length = self.plan.length

        def turn(i, carry):
            for j in range(UNROLL):
                k = i * UNROLL + j
                carry = step(length - 1 - k if descending else k, carry)
            return carry

        return lax.fori_loop(0, length // UNROLL, turn, carry)

    def _enter_parts(self, carry, step: Callable, jumps: list, *, descending: bool):
        """The states that enter all streams, if `carry` enters the row: the streams run once from
        zero, and what enters each part follows from the part before."""
        plan = self.plan
        if plan.parts == 1:
            return carry
        ends = self._loop(step, jax.tree.map(jnp.zeros_like, carry), descending=descending)
        blocked = self._cut(plan.length)
        part = self.sublane % plan.parts
        is_first = part == (plan.parts - 1 if descending else 0)

        def one(end, jump, carry):
            entering = carry
            for _ in range(plan.parts - 1):  # each turn gets one more part right
                leaving = add(end, _unless(blocked, multiply(jump, entering)))
                entering = where(is_first, carry, _roll(leaving, -1 if descending else 1))
            return entering

        return [one(*each) for each in zip(ends, jumps, carry, strict=True)]

    def _pass_on(self, first, leaving, *, descending: bool) -> None:
        """Keeps what leaves the last part of each row for the first part in the next tile."""
        for i, value in enumerate(leaving):
            shift = self.plan.parts - 1
            self.put_carry(first + i, _roll(value, shift if descending else -shift))

    def _at_last(self, first, act: Callable) -> None:
        """`act(row, line, block, p, columns)` for each row whose step `last` is in this tile, and
        each plane of some blocks: where the state is in `states`, and its columns elsewhere."""
        plan, last = self.plan, self.given.last
        for row in range(plan.group):
            step = (last if isinstance(last, int) else last[0, row]) - self.start
            stream, k = row * plan.parts + step // plan.length, step % plan.length

            @pl.when((step >= 0) & (step < plan.tile))
            def _(row=row, line=stream * plan.pitch + 1 + k):
                for i in range(plan.blocks_at_once):
                    for p in range(plan.planes):
                        act(row, pl.ds(line, 1), plan.planes * i + p, p, _lanes(first + i))


def _in_turns(count: int, at_once: int, act: Callable[[Any], None]) -> None:
    """`act(i)` for i = 0, at_once, 2 at_once, ... below `count`."""
    if count == at_once:
        act(0)
        return

    def turn(i, _):
        act(i * at_once)

    lax.fori_loop(0, count // at_once, turn, None)


def _by_columns(count: int, act: Callable[[Any], None]) -> None:
    """`act(columns)` for all columns of a matrix, some at a time."""
    width = columns_at_once(count)
    _in_turns(count, width, lambda i: act(pl.ds(pl.multiple_of(i, width), width)))


def _lanes(block):
    return pl.ds(pl.multiple_of(block * LANES, LANES), LANES)


def _unless(cut, x):
    return x if cut is None else where(cut, 0.0, x)


def _roll(x, shift: int):
    """Each stream gets what is in the stream `shift` before it."""
    if shift == 0:
        return x
    return jax.tree.map(lambda x: pltpu.roll(x, shift % STREAMS, 0), x)


def _dot(x, y):
    return lax.dot_general(x, y, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)


def _dot_turned(x, y):
    """x y^T."""
    return lax.dot_general(x, y, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
