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
from .._operation import Operation, Reduction, mapped_size, vary_alike
from .._planar import Planar, conjugate, where
from .._target import H100, Target
from ..linear_scan import DISPATCH as SCAN_DISPATCH, SCAN, ScanSpec, scan
from . import _mosaic_gpu, _xla


def unfused(primals, *, chunk, target=None):
    """The definition: input map, recurrence and output map, one after another."""
    u, decay, b, c, h0, cut, lengths = primals
    h, h_last = scan(_one_step(decay, u), _drive(u, b, h0), h0, cut, reverse=False)
    if lengths is not None:
        at = jnp.maximum(lengths - 1, 0)[..., None, None]
        reached = jax.tree.map(lambda x: jnp.take_along_axis(x, at, axis=-2)[..., 0, :], h)
        h_last = where((lengths > 0)[..., None], reached, h0)
    y = jax.tree.map(lambda h, c: _product("...s,os->...o", h, c, u.dtype), h, c)
    y = y.re - y.im if isinstance(y, Planar) else y

    def borders(h, h0):
        leaving = jnp.moveaxis(h[..., chunk - 1 : -1 : chunk, :], -2, 0)
        return jnp.concatenate([h0[None], leaving])

    return (y.astype(u.dtype), h_last), jax.tree.map(borders, h, h0)


def _drive(u, b, h0):
    """The input map, in the dtype of the states."""
    return jax.tree.map(lambda b: _product("...i,si->...s", u, b, u.dtype).astype(h0.dtype), b)


def _product(axes: str, x, weights, dtype):
    wide = jnp.promote_types(dtype, jnp.float32)
    x, weights = x.astype(dtype), weights.astype(dtype)
    return jnp.einsum(axes, x, weights, preferred_element_type=wide)


def _one_step(decay, u):
    return jax.tree.map(lambda x: x.reshape((1,) * (u.ndim - 1) + x.shape), decay)


def unfused_totals(primals, *, chunk, target=None):
    """Input map and recurrence, without a state being written."""
    u, decay, b, _, h0, cut, lengths = primals
    if lengths is not None:
        # Every row's own last step has to be the last one.
        time = u.shape[-2]
        source = jnp.arange(time) - (time - lengths[..., None])
        at = jnp.maximum(source, 0)
        u = jnp.where(source[..., None] >= 0, jnp.take_along_axis(u, at[..., None], axis=-2), 0)
        cut = (source >= 0) & jnp.take_along_axis(cut, at, axis=-1)
    a, drive = _one_step(decay, u), _drive(u, b, h0)
    return SCAN.totals((a, drive, h0, cut), reverse=False, implementation=None)[1]


def unfused_transpose_totals(primals, g, *, chunk, target=None):
    """The output map's transpose and the recurrence's, without a cotangent being written."""
    u, decay, _, c, h0, cut, _ = primals
    g_h = jax.tree.map(
        lambda c: _product("...o,os->...s", g, c, u.dtype).astype(h0.dtype), conjugate(c)
    )
    a = _one_step(decay, u)
    return SCAN.transpose_totals((a, g_h, h0, cut), g_h, reverse=False, implementation=None)


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
    if not SCAN_DISPATCH.has_kernel(target, recurrence):
        return "there is no kernel for the recurrence, and chunks need less memory"
    return None


_FUSED = Implementation(
    "mosaic_gpu",
    _mosaic_gpu.forward,
    _mosaic_gpu.transpose,
    unfused_totals,
    unfused_transpose_totals,
    unavailable=_mosaic_gpu.unavailable,
    unsupported=_mosaic_gpu.unsupported,
    unsuited=_mosaic_gpu.unsuited,
)

DISPATCH = Dispatch(
    "diagonal_ssm",
    (
        Implementation("chunked", _xla.chunked, _xla.chunked_transpose),
        Implementation(
            "unfused",
            unfused,
            unfused_transpose,
            unfused_totals,
            unfused_transpose_totals,
            unsuited=_unfused_unsuited,
        ),
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


def _without_state(primals):
    u, decay, b, c, h0, cut, lengths = primals
    return u, decay, b, c, jax.tree.map(jnp.zeros_like, h0), cut, lengths


def _without_states(primals, g, chunk):
    """Outputs and cotangents from which the gradient of `h0` comes out, which depends on none."""
    *_, h0, _, _ = primals
    chunks = -(-g.shape[-2] // chunk)
    borders = jax.tree.map(lambda x: jnp.zeros((chunks, *x.shape), x.dtype), h0)
    empty = jax.tree.map(jnp.zeros_like, h0)
    return ((g, empty), borders), (g, empty)


def _totals(primals, **static):
    (_, end), _ = operation.forward(_without_state(primals), **static)
    return end


def _transpose_totals(primals, g, **static):
    return operation.transpose(primals, *_without_states(primals, g, static["chunk"]), **static)[4]


def _run_totals(primals, *, target, chunk, implementation):
    chosen = DISPATCH.choose(target, SSMSpec.of(primals), implementation)
    if chosen.totals is not None:
        return chosen.totals(primals, chunk=chunk, target=target)
    (_, end), _ = chosen.forward(_without_state(primals), chunk=chunk, target=target)
    return end


def _run_transpose_totals(primals, g, *, target, chunk, implementation):
    chosen = DISPATCH.choose(target, SSMSpec.of(primals), implementation)
    if chosen.transpose_totals is not None:
        return chosen.transpose_totals(primals, g, chunk=chunk, target=target)
    outputs, cotangents = _without_states(primals, g, chunk)
    return chosen.transpose(primals, outputs, cotangents, chunk=chunk, target=target)[4]


# `totals` gives the state that leaves each row if zero enters it, `transpose_totals` the gradient
# of `h0` if nothing but the cotangents `g` of the outputs enters the backward pass.
totals = Reduction("diagonal_ssm_totals", _totals)
totals.lower(_run_totals)
transpose_totals = Reduction("diagonal_ssm_transpose_totals", _transpose_totals)
transpose_totals.lower(_run_transpose_totals)
