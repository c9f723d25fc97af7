"""The linear part of a state-space layer as a differentiable operation.

Canonical arguments (`batch` is any number of axes):

- `u`: `batch time idim`; `decay`: `state`; `b`: `state idim`; `c`: `odim state`;
- `h0`: `batch state`, in the carry's dtype;
- `cut`: `batch time` booleans, or `None`; `lengths`: `batch` integers, or `None`.

Time runs in processing order: the public function has turned a reversed sequence round. The
residual is the state that enters each chunk of `chunk` steps.
"""

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from .._dispatch import Dispatch, Implementation
from .._operation import Operation, mapped_size, vary_alike
from .._planar import Planar, where
from .._target import H100, Target
from ..linear_scan import DISPATCH as SCAN, ScanSpec, scan
from . import _mosaic_gpu, _xla


def unfused(primals, *, chunk, target=None):
    """The definition: input map, recurrence and output map, one after another."""
    u, decay, b, c, h0, cut, lengths = primals
    decay = jax.tree.map(lambda x: x.reshape((1,) * (u.ndim - 1) + x.shape), decay)
    wide = jnp.promote_types(u.dtype, jnp.float32)

    def matmul(axes, x, weights):
        weights = weights.astype(u.dtype)
        return jnp.einsum(axes, x.astype(u.dtype), weights, preferred_element_type=wide)

    drive = jax.tree.map(lambda b: matmul("...i,si->...s", u, b).astype(h0.dtype), b)
    h, h_last = scan(decay, drive, h0, cut, reverse=False)
    if lengths is not None:
        at = jnp.maximum(lengths - 1, 0)[..., None, None]
        reached = jax.tree.map(lambda x: jnp.take_along_axis(x, at, axis=-2)[..., 0, :], h)
        h_last = where((lengths > 0)[..., None], reached, h0)
    y = jax.tree.map(lambda h, c: matmul("...s,os->...o", h, c), h, c)
    y = y.re - y.im if isinstance(y, Planar) else y

    def borders(h, h0):
        leaving = jnp.moveaxis(h[..., chunk - 1 : -1 : chunk, :], -2, 0)
        return jnp.concatenate([h0[None], leaving])

    return (y.astype(u.dtype), h_last), jax.tree.map(borders, h, h0)


def _forward(primals, *, chunk, implementation):
    return unfused(primals, chunk=chunk)


def _public(primals, *, chunk):
    public, _ = unfused(primals, chunk=chunk)
    return public


def _shapes(primals, *, chunk, implementation):
    u, _, _, c, h0, _, _ = primals
    *batch, time, _ = u.shape
    chunks = -(-time // chunk)
    y = jax.ShapeDtypeStruct((*batch, time, c.shape[0]), u.dtype)
    h_last = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), h0)
    borders = jax.tree.map(lambda x: jax.ShapeDtypeStruct((chunks, *x.shape), x.dtype), h0)
    return (y, h_last), borders


def _tangent(primals, outputs, tangents, *, chunk, implementation):
    *values, cut, lengths = primals

    def run(*values):
        return _public((*values, cut, lengths), chunk=chunk)

    return jax.jvp(run, values, list(tangents[: len(values)]))[1]


def unfused_transpose(primals, outputs, cotangents, *, chunk, target=None):
    primals, cotangents = vary_alike((primals, cotangents))
    *values, cut, lengths = primals
    _, pull = jax.vjp(lambda *values: _public((*values, cut, lengths), chunk=chunk), *values)
    return *pull(cotangents), None, None


def _transpose(primals, outputs, cotangents, *, chunk, implementation):
    return unfused_transpose(primals, outputs, cotangents, chunk=chunk)


