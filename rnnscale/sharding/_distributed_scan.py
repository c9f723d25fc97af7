"""The distributed scan: a recurrent op whose time steps are split over the devices of a mesh axis.

A recurrence seems to need its steps one after another, but it is linear in its state. The steps of
one device, taken together, turn the state that enters them into

    leaving = decay * entering + end,

where `(decay, end)` is the *total* of the device: `decay` is the product of its decays, and `end`
is the state that leaves if zero enters. So every device first computes its total, one all-gather
makes all totals known to all devices, and a scan over devices instead of steps gives the carry-in
of each device, the state that enters its steps. Then every device runs its steps from there. What
is gathered has the size of the states of a batch, however long the sequence is.

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

from rnnscale_kernels import OpArguments, RecurrentOp, adjoint, vary_alike
from rnnscale_kernels.linear_scan import previous

type State = Any
"""A tree of arrays "*batch state", "*batch device state" for all devices, or `None`. A decay that
is not elementwise, such as a matrix, has leaves and a last axis of its own."""


@dataclass(frozen=True)
class DeviceOp:
    """A recurrent op with its options, applied by one device to the steps that it holds.

    - `op`, `reverse`, `implementation`: the op and its options.
    - `decay_varies`: whether the total decay differs from device to device. A device that holds a
        single step can't tell from the shape of its arguments.
    """

    op: RecurrentOp
    reverse: bool
    implementation: str | None
    decay_varies: bool

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

    def decays(self, arguments: OpArguments, gathered: State) -> State:
        """The total decays of the devices, "*batch device state"; of size 1 along the devices if
        nothing was gathered because all have the same."""
        if gathered is not None:
            return gathered
        return jax.tree.map(lambda x: x[..., None, :], self.op.total_decay(arguments))

    def chain(self, decays, ends, start, cut, *, reverse: bool) -> tuple[State, State]:
        """The states that leave the devices, "*batch device state", and the last of them."""
        cut = None if cut is None else cut[..., 0]
        return self.op.chain(decays, ends, start, cut, reverse=reverse)

    def _canonical(self, arguments: OpArguments) -> tuple[tuple, Callable, dict[str, Any]]:
        primals, finish = self.op.canonical(vary_alike(arguments), reverse=self.reverse)
        primals = vary_alike(primals)
        static = self.op.static(primals, reverse=self.reverse, implementation=self.implementation)
        return primals, finish, static


class ScanResiduals(NamedTuple):
    """What the backward pass of the distributed scan needs.

    - `op`: the residuals of the op on each device.
    - `entering`: the carry-in of each device, "device *batch state".
    - `decay`, `cut`: the gathered decays and reset flags, "*batch device state" and
        "*batch device 1", or `None`. The flags have a copy for each part of the states.
    """

    op: Any
    entering: Any
    decay: Any
    cut: Any

    @classmethod
    def specs(cls, op: PartitionSpec, states: PartitionSpec, axis: str) -> "ScanResiduals":
        """Their layout: `op` for the op's own, `states` for an array "*batch state"."""
        *row, state = states
        totals = PartitionSpec(*row, None, state)
        return cls(op, PartitionSpec(axis, *states), totals, totals)


class DistributedScan(NamedTuple):
    """What a device knows after a distributed scan.

    - `ys`, `entering`: its own states, and its carry-in.
    - `last`: the last state of all devices.
    - `op_residuals`: the residuals of the op for its own steps.
    - `decay`, `cut`, `also`: what was gathered, "*batch device state".
    """

    ys: Any
    entering: State
    last: State
    op_residuals: Any
    decay: State
    cut: Any
    also: State


