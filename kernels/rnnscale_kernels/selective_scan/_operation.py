"""The selective scan as a differentiable operation.

Canonical arguments (`batch` is any number of axes):

- `u`, `delta`: `batch time channel`;
- `a`: `batch channel modes`, where any batch axis may have size 1;
- `b`, `c`: `batch time modes`;
- `h0`: `batch state`, where a state is all modes of the first channel, then those of the second and
  so on; in the dtype of the states;
- `cut`: `batch time` booleans, or `None`.

Time runs in processing order: the public function reverses the sequence if need be. The residual
is the state that enters each chunk of `chunk` steps, `chunk batch state`, whose numbers are in an
order that only the implementation knows.
"""

from functools import partial

import jax
import jax.numpy as jnp

from .._operation import Operation, Reduction, mapped_size
from . import _expanded
from ._implementations import DISPATCH


def _shapes(primals, *, chunk, implementation):
    u, *_, h0, _ = primals
    like = jax.ShapeDtypeStruct
    borders = like((-(-u.shape[-2] // chunk), *h0.shape), h0.dtype)
    return (like(u.shape, u.dtype), like(h0.shape, h0.dtype)), borders


def _batch(stage, arguments, mapped, **static):
    """The mapped axis becomes another batch axis.

    An `a` that is not mapped has size 1 along it, except in the backward pass, where its gradient
    would then be summed over the axis.
    """
    size = mapped_size(arguments, mapped)

    def spread(x, is_mapped):
        return x if is_mapped else jnp.broadcast_to(x, (size, *x.shape))

    spread_arguments = list(jax.tree.map(spread, arguments, mapped))
    with_a = {"forward": [0], "tangent": [0, 2], "transpose": []}[stage]
    if not any(mapped[i][2] for i in with_a):
        for i in with_a:
            u, delta, _, *rest = spread_arguments[i]
            spread_arguments[i] = (u, delta, arguments[i][2][None], *rest)
    # Borders have the axis of chunks in front of the batch.
    if stage == "forward":
        public, borders = operation.forward(*spread_arguments, **static)
        return public, jnp.moveaxis(borders, 1, 0)
    public, borders = spread_arguments[1]
    spread_arguments[1] = public, jnp.moveaxis(borders, 0, 1)
    return operation.bind(stage, *spread_arguments, **static)


operation = Operation(
    "selective_scan",
    shapes=_shapes,
    tangent=_expanded.tangent,
    transpose=_expanded.transpose,
    batch=_batch,
)
operation.lower(DISPATCH.run(lambda x: x.forward), DISPATCH.run(lambda x: x.transpose))


def _totals(primals, *, target=None, **static):
    """The decay of each row's steps together, and the state that leaves it when zero enters."""
    u, delta, a, b, c, h0, cut = primals
    (_, end), _ = operation.forward((u, delta, a, b, c, jnp.zeros_like(h0), cut), **static)
    total = jnp.sum(delta.astype(h0.dtype), axis=-2)
    return jnp.exp(total[..., None] * a).reshape(h0.shape), end


def _transpose_totals(primals, g, *, chunk, target=None, **static):
    """The gradient of `h0` when only the cotangents `g` of `y` enter the backward pass."""
    # It depends on no state, so zeros stand for the outputs of the forward pass.
    *_, h0, _ = primals
    empty = jnp.zeros_like(h0)
    borders = jnp.zeros((-(-g.shape[-2] // chunk), *h0.shape), h0.dtype)
    outputs, cotangents = ((g, empty), borders), (g, empty)
    return operation.transpose(primals, outputs, cotangents, chunk=chunk, **static)[5]


totals = Reduction("selective_scan_totals", _totals)
totals.lower(DISPATCH.run(lambda x: partial(_totals, implementation=x.name)))
transpose_totals = Reduction("selective_scan_transpose_totals", _transpose_totals)
transpose_totals.lower(DISPATCH.run(lambda x: partial(_transpose_totals, implementation=x.name)))
