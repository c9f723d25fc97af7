"""Linear attention as a differentiable operation.

Canonical arguments (`batch` is any number of axes):

- `query`, `key`: "*batch time group key" or "*batch time head key", at least one of them with one
    head for each group; the number of groups divides that of heads;
- `value`: "*batch time head value";
- `log_decay`: "*batch time head" or "*batch time head key", or `None`; finite;
- `erase`: "*batch time group key" or "*batch time head key", or `None`;
- `h0`: "*batch head key value", in the carry's dtype;
- `cut`: "*batch time" booleans, or `None`: true where the state before the step is dropped.

Time runs in processing order: the public function reverses the sequence if need be. The residual is
the state that enters each chunk of `chunk` steps, "chunk *batch head key value".
"""

import jax
import jax.numpy as jnp

from .._operation import Operation, mapped_size
from . import _chunks
from ._chunked import PASSES
from ._implementations import DISPATCH


def _shapes(primals, *, chunk, implementation):
    _, _, value, _, _, h0, _ = primals
    time = value.shape[h0.ndim - 3]
    y, h_last = (jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (value, h0))
    count = _chunks.chunk_count(time, chunk)
    return (y, h_last), jax.ShapeDtypeStruct((count, *h0.shape), h0.dtype)


def _tangent(primals, outputs, tangents, *, chunk, implementation):
    *arrays, cut = primals

    def public(*arrays):
        return _chunks.forward(PASSES, (*arrays, cut), chunk=chunk)[0]

    return jax.jvp(public, arrays, list(tangents[:-1]))[1]


def _transpose(primals, outputs, cotangents, *, chunk, implementation):
    # Residuals have no tangents, so that derivatives of this definition need the states again.
    outputs = _chunks.forward(PASSES, primals, chunk=chunk)
    return _chunks.transpose(PASSES, primals, outputs, cotangents, chunk=chunk)


def _batch(stage, arguments, mapped, **static):
    """The mapped axis becomes another batch axis."""
    size = mapped_size(arguments, mapped)

    def spread(x, is_mapped):
        return x if is_mapped else jnp.broadcast_to(x, (size, *x.shape))

    arguments = list(jax.tree.map(spread, arguments, mapped))
    # The states that enter the chunks have the axis of chunks in front of the batch.
    if stage == "forward":
        public, borders = operation.forward(*arguments, **static)
        return public, jnp.moveaxis(borders, 1, 0)
    public, borders = arguments[1]
    arguments[1] = public, jnp.moveaxis(borders, 0, 1)
    return operation.bind(stage, *arguments, **static)


operation = Operation(
    "linear_attention", shapes=_shapes, tangent=_tangent, transpose=_transpose, batch=_batch
)
operation.lower(DISPATCH.run(lambda x: x.forward), DISPATCH.run(lambda x: x.transpose))
