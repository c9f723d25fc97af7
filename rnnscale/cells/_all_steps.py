"""`AllSteps`: the steps of a cell, all at once, as functions of the states before them."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from rnnscale._base import State
from rnnscale.cells._base import affine
from rnnscale.cells._jacobian import Leaves
from rnnscale.cells._layout import lay_out
from rnnscale.cells._trees import floats, where
from rnnscale.sharding import TimeAxis


class Inputs(NamedTuple):
    """The inputs of steps, "batch time ..."."""

    x: Array
    start: Array | None  # whether it is the first step of a segment in the loop's direction
    valid: Array | None  # whether it is within its row
    reset: Array | None  # whether it is the first step of a segment in time order


@dataclass(frozen=True)
class AllSteps:
    """The steps of a sequence or a part of it.

    - `cell`: the cell without its arrays.
    - `drive`: as the cell returns it.
    - `inputs`: the inputs.
    - `fresh`: the state after a reset, or `None`.
    - `integers`: the integer leaves of the states before the steps. The floating ones are `None`.
    - `structure`: the tree structure of the floating leaves.
    """

    cell: Any
    drive: Any
    inputs: Inputs
    fresh: State
    integers: Any
    structure: Any

    def before(self, leaves: Leaves) -> State:
        """The states before the steps, from their floating leaves. After a reset it is `fresh`."""
        state = eqx.combine(jax.tree.unflatten(self.structure, leaves), self.integers)
        if self.inputs.start is None:
            return state
        fresh = jax.tree.map(lambda x: x[:, None], self.fresh)
        return where(self.inputs.start, fresh, state)

    def after(self, weights: Any, leaves: Leaves) -> State:
        """The states after the steps. One that is not valid leaves the state as it was."""
        before = self.before(leaves)
        after = self.cell.advance(weights, self.drive, before, affine)
        return after if self.inputs.valid is None else where(self.inputs.valid, after, before)

    def __call__(self, weights: Any, leaves: Leaves) -> Leaves:
        """The floating leaves of the states after the steps."""
        return jax.tree.leaves(floats(self.after(weights, leaves)))


def all_steps(
    cell: Any, time: TimeAxis, weights: Any, inputs: Inputs, state: State, fresh: State
) -> tuple[AllSteps, Any]:
    """The steps that follow `state`, and the integer leaves of the state after them.

    Integer leaves, such as counters, do not depend on floating ones, so they are computed first,
    one step after another. This is cheap, because the compiler removes everything else from that
    loop.
    """
    drive = cell.drive(lay_out(weights), inputs.x)
    moving, integers = eqx.partition(state, eqx.is_inexact_array)
    structure = jax.tree.structure(moving)
    if not jax.tree.leaves(integers):
        return AllSteps(cell, drive, inputs, fresh, integers, structure), integers
    first = jax.tree.map(lambda x: x[:, 0], drive)

    def count(integers: Any, flags: tuple) -> tuple[Any, Any]:
        start, valid = flags
        before = eqx.combine(moving, integers)
        if start is not None:
            before = where(start, fresh, before)
        after = cell.advance(weights, first, before, affine)
        if valid is not None:
            after = where(valid, after, before)
        return eqx.filter(after, eqx.is_inexact_array, inverse=True), integers

    def run(integers: Any) -> tuple[Any, Any]:
        flags = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), (inputs.start, inputs.valid))
        length = inputs.x.shape[1]
        return lax.scan(count, integers, flags, length=length, reverse=time.reverse)

    ends, integers = time.in_turn(run, integers)
    integers = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), integers)
    return AllSteps(cell, drive, inputs, fresh, integers, structure), ends
