"""Operations on the trees of arrays that loops over time carry."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree


def where[Tree: PyTree](condition: Bool[Array, "*axes"], x: Tree, y: Tree) -> Tree:
    """`jnp.where` with a condition on the leading axes of every leaf."""

    def choose(x: Array, y: Array) -> Array:
        axes = condition.shape + (1,) * (y.ndim - condition.ndim)
        return jnp.where(condition.reshape(axes), x, y)

    return jax.tree.map(choose, x, y)


def floats(tree: PyTree[Array]) -> PyTree[Array]:
    """The tree with `None` in place of its integer leaves."""
    return eqx.filter(tree, eqx.is_inexact_array)


def inner(xs: PyTree[Array], ys: PyTree[Array]) -> Any:
    """The inner product of two trees."""
    pairs = zip(jax.tree.leaves(xs), jax.tree.leaves(ys), strict=True)
    return sum(jnp.sum(x * y) for x, y in pairs)
