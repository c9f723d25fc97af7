"""The distributed scan: a recurrent op whose time steps are split over the devices of a mesh axis.

A recurrence seems to need its steps one after another, but it is linear in its state. The steps of
one device, taken together, turn the state that enters them into

    leaving = decay * entering + end,

where `(decay, end)` is the *total* of the device: `decay` is the product of its decays, and `end`
is the state that leaves if zero enters. So every device first computes its total, one all-gather
makes all totals known to all devices, and a scan over devices instead of steps gives the carry-in
of each device, the state that enters its steps. Then every device runs its steps from there. What
is gathered has the size of the states of a batch, however long the sequence is.

If the batch and the states of a device do not fill it, its steps are cut into *pieces*, which are
another batch axis for the op: the totals of the pieces are chained on the device, and the pieces
then run at the same time. Both passes over the sequence have the same pieces, so what the first one
finds about them is not computed again.

The backward pass mirrors this from the last device to the first, with cotangents for states.

A reset inside a device's steps stops the state that enters from leaving. Every device therefore
also gathers a flag for each row, and the decay of a flagged row is not used: an infinite decay
times zero would be NaN.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool

from rnnscale_kernels import (
    CanonicalOp,
    OpArguments,
    RecurrentOp,
    adjoint,
    product,
    vary_alike,
)
from rnnscale_kernels.linear_scan import previous

type State = Any
"""A tree of arrays "*batch state", "*batch device state" for all devices, or `None`. A decay that
is not elementwise, such as a matrix, has leaves and a last axis of its own."""


@dataclass(frozen=True)
class DevicePasses:
    """The two passes of an op with its options, on the steps that a device holds."""

    op: CanonicalOp
    reverse: bool
    implementation: str | None

    def forward(self, arguments: OpArguments) -> tuple[tuple[Any, State], Any]:
        """`((ys, leaving), residuals)`, where `leaving` is the state after the last step."""
        primals, finish, static = self._canonical(arguments)
        public, residuals = self.op.operation.forward(primals, **static)
        return finish(public), residuals

    def transpose(self, arguments: OpArguments, outputs: tuple, cotangents: tuple) -> OpArguments:
        """The cotangents of `values` and `h0`, from the outputs of `forward` and the cotangents of
        `(ys, leaving)`."""
        arguments, outputs, cotangents = vary_alike((arguments, outputs, cotangents))
        primals, finish, static = self._canonical(arguments)

        def canonical_arrays(values, h0):
            primals, *_ = self._canonical(arguments._replace(values=values, h0=h0))
            return primals[: len(values) + 1]

        _, pull = jax.vjp(canonical_arrays, arguments.values, arguments.h0)
        _, pull_finish = jax.vjp(finish, outputs[0])
        gradients = self.op.operation.transpose(
            primals, outputs, *pull_finish(cotangents), **static
        )
        g_values, g_h0 = pull(gradients[: len(arguments.values) + 1])
        return OpArguments(g_values, g_h0, None, None)

    def _canonical(self, arguments: OpArguments) -> tuple[tuple, Callable, dict[str, Any]]:
        primals, finish = self.op.canonical(vary_alike(arguments), reverse=self.reverse)
        primals = vary_alike(primals)
        static = self.op.static(primals, reverse=self.reverse, implementation=self.implementation)
        return primals, finish, static


@dataclass(frozen=True)
class DeviceOp(DevicePasses):
    """The same with the total of these steps.

    - `decay_varies`: whether the total decay differs from device to device. A device that holds a
        single step can't tell from the shape of its arguments.
    """

    op: RecurrentOp
    decay_varies: bool

    def totals(self, arguments: OpArguments) -> tuple[State, State]:
        """The total `(decay, end)`; the decay is `None` if all devices have the same."""
        primals, _, static = self._canonical(arguments)
        decay, end = self.op.totals(primals, **static)
        return decay if self.decay_varies else None, end

    def transpose_totals(self, arguments: OpArguments, g_ys: Any) -> State:
        """The cotangent of `h0` that comes from the cotangents of the outputs `ys` alone."""
        arguments, g_ys = vary_alike((arguments, g_ys))
        primals, finish, static = self._canonical(arguments)
        _, pull_finish = jax.vjp(lambda y: finish((y, arguments.h0))[0], g_ys)
        return self.op.transpose_totals(primals, *pull_finish(g_ys), **static)


class ScanResiduals(NamedTuple):
    """What the backward pass of the distributed scan needs.

    - `op`: the residuals of the op on each device.
    - `entering`, `piece_decay`: the state that enters each piece of each device, and its decay or
        `None`, "*batch piece state".
    - `decay`, `cut`: the gathered decays and reset flags, "*batch device state" and
        "*batch device 1", or `None`. The flags have a copy for each part of the states.
    """

    op: Any
    entering: Any
    piece_decay: Any
    decay: Any
    cut: Any

    @classmethod
    def specs(cls, op: PartitionSpec, states: PartitionSpec, axis: str) -> "ScanResiduals":
        """Their layout: `op` for the op's own, `states` for an array "*batch state"."""
        *row, state = states
        pieces, devices = PartitionSpec(*row, axis, state), PartitionSpec(*row, None, state)
        # The op's residuals are states too, with the axis of pieces among their batch axes.
        op = PartitionSpec(*op[:-1], None, state) if op else op
        return cls(op, pieces, pieces, devices, devices)


