"""What the measurements of this package share: the step of a recurrent layer as a map between real
vectors, and the check of a layer, its inputs and its state."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, DTypeLike, Float

from rnnscale._base import SequenceLayer, State, check_features, checked_state, has_step
from rnnscale.cells import Cell, affine, compute_weights
from rnnscale.layers import RNNEncoder

type Recurrent = Cell | SequenceLayer

type Step = Callable[[Array, Any], State]
"""Maps an input and a state to the next state."""


def check_recurrent(
    layer: Recurrent, xs: Any, state: State | None, *, rank: int
) -> tuple[Array, State]:
    """The inputs and the state of a layer as arrays. What is `None` becomes one zero input, or
    `layer.init_state`.

    **Arguments:**

    - `rank`: axes of one row of `xs`: 1 for `idim`, 2 for `time idim`.

    **Raises:** `ValueError` or `TypeError` if `xs` or the state does not fit the layer.
    """
    xs = jnp.zeros(layer.idim) if xs is None else jnp.asarray(xs)
    check_features(layer, xs, layer.idim, rank=rank)
    batch_shape = xs.shape[:-rank]
    if state is None:
        state = layer.init_state(batch_shape, xs.dtype)
    return xs, checked_state(layer, state, batch_shape, xs.dtype)


def step_of(layer: Recurrent, dtype: DTypeLike) -> Step:
    """The step of a cell or a causal layer for inputs of a dtype. What a cell computes from its
    parameters alone, such as a matrix exponential, is computed here, once.

    **Raises:** `TypeError` if the layer looks ahead.
    """
    if isinstance(layer, RNNEncoder):
        layer = layer.cell
    if isinstance(layer, Cell):
        weights = compute_weights(layer, dtype)
        return lambda x, state: layer.advance(weights, layer.drive(weights, x), state, affine)
    if has_step(layer):
        return lambda x, state: layer.step(x, state)[0]
    raise TypeError(
        f"{type(layer).__name__} looks ahead, so there is no step from a state to the next: give "
        "the part of it that runs in one direction, such as its `forward`."
    )


def as_vector(state: State) -> tuple[Float[Array, "units"], Callable[[Array], State]]:
    """The floating entries of a state as one vector, and the inverse map. A complex unit, stored as
    two real planes, has two entries; integers, such as a clock, have none."""
    floating, rest = eqx.partition(state, eqx.is_inexact_array)
    vector, unravel = ravel_pytree(floating)
    return vector, lambda vector: eqx.combine(unravel(vector), rest)


def on_vectors(step: Step, x: Array, state: State) -> Callable[[Array], Array]:
    """The step under the input `x` as a map of state vectors, for states like `state`."""
    _, unravel = as_vector(state)
    return lambda vector: as_vector(step(x, unravel(vector)))[0]
