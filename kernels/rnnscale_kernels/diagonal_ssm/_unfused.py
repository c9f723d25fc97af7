"""Input map, recurrence and output map one after another, with all states in memory.

This is the definition of the operation, from which its derivatives come, and an implementation. As
the definition it has no `target`. For a target, sequences of complex states are `SideBySide` if the
kernel of the recurrence takes that.
"""

from typing import Any

import jax
import jax.numpy as jnp

from .._algebra import Planar, cast, conjugate, where
from .._operation import vary_alike
from .._target import Target
from ..linear_scan import (
    SCAN,
    ScanSpec,
    SideBySide,
    scan,
    takes_side_by_side,
    time_invariant,
    transpose as scan_transpose,
)
from ._xla import product, sum_of_products


def forward(primals, *, chunk, target: Target | None = None, **_):
    """`((y, h_last), borders)`, as the operation gives them."""
    u, decay, b, c, h0, cut, lengths = primals
    drive = _drive(u, b, _like(primals, target))
    h, h_last = scan(time_invariant(decay, u.ndim), drive, h0, cut, reverse=False)
    if lengths is not None:
        at = jnp.maximum(lengths - 1, 0)[..., None, None]
        reached = jax.tree.map(lambda x: jnp.take_along_axis(x, at, axis=-2)[..., 0, :], h)
        h_last = where((lengths > 0)[..., None], cast(_apart(reached), h0.dtype), h0)
    y = _read_out(h, c, u.dtype)

    def borders(h, h0):
        return jnp.concatenate([h0[None], jnp.moveaxis(h, -2, 0).astype(h0.dtype)])

    leaving = _apart(jax.tree.map(lambda h: h[..., chunk - 1 : -1 : chunk, :], h))
    return (y, h_last), jax.tree.map(borders, leaving, h0)


def tangent(primals, outputs, tangents, *, chunk, **_):
    """The tangents of `(y, h_last)`."""
    *values, cut, lengths = primals

    def run(*values):
        return forward((*values, cut, lengths), chunk=chunk)[0]

    return jax.jvp(run, values, list(tangents[: len(values)]))[1]


def transpose(primals, outputs, cotangents, *, chunk, target: Target | None = None, **_):
    """The cotangents of the primals."""
    primals, (g, g_last) = vary_alike((primals, cotangents))
    u, decay, b, c, h0, cut, lengths = primals
    like, decay, leaving = _like(primals, target), time_invariant(decay, u.ndim), g_last
    h, _ = scan(decay, _drive(u, b, like), h0, cut, reverse=False)
    g_h = _cotangents(g, c, like)
    if lengths is not None:
        # The last state of a row is that of its own last step, or h0 if it has no step.
        is_last = (jnp.arange(u.shape[-2]) == lengths[..., None] - 1)[..., None]
        g_h = jax.tree.map(
            lambda x, last: x + jnp.where(is_last, last[..., None, :], 0).astype(x.dtype),
            *(g_h, _together(g_last, -1, like)),
        )
        leaving = jax.tree.map(jnp.zeros_like, g_last)
    d_decay, s, dh0 = scan_transpose(decay, h, h0, cut, g_h, leaving, reverse=False)
    if lengths is not None:
        dh0 = jax.tree.map(
            lambda x, last: x + jnp.where((lengths > 0)[..., None], 0, last), dh0, g_last
        )
    db = jax.tree.map(lambda s: sum_of_products("rs,ri->si", s, u, u.dtype), s)
    dc = jax.tree.map(lambda h: sum_of_products("ro,rs->os", g, h, u.dtype), h)
    gradients = (
        # du = Re(B^H s) = B_re s_re + B_im s_im
        _sum_of_planes("...s,si->...i", s, b, u.dtype),
        jax.tree.map(lambda x: x.reshape(x.shape[-1]), d_decay),
        _apart(db, 0),
        conjugate(_apart(dc, 1)),
        dh0,
    )
    gradients = jax.tree.map(lambda x, primal: x.astype(primal.dtype), gradients, primals[:5])
    return *gradients, None, None


