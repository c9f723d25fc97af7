"""What the invariants share: build a cell, change its arrays, run it, differentiate it.

Cells and random numbers are NumPy arrays here. Slicing or changing a JAX array outside of `jit`
compiles a program for every shape, which would take most of the time of the checks.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree
from numpy.typing import ArrayLike, NDArray

from rnnscale.cells import Cell, ElmanRNNCell
from rnnscale.verify._double import Doubles

OPEN = 50.0
"""A gate with this bias is open to the last bit, and one with minus this bias is shut."""


def build[T](make: Callable[[PRNGKeyArray], T], key: PRNGKeyArray) -> T:
    """Returns `make(key)` with NumPy arrays, computed by one program."""
    # Drawing parameters is the largest program of a suite, and its speed does not matter.
    options = {"xla_backend_optimization_level": 0}
    return jax.device_get(jax.jit(make, compiler_options=options)(key))


def generator(key: PRNGKeyArray) -> np.random.Generator:
    """Returns the NumPy generator that a key seeds."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))


def draw(key: PRNGKeyArray, *shapes: tuple[int, ...]) -> list[Any]:
    """Standard normal NumPy arrays: float64 under `jax.enable_x64`, otherwise float32."""
    random = generator(key)
    dtype = jax.dtypes.canonicalize_dtype(np.float64)
    return [random.standard_normal(shape).astype(dtype) for shape in shapes]


def with_arrays[C](cell: C, **arrays: Any) -> C:
    """Returns the cell with other arrays in the named fields, in the dtypes of the present ones."""
    return eqx.tree_at(
        lambda cell: [getattr(cell, name) for name in arrays],
        cell,
        [np.asarray(x, getattr(cell, name).dtype) for name, x in arrays.items()],
    )


def with_entry(array: Any, index: Any, value: Any) -> NDArray:
    """Returns a copy of the array with another value at an index."""
    array = np.array(array)
    array[index] = value
    return array


def with_normal[C](cell: C, key: PRNGKeyArray, **stds: float) -> C:
    """Returns the cell with normal arrays of the given standard deviations in the named fields.

    Builders of subjects use it, whose key may be traced, for arrays that a paper starts at zero, or
    so small that they would not show.
    """
    keys = jax.random.split(jax.random.fold_in(key, 1), len(stds))
    return eqx.tree_at(
        lambda cell: [getattr(cell, name) for name in stds],
        cell,
        [
            std * jax.random.normal(key, getattr(cell, name).shape, jnp.float32)
            for key, (name, std) in zip(keys, stds.items(), strict=True)
        ],
    )


def elman_with_arrays_of(cell: Any, **others: Any) -> ElmanRNNCell:
    """Returns Elman's network with the matrices and the bias of another cell, or with others."""
    key = jax.random.key(0)
    elman = jax.eval_shape(lambda key: ElmanRNNCell(cell.idim, cell.hdim, key=key), key)
    arrays = {"recurrent": cell.recurrent, "input": cell.input, "bias": cell.bias} | others
    return with_arrays(elman, **arrays)


@eqx.filter_jit
def fold_steps(cell: Cell, xs: Any, state: Any) -> tuple[Any, Array]:
    """Folds single steps of the cell over a sequence: `(last state, outputs)`."""
    return jax.lax.scan(lambda state, x: cell(x, state), state, xs)


def run_steps(cell: Cell, xs: Any, state: Any) -> Any:
    """Returns `fold_steps(cell, xs, state)` as NumPy arrays."""
    return jax.device_get(fold_steps(cell, xs, state))


def jacobian(fn: Callable[[Array], Array], x: Any) -> Doubles:
    """The Jacobian of `fn` at `x`, as a float64 NumPy array."""
    return np.asarray(jax.jit(jax.jacfwd(fn))(jnp.asarray(x)), np.float64)


def largest(x: ArrayLike | PyTree) -> float:
    """The largest magnitude in an array."""
    return float(np.max(np.abs(x)))
