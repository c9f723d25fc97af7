"""`Line`: the order of the steps of a sequence, and the communication between devices that hold
parts of it."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rnnscale.cells._jacobian import Jacobian, Leaves
from rnnscale.sharding import TimeAxis


class Shared(NamedTuple):
    """What a device receives from the others.

    - `entering`: the state before its first step, "batch ...".
    - `last`: the state after the last step of all.
    - `measures`: the maximum of each measure over all devices.
    """

    entering: Leaves
    last: Leaves
    measures: Float[Array, "batch measure"]


@dataclass(frozen=True)
class Line:
    """The steps of a sequence, which several devices may share.

    - `time`: the order of steps and devices.
    - `jacobian`: the kind of Jacobian, which determines the linear recurrence.
    - `start`: the state before the first step of the entire sequence, "batch ...".
    - `reset`: true where a step is the first of a segment in time order, "batch time", or `None`.
    - `stopped`: the rows whose state does not leave this device, or `None`.
    """

    time: TimeAxis
    jacobian: Jacobian
    start: Leaves
    reset: Bool[Array, "batch time"] | None
    stopped: Bool[Array, "batch"] | None

    def previous(self, states: Leaves, entering: Leaves) -> Leaves:
        """The states before the steps, from those after them. Resets are ignored."""

        def shift(x: Array, first: Array) -> Array:
            first = first[:, None]
            parts = [x[:, 1:], first] if self.time.reverse else [first, x[:, :-1]]
            return jnp.concatenate(parts, axis=1)

        return [shift(x, first) for x, first in zip(states, entering, strict=True)]

    def ahead(self, marked: Bool[Array, "batch time"]) -> Int[Array, "batch"]:
        """The number of steps from the first marked step on this device to the end of the sequence,
        in processing order; 0 if no step is marked."""
        count = marked.shape[1]
        remaining = jnp.arange(1, count + 1) if self.time.reverse else jnp.arange(count, 0, -1)
        here = jnp.max(jnp.where(marked, remaining, 0), axis=1)
        return jnp.where(here > 0, here + count * self.time.devices_after(), 0)

    def share(self, states: Leaves, measures: Array) -> Shared:
        """Shares the last of these states and the measures with the other devices."""
        return self._shared(self.time.gather(self._to_share(states, measures)))

    def share_zeros(self) -> Shared:
        """What `share` returns if the states on all devices, and their sizes, are zero."""
        rows = [jnp.zeros_like(_rows(x)) for x in self.start]
        sizes = jnp.stack([jnp.sum(x, axis=1) for x in rows], axis=1)

        def of_all_devices(x: Array) -> Array:
            return jnp.broadcast_to(x[:, None], (x.shape[0], self.time.parts, x.shape[1]))

        return self._shared(jax.tree.map(of_all_devices, (rows, sizes)))

    def scan(
        self, a: Any, inputs: Leaves, states: Leaves, measures: Array
    ) -> tuple[Leaves, Leaves, Shared]:
        """The linear recurrence with these coefficients and inputs, from zero; its state before
        this device's first step, "batch 1 ..."; and what `share` returns.

        Over devices, there is one all-gather for all of this.
        """
        b = self.jacobian.pack(inputs)
        own = self._to_share(states, measures)
        h, entering, gathered = self.time.scan(self.jacobian.op, a, b, self.reset, own)
        one_step = jax.tree.map(lambda x: x[:, None], entering)
        entering = self.jacobian.unpack(one_step, [x[:, None] for x in self.start])
        return self.jacobian.unpack(h, inputs), entering, self._shared(gathered)

    def _to_share(self, states: Leaves, measures: Array) -> tuple[Leaves, Array]:
        last = [x[:, 0 if self.time.reverse else -1] for x in states]
        if self.stopped is not None:
            last = [jnp.where(self.stopped[:, None], 0, _rows(x)) for x in last]
        return [_rows(x) for x in last], measures

    def _shared(self, gathered: tuple[Leaves, Array]) -> Shared:
        last, measures = gathered
        like = self.start
        entering = self.time.before(last, [_rows(x) for x in like])
        return Shared(
            _like(entering, like), _like(self.time.end(last), like), jnp.max(measures, axis=-2)
        )


def _rows(x: Array) -> Float[Array, "batch state"]:
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))


def _like(rows: Leaves, like: Leaves) -> Leaves:
    return [x.reshape(y.shape) for x, y in zip(rows, like, strict=True)]
