"""Linear attention on the ambient mesh: rows, heads and time over devices.

Each device runs the op on its own rows, heads and steps. Over `tensor` there is no collective. Over
`seq` it is one all-gather in each direction, as for the distributed scan, but the states are
matrices, which the steps of a device map affinely: if H enters a device, then

    Phi H + Psi leaves it, and R_t^T H is added to its output y_t.

R_t is the *response* of the output at t. It is the output for a value of zero and an identity as
the state, so the op computes y for a state of zero, R, Psi and Phi in one run, with the values
[v | 0] and the initial state [0 | I]. Without erasure Phi is a diagonal, the product of the decays,
and R_t is q_t times the product up to t. Only (Phi, Psi) is gathered, whose size does not depend on
the length. Every device then adds up what the devices before it leave.

The backward pass mirrors this. A device turns the cotangent G of the state that leaves it into
Phi^T G + sum_t R_t dy_t^T for the state that enters it. The sum is gathered, and from the cotangent
of its own last state every device runs the backward pass of the op.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from rnnscale.sharding._distributed_scan import DevicePasses
from rnnscale.sharding._on_mesh import Specs, differentiable_on_mesh
from rnnscale.sharding._ops import missing_steps, pad_steps, split_axes
from rnnscale.sharding._rules import automatic_axes
from rnnscale.sharding._time_axis import TimeAxis
from rnnscale_kernels import (
    ATTENTION,
    OpArguments,
    linear_attention as local_linear_attention,
    vary_alike,
)
from rnnscale_kernels.linear_scan import cuts

# Products of float32 that are rounded to fewer bits would add their errors up over the devices.
_PRECISION = lax.Precision.HIGHEST


def linear_attention(
    query: Float[Array, "*batch time #heads key"],
    key: Float[Array, "*batch time #heads key"],
    value: Float[Array, "*batch time heads value"],
    log_decay: Float[Array, "*batch time heads"]
    | Float[Array, "*batch time heads key"]
    | None = None,
    erase: Float[Array, "*batch time #heads key"] | None = None,
    h0: Float[Array, "*batch heads key value"] | None = None,
    *,
    reverse: bool = False,
    reset: Bool[Array, "*batch time"] | None = None,
    lengths: Int[Array, "*batch"] | None = None,
    implementation: str | None = None,
) -> tuple[Float[Array, "*batch time heads value"], Float[Array, "*batch heads key value"]]:
    """`rnnscale_kernels.linear_attention` over the mesh that `jax.set_mesh` has set.

    The leading batch axis is split over `data` and `fsdp`, the heads over `tensor`, and time over
    `seq`. If `tensor` does not divide the number of heads, each of its devices has all heads. If
    `seq` does not divide the number of steps, the sequence is gathered and padded, with a warning.
    Over a mesh only first-order reverse-mode derivatives are available.

    **Arguments** and **Returns:** those of `rnnscale_kernels.linear_attention`.

    **Raises:** in addition to the errors of the kernel, `ValueError` if there are fewer steps than
    devices of `seq`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not automatic_axes(mesh):
        return local_linear_attention(
            query, key, value, log_decay, erase, h0,
            reverse=reverse, reset=reset, lengths=lengths, implementation=implementation,
        )  # fmt: skip
    values, start, reset, lengths = ATTENTION.check(
        query, key, value, log_decay, erase, h0,
        reverse=reverse, reset=reset, lengths=lengths, implementation=implementation,
    )  # fmt: skip
    *batch, time, heads, _ = value.shape
    if time == 0:
        return value, start
    if missing := missing_steps(time, mesh):
        values = tuple(pad_steps(x, missing, axis=len(batch)) for x in values)
        reset = pad_steps(reset, missing, axis=-1)
        lengths = jnp.full(batch, time, jnp.int32) if lengths is None else lengths
    row, seq, head = split_axes((*batch, time + missing, heads), "heads", (heads,), mesh)
    if head:
        values = _spread_groups(values, mesh.shape[head])
    device = _Device(
        DevicePasses(ATTENTION, reverse, implementation),
        TimeAxis.of_mesh(reverse=reverse),
        erases=erase is not None,
    )
    y, h_last = differentiable_on_mesh(
        device.forward,
        device.transpose,
        OpArguments(values, start, reset, lengths),
        lambda _: _specs(row, seq, head),
    )
    return y[..., :time, :, :], h_last