def _batch(stage, arguments, mapped, **static):
    """The mapped axis becomes one more batch axis where the weights are shared along it.

    Weights of their own for every element, or a gradient for every element, leave no product to
    share: there the unfused definition is mapped, or if another implementation is named, that one
    takes the elements one after another.
    """
    weights_mapped = [mapped[0][1:4], mapped[2][1:4] if stage == "tangent" else None]
    if stage == "transpose" or any(jax.tree.leaves(weights_mapped)):
        if static["implementation"] not in (None, "unfused") and stage != "tangent":
            return _one_by_one(partial(getattr(operation, stage), **static), arguments, mapped)
        define = {"forward": _forward, "tangent": _tangent, "transpose": _transpose}[stage]
        axes = jax.tree.map(lambda is_mapped: 0 if is_mapped else None, mapped)
        return jax.vmap(partial(define, **static), in_axes=axes)(*arguments)
    size = mapped_size(arguments, mapped)

    def spread(x, is_mapped):
        return x if is_mapped else jnp.broadcast_to(x, (size, *x.shape))

    def spread_rows(values, is_mapped):
        """Gives the axis to everything but the weights."""
        return tuple(
            x if 1 <= i <= 3 else jax.tree.map(spread, x, m)
            for i, (x, m) in enumerate(zip(values, is_mapped, strict=True))
        )

    # Borders have their chunk in front of the batch.
    primals = spread_rows(arguments[0], mapped[0])
    if stage == "forward":
        public, borders = operation.forward(primals, **static)
        return public, jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), borders)
    public, borders = jax.tree.map(spread, arguments[1], mapped[1])
    borders = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), borders)
    tangents = spread_rows(arguments[2], mapped[2])
    return operation.tangent(primals, (public, borders), tangents, **static)


def _one_by_one(run, arguments, mapped):
    leaves, tree = jax.tree.flatten(arguments)
    is_mapped = jax.tree.leaves(mapped)

    def run_one(mapped_leaves):
        rest = iter(mapped_leaves)
        one = [next(rest) if m else x for x, m in zip(leaves, is_mapped, strict=True)]
        return run(*jax.tree.unflatten(tree, one))

    return jax.lax.map(run_one, [x for x, m in zip(leaves, is_mapped, strict=True) if m])


@dataclass(frozen=True)
class SSMSpec:
    """What the choice may depend on: the static properties of one call."""

    batch: int
    time: int
    idim: int
    state: int
    odim: int
    dtype: str
    state_dtype: str
    planar: bool
    cut: bool
    lengths: bool

    @classmethod
    def of(cls, primals) -> "SSMSpec":
        u, decay, _, c, h0, cut, lengths = primals
        *batch, time, idim = u.shape
        return cls(
            batch=math.prod(batch),
            time=time,
            idim=idim,
            state=decay.shape[0],
            odim=c.shape[0],
            dtype=str(u.dtype),
            state_dtype=str(h0.dtype),
            planar=isinstance(decay, Planar),
            cut=cut is not None,
            lengths=lengths is not None,
        )


def _unfused_unsuited(target: Target, spec: SSMSpec) -> str | None:
    recurrence = ScanSpec(
        batch=spec.batch,
        time=spec.time,
        channels=spec.state,
        dtype=spec.state_dtype,
        planar=spec.planar,
        varying=False,
        cut=spec.cut,
        reverse=False,
        decay_dtype=spec.state_dtype,
        state_dtype=spec.state_dtype,
    )
    if not SCAN.has_kernel(target, recurrence):
        return "there is no kernel for the recurrence, and chunks need less memory"
    return None


_FUSED = Implementation(
    "mosaic_gpu",
    _mosaic_gpu.forward,
    _mosaic_gpu.transpose,
    unavailable=_mosaic_gpu.unavailable,
    unsupported=_mosaic_gpu.unsupported,
    unsuited=_mosaic_gpu.unsuited,
)

DISPATCH = Dispatch(
    "diagonal_ssm",
    (
        Implementation("chunked", _xla.chunked, _xla.chunked_transpose),
        Implementation("unfused", unfused, unfused_transpose, unsuited=_unfused_unsuited),
        _FUSED,
        _FUSED.interpreted(H100),
    ),
    order={
        "cpu": ("chunked",),
        "cuda": ("mosaic_gpu", "unfused", "chunked"),
        "rocm": ("unfused", "chunked"),
        "tpu": ("unfused", "chunked"),
    },
)


def _run_forward(primals, *, target, chunk, implementation):
    chosen = DISPATCH.choose(target, SSMSpec.of(primals), implementation)
    return chosen.forward(primals, chunk=chunk, target=target)


def _run_transpose(primals, outputs, cotangents, *, target, chunk, implementation):
    chosen = DISPATCH.choose(target, SSMSpec.of(primals), implementation)
    return chosen.transpose(primals, outputs, cotangents, chunk=chunk, target=target)


operation = Operation(
    "diagonal_ssm", shapes=_shapes, tangent=_tangent, transpose=_transpose, batch=_batch
)
operation.lower(_run_forward, _run_transpose)