def distributed_scan(
    op: DeviceOp, arguments: OpArguments, axis: str, also: State = None
) -> DistributedScan:
    """The forward pass on one device. The all-gather of the totals also gathers the arrays `also`,
    "*batch state"."""
    # 1. Every device computes the total of its own steps.
    own, stopped = _own_arguments(op, arguments, axis)
    decay, end = op.totals(own)
    end = _zero_rows(end, stopped)
    cut = None
    if own.reset is not None:
        cut = jnp.any(own.reset, axis=-1, keepdims=True).astype(jnp.float32)
    # 2. The totals of all devices are gathered: the only communication.
    decay, end, cut, also = all_gather_rows(axis, (decay, end, cut, also))
    cut = None if cut is None else cut > 0
    # 3. A scan with one step per device gives the state that leaves each device. Every device
    #    computes all of them, which is cheap: there are as few steps as devices.
    decays, start = op.decays(own, decay), arguments.h0
    leaving, last = op.chain(decays, end, start, cut, reverse=op.reverse)
    # 4. Every device runs its steps from the state that left the device before it.
    entering = carry_in(axis, leaving, start, reverse=op.reverse)
    (ys, _), residuals = op.forward(own._replace(h0=entering))
    return DistributedScan(ys, entering, last, residuals, decay, cut, also)


def distributed_passes(op: DeviceOp, axis: str) -> tuple[Callable, Callable]:
    """The forward and backward pass for `differentiable_on_mesh`, with time split over `axis`."""

    def forward(arguments: OpArguments) -> tuple[tuple[Any, State], ScanResiduals]:
        scan = distributed_scan(op, arguments, axis)
        entering = jax.tree.map(lambda x: x[None], scan.entering)
        residuals = ScanResiduals(scan.op_residuals, entering, scan.decay, scan.cut)
        return (scan.ys, scan.last), residuals

    def transpose(arguments: OpArguments, outputs: tuple, cotangents: tuple) -> OpArguments:
        public, (residuals, entering, decay, cut) = outputs
        g_ys, g_last = cotangents
        own, stopped = _own_arguments(op, arguments, axis)
        own = own._replace(h0=jax.tree.map(lambda x: x[0], entering))
        # 1. and 2. In the backward pass a device turns the cotangent of the state that leaves it
        #    into that of its carry-in. The decay of this map is the adjoint one, and its end is
        #    the cotangent that comes from the device's own outputs. Only the ends are gathered:
        #    the decays and flags of all devices are residuals.
        g_end = all_gather_rows(axis, op.transpose_totals(own, g_ys))
        # 3. The scan over devices runs in the opposite direction. It starts from the cotangent of
        #    the last state and ends with the cotangent of h0.
        decays = adjoint(op.decays(own, decay))
        g_entering, g_h0 = op.chain(decays, g_end, g_last, cut, reverse=not op.reverse)
        # 4. The state that leaves a device is the carry-in of the next one, so their cotangents are
        #    the same. From it every device runs the backward pass of its own steps.
        g_leaving = carry_in(axis, g_entering, g_last, reverse=not op.reverse)
        g_own = (g_ys, _zero_rows(g_leaving, stopped))
        return op.transpose(own, (public, residuals), g_own)._replace(h0=g_h0)

    return forward, transpose


def _own_arguments(
    op: DeviceOp, arguments: OpArguments, axis: str
) -> tuple[OpArguments, Bool[Array, "*batch"] | None]:
    """The arguments for the device's own steps, and the rows whose state must not leave it.

    A reset marks the first step of a segment in time order, which a reverse scan processes last. So
    a reset on the first step that a device holds does not change the device's own states: it stops
    the state on its way to the device before it in time. The first device has none before it.
    """
    values, h0, reset, lengths = arguments
    time, device = op.op.time(values), lax.axis_index(axis)
    if lengths is not None:
        lengths = jnp.clip(lengths - device * time, 0, time)
        if reset is not None:
            reset = reset & (jnp.arange(time) < lengths[..., None])
    stopped = None
    if reset is not None and op.reverse:
        stopped = reset[..., 0] & (device > 0)
        reset = reset.at[..., 0].set(stopped)
    return OpArguments(values, h0, reset, lengths), stopped


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
