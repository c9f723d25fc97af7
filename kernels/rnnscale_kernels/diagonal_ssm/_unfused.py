"""Input map, recurrence and output map one after another, with all states in memory.

This is the definition of the operation, from which its derivatives come, and an implementation. It
is the same for all targets and implementations, so its functions ignore these.
"""

import jax
import jax.numpy as jnp

from .._algebra import Planar, conjugate, where
from .._operation import vary_alike
from ..linear_scan import SCAN, scan, time_invariant
from ._xla import product


def forward(primals, *, chunk, **_):
    """`((y, h_last), borders)`, as the operation gives them."""
    u, decay, b, c, h0, cut, lengths = primals
    h, h_last = scan(time_invariant(decay, u.ndim), _drive(u, b, h0), h0, cut, reverse=False)
    if lengths is not None:
        at = jnp.maximum(lengths - 1, 0)[..., None, None]
        reached = jax.tree.map(lambda x: jnp.take_along_axis(x, at, axis=-2)[..., 0, :], h)
        h_last = where((lengths > 0)[..., None], reached, h0)
    y = jax.tree.map(lambda h, c: product("...s,os->...o", h, c, u.dtype), h, c)
    y = y.re - y.im if isinstance(y, Planar) else y

    def borders(h, h0):
        leaving = jnp.moveaxis(h[..., chunk - 1 : -1 : chunk, :], -2, 0)
        return jnp.concatenate([h0[None], leaving])

    return (y.astype(u.dtype), h_last), jax.tree.map(borders, h, h0)


def tangent(primals, outputs, tangents, *, chunk, **_):
    """The tangents of `(y, h_last)`."""
    *values, cut, lengths = primals

    def run(*values):
        return forward((*values, cut, lengths), chunk=chunk)[0]

    return jax.jvp(run, values, list(tangents[: len(values)]))[1]


def transpose(primals, outputs, cotangents, *, chunk, **_):
    """The cotangents of the primals."""
    primals, cotangents = vary_alike((primals, cotangents))
    *values, cut, lengths = primals
    _, pull = jax.vjp(lambda *values: forward((*values, cut, lengths), chunk=chunk)[0], *values)
    return *pull(cotangents), None, None


def totals(primals, *, chunk, target=None):
    """The reduction `totals` of the operation: no state is written."""
    u, decay, b, _, h0, cut, lengths = primals
    if lengths is not None:
        # Each row is moved so that its own last step comes last.
        time = u.shape[-2]
        source = jnp.arange(time) - (time - lengths[..., None])
        at = jnp.maximum(source, 0)
        u = jnp.where(source[..., None] >= 0, jnp.take_along_axis(u, at[..., None], axis=-2), 0)
        cut = (source >= 0) & jnp.take_along_axis(cut, at, axis=-1)
    inputs = time_invariant(decay, u.ndim), _drive(u, b, h0), h0, cut
    return SCAN.totals(inputs, reverse=False, implementation=None)[1]


def transpose_totals(primals, g, *, chunk, target=None):
    """The reduction `transpose_totals` of the operation: no cotangent of a state is written."""
    u, decay, _, c, h0, cut, _ = primals
    g_h = jax.tree.map(lambda c: product("...o,os->...s", g, c, u.dtype, h0.dtype), conjugate(c))
    inputs = time_invariant(decay, u.ndim), g_h, h0, cut
    return SCAN.transpose_totals(inputs, g_h, reverse=False, implementation=None)


def _drive(u, b, h0):
    """The input map B u, in the dtype of the states."""
    return jax.tree.map(lambda b: product("...i,si->...s", u, b, u.dtype, h0.dtype), b)
