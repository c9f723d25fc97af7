"""The kernel of the sweep of Mosaic GPU: what one warpgroup does."""

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from .._algebra import add, as_number, identity, multiply
from ._exchange import MEMBER, Share, Team, exchanging
from ._kernels import Launch, SideBySide, is_side_by_side
from ._mosaic_gpu_plan import COPY_BYTES, Plan
from ._steps import Total, carries
from ._tma_pipeline import WARPGROUP, Tiles, layout_of, one_a_thread, pipeline

# Within `jax.shard_map`, an axis of the mesh hides one of a kernel that has the same name: the
# index would be that of the device. So the names of all kernels' axes begin like the package.
GRID = ("rnnscale_block", "rnnscale_row")


class Given(NamedTuple):
    """What the kernel reads: as arrays for the call, as references to memory inside.

    Numbers that a thread reads by itself are "B part D", with a copy for each part of a tile.
    """

    a: Any
    inputs: Any
    cut: Any  # "B L" integers
    x: Any
    x0: Any
    entering: Any  # the arrays among the carries
    powers: Any  # of a time-invariant decay: that of a full part, and of the last of the sequence


class Sweep(NamedTuple):
    """The static arguments of a kernel.

    - `plan`, `launch`: how it is divided.
    - `step`, `linear`: see `SweepKernels.sweep`.
    - `entering`: the tree of carries that enter.
    - `fields`: the numbers in a total.
    """

    plan: Plan
    launch: Launch
    step: Callable
    linear: Any  # `Linear`, or `None`
    entering: Any
    fields: int


def kernel(sweep: Sweep, given: Given, results, leaving, between) -> None:
    """One program: a sweep over one row, for the channels of a block."""
    _Warpgroup(sweep, given, results, leaving).run(between)


