"""The steps of a cell whose units do not see one another, as a recurrence that kernels run.

The kernels of `elementwise_scan` call the cell's own `advance` for each step, and compute its
derivative inside the kernel, so no cell has code of its own here.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from rnnscale import sharding
from rnnscale._base import State, zero_padding
from rnnscale.cells._base import Cell, affine, compute_weights


@dataclass(frozen=True)
class _Step:
    """`advance` as the step of `elementwise_scan`, whose weights are those that `advance` uses.

    - `cell`: the cell without its arrays.
    - `structure`: that of `cell.weights()`.
    - `used`: the indices of the leaves that `advance` uses.
    """

    cell: Any = field(hash=False)
    structure: Any = field(hash=False)
    used: tuple[int, ...]

    def __call__(self, weights: list[Array], state: State, drive: Any) -> State:
        leaves: list[Any] = [None] * self.structure.num_leaves
        for i, weight in zip(self.used, weights, strict=True):
            leaves[i] = weight
        return self.cell.advance(self.structure.unflatten(leaves), drive, state, affine)


def elementwise_run(
    cell: Cell,
    xs: Array,
    state: State,
    reset: Array | None,
    lengths: Array | None,
    *,
    reverse: bool = False,
    remat: bool = False,
    implementation: str | None = None,
) -> Callable[[], tuple[State, Array]] | None:
    """A function that runs the steps of a cell by `elementwise_scan` and returns the results of
    `time_loop`; `None` if the cell's steps are not elementwise.

    The arguments are those of `time_loop`, and the `implementation` of the op.
    """
    if cell.unit_axis != "state" or not _are_units((state,), cell, xs.shape[:-2]):
        return None
    _, equations = eqx.partition(cell, eqx.is_array)
    weights, drive = jax.eval_shape(partial(_inputs, equations), cell, xs)
    if not _are_units(drive, cell, xs.shape[:-1]):
        return None
    step = _step(equations, weights, drive, state)
    if any(jax.tree.leaves(weights)[i].shape not in ((), (cell.hdim,)) for i in step.used):
        return None

    (returned,) = _used(equations.output, state)

    def run(cell: Cell, xs: Array, state: State) -> tuple[State, Array]:
        weights, drive = _inputs(equations, cell, xs)
        hs, state = sharding.elementwise_scan(
            step, [jax.tree.leaves(weights)[i] for i in step.used], drive, state,
            fresh=None if reset is None else cell.init_state(xs.shape[:-2], xs.dtype),
            reset=reset, lengths=lengths, reverse=reverse,
            returned=returned, implementation=implementation,
        )  # fmt: skip
        return state, zero_padding(equations.output(hs).astype(xs.dtype), lengths)

    run = eqx.filter_checkpoint(run) if remat else run
    return lambda: run(sharding.gathered(cell), xs, state)


def _inputs(equations: Any, cell: Cell, xs: Array) -> tuple[Any, Any]:
    """The weights, and the drives of all steps in the dtype of `xs`, in which kernels read them."""
    weights = compute_weights(cell, xs.dtype)
    drive = equations.drive(weights, xs)
    return weights, jax.tree.map(lambda x: x.astype(xs.dtype), drive)


def _are_units(tree: Any, cell: Cell, axes: tuple[int, ...]) -> bool:
    """Whether all leaves have one number for each unit."""
    return all(
        jnp.issubdtype(x.dtype, jnp.floating) and x.shape == (*axes, cell.hdim)
        for x in jax.tree.leaves(tree)
    )


def _step(equations: Any, weights: Any, drive: Any, state: State) -> _Step:
    """The step, with the weights that it uses."""
    leaves, structure = jax.tree.flatten(weights)
    step = _Step(equations, structure, tuple(range(len(leaves))))
    drive, state = (
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[-1:], x.dtype), tree)
        for tree in (drive, state)
    )
    used, *_ = _used(step, leaves, state, drive)
    return _Step(equations, structure, used)


def _used(function: Callable[..., Any], *arguments: Any) -> list[tuple[int, ...]]:
    """For each argument, the indices of its leaves that the function reads or returns."""
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    read = {id(x) for equation in jaxpr.eqns for x in equation.invars}
    read |= {id(x) for x in jaxpr.outvars}
    variables = iter(jaxpr.invars)
    return [
        tuple(i for i, _ in enumerate(jax.tree.leaves(each)) if id(next(variables)) in read)
        for each in arguments
    ]
