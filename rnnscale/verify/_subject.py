"""`CellSubject`, which joins a cell with its paper, and the comparison of the two."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from rnnscale.cells import Cell, time_loop
from rnnscale.layers import RNNEncoder
from rnnscale.verify._check import Check, relative_error
from rnnscale.verify._double import Oracle, directional_derivative, to_double
from rnnscale.verify._laws import call_layer
from rnnscale.verify._probe import build, generator

TIME = 10
"""Steps of a sequence, here and in the laws: with the same shapes they run the same programs."""


def _normal_past(state: Any, random: np.random.Generator) -> Any:
    def randomised(x: Any) -> Any:
        if not eqx.is_inexact_array(x):
            return x
        return x + 0.5 * random.standard_normal(x.shape).astype(x.dtype)

    return jax.tree.map(randomised, state)


@dataclass(frozen=True)
class CellSubject:
    """A cell, and what is needed to check it against its paper.

    **Attributes:**

    - `name`: the name of the class, followed by its variant if it has several.
    - `paper`: authors and year.
    - `build`: makes a small cell from a key.
    - `oracle`: the equations of the paper in NumPy, `oracle(cell, xs, state) -> (state, outputs)`.
        It is given the cell with float64 NumPy arrays in its fields, and must not call its methods.
    - `invariants`: returns the checks of what else the paper promises, from a key.
    - `past`: a random state, `past(initial_state, generator)`, for a cell whose states keep a rule.
        Default: normal numbers are added to those of the initial state.
    """

    name: str
    paper: str
    build: Callable[[PRNGKeyArray], Cell]
    oracle: Oracle
    invariants: Callable[[PRNGKeyArray], list[Check]]
    past: Callable[[Any, np.random.Generator], Any] = _normal_past


def cell_matches_oracle(subject: CellSubject, key: PRNGKeyArray) -> Iterator[Check]:
    """Compares states, outputs and the gradient with the oracle, from a random state.

    The gradient is that of the time loop's own derivative rule, along random directions of all
    parameters, inputs and the state; the oracle's is taken by central differences. The figure is
    the better of two directions: a kink, such as that of a relu, can lie between the points of one,
    while a wrong gradient is wrong along any.
    """
    sample = _sample(subject, key)
    cell, xs, state = sample
    double = to_double(sample)
    expected = subject.oracle(*double)
    got = call_layer(RNNEncoder(cell), xs, state)
    yield Check("equals the oracle in float32", _error(got, expected), 1e-5)

    random = generator(key)
    moving, fixed = eqx.partition(double, eqx.is_inexact_array)
    leaves, structure = jax.tree.flatten(moving)
    weights = [random.standard_normal(x.shape) for x in _floats(expected)]

    def arguments(leaves: list[Any]) -> Any:
        return eqx.combine(jax.tree.unflatten(structure, leaves), fixed)

    def weighted_sum(result: Any) -> Any:
        return sum((w * x).sum() for w, x in zip(weights, _floats(result), strict=True))

    @jax.jit
    def value_and_gradient(leaves: list[Array]) -> tuple[Any, list[Array]]:
        def objective(leaves: list[Array]) -> tuple[Array, Any]:
            result = time_loop(*arguments(leaves))
            return weighted_sum(result), result

        gradient, result = jax.grad(objective, has_aux=True)(leaves)
        return result, gradient

    with jax.enable_x64(True):
        got, gradient = value_and_gradient(leaves)
    yield Check("equals the oracle in float64", _error(got, expected), 1e-10)

    errors = []
    for _ in range(2):
        direction = [random.standard_normal(x.shape) for x in leaves]
        slope = sum(np.vdot(*pair) for pair in zip(gradient, direction, strict=True))
        expected_slope = directional_derivative(
            lambda leaves: float(weighted_sum(subject.oracle(*arguments(leaves)))),
            *(leaves, direction, 1e-5),
        )
        errors.append(relative_error(np.float64(slope), np.float64(expected_slope)))
    yield Check("gradient equals the oracle's", min(errors), 1e-6)


def _sample(subject: CellSubject, key: PRNGKeyArray) -> tuple[Cell, Any, Any]:
    """A cell, a sequence, and a state that is random but for its integers."""
    random = generator(key)
    cell = build(subject.build, key)
    xs = random.standard_normal((TIME, cell.idim)).astype(np.float32)

    return cell, xs, subject.past(jax.device_get(cell.init_state()), random)


def _error(got: Any, expected: Any) -> float:
    return relative_error(jax.tree.leaves(got), jax.tree.leaves(expected))


def _floats(tree: Any) -> list[Any]:
    return jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array))