class DistributedScan(NamedTuple):
    """What a device knows after a distributed scan.

    - `ys`, `entering`: its own states, and its carry-in.
    - `last`: the last state of all devices.
    - `residuals`: what the backward pass needs.
    - `also`: what was gathered with the totals, "*batch device state".
    """

    ys: Any
    entering: State
    last: State
    residuals: ScanResiduals
    also: State


def distributed_scan(
    op: DeviceOp, arguments: OpArguments, axis: str, also: State = None
) -> DistributedScan:
    """The forward pass on one device. The all-gather of the totals also gathers the arrays `also`,
    "*batch state"."""
    # 1. Every device computes the totals of its pieces, and from these the total of its own steps.
    own = _OwnSteps.of(op, arguments, axis)
    piece_decay, piece_end = op.totals(own.pieces)
    piece_end = _zero_rows(piece_end, own.stopped)
    piece_decays = own.decays(piece_decay)
    _, end = own.chain(piece_decays, piece_end, None, reverse=op.reverse)
    decay = None if piece_decay is None else product(piece_decay, reverse=op.reverse)
    cut = None if own.cut is None else jnp.any(own.cut, -1, keepdims=True).astype(jnp.float32)
    # 2. The totals of all devices are gathered: the only communication.
    decay, end, cut, also = all_gather_rows(axis, (decay, end, cut, also))
    cut = None if cut is None else cut > 0
    # 3. A scan with one step per device gives the state that leaves each device. Every device
    #    computes all of them, which is cheap: there are as few steps as devices.
    decays, start = _decays(op, arguments, decay), arguments.h0
    leaving, last = op.op.chain(decays, end, start, _flags(cut), reverse=op.reverse)
    # 4. Every device runs its pieces, the first from the state that left the device before it.
    entering = carry_in(axis, leaving, start, reverse=op.reverse)
    leaving, _ = own.chain(piece_decays, piece_end, entering, reverse=op.reverse)
    piece_entering = previous(leaving, entering, None, reverse=op.reverse)
    (ys, _), op_residuals = op.forward(own.pieces._replace(h0=piece_entering))
    residuals = ScanResiduals(op_residuals, piece_entering, piece_decay, decay, cut)
    return DistributedScan(_joined(ys), entering, last, residuals, also)


