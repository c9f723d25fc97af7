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
from ._spec import ScanSpec


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


def _totals(primals, *, reverse, implementation):
    a, b, h0, cut = primals
    empty = jax.tree.map(jnp.zeros_like, h0)
    _, end = scan(a, b, empty, cut, reverse=reverse, implementation=implementation)
    return _decay_product(a, h0), end


def _transpose_totals(primals, *, reverse, implementation):
    # The gradient of h0 depends on no state.
    a, g, h0, cut = primals
    empty = jax.tree.map(jnp.zeros_like, h0)
    run = {"reverse": reverse, "implementation": implementation}
    return transpose(a, g, empty, cut, g, empty, **run)[2]


def _decay_product(a, h0):
    if a.shape[-2] == 1:
        return None
    return product(cast(a, h0.dtype))


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


def _run_totals(primals, *, target, reverse, implementation):
    a, b, h0, cut = primals
    chosen = DISPATCH.choose(target, ScanSpec.of(primals, reverse=reverse), implementation)
    if chosen.totals is not None:
        return chosen.totals(primals, reverse=reverse, target=target)
    primals = a, b, jax.tree.map(jnp.zeros_like, h0), cut
    (_, end), _ = chosen.forward(primals, reverse=reverse, target=target)
    return _decay_product(a, h0), end


def _run_transpose_totals(primals, *, target, reverse, implementation):
    _, g, h0, _ = primals
    chosen = DISPATCH.choose(target, ScanSpec.of(primals, reverse=reverse), implementation)
    if chosen.transpose_totals is not None:
        return chosen.transpose_totals(primals, reverse=reverse, target=target)
    empty = jax.tree.map(jnp.zeros_like, h0)
    outputs = (g, empty), ()
    return chosen.transpose(primals, outputs, (g, empty), reverse=reverse, target=target)[2]


# What the steps make of a state that enters them, `decay * state + end`: `totals` gives
# (decay, end), with `None` for the decay of a time-invariant `a`. The decay is the product of all,
# whatever is cut; the end is what leaves the steps if zero enters them. `transpose_totals` gives
# the end of the backward pass, the gradient of `h0`; there the cotangents of the states stand in
# the place of `b`. `h0` is there for its shape.
totals = Reduction("linear_scan_totals", _totals)
totals.lower(_run_totals)
transpose_totals = Reduction("linear_scan_transpose_totals", _transpose_totals)
transpose_totals.lower(_run_transpose_totals)
