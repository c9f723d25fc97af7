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
    """The derivative of outputs and last state along random directions of all parameters, inputs
    and the state, by the loop's own rule and by central differences of the oracle.

    The figure is that of the better of two directions: a kink, such as that of a relu, can lie
    between the points of one, while a wrong gradient is wrong along any.
    """
    with jax.enable_x64(True):
        moving, still = eqx.partition(_sample(subject, key, "float64"), eqx.is_inexact_array)
        leaves, structure = jax.tree.flatten(moving)
        random = np.random.default_rng(np.asarray(jax.random.key_data(key)))

        def arguments(leaves: list[Any]) -> Any:
            return eqx.combine(jax.tree.unflatten(structure, leaves), still)

        results = _floats(jax.eval_shape(lambda leaves: time_loop(*arguments(leaves)), leaves))
        weights = [random.standard_normal(each.shape) for each in results]

        def weighed(result: Any) -> Any:
            return sum((w * x).sum() for w, x in zip(weights, _floats(result), strict=True))

        def expected(leaves: list[Any]) -> float:
            cell, xs, state = arguments([jnp.asarray(x) for x in leaves])
            return float(weighed(subject.oracle(cell, np.asarray(xs), _numpy(state))))

        gradient = jax.jit(jax.grad(lambda leaves: weighed(time_loop(*arguments(leaves)))))(leaves)
        errors = []
        for _ in range(2):
            direction = [random.standard_normal(leaf.shape) for leaf in leaves]
            slope = sum(np.vdot(*pair) for pair in zip(gradient, direction, strict=True))
            difference = _slope(expected, _numpy(leaves), direction, 1e-5)
            errors.append(relative_error(np.float64(slope), np.float64(difference)))
    return Check("gradient equals the oracle's", min(errors), bound)


def _slope(
    fn: Callable[[list[Any]], float], at: list[Any], direction: list[Any], h: float
) -> float:
    """The derivative along a direction by central differences of fourth order."""

    def shifted(distance: float) -> float:
        return fn([x + distance * v for x, v in zip(at, direction, strict=True)])

    near, far = shifted(h) - shifted(-h), shifted(2 * h) - shifted(-2 * h)
    return (8 * near - far) / (12 * h)


def _floats(tree: Any) -> list[Any]:
    return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]


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
