"""The linear part of a state-space layer as a differentiable operation.

Canonical arguments (`batch` is any number of axes):

- `u`: `batch time idim`; `decay`: `state`; `b`: `state idim`; `c`: `odim state`;
- `h0`: `batch state`, in the carry's dtype;
- `cut`: `batch time` booleans, or `None`; `lengths`: `batch` integers, or `None`.

Time runs in processing order: the public function reverses the sequence if need be. The residual is
the state that enters each chunk of `chunk` steps.
"""

from functools import partial

import jax
import jax.numpy as jnp

from .._operation import Operation, Reduction, mapped_size, one_by_one
from . import _unfused
from ._implementations import DISPATCH


def _shapes(primals, *, chunk, implementation):
    u, _, _, c, h0, _, _ = primals
    *batch, time, _ = u.shape
    chunks = -(-time // chunk)
    y = jax.ShapeDtypeStruct((*batch, time, c.shape[0]), u.dtype)
    h_last = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), h0)
    borders = jax.tree.map(lambda x: jax.ShapeDtypeStruct((chunks, *x.shape), x.dtype), h0)
    return (y, h_last), borders


def _batch(stage, arguments, mapped, **static):
    """The mapped axis becomes another batch axis if all its elements share the weights.

    If every element has its own weights, or is to get its own gradients of them, there is no common
    product. Then the unfused definition is mapped, or, if another implementation is named, that one
    takes the elements one after another.
    """
    weights_mapped = [mapped[0][1:4], mapped[2][1:4] if stage == "tangent" else None]
    if stage == "transpose" or any(jax.tree.leaves(weights_mapped)):
        if static["implementation"] not in (None, "unfused") and stage != "tangent":
            return one_by_one(partial(operation.bind, stage, **static), arguments, mapped)
        define = {
            "forward": _unfused.forward,
            "tangent": _unfused.tangent,
            "transpose": _unfused.transpose,
        }[stage]
        axes = jax.tree.map(lambda is_mapped: 0 if is_mapped else None, mapped)
        return jax.vmap(partial(define, **static), in_axes=axes)(*arguments)
    size = mapped_size(arguments, mapped)

    def spread(x, is_mapped):
        return x if is_mapped else jnp.broadcast_to(x, (size, *x.shape))

    def spread_rows(values, is_mapped):
        """Everything but the weights, with the axis."""
        return tuple(
            x if 1 <= i <= 3 else jax.tree.map(spread, x, m)
            for i, (x, m) in enumerate(zip(values, is_mapped, strict=True))
        )

    # Borders have the axis of chunks in front of the batch.
    primals = spread_rows(arguments[0], mapped[0])
    if stage == "forward":
        public, borders = operation.forward(primals, **static)
        return public, jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), borders)
    public, borders = jax.tree.map(spread, arguments[1], mapped[1])
    borders = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), borders)
    tangents = spread_rows(arguments[2], mapped[2])
    return operation.tangent(primals, (public, borders), tangents, **static)


operation = Operation(
    "diagonal_ssm",
    shapes=_shapes,
    tangent=_unfused.tangent,
    transpose=_unfused.transpose,
    batch=_batch,
)
operation.lower(DISPATCH.run(lambda x: x.forward), DISPATCH.run(lambda x: x.transpose))


def _totals(primals, *, target=None, **static):
    """The state that leaves each row when a state of zero enters it."""
    *values, h0, cut, lengths = primals
    primals = *values, jax.tree.map(jnp.zeros_like, h0), cut, lengths
    (_, end), _ = operation.forward(primals, **static)
    return end


def _transpose_totals(primals, g, *, chunk, target=None, **static):
    """The gradient of `h0` when only the cotangents `g` of the outputs enter the backward pass."""
    # It depends on no state, so zeros stand for the outputs of the forward pass.
    *_, h0, _, _ = primals
    chunks = -(-g.shape[-2] // chunk)
    borders = jax.tree.map(lambda x: jnp.zeros((chunks, *x.shape), x.dtype), h0)
    empty = jax.tree.map(jnp.zeros_like, h0)
    outputs, cotangents = ((g, empty), borders), (g, empty)
    return operation.transpose(primals, outputs, cotangents, chunk=chunk, **static)[4]


totals = Reduction("diagonal_ssm_totals", _totals)
totals.lower(DISPATCH.run(lambda x: x.totals or partial(_totals, implementation=x.name)))
transpose_totals = Reduction("diagonal_ssm_transpose_totals", _transpose_totals)
transpose_totals.lower(
    DISPATCH.run(lambda x: x.transpose_totals or partial(_transpose_totals, implementation=x.name))
)
