"""The recurrence as a differentiable operation, for one kind of coefficients.

Canonical arguments, the same for every implementation (`batch` is any number of axes):

- `a`: the coefficients, a tree of `batch time channel`, where time and any batch axis may have size
  1;
- `b`: a tree of `batch time channel`;
- `h0`: a tree of `batch channel`, in the carry's dtype;
- `cut`: `batch time` booleans, or `None`: true where the carry into that step, in processing
  order, is dropped.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from .._algebra import add, cast, multiply, product, where
from .._dispatch import Dispatch
from .._operation import Operation, Reduction, mapped_size
from ._backward import previous, transpose_by_scan


def time_invariant(a, ndim: int):
    """The decay `a`, "channel", in the canonical form for a `b` with `ndim` axes."""
    return jax.tree.map(lambda x: x.reshape((1,) * (ndim - 1) + x.shape), a)


class Recurrence:
    """The operation h_t = a_t h_{t-1} + b_t, lowered by a table of implementations.

    - `operation`: the differentiable operation; its primitives have the name of the table.
    - `totals`, `transpose_totals`: those of `RecurrentOp`. Of `h0` they use the shape only, and in
        `transpose_totals` the cotangents of the states stand in the place of `b`.
    """

    def __init__(self, dispatch: Dispatch):
        name = dispatch.operation
        self.operation = Operation(
            name,
            shapes=_shapes,
            tangent=self._tangent,
            transpose=self._transpose,
            batch=self._batch,
        )
        self.operation.lower(dispatch.run(lambda x: x.forward), dispatch.run(lambda x: x.transpose))
        self.totals = Reduction(f"{name}_totals", self._totals)
        self.totals.lower(
            dispatch.run(lambda x: x.totals or partial(self._totals, implementation=x.name))
        )
        self.transpose_totals = Reduction(f"{name}_transpose_totals", self._transpose_totals)
        self.transpose_totals.lower(
            dispatch.run(
                lambda x: (
                    x.transpose_totals or partial(self._transpose_totals, implementation=x.name)
                )
            )
        )

    def scan(self, a, b, h0, cut, *, reverse: bool, implementation: str | None = None) -> Any:
        """`(h, h_last)` for canonical arguments."""
        static = {"reverse": reverse, "implementation": implementation}
        public, _ = self.operation.forward((a, b, h0, cut), **static)
        return public

    def transpose(
        self, a, h, h0, cut, g, g_last, *, reverse: bool, implementation: str | None = None
    ) -> Any:
        """The backward pass, `(da, db, dh0)`, for canonical arguments."""
        # The operation needs only the shape and the dtype of the input b; those of `g` are the
        # same.
        run = partial(self.operation.transpose, reverse=reverse, implementation=implementation)
        return run((a, g, h0, cut), ((h, h0), ()), (g, g_last))[:3]

    def _totals(self, primals, *, target=None, reverse, implementation):
        a, b, h0, cut = primals
        static = {"reverse": reverse, "implementation": implementation}
        _, end = self.scan(a, b, jax.tree.map(jnp.zeros_like, h0), cut, **static)
        # A time-invariant decay has one step, whose power the caller knows.
        if a.shape[-2] == 1:
            return None, end
        return product(cast(a, h0.dtype), reverse=reverse), end

    def _transpose_totals(self, primals, *, target=None, **static):
        # The gradient of h0 depends on no state.
        a, g, h0, cut = primals
        empty = jax.tree.map(jnp.zeros_like, h0)
        return self.transpose(a, g, empty, cut, g, empty, **static)[2]

    def _tangent(self, primals, outputs, tangents, **static):
        a, b, h0, cut = primals
        (h, _), _ = outputs
        da, db, dh0, _ = tangents
        carry = previous(h, h0, cut, reverse=static["reverse"])
        change = multiply(cast(da, h0.dtype), carry)
        if cut is not None:  # the carry is zero there, but da may be infinite
            change = where(cut[..., None], 0.0, change)
        drive = add(db, cast(change, b.dtype))
        return self.scan(a, drive, dh0, cut, **static)

    def _transpose(self, primals, outputs, cotangents, *, reverse, implementation):
        a, _, h0, cut = primals
        (h, _), _ = outputs
        run = partial(self.scan, implementation=implementation)
        return *transpose_by_scan(run, a, h, h0, cut, *cotangents, reverse=reverse), None

    def _batch(self, stage, arguments, mapped, **static):
        """The mapped axis becomes another batch axis.

        A decay that is not mapped has size 1 along it, except in the backward pass, where its
        gradient would then be summed over the axis.
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
        return self.operation.bind(stage, *spread_arguments, **static)


def _shapes(primals, **_):
    _, b, h0, _ = primals
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (b, h0)), ()
