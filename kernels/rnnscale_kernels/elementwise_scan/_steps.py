"""One time step of both passes, on arrays of any shape: all implementations call these.

Where a step *starts* a segment, the state before it is `fresh`. Where it is not *valid*, it leaves
the state as it was. A step that starts a segment is valid. `start` and `valid` are booleans that
broadcast to the states, or `None`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def choose(condition: Any, x: Any, y: Any) -> Any:
    """`jnp.where` for trees; a number stands for all leaves."""
    if not isinstance(x, float):
        return jax.tree.map(lambda x, y: jnp.where(condition, x, y), x, y)
    return jax.tree.map(lambda y: jnp.where(condition, x, y), y)


def add(x: Any, y: Any) -> Any:
    return jax.tree.map(jnp.add, x, y)


def advance(step: Callable, weights: Any, fresh: Any, h: Any, start: Any, valid: Any, x: Any):
    """The state after a step, from the state `h` before it."""
    before = h if start is None else choose(start, fresh, h)
    after = step(weights, before, x)
    return after if valid is None else choose(valid, after, h)


def advance_adjoint(
    step: Callable, weights: Any, fresh: Any, g: Any, h: Any, start: Any, valid: Any, x: Any
):
    """`(g_weights, g_fresh, g_h, g_x)`: what a step adds to the cotangents of the weights and of
    `fresh`, and the cotangents of `h` and `x`, for the cotangent `g` of the state after it."""
    before = h if start is None else choose(start, fresh, h)
    _, pull = jax.vjp(step, weights, before, x)
    g_weights, g_h, g_x = pull(g)
    if valid is not None:
        # Selected, and not multiplied: what stands beyond a row's length may be NaN.
        invalid = jnp.logical_not(valid)
        g_weights, g_x = choose(invalid, 0.0, (g_weights, g_x))
        g_h = choose(valid, g_h, g)
    if start is None:
        return g_weights, None, g_h, g_x
    stay = jnp.logical_not(start)
    return g_weights, choose(stay, 0.0, g_h), choose(start, 0.0, g_h), g_x
