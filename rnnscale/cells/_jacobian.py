r"""The Jacobian of a step, or a part of it, by forward-mode derivatives with time as a batch axis.

Cells do not write derivatives. A part of the Jacobian is read off products $J v$ with a few
vectors $v$, which are the same at all steps, so that one product gives a column for every step.
Each kind of part belongs to one linear recurrence, and is returned in the form that it needs.

States are lists of arrays "batch time ...", the floating leaves of the state of a cell. The arrays
of a recurrence are called its planes.
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rnnscale.cells._base import Cell, JacobianKind, linear
from rnnscale_kernels import BLOCK, MATRIX, SCAN, RecurrentOp, vary_alike

# The most state variables of a unit that the scan of blocks supports.
_MOST_PLANES = 4

type Leaves = list[Array]
type Step = Callable[[Any, Leaves], Leaves]
"""`(weights, states before the steps) -> states after the steps`, for all steps at once."""


class Jacobian(eqx.Module):
    """A part of the Jacobian.

    - `units`: the number of units of the cell.
    - `independent`: whether units do not see one another.
    """

    units: int = eqx.field(static=True)
    independent: bool = eqx.field(static=True)

    @property
    @abstractmethod
    def op(self) -> RecurrentOp:
        """The linear recurrence."""

    @abstractmethod
    def evaluate(self, step: Step, weights: Any, before: Leaves) -> tuple[Leaves, Any]:
        """`step(weights, before)`, and the part of its Jacobian there."""

    @abstractmethod
    def transpose(self, a: Any) -> Any:
        """The transposed part."""

    @abstractmethod
    def pack(self, leaves: Leaves) -> Any:
        """The planes of the recurrence from the leaves of the state."""

    @abstractmethod
    def unpack(self, planes: Any, like: Leaves) -> Leaves:
        """Undoes `pack`."""

    def _columns(self, step: Step, weights: Any, before: Leaves) -> tuple[Leaves, list[Leaves]]:
        """The states after the steps; and for each leaf of the state before them, the derivatives
        of all leaves with respect to it, within each unit.

        If units do not depend on one another, a product with a vector of ones gives these.
        """
        if not self.independent:
            weights = _without_coupling(weights, self.units)
        after, columns = [], []
        for i, leaf in enumerate(before):

            def along(x: Array, i: int = i) -> Leaves:
                return step(weights, [*before[:i], x, *before[i + 1 :]])

            after, column = jax.jvp(along, (leaf,), (jnp.ones_like(leaf),))
            columns.append(column)
        return after, columns


class Diagonal(Jacobian):
    """The derivative of each number of the state with respect to its own previous value."""

    @property
    def op(self) -> RecurrentOp:
        return SCAN

    def evaluate(self, step: Step, weights: Any, before: Leaves) -> tuple[Leaves, Any]:
        after, columns = self._columns(step, weights, before)
        return after, self.pack([column[i] for i, column in enumerate(columns)])

    def transpose(self, a: Any) -> Any:
        return a

    def pack(self, leaves: Leaves) -> Array:
        return _flat(leaves)

    def unpack(self, planes: Array, like: Leaves) -> Leaves:
        return _unflat(planes, like)


class Block(Jacobian):
    """For each unit, the block between its own state variables."""

    @property
    def op(self) -> RecurrentOp:
        return BLOCK

    def evaluate(self, step: Step, weights: Any, before: Leaves) -> tuple[Leaves, Any]:
        after, columns = self._columns(step, weights, before)
        return after, tuple(zip(*columns, strict=True))

    def transpose(self, a: Any) -> Any:
        return tuple(zip(*a, strict=True))

    def pack(self, leaves: Leaves) -> tuple[Array, ...]:
        return tuple(leaves)

    def unpack(self, planes: tuple[Array, ...], like: Leaves) -> Leaves:
        return list(planes)


class Dense(Jacobian):
    """The full Jacobian."""

    @property
    def op(self) -> RecurrentOp:
        return MATRIX

    def evaluate(self, step: Step, weights: Any, before: Leaves) -> tuple[Leaves, Any]:
        flat = _flat(before)
        size = flat.shape[-1]
        after, push = jax.linearize(partial(step, weights), before)

        def column(direction: Float[Array, " size"]) -> Float[Array, "batch time size"]:
            return _flat(push(_unflat(jnp.broadcast_to(direction, flat.shape), before)))

        directions, _ = vary_alike((jnp.eye(size, dtype=flat.dtype), flat))
        return after, jax.vmap(column, out_axes=-1)(directions)

    def transpose(self, a: Any) -> Any:
        return jnp.swapaxes(a, -1, -2)

    def pack(self, leaves: Leaves) -> Array:
        return _flat(leaves)

    def unpack(self, planes: Array, like: Leaves) -> Leaves:
        return _unflat(planes, like)


def floating_state(cell: Cell) -> list[jax.ShapeDtypeStruct]:
    """The floating leaves of the state of one row."""
    leaves = jax.tree.leaves(eqx.filter_eval_shape(cell.init_state))
    return [x for x in leaves if jnp.issubdtype(x.dtype, jnp.inexact)]


def jacobian_of(kind: JacobianKind, cell: Cell) -> tuple[Jacobian, bool]:
    """The kind of Jacobian for a cell, and whether it is the full Jacobian.

    **Raises:** `ValueError` if the state of the cell has no blocks.
    """
    leaves = floating_state(cell)
    independent = cell.unit_axis == "state"
    if kind == "dense":
        return Dense(cell.hdim, independent), True
    shapes = sorted({x.shape for x in leaves})
    # Planes of blocks have one axis. A single array is no plane, and may have any.
    fits = len(leaves) == 1 or (len(shapes) == 1 and len(shapes[0]) == 1)
    if kind == "block" and not (fits and len(leaves) <= _MOST_PLANES):
        raise ValueError(
            f"Newton: blocks need a state of at most {_MOST_PLANES} arrays of one shape, with one "
            f"number for each unit; {type(cell).__name__} has {len(leaves)}, of shapes {shapes}. "
            'Use the jacobian "diagonal" or "dense".'
        )
    # Several numbers of a unit in one array may depend on one another.
    single = shapes == [(cell.hdim,)]
    exact = independent and single and (kind == "block" or len(leaves) == 1)
    # A block of one number is a diagonal.
    chosen = Block if kind == "block" and len(leaves) > 1 else Diagonal
    return chosen(cell.hdim, independent), exact


def _flat(leaves: Leaves) -> Float[Array, "batch time size"]:
    return jnp.concatenate(
        [x.reshape(*x.shape[:2], math.prod(x.shape[2:])) for x in leaves], axis=-1
    )


def _unflat(flat: Array, like: Leaves) -> Leaves:
    sizes = [math.prod(x.shape[2:]) for x in like]
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
    parts = jnp.split(flat, ends, axis=-1)
    return [part.reshape(x.shape) for part, x in zip(parts, like, strict=True)]


def _without_coupling(weights: Any, units: int) -> Any:
    """The weights with matrices whose products keep their values, but whose derivatives use only
    the diagonals of the matrices, so that a unit depends only on itself.

    Otherwise the product with a vector of ones would give the row sums of a matrix. In a step with
    a product of two matrices, the result is the product of their diagonals, which is not the
    diagonal of the product.
    """

    def replace(leaf: Array) -> Any:
        if leaf.ndim != 2 or not eqx.is_inexact_array(leaf):
            return leaf
        return _UncoupledMatrix(leaf, units)

    return jax.tree.map(replace, weights)


class _UncoupledMatrix(eqx.Module):
    """A linear function for `linear` and `affine`."""

    matrix: Float[Array, "out in"]
    units: int = eqx.field(static=True)

    def __call__(self, x: Float[Array, "*axes in"]) -> Float[Array, "*axes out"]:
        return _uncoupled_product(self.units, self.matrix, x)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _uncoupled_product(units: int, matrix: Array, x: Array) -> Array:
    return linear(matrix, x)


@_uncoupled_product.defjvp
def _uncoupled_product_jvp(units: int, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    matrix, x = primals
    product = linear(matrix, x)
    rows, columns = matrix.shape
    if rows % units or columns % units:
        # For example a factor of a low-rank matrix, which has no diagonal of units.
        return product, jnp.zeros_like(product)
    blocks = matrix.reshape(rows // units, units, columns // units, units)
    diagonals = jnp.einsum("iuju->iju", blocks).astype(product.dtype)
    tangent = tangents[1].reshape(*x.shape[:-1], columns // units, units)
    tangent = jnp.einsum("iju,...ju->...iu", diagonals, tangent.astype(product.dtype))
    return product, tangent.reshape(product.shape)
