"""One step of any recurrence, as a map between real vectors."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, DTypeLike, Float

from rnnscale._base import SequenceLayer, State
from rnnscale.cells import Cell, affine, compute_weights
from rnnscale.layers import RNNEncoder

type Recurrent = Cell | SequenceLayer

type Step = Callable[[Array, Any], State]
"""From an input and a state to the state after it."""


def step_of(layer: Recurrent, dtype: DTypeLike) -> Step:
    """The step of a cell or a causal layer for inputs of a dtype. What a cell makes of its
    parameters, such as a matrix exponential, is made here, once.

    **Raises:** `TypeError` for anything else.
    """
    cell = layer.cell if isinstance(layer, RNNEncoder) else layer
    if isinstance(cell, Cell):
        weights = compute_weights(cell, dtype)
        return lambda x, state: cell.advance(weights, cell.drive(weights, x), state, affine)
    if isinstance(layer, SequenceLayer) and layer.causal:
        return lambda x, state: layer.step(x, state)[0]  # pyright: ignore[reportAttributeAccessIssue]
    name = type(layer).__name__
    if isinstance(layer, SequenceLayer):
        raise TypeError(
            f"{name} looks ahead, so there is no step from a state to the next: give the part of "
            "it that runs in one direction, such as its `forward`."
        )
    raise TypeError(f"expected a rnnscale cell or sequence layer; got {name}.")


def as_vector(state: State) -> tuple[Float[Array, "units"], Callable[[Array], State]]:
    """The floating entries of a state as one vector, and the way back. A complex state, which is
    two planes, has two entries a unit; integers, such as a clock, are not among them."""
    floating, rest = eqx.partition(state, eqx.is_inexact_array)
    vector, unravel = ravel_pytree(floating)
    return vector, lambda vector: eqx.combine(unravel(vector), rest)


def on_vectors(step: Step, x: Array, state: State) -> Callable[[Array], Array]:
    """A step under the input `x` as a map of state vectors, for states like `state`."""
    _, unravel = as_vector(state)
    return lambda vector: as_vector(step(x, unravel(vector)))[0]
