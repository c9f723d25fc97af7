"""What every cell must do: agree with its paper, step by step and in its derivative."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray
from numpy.typing import NDArray

from rnnscale.cells import Cell, time_loop
from rnnscale.verify._check import Check, relative_error

type Oracle = Callable[[Any, NDArray[np.float64], Any], tuple[Any, NDArray[np.float64]]]


@dataclass(frozen=True)
class CellSubject:
    """A cell, and how it is shown to be what its paper says.

    **Attributes:**

    - `name`: that of the class, with its variant.
    - `paper`: authors and year.
    - `build`: a small cell from a key.
    - `oracle`: `(cell, x, state)` to `(last state, outputs)` in double precision, for one sequence
        `x` of shape `(time, idim)`; states are those of the cell, as NumPy arrays.
    - `invariants`: the checks of what else the paper promises, from a key.
    """

    name: str
    paper: str
    build: Callable[[PRNGKeyArray], Cell]
    oracle: Oracle
    invariants: Callable[[PRNGKeyArray], list[Check]]


def cell_matches_oracle(subject: CellSubject, key: PRNGKeyArray) -> Iterator[Check]:
    """States and outputs along a sequence, from a random state, in both precisions."""
    for dtype, bound in (("float64", 1e-10), ("float32", 1e-5)):
        with jax.enable_x64(dtype == "float64"):
            cell, xs, state = _sample(subject, key, dtype)
            got = eqx.filter_jit(time_loop)(cell, xs, state)
            expected = subject.oracle(cell, np.asarray(xs, np.float64), _numpy(state))
            error = relative_error(jax.tree.leaves(got), jax.tree.leaves(expected))
        yield Check(f"equals the oracle in {dtype}", error, bound)


def cell_gradient_matches_oracle(
    subject: CellSubject, key: PRNGKeyArray, bound: float = 1e-6
) -> Check:
    """The derivative of outputs and last state along a random direction of all parameters, inputs
    and the state, by the loop's own rule and by central differences of the oracle."""
    with jax.enable_x64(True):
        arguments = _sample(subject, key, "float64")
        moving, still = eqx.partition(arguments, eqx.is_inexact_array)
        leaves, structure = jax.tree.flatten(moving)
        random = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        direction = [random.standard_normal(leaf.shape) for leaf in leaves]
        weights: list[Any] = []

        def weighed(result: Any) -> Any:
            floats = [x for x in jax.tree.leaves(result) if jnp.issubdtype(x.dtype, jnp.inexact)]
            while len(weights) < len(floats):
                weights.append(random.standard_normal(floats[len(weights)].shape))
            return sum((w * x).sum() for w, x in zip(weights, floats, strict=True))

        @jax.jit
        @jax.grad
        def gradient(leaves: list[Array]) -> Array:
            return weighed(time_loop(*eqx.combine(jax.tree.unflatten(structure, leaves), still)))

        slope = sum(np.vdot(*pair) for pair in zip(gradient(leaves), direction, strict=True))

        def shifted(distance: float) -> float:
            moved = [np.asarray(x) + distance * v for x, v in zip(leaves, direction, strict=True)]
            moved = jax.tree.map(jnp.asarray, moved)
            cell, xs, state = eqx.combine(jax.tree.unflatten(structure, moved), still)
            return float(weighed(subject.oracle(cell, np.asarray(xs), _numpy(state))))

        h = 1e-4
        near, far = shifted(h) - shifted(-h), shifted(2 * h) - shifted(-2 * h)
        expected = (8 * near - far) / (12 * h)
    error = relative_error(np.float64(slope), np.float64(expected))
    return Check("gradient equals the oracle's", error, bound)


def _sample(subject: CellSubject, key: PRNGKeyArray, dtype: str) -> tuple[Cell, Array, Any]:
    """The cell, a sequence, and a state, of which integers are as at the start."""
    cell_key, xs_key, state_key = jax.random.split(key, 3)
    cell = subject.build(cell_key)

    def cast(x):
        return x.astype(dtype) if eqx.is_inexact_array(x) else x

    cell = jax.tree.map(cast, cell)
    xs = jax.random.normal(xs_key, (12, cell.idim), dtype)
    state = cell.init_state((), dtype)
    leaves, structure = jax.tree.flatten(state)
    keys = jax.random.split(state_key, len(leaves))
    leaves = [
        x + 0.5 * jax.random.normal(key, x.shape, x.dtype) if eqx.is_inexact_array(x) else x
        for key, x in zip(keys, leaves, strict=True)
    ]
    return cell, xs, jax.tree.unflatten(structure, leaves)


def _numpy(tree: Any) -> Any:
    return jax.tree.map(np.asarray, tree)