def distributed_passes(op: DeviceOp, axis: str) -> tuple[Callable, Callable]:
    """The forward and backward pass for `differentiable_on_mesh`, with time split over `axis`."""

    def forward(arguments: OpArguments) -> tuple[tuple[Any, State], ScanResiduals]:
        scan = distributed_scan(op, arguments, axis)
        return (scan.ys, scan.last), scan.residuals

    def transpose(arguments: OpArguments, outputs: tuple, cotangents: tuple) -> OpArguments:
        (ys, _), (op_residuals, entering, piece_decay, decay, cut) = outputs
        g_ys, g_last = cotangents
        own = _OwnSteps.of(op, arguments, axis)
        pieces = own.pieces._replace(h0=entering)
        count = own.count
        ys, g_ys = _in_pieces(ys, count), _in_pieces(g_ys, count)
        # 1. and 2. In the backward pass a device turns the cotangent of the state that leaves it
        #    into that of its carry-in. The decay of this map is the adjoint one, and its end is
        #    the cotangent that comes from the device's own outputs. Only the ends are gathered:
        #    the decays and flags of all devices are residuals.
        piece_end = op.transpose_totals(pieces, g_ys)
        piece_decays = adjoint(own.decays(piece_decay))
        _, end = own.chain(piece_decays, piece_end, None, reverse=not op.reverse)
        g_end = all_gather_rows(axis, end)
        # 3. The scan over devices runs in the opposite direction. It starts from the cotangent of
        #    the last state and ends with the cotangent of h0.
        decays = adjoint(_decays(op, arguments, decay))
        g_entering, g_h0 = op.op.chain(decays, g_end, g_last, _flags(cut), reverse=not op.reverse)
        # 4. The state that leaves a device is the carry-in of the next one, so their cotangents are
        #    the same, and likewise for pieces. From it every device runs the backward pass of its
        #    own steps.
        g_leaving = carry_in(axis, g_entering, g_last, reverse=not op.reverse)
        g_entering, _ = own.chain(piece_decays, piece_end, g_leaving, reverse=not op.reverse)
        g_leaving = previous(g_entering, g_leaving, None, reverse=not op.reverse)
        gradients = op.transpose(
            pieces,
            ((ys, entering), op_residuals),
            (g_ys, _zero_rows(g_leaving, own.stopped)),
        )
        (g_values,) = own.join(gradients.values)
        return OpArguments(g_values, g_h0, None, None)

    return forward, transpose


class _OwnSteps(NamedTuple):
    """The steps that a device holds, cut into pieces.

    - `op`: the op.
    - `pieces`: its arguments, where the pieces are the last batch axis. `h0` has the right shape
        only.
    - `count`: the number of pieces.
    - `cut`: "*batch piece", true where no state passes through a piece; or `None`.
    - `stopped`: "*batch piece", true where the state must not leave a piece; or `None`.
    - `join`: from gradients of `pieces.values` to a tuple with those of the device's values.
    """

    op: RecurrentOp
    pieces: OpArguments
    count: int
    cut: Bool[Array, "*batch piece"] | None
    stopped: Bool[Array, "*batch piece"] | None
    join: Callable[[tuple], tuple[tuple]]

    @classmethod
    def of(cls, op: DeviceOp, arguments: OpArguments, axis: str) -> "_OwnSteps":
        """A reset marks the first step of a segment in time order, which a reverse scan processes
        last. So a reset on the first step of a piece does not change the piece's own states: it
        stops the state on its way to the piece before it in time. The very first has none before
        it."""
        values, h0, reset, lengths = vary_alike(arguments)
        steps = op.op.time(values)
        count = _pieces(steps, jax.tree.leaves(h0)[0].size)
        values, join = jax.vjp(lambda values: op.op.in_pieces(values, count), values)
        h0 = jax.tree.map(lambda x: jnp.repeat(x[..., None, :], count, axis=-2), h0)
        steps //= count
        piece = lax.axis_index(axis) * count + jnp.arange(count)
        if lengths is not None:
            lengths = jnp.clip(lengths[..., None] - piece * steps, 0, steps)
        cut = stopped = None
        if reset is not None:
            reset = reset.reshape(*reset.shape[:-1], count, steps)
            if lengths is not None:
                reset = reset & (jnp.arange(steps) < lengths[..., None])
            if op.reverse:
                stopped = reset[..., 0] & (piece > 0)
                reset = reset.at[..., 0].set(stopped)
            cut = jnp.any(reset, axis=-1)
        return cls(op.op, OpArguments(values, h0, reset, lengths), count, cut, stopped, join)

    def decays(self, found: State) -> State:
        """The total decays of the pieces, "*#batch #piece state": those found, or else the one that
        all have."""
        return self.op.total_decay(self.pieces) if found is None else found

    def chain(self, decays, ends, start, *, reverse: bool) -> tuple[State, State]:
        """The states that leave the pieces, "*batch piece state", and the last of them. The state
        that enters the first one is zero if `start` is `None`."""
        if start is None:
            start = jax.tree.map(lambda x: jnp.zeros_like(x[..., 0, :]), ends)
        return self.op.chain(decays, ends, start, self.cut, reverse=reverse)


