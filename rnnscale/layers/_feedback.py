"""`feed_back`, the loop of forecasts, which networks and reservoirs share."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rnnscale._base import State


def feed_back(
    step: Callable[[Array, State], tuple[State, Array]],
    state: State,
    y: Float[Array, "*batch dim"],
    steps: int,
) -> tuple[State, Float[Array, "*batch steps dim"]]:
    """`y` and the outputs that follow if each is the next input: `(state, ys)`.

    **Arguments:**

    - `step`: from `(input, state)` to `(state, output)`.
    - `state`: the state after the step whose output was `y`.
    - `steps`: the number of outputs, including `y`, at least 1.
    """

    def advance(carry: tuple, _: None) -> tuple[tuple, Array]:
        state, y = carry
        state, y = step(y, state)
        return (state, y), y

    (state, _), ys = jax.lax.scan(advance, (state, y), length=steps - 1)
    return state, jnp.moveaxis(jnp.concatenate([y[None], ys]), 0, -2)
