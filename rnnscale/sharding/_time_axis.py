"""`TimeAxis`: how devices hold the steps of a sequence, for code inside `differentiable_on_mesh`,
where each device sees only its own steps.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, PRNGKeyArray

from rnnscale.sharding._distributed_scan import (
    DeviceOp,
    all_gather_rows,
    carry_in,
    distributed_scan,
)
from rnnscale.sharding._ops import missing_steps
from rnnscale.sharding._rules import automatic_axes
from rnnscale.sharding._time import _SEQ
from rnnscale_kernels import RecurrentOp, vary_alike

type Rows = Any
"""A tree of arrays "*batch state"."""


@dataclass(frozen=True)
class TimeAxis:
    """The axis of time, which may be split over the devices of a mesh axis.

    - `name`: the mesh axis, or `None` if each device holds all steps.
    - `parts`: the number of devices along it; 1 if `name` is `None`.
    - `reverse`: whether steps, and with them devices, are processed from the last to the first.
    """

    name: str | None
    parts: int
    reverse: bool

    @classmethod
    def of_mesh(cls, *, reverse: bool) -> "TimeAxis":
        """The axis of time on the ambient mesh, outside of `differentiable_on_mesh`."""
        mesh = jax.sharding.get_abstract_mesh()
        if _SEQ in automatic_axes(mesh):
            return cls(_SEQ, mesh.shape[_SEQ], reverse)
        return cls(None, 1, reverse)

    def missing_steps(self, time: int) -> int:
        """The number of steps to append so that all devices hold equally many.

        **Raises:** `ValueError` if there are fewer steps than devices.
        """
        return missing_steps(time, jax.sharding.get_abstract_mesh())

    def key(self, key: PRNGKeyArray) -> PRNGKeyArray:
        """A random key that differs from device to device."""
        return key if self.name is None else jax.random.fold_in(key, lax.axis_index(self.name))

    def devices_after(self) -> int | Array:
        """The number of devices that are processed after this one."""
        if self.name is None:
            return 0
        device = lax.axis_index(self.name)
        return device if self.reverse else self.parts - 1 - device

    def gather(self, rows: Rows) -> Rows:
        """The arrays of all devices, "*batch device state", by one all-gather."""
        if self.name is None:
            return jax.tree.map(lambda x: x[..., None, :], rows)
        return all_gather_rows(self.name, rows)

    def scan(
        self, op: RecurrentOp, a: Any, b: Any, reset: Bool[Array, "*batch time"] | None, also: Rows
    ) -> tuple[Any, Rows, Rows]:
        """The linear recurrence `op` over the steps of all devices, from zero.

        **Returns:** `(h, entering, also)`: the device's own states, the state before its first
        step, and `also` of all devices, as from `gather`. There is one all-gather in total.
        """
        arguments = op.check(a, b, None, reverse=self.reverse, reset=reset)
        device_op = DeviceOp(op, self.reverse, None, decay_varies=True)
        if self.name is None:
            (h, _), _ = device_op.forward(arguments)
            return h, arguments.h0, self.gather(also)
        done = distributed_scan(device_op, arguments, self.name, also)
        entering = done.entering
        if reset is not None and not self.reverse:
            first = reset[..., 0, None]
            entering = jax.tree.map(lambda x: jnp.where(first, 0, x), entering)
        return done.ys, entering, done.also

    def before(self, gathered: Rows, start: Rows) -> Rows:
        """The part of gathered arrays from the device that is processed before this one; `start` on
        the device that is processed first."""
        if self.name is None:
            return start
        return carry_in(self.name, gathered, start, reverse=self.reverse)

    def end(self, gathered: Rows) -> Rows:
        """The part of gathered arrays from the device that is processed last."""
        return jax.tree.map(lambda x: x[..., 0 if self.reverse else -1, :], gathered)

    def in_turn(self, run: Callable[[Rows], tuple[Rows, Any]], state: Rows) -> tuple[Rows, Any]:
        """Calls `run(state) -> (state, results)` on one device after another, and hands the state
        on. Returns the last state, and each device's own results."""
        if self.name is None:
            return run(state)
        name, parts = self.name, self.parts
        device = lax.axis_index(name)
        varying = vary_alike((state, device))[0]
        shapes = jax.eval_shape(run, varying)
        results = jax.tree.map(
            lambda x: vary_alike((jnp.zeros(x.shape, x.dtype), jax.tree.leaves(varying)[0]))[0],
            shapes[1],
        )

        def turn(i: Array, carry: tuple[Rows, Any]) -> tuple[Rows, Any]:
            state, results = carry
            mine = device == (parts - 1 - i if self.reverse else i)
            entering = vary_alike((state, device))[0]
            leaving, results = lax.cond(
                mine, lambda: vary_alike(run(entering)), lambda: vary_alike((entering, results))
            )

            def hand_on(x: Array) -> Array:
                return lax.psum(jnp.where(mine, x, jnp.zeros_like(x)), name)

            return jax.tree.map(hand_on, leaving), results

        return lax.fori_loop(0, parts, turn, (state, results))