def _spread_groups(values: tuple, parts: int) -> tuple:
    """The values with queries, keys and erasures repeated, so that each of `parts` devices holds
    the groups of its own heads."""
    query, key, value, log_decay, erase = values

    def spread(x: Array | None) -> Array | None:
        return None if x is None else jnp.repeat(x, parts // math.gcd(x.shape[-2], parts), axis=-2)

    return spread(query), spread(key), value, log_decay, spread(erase)


def _specs(row: tuple, seq: Any, head: Any) -> Specs:
    steps, states = PartitionSpec(*row, seq, head), PartitionSpec(*row, head)
    of_all = PartitionSpec(None, *row, head)
    return Specs(
        primals=OpArguments((steps,) * 5, states, PartitionSpec(*row, seq), PartitionSpec(*row)),
        public=(steps, states),
        # Without `seq` those of the op, the state that enters each chunk of time.
        residuals=_Residuals(steps, of_all, of_all, PartitionSpec(seq, *row, head))
        if seq
        else of_all,
        partial_sums=((), ()),
    )


class _Residuals(NamedTuple):
    """What the backward pass needs where time is split.

    - `response`: R with erasure, "*batch time heads key"; otherwise `None`, as it is cheap.
    - `decay`, `cut`: those of the totals of all devices, with the axis of devices in front. `cut`
        has a copy for each part of the heads.
    - `entering`: the state that enters the device, "1 *batch heads key value".
    """

    response: Any
    decay: Any
    cut: Any
    entering: Any


class _Total(NamedTuple):
    """What the steps of a device make of a state H: `decay` H + `end`, or `end` where `cut`.

    - `decay`: Phi, "*batch heads key key" with erasure; otherwise its diagonal as a column,
        "*batch heads #key 1", or `None` if nothing decays.
    - `end`: Psi, "*batch heads key value".
    - `cut`: "*batch 1 1 1", true if there is a reset.
    """

    decay: Any
    end: Any
    cut: Any


class _Effect(NamedTuple):
    """What the state that enters a device does there.

    - `response`: R, "*batch time heads key", zero where the state does not reach.
    - `decay`: Phi, as in `_Total`.
    """

    response: Any
    decay: Any


@dataclass(frozen=True)
class _Device:
    """The two passes on one device.

    - `passes`: those of the op.
    - `axis`: how devices hold the steps.
    - `erases`: whether there is erasure.
    """

    passes: DevicePasses
    axis: TimeAxis
    erases: bool

    def forward(self, arguments: OpArguments) -> tuple[tuple[Array, Array], Any]:
        if self.axis.name is None:
            return self.passes.forward(arguments)
        own = _OwnSteps.of(arguments, self.axis)
        # 1. What the steps of the device give from a state of zero, and what another state adds.
        y, end, effect = self._from_zero(own)
        # 2. The totals of all devices are gathered: the only communication.
        end = jnp.where(own.stopped, 0, end)
        total = self._gather(_Total(effect.decay, end, own.cut.astype(end.dtype)))
        total = total._replace(cut=total.cut > 0)
        # 3. The state that enters each device, from those before it.
        entering, last = self._chain(total, arguments.h0)
        # 4. What it adds to the device's outputs.
        added = _einsum("...thk,...hkv->...thv", effect.response, entering)
        y = (y + jnp.where(own.reached, added, 0)).astype(y.dtype)
        response = effect.response if self.erases else None
        return (y, last), _Residuals(response, total.decay, total.cut, entering[None])

    def transpose(self, arguments: OpArguments, outputs: tuple, cotangents: tuple) -> OpArguments:
        g_y, g_last = cotangents
        if self.axis.name is None:
            return self.passes.transpose(arguments, outputs, cotangents)
        _, residuals = outputs
        own = _OwnSteps.of(arguments, self.axis)
        response = residuals.response if self.erases else self._decayed(own).response
        # 1. and 2. The cotangent of the state that enters the device, from its own outputs alone.
        #    Decays and flags of all devices are residuals.
        g_reached = jnp.where(own.reached, g_y, 0)
        end = _einsum("...thk,...thv->...hkv", response, g_reached).astype(g_last.dtype)
        end = self._gather(_Total(None, end, None)).end
        # 3. The state that leaves a device is the one that enters the next, so their cotangents are
        #    the same. They are added up from the last device to the first.
        total = _Total(residuals.decay, end, residuals.cut)
        g_leaving, g_h0 = self._chain(total, g_last, backward=True)
        # 4. The device's own backward pass. It computes the states again.
        arguments = own.arguments._replace(h0=residuals.entering[0])
        outputs = self.passes.forward(arguments)
        g_leaving = jnp.where(own.stopped, 0, g_leaving)
        gradients = self.passes.transpose(arguments, outputs, (g_y, g_leaving))
        return gradients._replace(h0=g_h0)

    def _from_zero(self, own: "_OwnSteps") -> tuple[Array, Array, _Effect]:
        """The outputs and the last state, if zero enters, and the effect of another state."""
        arguments = own.arguments._replace(h0=jnp.zeros_like(own.arguments.h0))
        if not self.erases:
            (y, end), _ = self.passes.forward(arguments)
            return y, end, self._decayed(own)
        # Further columns of values and of the state have the identity in the place of the state.
        query, key, value, log_decay, erase = arguments.values
        *states, keys, width = arguments.h0.shape
        value = jnp.concatenate([value, jnp.zeros((*value.shape[:-1], keys), value.dtype)], -1)
        identity = jnp.broadcast_to(jnp.eye(keys, dtype=arguments.h0.dtype), (*states, keys, keys))
        arguments = arguments._replace(
            values=(query, key, value, log_decay, erase),
            h0=jnp.concatenate([arguments.h0, identity], -1),
        )
        (y, last), _ = self.passes.forward(arguments)
        (y, response), (end, decay) = (jnp.split(x, [width], axis=-1) for x in (y, last))
        return y, end, _Effect(jnp.where(own.reached, response, 0), decay)

    def _decayed(self, own: "_OwnSteps") -> _Effect:
        """The effect of a state that only decays."""
        query, _, value, log_decay, _ = own.arguments.values
        query = jnp.repeat(query, value.shape[-2] // query.shape[-2], axis=-2)
        if log_decay is None:
            return _Effect(jnp.where(own.reached, query, 0), None)
        axis = query.ndim - 3
        log_decay = log_decay.astype(own.arguments.h0.dtype)
        if log_decay.ndim < query.ndim:
            log_decay = log_decay[..., None]
        log_decay = jnp.where(own.valid, log_decay, 0)
        decay = jnp.exp(lax.cumsum(log_decay, axis=axis, reverse=self.axis.reverse))
        last = 0 if self.axis.reverse else -1
        response = jnp.where(own.reached, query * decay, 0)
        return _Effect(response, decay[..., last, :, :, None])

    def _gather(self, total: _Total) -> _Total:
        """The totals of all devices, with the axis of devices in front."""
        rank = total.end.ndim - 3
        rows = jax.tree.map(lambda x: x.reshape(*x.shape[:rank], -1), total)

        def of_devices(rows: Array, own: Array) -> Array:
            rows = jnp.moveaxis(rows, -2, 0)
            return rows.reshape(*rows.shape[:-1], *own.shape[rank:])

        return jax.tree.map(of_devices, self.axis.gather(rows), total)

    def _chain(self, total: _Total, start: Array, *, backward: bool = False) -> tuple[Array, Array]:
        """The state that enters this device, and the last one; backward the same for cotangents,
        for which the devices are in the opposite order."""

        def device(state: Array, total: _Total) -> tuple[Array, Array]:
            through = state
            if self.erases:
                decay = jnp.swapaxes(total.decay, -1, -2) if backward else total.decay
                through = _einsum("...kj,...jv->...kv", decay, state)
            elif total.decay is not None:
                through = total.decay * state
            # A state before a reset may be NaN.
            return total.end + jnp.where(total.cut, 0, through), state

        start, total = vary_alike((start, total))
        last, entering = lax.scan(device, start, total, reverse=self.axis.reverse != backward)
        index = lax.axis_index(self.axis.name)
        return lax.dynamic_index_in_dim(entering, index, keepdims=False), last


class _OwnSteps(NamedTuple):
    """The steps that a device holds.

    - `arguments`: those of the op.
    - `valid`: "*batch time 1 1", true at the steps of each row; or `True`.
    - `reached`: the same, true at the valid steps that the state that enters the device reaches.
    - `cut`: "*batch 1 1 1", true if a reset stops it from leaving.
    - `stopped`: the same, true if no state must leave the device.
    """

    arguments: OpArguments
    valid: Any
    reached: Any
    cut: Any
    stopped: Any

    @classmethod
    def of(cls, arguments: OpArguments, axis: TimeAxis) -> "_OwnSteps":
        """A reset marks the first step of a segment in time order, which a reverse scan processes
        last. So there a reset on the first step of a device does not change the device's own
        states: it stops the state on its way to the device before it in time. The very first
        device has none before it."""
        values, h0, reset, lengths = vary_alike(arguments)
        *batch, time, _, _ = values[2].shape
        device = lax.axis_index(axis.name)
        valid = reached = jnp.ones((*(1 for _ in batch), time), bool)
        if lengths is not None:
            lengths = jnp.clip(lengths - device * time, 0, time)
            valid = reached = jnp.arange(time) < lengths[..., None]
        reset = None if reset is None else reset & valid
        cut_steps = cuts(reset, reverse=axis.reverse)
        cut = stopped = jnp.zeros(batch, bool)
        if reset is not None and cut_steps is not None:
            if axis.reverse:
                stopped = reset[..., 0] & (device > 0)
            cut = stopped | jnp.any(cut_steps, axis=-1)
            number = cut_steps.astype(jnp.int32)
            number = lax.cumsum(number, axis=number.ndim - 1, reverse=axis.reverse)
            reached = reached & (number == 0)
        return cls(
            OpArguments(values, h0, reset, lengths),
            *(x[..., None, None] for x in (valid, reached)),
            *(x[..., None, None, None] for x in (cut, stopped)),
        )


def _einsum(equation: str, *operands: Array) -> Array:
    return jnp.einsum(equation, *operands, precision=_PRECISION)