def totals(primals, *, chunk, target: Target):
    """The reduction `totals` of the operation: no state is written."""
    u, decay, b, c, h0, cut, lengths = primals
    if lengths is not None:
        # Each row is moved so that its own last step comes last.
        time = u.shape[-2]
        source = jnp.arange(time) - (time - lengths[..., None])
        at = jnp.maximum(source, 0)
        u = jnp.where(source[..., None] >= 0, jnp.take_along_axis(u, at[..., None], axis=-2), 0)
        cut = (source >= 0) & jnp.take_along_axis(cut, at, axis=-1)
    drive = _drive(u, b, _like(primals, target))
    inputs = time_invariant(decay, u.ndim), drive, h0, cut
    return SCAN.totals(inputs, reverse=False, implementation=None)[1]


def transpose_totals(primals, g, *, chunk, target: Target):
    """The reduction `transpose_totals` of the operation: no cotangent of a state is written."""
    u, decay, _, c, h0, cut, _ = primals
    g_h = _cotangents(g, c, _like(primals, target))
    inputs = time_invariant(decay, u.ndim), g_h, h0, cut
    return SCAN.transpose_totals(inputs, g_h, reverse=False, implementation=None)


def sequence_dtype(dtype: str, state_dtype: str) -> str:
    """The dtype of the sequences of states, for inputs in `dtype`: float32 states are kept in 16
    bits if the inputs are. The recurrence itself carries them in `state_dtype`."""
    return dtype if jnp.dtype(dtype).itemsize == 2 and state_dtype == "float32" else state_dtype


def _like(primals, target: Target | None) -> Any:
    """A sequence of states, as shapes: its form and its dtype."""
    u, decay, _, _, h0, cut, _ = primals
    dtype = sequence_dtype(str(u.dtype), str(h0.dtype))
    shape = *u.shape[:-1], decay.shape[0]
    planes: Any = jax.tree.map(lambda _: jax.ShapeDtypeStruct(shape, dtype), h0)
    if target is None or not isinstance(planes, Planar):
        return planes
    spec = ScanSpec.of((time_invariant(decay, u.ndim), planes, h0, cut), reverse=False)
    if not takes_side_by_side(target, spec):
        return planes
    return SideBySide(jax.ShapeDtypeStruct((*shape[:-1], 2 * shape[-1]), dtype))


def _drive(u, b, like):
    """The input map B u, in the form and the dtype of `like`."""
    return jax.tree.map(
        lambda b: product("...i,si->...s", u, b, u.dtype, like.dtype), _together(b, 0, like)
    )


def _cotangents(g, c, like):
    """C^H g: what the cotangents `g` of the outputs are to the states."""
    c = _together(conjugate(c), 1, like)
    return jax.tree.map(lambda c: product("...o,os->...s", g, c, g.dtype, like.dtype), c)


def _read_out(h, c, dtype):
    """y = Re(C h) = C_re h_re - C_im h_im."""
    return _sum_of_planes("...s,os->...o", h, conjugate(c), dtype)


def _sum_of_planes(axes: str, h, matrix, dtype):
    """The sum over planes of the products of `h` and `matrix`, as one product."""
    state = axes.partition(",")[2].index("s")
    h, matrix = jax.tree.leaves(h), jax.tree.leaves(matrix)
    return product(axes, jnp.concatenate(h, -1), jnp.concatenate(matrix, state), dtype, dtype)


def _together(x, axis: int, like):
    """The number `x`, with its planes side by side along `axis` if those of `like` are."""
    return SideBySide(jnp.concatenate(x, axis)) if isinstance(like, SideBySide) else x


def _apart(x, axis: int = -1):
    """The inverse of `_together`."""
    return Planar(*jnp.split(x.array, 2, axis)) if isinstance(x, SideBySide) else x
