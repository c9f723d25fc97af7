"""A recurrence over time, of which each device has some steps.

What the steps of one device make of the state that enters them is `leaving = decay * entering +
end`. So every device first runs its steps for these two only, as if zero entered them. One
all-gather of the totals over `seq` tells each device what enters its own steps: a scan with one
step a device, with the axes `*batch device state`. Then the device runs its steps again, on the
true state. The backward pass does the same from the last device to the first. What is gathered is
as long as batch and states, however many steps there are.

A reset cuts the carry, so a flag a row says whether a device has one; its decay is not used then,
since an infinite decay times zero would be NaN.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool

from rnnscale_kernels import conjugate, vary_alike
from rnnscale_kernels.linear_scan import previous, scan

type State = Any


class Steps(NamedTuple):
    """What a recurrence runs on.

    - `values`: arrays, some of which have the axis of time.
    - `h0`: the state before the first step in processing order, "*batch state".
    - `reset`: booleans, "*batch time", or `None`.
    - `lengths`: integers, "*batch", or `None`.
    """

    # Arrays, or their layouts.
    values: tuple
    h0: Any
    reset: Any
    lengths: Any


@runtime_checkable
class Recurrence(Protocol):
    """A recurrence, as one device runs it.

    - `forward(steps)` gives `((ys, leaving), residuals)`, where `leaving` is the state after each
        row's own last step in processing order.
    - `transpose(steps, outputs, cotangents)` gives the cotangents of `values` and of `h0`, from
        what `forward` gave and the cotangents of `(ys, leaving)`.
    - `decay(steps)` is what all steps together multiply the state by if none is a reset, or `None`
        where that depends on which steps they are. "*batch state"; batch axes may have size 1.
    - `totals(steps)` gives `(decay, end)`: the same decay, but `None` where `decay` gives it, and
        `leaving` for a state of zero.
    - `transpose_totals(steps, g_ys)` gives the cotangent of `h0` for cotangents `(g_ys, 0)`.
    """

    @property
    def reverse(self) -> bool: ...

    def time(self, values: tuple) -> int: ...

    def forward(self, steps: Steps) -> tuple[tuple[Any, State], Any]: ...

    def transpose(
        self, steps: Steps, outputs: tuple, cotangents: tuple[Any, State]
    ) -> tuple[tuple, State]: ...

    def decay(self, steps: Steps) -> State: ...

    def totals(self, steps: Steps) -> tuple[State, State]: ...

    def transpose_totals(self, steps: Steps, g_ys: Any) -> State: ...


class Residuals(NamedTuple):
    """What the backward pass needs.

    - `inner`: what the recurrence keeps.
    - `entering`: the state that enters each device's steps, with an axis for the devices in front.
    - `decay`, `cut`: what was gathered of the totals, "*batch device state" and "*batch device 1".
    """

    inner: Any
    entering: Any
    decay: Any
    cut: Any


def in_one_piece(recurrence: Recurrence) -> tuple[Callable, Callable]:
    """The two passes for `differentiable_on_mesh`, where each device has all of time."""

    def transpose(primals: Steps, outputs: tuple, cotangents: tuple) -> Steps:
        primals, cotangents = vary_alike((primals, cotangents))
        return Steps(*recurrence.transpose(primals, outputs, cotangents), None, None)

    return recurrence.forward, transpose


def in_parts(recurrence: Recurrence, axis: str) -> tuple[Callable, Callable]:
    """The two passes for `differentiable_on_mesh`, where time is split over a mesh axis."""
    reverse = recurrence.reverse

    def forward(primals: Steps) -> tuple[tuple, Residuals]:
        steps, behind = _own(recurrence, primals, axis)
        decay, end = recurrence.totals(steps)
        cut = None if steps.reset is None else jnp.any(steps.reset, axis=-1)
        decay, end, cut = _gather(axis, decay, _drop(behind, end), cut)
        leaving, h_last = _chain(recurrence, steps, decay, end, cut, primals.h0, reverse=reverse)
        entering = _enter(axis, leaving, primals.h0, reverse=reverse)
        (ys, _), inner = recurrence.forward(vary_alike(steps._replace(h0=entering)))
        entering = jax.tree.map(lambda x: x[None], entering)
        return (ys, h_last), Residuals(inner, entering, decay, cut)

    def transpose(primals: Steps, outputs: tuple, cotangents: tuple) -> Steps:
        public, (inner, entering, decay, cut) = outputs
        g_ys, g_last = cotangents
        steps, behind = _own(recurrence, primals, axis)
        steps = steps._replace(h0=jax.tree.map(lambda x: x[0], entering))
        _, g_end, _ = _gather(axis, None, recurrence.transpose_totals(steps, g_ys), None)
        decay = None if decay is None else conjugate(decay)
        g_entering, g_h0 = _chain(recurrence, steps, decay, g_end, cut, g_last, reverse=not reverse)
        g_leaving = _drop(behind, _enter(axis, g_entering, g_last, reverse=not reverse))
        steps, cotangents = vary_alike((steps, (g_ys, g_leaving)))
        g_values, _ = recurrence.transpose(steps, (public, inner), cotangents)
        return Steps(g_values, g_h0, None, None)

    return forward, transpose


def _own(
    recurrence: Recurrence, steps: Steps, axis: str
) -> tuple[Steps, Bool[Array, "*batch"] | None]:
    """The device's own steps, and where in reverse the carry is cut behind the last of them."""
    values, h0, reset, lengths = steps
    time, device = recurrence.time(values), lax.axis_index(axis)
    if lengths is not None:
        lengths = jnp.clip(lengths - device * time, 0, time)
        if reset is not None:
            reset = reset & (jnp.arange(time) < lengths[..., None])
    behind = None
    if reset is not None and recurrence.reverse:
        # The first step of a segment is the last one processed; before the first device is nothing.
        behind = reset[..., 0] & (device > 0)
        reset = reset.at[..., 0].set(behind)
    return Steps(values, h0, reset, lengths), behind


