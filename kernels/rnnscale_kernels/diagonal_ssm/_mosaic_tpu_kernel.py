"""The fused kernels for TPUs: what they do with one tile of time.

The vector unit and the matrix units work at the same time if their instructions are in one loop and
use different memory. So a tile has pieces: the recurrence walks down one piece while products map
another. `_mosaic_tpu_plan` describes the layout of a piece, and `_mosaic_tpu_layout` the arguments
of a kernel.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from .._algebra import add, as_number, conjugate, multiply, multiply_conjugate, where
from ._mosaic_tpu_layout import Given
from ._mosaic_tpu_plan import LANES, STREAMS, Plan, columns_at_once

# Blocks of states that a walk takes side by side: enough to hide the latency of a step, few enough
# for their states to stay in registers.
_BLOCKS = 4

# Steps in a turn of a walk that no product goes with.
_UNROLL = 8


class Outputs(NamedTuple):
    """The results of the forward kernel. `y` and `borders` are `None` if they are not wanted.

    - `y`: a tile of the output, "group tile output".
    - `at`: for each plane, the state at the step `last`, "group state".
    - `borders`: for each plane, the states that enter the pieces, "piece group state".
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

    - `carry`: what one piece passes on to the next, "lane_block 8 128".
    - `states`: for each piece, "lane_block line 128" in float32. A stream has a line for the state
        that enters it, and one for each step.
    - `states_carry`, `cotangents`: the same again. In the backward kernel, `carry` and `cotangents`
        are for the cotangents of the states.
    - `x_turned`, `g_turned`: for each piece, the sequences with time last.
    """

    carry: Any
    states: Any
    states_carry: Any = None
    cotangents: Any = None
    x_turned: Any = None
    g_turned: Any = None


class Product(NamedTuple):
    """A product in parts: `act(i)` for i below `count`."""

    count: int
    act: Callable[[Any], None]


def forward(plan: Plan, given: Given, results: Outputs, scratch: Scratch) -> None:
    """Takes one tile of h_t = decay h_{t-1} + into x_t, y_t = out h_t, in the plan's direction."""
    tile = _Tile(plan, given)

    @pl.when(pl.program_id(2) == 0)
    def _():
        tile.spread(given.start, scratch.carry)
        for at, start in zip(results.at, given.start, strict=True):
            at[...] = start[...]

    def drive(piece):
        return tile.drive(piece, scratch)

    def walk(piece):
        if results.borders is not None:
            tile.gather(scratch.carry, [ref.at[piece] for ref in results.borders])
        return _States(tile, piece, scratch.states[piece], scratch.carry, plan.descending)

    def output(piece):
        def act(columns):
            y = _dot(tile.flat(scratch.states[piece]), given.out[:, columns])
            tile.put_steps(results.y, piece, columns, y)

        return _by_columns(results.y, act)

    first, *others = plan.order
    tile.run(drive(first))
    for piece, following in zip(plan.order, others, strict=False):
        tile.run(drive(following), walk(piece))
    outputs = [] if results.y is None else [output(piece) for piece in plan.order]
    # The last walk goes with the output of the piece before.
    tile.run(outputs.pop(0) if others and outputs else None, walk(plan.order[-1]))
    for product in outputs:
        tile.run(product)

    def report(piece, row, line):
        for lane_block, p, columns in tile.lane_blocks():
            state = scratch.states[piece][lane_block, line, :]
            results.at[p][pl.ds(row, 1), columns] = state

    for piece in plan.order:
        tile.at_last(piece, report)


