"""The solve of a chunk, by the inverse of its triangular matrix.

Triangular solves of XLA work on one row after another, and on CPUs they start threads for each of
the small matrices. The inverse is nearly all products of matrices, of all heads at the same time.
Its entries are small if keys have length one and nothing is erased more than twice: those of
(I + M)^-1 are e_t^T (a product of contractions) k_s.
"""

import jax.numpy as jnp
from jax import Array, lax

from ._chunks import matmul

# Rows that are substituted one after another.
_ROWS = 8


def solve(below: Array, x: Array) -> Array:
    """U with U + M U = x, where M is `below`, zero but below the diagonal."""
    inverse = _inverse(lax.stop_gradient(below))
    return lax.custom_linear_solve(
        lambda u: u + matmul(below, u),
        x,
        solve=lambda _, b: matmul(inverse, b),
        transpose_solve=lambda _, b: matmul(jnp.swapaxes(inverse, -1, -2), b),
    )


def _inverse(below: Array) -> Array:
    """(I + M)^-1."""
    size = below.shape[-1]
    rows, doublings = min(size, _ROWS), 0
    while rows << doublings < size:
        doublings += 1
    missing = (rows << doublings) - size
    below = jnp.pad(below, [(0, 0)] * (below.ndim - 2) + [(0, missing)] * 2)
    inverse = _substitute(_blocks(below, rows, 0))
    for _ in range(doublings):
        # The inverse of a matrix with the blocks (A, 0) and (B, C), I included in A and C, has the
        # blocks (A^-1, 0) and (-C^-1 B A^-1, C^-1).
        first, second = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
        between = _blocks(below, first.shape[-1], 1)
        between = -matmul(second, matmul(between, first))
        top = jnp.concatenate([first, jnp.zeros_like(between)], -1)
        inverse = jnp.concatenate([top, jnp.concatenate([between, second], -1)], -2)
    return inverse[..., 0, :size, :size]


def _blocks(x: Array, size: int, row: int) -> Array:
    """The square blocks of this size on the diagonal of `x`; or, if `row` is 1, those below the
    diagonal in each square of two by two blocks. "*batch block size size"."""
    starts = range(0, x.shape[-1], size << row)
    at = [x[..., i + row * size : i + (row + 1) * size, i : i + size] for i in starts]
    return jnp.stack(at, -3)


def _substitute(below: Array) -> Array:
    """(I + M)^-1, by forward substitution."""
    size = below.shape[-1]
    axis = below.ndim - 2

    def step(t, inverse):
        row = lax.dynamic_slice_in_dim(below, t, 1, axis)
        known = jnp.sum(jnp.swapaxes(row, -1, -2) * inverse, -2, keepdims=True)
        row = lax.dynamic_slice_in_dim(inverse, t, 1, axis) - known
        return lax.dynamic_update_slice_in_dim(inverse, row, t, axis)

    identity = jnp.broadcast_to(jnp.eye(size, dtype=below.dtype), below.shape)
    return lax.fori_loop(1, size, step, identity)
