"""Arrays over time in blocks of equal length, and a scan over the blocks.

Scans over blocks keep what a block computes in the cache of a CPU, and bound the memory of `remat`.
The arrays have the axes `time batch ...`, which the functions at the end convert to and from the
`*batch time ...` of callers.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree


class Blocks(NamedTuple):
    """Arrays over time, in blocks: those of full length, stacked, and the shorter rest after them.

    Either is `None` if it has no steps.
    """

    full: PyTree[Array] | None
    rest: PyTree[Array] | None


def split_blocks(tree: PyTree[Array], length: int) -> Blocks:
    """Cuts the first axis into blocks of the given length."""
    count, rest = divmod(jax.tree.leaves(tree)[0].shape[0], length)
    end = count * length
    full = jax.tree.map(lambda x: x[:end].reshape(count, length, *x.shape[1:]), tree)
    return Blocks(
        full if count else None,
        jax.tree.map(lambda x: x[end:], tree) if rest else None,
    )


def join_blocks(blocks: Blocks) -> PyTree[Array]:
    """Undoes `split_blocks`."""
    full, rest = blocks
    if full is None:
        return rest
    full = jax.tree.map(lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), full)
    if rest is None:
        return full
    return jax.tree.map(lambda x, y: jnp.concatenate([x, y]), full, rest)


def scan_blocks(
    fn: Callable[[Any, Any], tuple[Any, Any]], carry: Any, inputs: Blocks, *, reverse: bool
) -> tuple[Any, Blocks]:
    """`lax.scan` over blocks, with the rest after the full ones, or in reverse before them."""
    full = rest = None
    if reverse and inputs.rest is not None:
        carry, rest = fn(carry, inputs.rest)
    if inputs.full is not None:
        carry, full = lax.scan(fn, carry, inputs.full, reverse=reverse)
    if not reverse and inputs.rest is not None:
        carry, rest = fn(carry, inputs.rest)
    return carry, Blocks(full, rest)


def time_major[Tree: PyTree](tree: Tree, batch_rank: int) -> Tree:
    """From `*batch time ...` to `time batch ...`."""
    return jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), flatten_batch(tree, batch_rank))


def batch_major(x: Array, batch_shape: tuple[int, ...]) -> Array:
    """From `time batch features` to `*batch time features`."""
    return jnp.moveaxis(x, 0, 1).reshape(*batch_shape, x.shape[0], x.shape[-1])


def flatten_batch[Tree: PyTree](tree: Tree, batch_rank: int) -> Tree:
    """From `*batch ...` to `batch ...`."""
    # The size is computed, because -1 is ambiguous in an empty batch.
    return jax.tree.map(
        lambda x: x.reshape(math.prod(x.shape[:batch_rank]), *x.shape[batch_rank:]), tree
    )


def unflatten_batch[Tree: PyTree](tree: Tree, batch_shape: tuple[int, ...]) -> Tree:
    """From `batch ...` to `*batch ...`."""
    return jax.tree.map(lambda x: x.reshape(*batch_shape, *x.shape[1:]), tree)
