"""The recurrence as a differentiable operation.

Canonical arguments, the same for every implementation (`batch` is any number of axes):

- `a`: `batch time channel`, where time and any batch axis may have size 1;
- `b`: `batch time channel`;
- `h0`: `batch channel`, in the carry's dtype;
- `cut`: `batch time` booleans, or `None`: true where the carry into that step, in processing
  order, is dropped.
"""

from functools import partial

import jax
import jax.numpy as jnp

from .._operation import Operation, Reduction, mapped_size
from .._planar import add, cast, multiply, product, where
from ._backward import previous, transpose_by_scan
from ._implementations import DISPATCH


def _shapes(primals, **_):
    _, b, h0, _ = primals
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (b, h0)), ()


def time_invariant(a, ndim: int):
    """The decay `a`, "channel", in the canonical form for a `b` with `ndim` axes."""
    return jax.tree.map(lambda x: x.reshape((1,) * (ndim - 1) + x.shape), a)


def scan(a, b, h0, cut, *, reverse, implementation=None):
    """`(h, h_last)` for canonical arguments."""
    public, _ = operation.forward((a, b, h0, cut), reverse=reverse, implementation=implementation)
    return public


def transpose(a, h, h0, cut, g, g_last, *, reverse, implementation=None):
    """The backward pass, `(da, db, dh0)`, for canonical arguments."""
    # The operation needs only the shape and the dtype of the input b; those of `g` are the same.
    run = partial(operation.transpose, reverse=reverse, implementation=implementation)
    return run((a, g, h0, cut), ((h, h0), ()), (g, g_last))[:3]


def _totals(primals, *, target=None, **static):
    a, b, h0, cut = primals
    _, end = scan(a, b, jax.tree.map(jnp.zeros_like, h0), cut, **static)
    # A time-invariant decay has one step, whose power the caller knows.
    return None if a.shape[-2] == 1 else product(cast(a, h0.dtype)), end


def _transpose_totals(primals, *, target=None, **static):
    # The gradient of h0 depends on no state.
    a, g, h0, cut = primals
    empty = jax.tree.map(jnp.zeros_like, h0)
    return transpose(a, g, empty, cut, g, empty, **static)[2]


def _tangent(primals, outputs, tangents, *, reverse, implementation):
    a, b, h0, cut = primals
    (h, _), _ = outputs
    da, db, dh0, _ = tangents
    carry = previous(h, h0, cut, reverse=reverse)
    change = multiply(cast(da, h0.dtype), carry)
    if cut is not None:  # the carry is zero there, but da may be infinite
        change = where(cut[..., None], 0.0, change)
    drive = add(db, cast(change, b.dtype))
    return scan(a, drive, dh0, cut, reverse=reverse, implementation=implementation)


def _transpose(primals, outputs, cotangents, *, reverse, implementation):
    a, _, h0, cut = primals
    (h, _), _ = outputs
    run = partial(scan, implementation=implementation)
    return *transpose_by_scan(run, a, h, h0, cut, *cotangents, reverse=reverse), None


def _batch(stage, arguments, mapped, **static):
    """The mapped axis becomes another batch axis.

    A decay that is not mapped has size 1 along it, except in the backward pass, where its gradient
    would then be summed over the axis.
    """
    size = mapped_size(arguments, mapped)

    def spread(x, is_mapped):
        return x if is_mapped else jnp.broadcast_to(x, (size, *x.shape))

    spread_arguments = list(jax.tree.map(spread, arguments, mapped))
    with_decay = [0] if stage == "forward" else [0, 2] if stage == "tangent" else []
    if not any(jax.tree.leaves([mapped[i][0] for i in with_decay])):
        for i in with_decay:
            decay = jax.tree.map(lambda x: x[None], arguments[i][0])
            spread_arguments[i] = (decay, *spread_arguments[i][1:])
    return operation.bind(stage, *spread_arguments, **static)


operation = Operation(
    "linear_scan", shapes=_shapes, tangent=_tangent, transpose=_transpose, batch=_batch
)
operation.lower(DISPATCH.run(lambda x: x.forward), DISPATCH.run(lambda x: x.transpose))


# The totals of `RecurrentOp`. Of `h0` they use the shape only, and in `transpose_totals` the
# cotangents of the states stand in the place of `b`.
totals = Reduction("linear_scan_totals", _totals)
totals.lower(DISPATCH.run(lambda x: x.totals or partial(_totals, implementation=x.name)))
transpose_totals = Reduction("linear_scan_transpose_totals", _transpose_totals)
transpose_totals.lower(
    DISPATCH.run(lambda x: x.transpose_totals or partial(_transpose_totals, implementation=x.name))
)
