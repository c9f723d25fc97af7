"""A recurrence whose state enters each step through a matrix, as a differentiable operation.

Canonical arguments, the same for every implementation but that these have one batch axis:

- `matrix`: "gate unit unit"; `drive`: "*batch time gate unit"; `extras`: "*batch time extra unit",
    in the dtype of `drive`;
- `h0`, `fresh`: tuples of the states of a unit, "*batch unit" each, in the carry's dtype: the state
    before the first step in processing order, and the state after a reset;
- `start`: "*batch time" booleans, or `None`: true where a step starts, in processing order, from
    `fresh`; all of these steps are valid;
- `valid`: "*batch time" booleans, or `None`: false where a step leaves the state as it was.

The residuals are the pre-activations of the gates, "time gate unit row", and the states but the
first after every step, "time unit row" each, for all rows of the batch in one axis.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from .._operation import Operation, differentiable, mapped_size, one_by_one
from . import _xla
from ._implementations import DISPATCH


def _shapes(primals, **_):
    _, drive, _, h0, *_ = primals
    *batch, time, gates, hdim = drive.shape
    rows = math.prod(batch)

    def array(*shape):
        return jax.ShapeDtypeStruct(shape, drive.dtype)

    last = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), h0)
    others = tuple(array(time, hdim, rows) for _ in h0[1:])
    return (array(*batch, time, hdim), last), (array(time, gates, hdim, rows), others)


def _forward(run, primals, **static):
    """Runs an implementation, which takes one batch axis, for any number of them."""
    batch = primals[3][0].shape[:-1]
    (hs, last), residuals = run(_fold(primals, len(batch)), **static)
    return _unfold((hs, last), batch), residuals


def _transpose(run, primals, outputs, cotangents, **static):
    batch = primals[3][0].shape[:-1]
    public, residuals = outputs
    public, cotangents = (_fold((None, *x), len(batch))[1:] for x in (public, cotangents))
    folded = _fold(primals, len(batch))
    g_matrix, *others = run(folded, (public, residuals), cotangents, **static)
    return g_matrix, *_unfold(others, batch)


def _fold(values: tuple, axes: int) -> tuple:
    """All values but the first with one batch axis, out of `axes` of them."""
    first, *others = values

    def fold(x):
        return x.reshape(math.prod(x.shape[:axes]), *x.shape[axes:])  # there may be no extras

    return first, *jax.tree.map(fold, others)


def _unfold(tree: Any, batch: tuple[int, ...]) -> Any:
    return jax.tree.map(lambda x: x.reshape(*batch, *x.shape[1:]), tree)


def _public(primals, static):
    """The public outputs as a function of the floating leaves of the primals."""

    def run(floats):
        merged = jax.tree.map(
            lambda x, y: y if x is None else x, floats, primals, is_leaf=lambda x: x is None
        )
        return _forward(_xla.forward, merged, **static)[0]

    return run


def _define_tangent(primals, outputs, tangents, **static):
    return jax.jvp(_public(primals, static), (differentiable(primals),), (tangents,))[1]


def _define_transpose(primals, outputs, cotangents, **static):
    return _transpose(_xla.transpose, primals, outputs, cotangents, **static)


def _batch(stage, arguments, mapped, **static):
    """The mapped axis becomes another batch axis if all its elements share the matrix, and none is
    to get its own gradient of it. Otherwise they run one after another."""
    matrices = [mapped[0][0], mapped[2][0] if stage == "tangent" else None]
    if stage == "transpose" or any(jax.tree.leaves(matrices)):
        return one_by_one(partial(operation.bind, stage, **static), arguments, mapped)
    size = mapped_size(arguments, mapped)

    def spread(x, is_mapped):
        return x if is_mapped else jnp.broadcast_to(x, (size, *x.shape))

    def spread_rows(values, is_mapped):
        matrix, *others = values
        return matrix, *jax.tree.map(spread, others, list(is_mapped[1:]))

    primals = spread_rows(arguments[0], mapped[0])
    if stage == "forward":
        public, residuals = operation.forward(primals, **static)
        residuals = jax.tree.map(
            lambda x: jnp.moveaxis(x.reshape(*x.shape[:-1], size, -1), -2, 0), residuals
        )
        return public, residuals
    public, residuals = jax.tree.map(spread, arguments[1], mapped[1])
    residuals = jax.tree.map(
        lambda x: jnp.moveaxis(x, 0, -2).reshape(*x.shape[1:-1], -1), residuals
    )
    tangents = spread_rows(arguments[2], mapped[2])
    return operation.tangent(primals, (public, residuals), tangents, **static)


operation = Operation(
    "persistent_rnn",
    shapes=_shapes,
    tangent=_define_tangent,
    transpose=_define_transpose,
    batch=_batch,
)
operation.lower(
    DISPATCH.run(lambda x: partial(_forward, x.forward)),
    DISPATCH.run(lambda x: partial(_transpose, x.transpose)),
)
