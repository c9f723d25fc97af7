"""The weights of a cell as a loop over time uses them: matrices stored in both layouts.

On a CPU a product with a transposed matrix takes half as long again, so no step should transpose.
A `Matrix` has the one layout that products in the forward pass use, and the other for the products
with cotangents. The gradient is taken by the forward layout and transposed once, after the loop.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from rnnscale.cells._base import Matrix


def lay_out(weights: Any) -> Any:
    """Returns the weights with a `Matrix` for every floating matrix."""

    def matrix(leaf: Array) -> Array | Matrix:
        if leaf.ndim != 2 or not eqx.is_inexact_array(leaf):
            return leaf
        # The barrier keeps the compiler from folding the transpose back into the products.
        return Matrix(*lax.optimization_barrier((leaf.T, leaf)))

    return jax.tree.map(matrix, weights)


def floating_leaves(laid_out: Any) -> tuple[list[Array], Callable[[list[Array]], Any]]:
    """The floating arrays of weights from `lay_out`, with respect to which a gradient is taken; a
    `Matrix` is represented by its forward layout. Also returns a function that rebuilds the weights
    from other such arrays."""
    leaves, structure = jax.tree.flatten(laid_out, is_leaf=_is_matrix)
    chosen = [
        i for i, x in enumerate(leaves) if _is_matrix(x) or jnp.issubdtype(x.dtype, jnp.inexact)
    ]

    def rebuild(arrays: list[Array]) -> Any:
        changed = list(leaves)
        for i, new in zip(chosen, arrays, strict=True):
            old = leaves[i]
            changed[i] = Matrix(new, old.backward) if _is_matrix(old) else new
        return jax.tree.unflatten(structure, changed)

    return [leaves[i].forward if _is_matrix(leaves[i]) else leaves[i] for i in chosen], rebuild


def as_gradient_of(weights: Any, sums: list[Array]) -> Any:
    """Turns gradients with respect to `floating_leaves` into gradients of the original weights."""
    remaining = iter(sums)

    def gradient(leaf: Array) -> Array | None:
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return None
        total = next(remaining).astype(leaf.dtype)
        return total.T if leaf.ndim == 2 else total

    return jax.tree.map(gradient, weights)


def _is_matrix(x: Any) -> bool:
    return isinstance(x, Matrix)
