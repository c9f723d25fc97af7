"""The steps of a cell with one recurrent matrix, as a recurrence whose kernels keep it on chip.

The kernels of `persistent_rnn` compute the products, and call the cell's own `advance` for each
unit and step, so no cell has code of its own here.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from rnnscale import sharding
from rnnscale._base import State, zero_padding
from rnnscale.cells._base import Cell, Map, affine, compute_weights


class _Resident:
    """The recurrent matrix, of which the kernels have already computed the product."""


class _RecurrentOnly:
    """The weights as `advance` sees them, which may use `recurrent` only."""

    recurrent = _Resident()

    def __getattr__(self, name: str) -> NoReturn:
        raise TypeError(
            f"advance of a cell with one_product uses weights.{name}, but it can use "
            "weights.recurrent only: pass what else it needs in the drive, or set one_product=False"
        )


@dataclass(frozen=True)
class _Step:
    """`advance` as the step of `persistent_rnn`, for one unit.

    - `cell`: the cell without its arrays.
    - `state`, `drive`: the structures of its state and its drive.
    - `sizes`: for each array of the drive, the numbers that a unit has in it.
    - `driven`: the array of the drive to which the product is added; the others are extras.
    """

    cell: Any = field(hash=False)
    state: Any = field(hash=False)
    drive: Any = field(hash=False)
    sizes: tuple[int, ...]
    driven: int

    def __call__(self, before: tuple, gates: Array, extras: Array) -> tuple:
        parts = iter(_split(extras, self._extra_sizes))
        drive = [gates if i == self.driven else next(parts) for i in range(len(self.sizes))]

        def with_product(plus: Any, weight: Map, h: Any) -> Any:
            # The gates are the array of the drive with the product added.
            return plus if isinstance(weight, _Resident) else affine(plus, weight, h)

        state, drive = self.state.unflatten(before), self.drive.unflatten(drive)
        after = self.cell.advance(_RecurrentOnly(), drive, state, with_product)
        return tuple(jax.tree.leaves(after))

    @property
    def _extra_sizes(self) -> tuple[int, ...]:
        return tuple(n for i, n in enumerate(self.sizes) if i != self.driven)


def persistent_run(
    cell: Cell,
    xs: Array,
    state: State,
    reset: Array | None,
    lengths: Array | None,
    *,
    reverse: bool,
    remat: bool,
    implementation: str | None = None,
) -> Callable[[], tuple[State, Array]] | None:
    """A function that runs the steps of a cell by `persistent_rnn` and returns the results of
    `time_loop`; `None` if the cell does not have `one_product`, for inputs of more than 16 bits,
    which no kernel takes, and with `remat`, since the op keeps the states of all steps.

    The arguments are those of `time_loop`, and the `implementation` of the op.
    """
    if not cell.one_product or remat or jnp.dtype(xs.dtype).itemsize != 2:
        return None
    _, equations = eqx.partition(cell, eqx.is_array)
    drive = jax.eval_shape(partial(_inputs, equations), cell, xs)[1]
    leaves, structure = jax.tree.flatten(drive)
    sizes = tuple(x.shape[-1] // cell.hdim for x in leaves)
    driven = _driven(equations, drive, state)
    step = _Step(equations, jax.tree.structure(state), structure, sizes, driven)

    def run() -> tuple[State, Array]:
        gathered = sharding.gathered(cell)
        matrix, drive = _inputs(equations, gathered, xs)
        drive = [
            x.reshape(*x.shape[:-1], size, cell.hdim)
            for x, size in zip(jax.tree.leaves(drive), sizes, strict=True)
        ]
        gates = drive.pop(driven)
        fresh = None if reset is None else cell.init_state(xs.shape[:-2], xs.dtype)
        hs, last = sharding.persistent_rnn(
            step, matrix.reshape(-1, cell.hdim, cell.hdim), gates, tuple(jax.tree.leaves(state)),
            extras=jnp.concatenate(drive, -2) if drive else None,
            fresh=None if fresh is None else tuple(jax.tree.leaves(fresh)),
            reset=reset, lengths=lengths, reverse=reverse, implementation=implementation,
        )  # fmt: skip
        return step.state.unflatten(last), zero_padding(hs, lengths)

    return run


def _inputs(equations: Any, cell: Cell, xs: Array) -> tuple[Array, Any]:
    """The matrix, and the drives of all steps in the dtype of `xs`, in which kernels read them."""
    weights: Any = compute_weights(cell, xs.dtype)
    drive = equations.drive(weights, xs)
    return weights.recurrent, jax.tree.map(lambda x: x.astype(xs.dtype), drive)


def _driven(equations: Any, drive: Any, state: State) -> int:
    """The index of the array of the drive to which the product is added."""
    found = []

    def run(drive: Any, state: State) -> State:
        leaves = jax.tree.leaves(drive)

        def recorded(plus: Any, weight: Map, h: Any) -> Any:
            if not isinstance(weight, _Resident):
                return affine(plus, weight, h)
            found.extend(i for i, x in enumerate(leaves) if x is plus)
            return plus

        return equations.advance(_RecurrentOnly(), drive, state, recorded)

    one_step = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[-1:], x.dtype), (drive, state))
    jax.eval_shape(run, *one_step)
    if len(found) != 1:
        raise TypeError(
            f"{type(equations).__name__} has one_product, so its advance must add one product of "
            f"weights.recurrent to an array of the drive; it did so {len(found)} times"
        )
    return found[0]


def _split(x: Array, sizes: tuple[int, ...]) -> list[Array]:
    ends = [sum(sizes[: n + 1]) for n in range(len(sizes))]
    return [x[end - size : end] for size, end in zip(sizes, ends, strict=True)]
