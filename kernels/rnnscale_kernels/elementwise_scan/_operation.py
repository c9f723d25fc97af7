"""The elementwise recurrence as a differentiable operation.

Canonical arguments, the same for every implementation (`batch` is any number of axes):

- `weights`: a tree of `batch channel`, where any batch axis may have size 1;
- `inputs`: a tree of `batch time channel`, all of one dtype;
- `h0`, `fresh`: trees of `batch channel`, in the carry's dtype: the state before the first step in
  processing order, and the state after a reset;
- `cut`: `batch time` booleans, or `None`: true where a step starts, in processing order, from
  `fresh`; all of these steps are within the lengths;
- `lengths`: `batch` integers, or `None`.

The static value `returned` has the indices of the arrays of the state whose values at all steps are
public. The others are residuals at all steps, so that no cotangents of them are read.
"""

import jax
import jax.numpy as jnp

from .._operation import Operation, mapped_size
from . import _xla
from ._implementations import DISPATCH
from ._steps import parted


def _shapes(primals, *, returned, **_):
    _, inputs, h0, *_ = primals
    x = jax.tree.leaves(inputs)[0]
    h, rest = parted(jax.tree.map(lambda _: jax.ShapeDtypeStruct(x.shape, x.dtype), h0), returned)
    return (h, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), h0)), rest


def _tangent(primals, outputs, tangents, *, implementation, **static):
    arrays, flags, directions = primals[:4], primals[4:], tangents[:4]

    def public(*arrays):
        return _xla.forward((*arrays, *flags), **static)[0]

    return jax.jvp(public, arrays, directions)[1]


def _transpose(primals, outputs, cotangents, *, implementation, **static):
    # Residuals have no tangents, so that derivatives of this definition need the states again.
    return _xla.transpose(primals, _xla.forward(primals, **static), cotangents, **static)


def _batch(stage, arguments, mapped, **static):
    """The mapped axis becomes another batch axis.

    Weights that are not mapped have size 1 along it, except in the backward pass, where their
    gradient would then be summed over the axis.
    """
    size = mapped_size(arguments, mapped)

    def spread(x, is_mapped):
        return x if is_mapped else jnp.broadcast_to(x, (size, *x.shape))

    spread_arguments = list(jax.tree.map(spread, arguments, mapped))
    with_weights = [0] if stage == "forward" else [0, 2] if stage == "tangent" else []
    if not any(jax.tree.leaves([mapped[i][0] for i in with_weights])):
        for i in with_weights:
            weights = jax.tree.map(lambda x: x[None], arguments[i][0])
            spread_arguments[i] = (weights, *spread_arguments[i][1:])
    return operation.bind(stage, *spread_arguments, **static)


operation = Operation(
    "elementwise_scan", shapes=_shapes, tangent=_tangent, transpose=_transpose, batch=_batch
)
operation.lower(DISPATCH.run(lambda x: x.forward), DISPATCH.run(lambda x: x.transpose))