def backward(plan: Plan, given: Given, results: Gradients, scratch: Scratch) -> None:
    """Takes one tile of the backward pass: its states again, their cotangents, all gradients."""
    tile = _Tile(plan, given)
    i, n = pl.program_id(1), pl.program_id(2)

    @pl.when((i == 0) & (n == 0))
    def _():
        for ref in (results.d_into, results.d_out, results.d_decay):
            ref[...] = jnp.zeros_like(ref)

    @pl.when(n == 0)
    def _():
        scratch.carry[...] = jnp.zeros_like(scratch.carry)

    def drive(piece):
        return tile.drive(piece, scratch)

    def states(piece):
        tile.spread([ref.at[piece] for ref in given.start], scratch.states_carry)
        return _States(tile, piece, scratch.states[piece], scratch.states_carry, False)

    def feedback(piece):
        def act(block):
            g = _dot_turned(tile.matrix(piece, given.g), given.out[tile.columns(block), :])
            tile.put_drive(scratch.cotangents[piece], block, g)

        return Product(plan.blocks, act)

    def inject(piece, row, line):
        for lane_block, p, columns in tile.lane_blocks():
            value = given.g_last[p][pl.ds(row, 1), columns]
            scratch.cotangents[piece][lane_block, line, :] += value

    def cotangents(piece):
        tile.at_last(piece, inject)
        rows, states = scratch.cotangents[piece], scratch.states[piece]
        return _Cotangents(tile, piece, rows, scratch.carry, states, results.d_decay)

    def sums(piece):
        def act(block):
            columns = tile.columns(block)
            s = tile.flat(scratch.cotangents[piece], block)
            results.d_into[:, columns] += _dot(scratch.x_turned[piece], s)
            h = tile.flat(scratch.states[piece], block)
            results.d_out[:, columns] += _dot(scratch.g_turned[piece], h)

        return Product(plan.blocks, act)

    def output(piece):
        def act(columns):
            dx = _dot_turned(tile.flat(scratch.cotangents[piece]), given.into[columns, :])
            tile.put_steps(results.dx, piece, columns, dx)

        return _by_columns(results.dx, act)

    turning = _Turning(tile, [(given.x, scratch.x_turned), (given.g, scratch.g_turned)])
    first, *others = plan.order
    tile.run(drive(first), turning)
    tile.run(feedback(first), states(first))
    for second in others:
        # Each walk goes with products that do not wait for it.
        tile.run(_both(drive(second), feedback(second)), cotangents(first))
        tile.run(sums(first), states(second))
        tile.run(output(first), cotangents(second))
    if not others:
        tile.run(None, cotangents(first))
    tile.run(sums(plan.order[-1]))
    tile.run(output(plan.order[-1]))
    tile.gather(scratch.carry, results.passed_on)


