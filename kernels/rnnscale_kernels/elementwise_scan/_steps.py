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
    """`jnp.where` for trees."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), x, y)


def keep(condition: Any, x: Any) -> Any:
    """The tree where the condition holds, and zero elsewhere."""
    return jax.tree.map(lambda x: jnp.where(condition, x, 0.0), x)


def drop(condition: Any, x: Any) -> Any:
    """The tree with zero where the condition holds."""
    return jax.tree.map(lambda x: jnp.where(condition, 0.0, x), x)


def add(x: Any, y: Any) -> Any:
    """The sum of two trees. `None` in `y` is zero."""
    return jax.tree.map(lambda x, y: x if y is None else x + y, x, y)


def parted(h: Any, returned: tuple[int, ...]) -> tuple[Any, Any]:
    """The states that are returned and the others, each as a tree with `None` in the place of what
    it lacks."""
    leaves, structure = jax.tree.flatten(h)
    public = [x if i in returned else None for i, x in enumerate(leaves)]
    rest = [None if i in returned else x for i, x in enumerate(leaves)]
    return jax.tree.unflatten(structure, public), jax.tree.unflatten(structure, rest)


def joined(public: Any, rest: Any, like: Any) -> Any:
    """The inverse of `parted`, for states of the structure of `like`."""
    return jax.tree.map(lambda _, x, y: y if x is None else x, like, public, rest)


def advance(step: Callable, weights: Any, fresh: Any, h: Any, start: Any, valid: Any, x: Any):
    """The state after a step, from the state `h` before it."""
    before = h if start is None else choose(start, fresh, h)
    after = step(weights, before, x)
    return after if valid is None else choose(valid, after, h)


def pullback(step: Callable) -> Callable:
    """The function `(g_weights, g_h, g_x) = pull(weights, h, x, g)`, for the cotangent `g` of the
    state after a step."""

    def pull(weights, h, x, g):
        return jax.vjp(step, weights, h, x)[1](g)

    return pull


def advance_adjoint(
    pull: Callable, weights: Any, fresh: Any, g: Any, h: Any, start: Any, valid: Any, x: Any
):
    """`(g_weights, g_fresh, g_h, g_x)`: what a step adds to the cotangents of the weights and of
    `fresh`, and the cotangents of `h` and `x`, for the cotangent `g` of the state after it."""
    before = h if start is None else choose(start, fresh, h)
    g_weights, g_h, g_x = pull(weights, before, x, g)
    if valid is not None:
        # Selected, and not multiplied: what stands beyond a row's length may be NaN.
        g_weights, g_x = keep(valid, (g_weights, g_x))
        g_h = choose(valid, g_h, g)
    if start is None:
        return g_weights, None, g_h, g_x
    return g_weights, keep(start, g_h), drop(start, g_h), g_x
