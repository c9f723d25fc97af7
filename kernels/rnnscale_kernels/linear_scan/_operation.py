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

from .._operation import Operation, mapped_size
from .._planar import add, cast, multiply, where
from ._backward import previous, transpose_by_scan
from ._implementations import DISPATCH, ScanSpec


def _shapes(primals, **_):
    _, b, h0, _ = primals
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (b, h0)), ()


def scan(a, b, h0, cut, *, reverse, implementation=None):
    """(h, h_last), of canonical arguments."""
    public, _ = operation.forward((a, b, h0, cut), reverse=reverse, implementation=implementation)
    return public


def transpose(a, h, h0, cut, g, g_last, *, reverse, implementation=None):
    """The backward pass, (da, db, dh0), of canonical arguments."""
    # The input stands in the primals for its shape and dtype alone, which `g` has too.
    gradients = operation.transpose(
        (a, g, h0, cut),
        ((h, h0), ()),
        (g, g_last),
        reverse=reverse,
        implementation=implementation,
    )
    return gradients[:3]


def _tangent(primals, outputs, tangents, *, reverse, implementation):
    a, b, h0, cut = primals
    (h, _), _ = outputs
    da, db, dh0, _ = tangents
    carry = previous(h, h0, cut, reverse=reverse)
    change = multiply(cast(da, h0.dtype), carry)
    if cut is not None:  # once more: da may be infinite there
        change = where(cut[..., None], 0.0, change)
    drive = add(db, cast(change, b.dtype))
    return scan(a, drive, dh0, cut, reverse=reverse, implementation=implementation)


def _transpose(primals, outputs, cotangents, *, reverse, implementation):
    a, _, h0, cut = primals
    (h, _), _ = outputs
    run = partial(scan, implementation=implementation)
    return *transpose_by_scan(run, a, h, h0, cut, *cotangents, reverse=reverse), None


def _batch(stage, arguments, mapped, **static):
    """The mapped axis becomes one more batch axis.

    A decay that is not mapped keeps size 1 there, except in a backward pass, where that would sum
    its gradient over the axis.
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
    return getattr(operation, stage)(*spread_arguments, **static)


def _run_forward(primals, *, target, reverse, implementation):
    chosen = DISPATCH.choose(target, ScanSpec.of(primals, reverse=reverse), implementation)
    return chosen.forward(primals, reverse=reverse, target=target)


def _run_transpose(primals, outputs, cotangents, *, target, reverse, implementation):
    chosen = DISPATCH.choose(target, ScanSpec.of(primals, reverse=reverse), implementation)
    return chosen.transpose(primals, outputs, cotangents, reverse=reverse, target=target)


operation = Operation(
    "linear_scan", shapes=_shapes, tangent=_tangent, transpose=_transpose, batch=_batch
)
operation.lower(_run_forward, _run_transpose)