class _Tile:
    """One tile: its place in the sequence, and how its pieces are laid out."""

    def __init__(self, plan: Plan, given: Given):
        self.plan, self.given = plan, given
        self.start = plan.tile_at(pl.program_id(2)) * plan.tile
        self.sublane = lax.broadcasted_iota(jnp.int32, (STREAMS, LANES), 0)

    def run(self, product: Product | None, aside: "_Walk | _Turning | None" = None) -> None:
        """Computes a product, and in the same loop what the vector unit has to do elsewhere."""
        if aside is None:
            assert product is not None
            _in_turns(product.count, product.act)
            return
        aside.begin()
        count = aside.length // _UNROLL if product is None else product.count
        turns = math.gcd(count, aside.length)

        def turn(i):
            if product is not None:
                for j in range(count // turns):
                    product.act(i * (count // turns) + j)
            aside.take(i * (aside.length // turns), aside.length // turns)

        _in_turns(turns, turn)
        aside.end()

    def matrix(self, piece: int, ref, columns: Any = slice(None)):
        """A piece of a sequence as "time input", zero beyond the end if tiles come from there."""
        x = ref[:, self._steps(piece), columns]
        if self.plan.descending and self.plan.ragged:
            step = self._start(piece) + lax.broadcasted_iota(jnp.int32, x.shape, 1)
            x = jnp.where(step < self.plan.steps, x.astype(jnp.float32), 0).astype(x.dtype)
        return x.reshape(-1, x.shape[-1])

    def put_steps(self, ref, piece: int, columns, x) -> None:
        """The inverse of `matrix` for some columns."""
        x = x.reshape(self.plan.group, self.plan.piece, x.shape[-1])
        ref[:, self._steps(piece), columns] = x.astype(ref.dtype)

    def drive(self, piece: int, scratch: Scratch) -> Product:
        """The drive of a piece, which the states replace later."""

        def act(block):
            x = _dot(self.matrix(piece, self.given.x), self.given.into[:, self.columns(block)])
            self.put_drive(scratch.states[piece], block, x)

        return Product(self.plan.blocks, act)

    def put_drive(self, rows, block, x) -> None:
        """Puts "time column", for the planes of a block of states, into the lines of streams."""
        plan = self.plan
        for p in range(plan.planes):
            for stream in range(STREAMS):
                lines = pl.ds(stream * plan.pitch + 1, plan.length)
                steps = slice(stream * plan.length, (stream + 1) * plan.length)
                rows[plan.planes * block + p, lines, :] = x[steps, p * LANES : (p + 1) * LANES]

    def flat(self, rows, block=None):
        """The inverse, for one block of states or for all, in the dtype of products."""
        plan = self.plan
        blocks = range(plan.blocks) if block is None else [block]

        def stream(i):
            lines = pl.ds(i * plan.pitch + 1, plan.length)
            planes = [plan.planes * q + p for q in blocks for p in range(plan.planes)]
            return jnp.concatenate([rows[plane, lines, :] for plane in planes], 1)

        x = jnp.concatenate([stream(i) for i in range(STREAMS)])
        return x.astype(self.given.x.dtype)

    def columns(self, block):
        """The columns of a block of states."""
        width = self.plan.planes * LANES
        return pl.ds(pl.multiple_of(block * width, width), width)

    def lane_blocks(self) -> Iterator[tuple[int, int, Any]]:
        """Each lane block: its number, its plane, and its columns among those of the plane."""
        for block in range(self.plan.blocks):
            for p in range(self.plan.planes):
                yield self.plan.planes * block + p, p, pl.ds(block * LANES, LANES)

    def spread(self, refs, carry) -> None:
        """Fills `carry` with states, for each plane "group state": all streams of a row with the
        state of the row."""
        plan = self.plan
        row = self.sublane // plan.parts
        for lane_block, p, columns in self.lane_blocks():
            x = refs[p][:, columns]
            streams = jnp.broadcast_to(x[:1], (STREAMS, LANES))
            for i in range(1, plan.group):
                streams = jnp.where(row == i, x[i : i + 1], streams)
            carry[lane_block] = streams

    def gather(self, carry, refs) -> None:
        """The inverse: the state of a row is that in the stream that is taken first."""
        for lane_block, p, columns in self.lane_blocks():
            for row in range(self.plan.group):
                stream = pl.ds(self.plan.first_stream(row), 1)
                refs[p][pl.ds(row, 1), columns] = carry[lane_block, stream, :]

    def cut(self, piece: int, k):
        """Which streams are cut at step `k`, or `None`."""
        if self.given.cut is None:
            return None
        return (self.given.cut[piece, 0, k] >> self.sublane & 1) != 0

    def at_last(self, piece: int, act: Callable) -> None:
        """`act(piece, row, line)` for each row whose step `last` is in this piece: the line of that
        step."""
        plan, last = self.plan, self.given.last
        for row in range(plan.group):
            step = (last if isinstance(last, int) else last[0, row]) - self._start(piece)
            stream, k = row * plan.parts + step // plan.length, step % plan.length

            @pl.when((step >= 0) & (step < plan.piece))
            def _(row=row, line=stream * plan.pitch + 1 + k):
                act(piece, row, pl.ds(line, 1))

    def _start(self, piece: int):
        return self.start + piece * self.plan.piece

    def _steps(self, piece: int):
        return pl.ds(piece * self.plan.piece, self.plan.piece)


class _Turning:
    """Writes sequences with time last, some columns at a time."""

    def __init__(self, tile: _Tile, sequences: list[tuple[Any, Any]]):
        self.tile, self.sequences = tile, sequences
        self.length = math.gcd(*(max(1, self._blocks(x)) for x, _ in sequences))

    def begin(self) -> None:
        return None

    def take(self, start, count: int) -> None:
        for x, turned in self.sequences:
            width = x.shape[-1] // self.length
            first = start * width
            if width % LANES == 0:
                first = pl.multiple_of(first, LANES)
            columns = pl.ds(first, width * count)
            for piece in self.tile.plan.order:
                turned[piece, columns, :] = self.tile.matrix(piece, x, columns).T

    def end(self) -> None:
        return None

    def _blocks(self, x) -> int:
        """Blocks of columns that are whole registers, or 0."""
        width = x.shape[-1]
        return 0 if width % LANES else width // LANES


class _Walk(ABC):
    """A recurrence that goes down all streams of a piece, some steps at a time.

    - `rows`: what each step receives, and is replaced by: "lane_block line 128".
    - `carry`: what enters the piece, in the stream of each row that is taken first; afterwards,
        what leaves it, there too.
    """

    def __init__(self, tile: _Tile, piece: int, rows, carry, descending: bool):
        self.tile, self.piece, self.plan = tile, piece, tile.plan
        self.length = tile.plan.length
        self.rows, self.carry, self.descending = rows, carry, descending

    @abstractmethod
    def step(self, decay, carry, value, cut) -> tuple[Any, Any]:
        """`(carry, value)` after a step."""

    def begin(self) -> None:
        """Finds what enters all streams."""
        for blocks in self._blocks():
            carry = self._numbers(self.carry, blocks)
            if self.plan.parts > 1:
                carry = self._enter_parts(blocks, carry)
                self._put(self.carry, blocks, carry)
            self._store(-1, blocks, carry)

    def take(self, start, count: int) -> None:
        """Takes `count` steps from the `start`th on."""
        for blocks in self._blocks():
            decay = self._coefficients(self.tile.given.decay, blocks)
            carry, sums = self._numbers(self.carry, blocks), self.no_sums(blocks)
            for j in range(count):
                k = self._at(start + j)
                cut = self.tile.cut(self.piece, k)
                carry, values = self._step(decay, carry, self._load(self.rows, k, blocks), cut)
                self._store(k, blocks, values)
                sums = self.add_to(sums, k, blocks, values, cut)
            self._put(self.carry, blocks, carry)
            self.keep(sums, blocks)

    def end(self) -> None:
        """Moves what leaves the last part of each row to where the next piece expects it."""
        shift = self.plan.parts - 1
        if shift:
            for lane_block in range(self.plan.lane_blocks):
                leaving = self.carry[lane_block]
                self.carry[lane_block] = _roll(leaving, shift if self.descending else -shift)

    def no_sums(self, blocks: Sequence[int]) -> list:
        return []

    def add_to(self, sums: list, k, blocks: Sequence[int], values: list, cut) -> list:
        return sums

    def keep(self, sums: list, blocks: Sequence[int]) -> None:
        return None

    def coefficient(self, decay):
        """The decay, or its conjugate."""
        return decay

    def _step(self, decay: list, carry: list, values: list, cut) -> tuple[list, list]:
        steps = [self.step(*each, cut) for each in zip(decay, carry, values, strict=True)]
        return [carry for carry, _ in steps], [value for _, value in steps]

    def _enter_parts(self, blocks: Sequence[int], carry: list) -> list:
        """What enters all streams if `carry` enters the rows: the streams run once from zero, and
        what enters each part follows from the part before."""
        plan = self.plan
        decay = self._coefficients(self.tile.given.decay, blocks)

        def turn(i, ends):
            for j in range(_UNROLL):
                k = self._at(i * _UNROLL + j)
                values = self._load(self.rows, k, blocks)
                ends, _ = self._step(decay, ends, values, self.tile.cut(self.piece, k))
            return ends

        zeros = jax.tree.map(jnp.zeros_like, carry)
        ends = lax.fori_loop(0, plan.length // _UNROLL, turn, zeros)
        jumps = self._coefficients(self.tile.given.jump, blocks)
        is_cut = self.tile.cut(self.piece, plan.length)  # anywhere in the stream
        part = self.tile.sublane % plan.parts
        is_first = part == (plan.parts - 1 if self.descending else 0)

        def enter(end, jump, carry):
            entering = carry
            for _ in range(plan.parts - 1):  # each turn gets one more part right
                leaving = add(end, _unless(is_cut, multiply(jump, entering)))
                entering = where(is_first, carry, _roll(leaving, -1 if self.descending else 1))
            return entering

        return [enter(*each) for each in zip(ends, jumps, carry, strict=True)]

    def _at(self, k):
        return self.plan.length - 1 - k if self.descending else k

    def _blocks(self) -> list[range]:
        blocks = self.plan.blocks
        return [range(i, min(i + _BLOCKS, blocks)) for i in range(0, blocks, _BLOCKS)]

    def _planes(self, block: int) -> range:
        return range(self.plan.planes * block, self.plan.planes * (block + 1))

    def _numbers(self, ref, blocks: Sequence[int]) -> list:
        return [as_number([ref[i] for i in self._planes(block)]) for block in blocks]

    def _coefficients(self, ref, blocks: Sequence[int]) -> list:
        def spread(x):
            return jnp.broadcast_to(x, (STREAMS, LANES))

        return [self.coefficient(jax.tree.map(spread, x)) for x in self._numbers(ref, blocks)]

    def _put(self, ref, blocks: Sequence[int], values: list) -> None:
        for block, value in zip(blocks, values, strict=True):
            for i, plane in zip(self._planes(block), jax.tree.leaves(value), strict=True):
                ref[i] = plane

    def _load(self, rows, k, blocks: Sequence[int]) -> list:
        """Step `k` of all streams; -1 is what enters."""
        at = pl.ds(k + 1, STREAMS, stride=self.plan.pitch)
        return [as_number([rows[i, at, :] for i in self._planes(block)]) for block in blocks]

    def _store(self, k, blocks: Sequence[int], values: list) -> None:
        at = pl.ds(k + 1, STREAMS, stride=self.plan.pitch)
        for block, value in zip(blocks, values, strict=True):
            for i, plane in zip(self._planes(block), jax.tree.leaves(value), strict=True):
                self.rows[i, at, :] = plane


class _States(_Walk):
    """h_t = decay h_{t-1} + drive_t."""

    def step(self, decay, carry, value, cut):
        h = add(multiply(decay, _unless(cut, carry)), value)
        return h, h


class _Cotangents(_Walk):
    """s_t = g_t + c_t, where c_{t-1} = conj(decay) s_t is the carry; and the gradient of the decay,
    the sum of conj(h_{t-1}) s_t."""

    def __init__(self, tile: _Tile, piece: int, rows, carry, states, d_decay):
        super().__init__(tile, piece, rows, carry, descending=True)
        self.states, self.d_decay = states, d_decay

    def coefficient(self, decay):
        return conjugate(decay)

    def step(self, decay, carry, value, cut):
        s = add(carry, value)
        return _unless(cut, multiply(decay, s)), s

    def no_sums(self, blocks):
        return jax.tree.map(jnp.zeros_like, self._numbers(self.carry, blocks))

    def add_to(self, sums, k, blocks, values, cut):
        before = self._load(self.states, k - 1, blocks)
        return [
            add(total, _unless(cut, multiply_conjugate(h, s)))
            for total, h, s in zip(sums, before, values, strict=True)
        ]

    def keep(self, sums, blocks):
        totals = self._numbers(self.d_decay, blocks)
        self._put(self.d_decay, blocks, [add(*each) for each in zip(totals, sums, strict=True)])


def _in_turns(count: int, act: Callable[[Any], None]) -> None:
    """Calls `act(i)` for i below `count`."""
    if count == 1:
        act(0)
    else:
        lax.fori_loop(0, count, lambda i, _: act(i), None)


def _both(one: Product, other: Product) -> Product:
    """Two products with equally many parts."""

    def act(i):
        one.act(i)
        other.act(i)

    return Product(one.count, act)


def _by_columns(ref, act: Callable[[Any], None]) -> Product:
    """`act(columns)` for all columns of a sequence, some at a time."""
    width = columns_at_once(ref.shape[-1])

    def act_on(i):
        act(pl.ds(pl.multiple_of(i * width, width), width))

    return Product(ref.shape[-1] // width, act_on)


def _unless(cut, x):
    return x if cut is None else where(cut, 0.0, x)


def _roll(x, shift: int):
    """Each stream gets what is in the stream `shift` before it."""
    return jax.tree.map(lambda x: pltpu.roll(x, shift % STREAMS, 0), x)


def _dot(x, y):
    return lax.dot_general(x, y, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)


def _dot_turned(x, y):
    """x y^T."""
    return lax.dot_general(x, y, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