class _Warpgroup:
    """One warpgroup: its place among programs and steps, and what it keeps in registers."""

    def __init__(self, sweep: Sweep, given: Given, results, leaving):
        plan, launch = self.plan, self.launch = sweep.plan, sweep.launch
        self.sweep, self.given, self.results, self.leaving = sweep, given, results, leaving
        self.block, self.row = (lax.axis_index(axis) for axis in GRID)
        self.warpgroup = lax.axis_index(WARPGROUP)
        self.member = lax.axis_index(MEMBER) if plan.division.cluster > 1 else 0
        self.unit = self.member * plan.division.warpgroups + self.warpgroup
        self.lanes = pl.ds(self.block * plan.division.lanes, plan.division.lanes)
        self.decay_row = lax.rem(lax.div(self.row, launch.inner), plan.decays)
        self.tiles = Tiles(
            plan.steps, plan.part_rows, plan.division.parts, launch.descending,
            plan.division.team, self.unit,
        )  # fmt: skip
        # What stays in registers: a time-invariant decay and its powers, and the state before the
        # row.
        self.decay = None if plan.varying else self._held(given.a, self.decay_row)
        self.powers = self._held(given.powers, self.decay_row)
        self.x0 = self._held(given.x0, self.row)

    def run(self, between) -> None:
        if not self.plan.splits_time:
            return self._write(self._pipeline(None))
        team = Team(self.plan.division, self.member, self.warpgroup, self.tiles)
        memory = [ref.at[self.block, self.row] for ref in between]
        exchanging(
            lambda share: self._write(self._pipeline(share)),
            team, self.sweep.linear, self.sweep.fields, memory,
        )  # fmt: skip

    def _pipeline(self, share: Share | None):
        """The carry after the last step, and the sums of this thread."""
        arrays = iter(self.given.entering)
        carry = carries(
            self.sweep.entering, self._full, lambda _: self._held(next(arrays), self.row)
        )
        reads = (
            self._windows(self.given.a, self.decay_row) if self.plan.varying else None,
            self._windows(self.given.inputs, self.row),
            self._windows(self.given.x, self.row),
            self._edges(self.given.x, self.row),
            None if self.given.cut is None else self._cut_window,
        )
        return pipeline(
            partial(self._take_tile, share=share),
            (carry, self._no_sums),
            reads,
            [self._windows(tree, self.row) for tree in self.results],
            tiles=self.tiles,
            stages=self.plan.stages,
            warpgroups=self.plan.division.warpgroups,
            warpgroup=self.warpgroup,
        )

    def _take_tile(self, i, tile, stored, state, share: Share | None):
        """Takes the steps of the tile in turn `i`, which is in shared memory."""
        carry, sums = state
        after = None
        if share is not None:
            # The carry that enters the part of this thread depends on the totals of other parts.
            carry, after = share(i, self._total(i, tile), carry)
        if share is None or stored or sums is not None:
            carry, tile_sums = self._walk(i, tile, stored, carry)
            sums = add(sums, tile_sums)
        return (carry if share is None else after), sums

    def _walk(self, i, tile, stored, carry):
        """The carry after the part of this thread, and the sums over it."""
        *_, x, x_edge, _ = tile
        edge = jax.tree.map(
            lambda ref: one_a_thread(
                ref[:, self._edge_rows(ref) - 1 if self.launch.descending else 0]
            ),
            x_edge,
        )

        def load(r, is_last: bool):
            return [*self._load(tile, r), *self._load_after(x, edge, r, is_last)]

        def step(state, r, numbers):
            carry, sums = state
            first = self.tiles.begin(i) + r
            starts = [first + p * self.plan.part_rows for p in range(self.tiles.parts)]
            carry, values, terms = self.sweep.step(carry, self.tiles.by_part(starts), *numbers)
            return (carry, add(sums, terms)), values

        def store(r, values):
            for ref, value in zip(*map(jax.tree.leaves, (stored, values)), strict=True):
                ref[:, r] = value.astype(ref.dtype)

        return self.tiles.walk(i, load, step, store, (carry, self._no_sums))

    def _total(self, i, tile) -> Total:
        """The total of the part of this thread."""
        linear, varying = self.sweep.linear, self.plan.varying

        def step(total: Total, r, numbers):
            cut, a, b = numbers
            product = multiply(linear.factor(a), total.product) if varying else None
            stopped = None if cut is None else jnp.where(cut, 1.0, total.stopped)
            return Total(product, stopped, linear.advance(total.end, cut, a, b)), None

        zeros = jax.tree.map(lambda _: self._full(0.0), self.given.a)
        empty = Total(
            jax.tree.map(self._in_threads, identity(zeros)) if varying else None,
            None if self.given.cut is None else self._full(0.0),
            jax.tree.map(lambda _: self._full(0.0), tile[1][0]),
        )
        total = self.tiles.walk(
            i, lambda r, _: self._load(tile, r), step, lambda r, values: None, empty
        )
        return total if varying else total._replace(product=linear.factor(self._power(i)))

    def _power(self, i):
        """The product of the decays of each part, where they are time-invariant."""
        full, last = self.powers
        if not self.tiles.may_be_partial:
            return full
        valid = self.tiles.valid_rows(i)
        return jax.tree.map(
            lambda one, last, full: jnp.where(
                valid == self.tiles.rows, full, jnp.where(valid == 0, one, last)
            ),
            identity(full), last, full,
        )  # fmt: skip

    def _load(self, tile, r) -> list:
        """What a step gets in row `r` of each part: whether it is cut, its decay, its inputs."""
        a, inputs, _, _, cut = tile
        cuts = None
        if cut is not None:
            cuts = self.tiles.by_part([cut[p, r] for p in range(self.tiles.parts)]) != 0
        return [cuts, self._row(a, r) if self.plan.varying else self.decay, *self._row(inputs, r)]

    def _load_after(self, x, edge, r, is_last: bool) -> list:
        """`x` in the row that this sweep takes after row `r`, and `x0`."""
        if x is None:
            return []
        after = r - 1 if self.launch.descending else r + 1
        if not is_last:
            return [self._row(x, after), self.x0]
        at_edge = jnp.broadcast_to((after < 0) | (after >= self.plan.part_rows), self.tiles.shape)
        inside = self._row(x, lax.clamp(0, after, self.plan.part_rows - 1))
        return [jax.tree.map(partial(jnp.where, at_edge), edge, inside), self.x0]

    def _row(self, tree, r):
        """One number for each thread, in float32: row `r` of its part."""
        return jax.tree.map(lambda ref: one_a_thread(ref[:, r]), tree)

    def _held(self, tree, row):
        return jax.tree.map(lambda ref: one_a_thread(ref[row, :, self.lanes]), tree)

    def _in_threads(self, x):
        return plgpu.layout_cast(x, layout_of(self.tiles.shape))

    def _full(self, value: float):
        return self._in_threads(jnp.full(self.tiles.shape, value, jnp.float32))

    @cached_property
    def _no_sums(self):
        return jax.tree.map(lambda _: self._full(0.0), self.leaving[1])

    def _windows(self, tree, row):
        """For every array, the function from the first step of a part to that part in memory."""

        def window(ref, lanes, first):
            return ref.at[row, pl.ds(first, self.plan.part_rows), lanes]

        return self._by_plane(window, tree)

    def _edges(self, tree, row):
        """The same for the step that this sweep takes after a part, among as few as can be copied.
        After the last step of the sweep it is some other step."""

        def window(ref, lanes, first):
            rows = self._edge_rows(ref)
            step = first - rows if self.launch.descending else first + self.plan.part_rows
            step = lax.clamp(0, step, self.plan.steps - 1)
            return ref.at[row, pl.ds(step, rows), lanes]

        return self._by_plane(window, tree)

    def _by_plane(self, window: Callable, tree):
        """`window` of each plane: of its array, and of the channels in it."""
        first = self.plan.width + self.block * self.plan.division.lanes
        imaginary = pl.ds(first, self.plan.division.lanes)

        def of_sequence(x):
            if not isinstance(x, SideBySide):
                return partial(window, x, self.lanes)
            return as_number([partial(window, x.array, at) for at in (self.lanes, imaginary)])

        return jax.tree.map(of_sequence, tree, is_leaf=is_side_by_side)

    def _edge_rows(self, ref) -> int:
        return max(1, COPY_BYTES // (self.plan.division.lanes * ref.dtype.itemsize))

    def _cut_window(self, first):
        return self.given.cut.at[self.row, pl.ds(first, max(self.plan.part_rows, COPY_BYTES // 4))]

    def _write(self, last) -> None:
        for ref, value in zip(*map(jax.tree.leaves, (self.leaving, last)), strict=True):
            ref[self.row, self.unit, :, self.lanes] = value