def _drop(behind: Bool[Array, "*batch"] | None, leaving: State) -> State:
    if behind is None:
        return leaving
    return jax.tree.map(lambda x: jnp.where(behind[..., None], 0, x), leaving)


def _gather(
    axis: str, decay: State, end: State, cut: Bool[Array, "*batch"] | None
) -> tuple[State, State, Bool[Array, "*batch device 1"] | None]:
    """The totals of all devices, "*batch device state", by one all-gather."""
    ends, structure = jax.tree.flatten(end)
    decays = [jnp.broadcast_to(x, ends[0].shape) for x in jax.tree.leaves(decay)]
    flags = [] if cut is None else [cut[..., None].astype(ends[0].dtype)]
    parts = vary_alike([*ends, *decays, *flags])
    sizes = [x.shape[-1] for x in parts]
    together = jnp.concatenate(parts, axis=-1)
    together = lax.all_gather(together, axis, axis=together.ndim - 1, to="invarying")
    parts = jnp.split(together, [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)], axis=-1)
    end = jax.tree.unflatten(structure, parts[: len(ends)])
    if decay is not None:
        decay = jax.tree.unflatten(structure, parts[len(ends) : 2 * len(ends)])
    return decay, end, None if cut is None else parts[-1] > 0


def _chain(recurrence: Recurrence, steps: Steps, decay, end, cut, start, *, reverse: bool):
    """What leaves every device, "*batch device state", and the last of it."""
    if decay is None:
        decay = jax.tree.map(lambda x: x[..., None, :], recurrence.decay(steps))
        if reverse != recurrence.reverse:
            decay = conjugate(decay)
    cut = None if cut is None else cut[..., 0]
    return scan(decay, end, start, cut, reverse=reverse, implementation="associative")


def _enter(axis: str, leaving: State, start: State, *, reverse: bool) -> State:
    """What enters the device's own steps."""
    entering = previous(leaving, start, None, reverse=reverse)
    device = lax.axis_index(axis)
    return jax.tree.map(
        lambda x: lax.dynamic_index_in_dim(x, device, x.ndim - 2, keepdims=False), entering
    )