_FULL = 2**14
"""About the number of states that fill an accelerator."""

_LEAST_STEPS = 512
"""The fewest steps of a piece that are worth the totals of another one."""


def _pieces(steps: int, states: int) -> int:
    """The number of pieces for `steps` steps of `states` numbers: a power of two that divides the
    steps."""
    most = min(_FULL // max(states, 1), steps // _LEAST_STEPS)
    return max(n for n in (2**i for i in range(15)) if n == 1 or (n <= most and steps % n == 0))


def _in_pieces(ys: Any, pieces: int) -> Any:
    """Arrays "*batch time channel", with an axis for pieces before that of time."""
    return jax.tree.map(lambda x: x.reshape(*x.shape[:-2], pieces, -1, x.shape[-1]), ys)


def _joined(ys: Any) -> Any:
    """The inverse of `_in_pieces`."""
    return jax.tree.map(lambda x: x.reshape(*x.shape[:-3], -1, x.shape[-1]), ys)


def _decays(op: DeviceOp, arguments: OpArguments, gathered: State) -> State:
    """The total decays of the devices, "*batch device state"; of size 1 along the devices if
    nothing was gathered because all have the same."""
    if gathered is not None:
        return gathered
    return jax.tree.map(lambda x: x[..., None, :], op.op.total_decay(arguments))


def _flags(cut: Any) -> Any:
    return None if cut is None else cut[..., 0]


def _zero_rows(state: State, rows: Bool[Array, "*batch"] | None) -> State:
    if rows is None:
        return state
    return jax.tree.map(lambda x: jnp.where(rows[..., None], 0, x), state)


def all_gather_rows(axis: str, tree: State) -> State:
    """The arrays "*#batch state" of all devices, "*batch device state", by one all-gather."""
    leaves, structure = jax.tree.flatten(vary_alike(tree))
    batch = jnp.broadcast_shapes(*(x.shape[:-1] for x in leaves))
    parts = [jnp.broadcast_to(x, (*batch, x.shape[-1])) for x in leaves]
    borders = itertools.accumulate(x.shape[-1] for x in parts[:-1])
    together = jnp.concatenate(parts, axis=-1)
    together = lax.all_gather(together, axis, axis=together.ndim - 1, to="invarying")
    return jax.tree.unflatten(structure, jnp.split(together, list(borders), axis=-1))


def carry_in(axis: str, leaving: State, start: State, *, reverse: bool) -> State:
    """The state that enters this device: the one that left the device before it, or `start`."""
    entering = previous(leaving, start, None, reverse=reverse)
    device = lax.axis_index(axis)
    return jax.tree.map(
        lambda x: lax.dynamic_index_in_dim(x, device, x.ndim - 2, keepdims=False), entering
    )
