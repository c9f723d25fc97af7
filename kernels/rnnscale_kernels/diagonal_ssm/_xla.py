"""The linear part of a state-space layer in plain XLA, in chunks of time.

A chunk's states stay in cache: its input map, recurrence and output map follow one another, and the
backward pass computes the states again from the one that entered the chunk. Only those, one a
chunk, are kept. Weight gradients are added up chunk by chunk.
"""

import jax
import jax.numpy as jnp
from jax import lax

from .._planar import Planar, add, where
from ..linear_scan import scan, transpose as scan_transpose


def input_map(u, b, dtype):
    """B u, in the carry's `dtype`."""

    def plane(b):
        weights = b.astype(u.dtype)
        return jnp.einsum("...i,si->...s", u, weights, preferred_element_type=dtype)

    return jax.tree.map(plane, b)


def output_map(h, c, dtype):
    """Re(C h)."""

    def plane(h, c):
        h, weights = h.astype(dtype), c.astype(dtype)
        wide = jnp.promote_types(dtype, jnp.float32)
        return jnp.einsum("...s,os->...o", h, weights, preferred_element_type=wide)

    if isinstance(h, Planar):
        return (plane(h.re, c.re) - plane(h.im, c.im)).astype(dtype)
    return plane(h, c).astype(dtype)


def state_at(h, index, otherwise):
    """The state at step `index` of every row, where the row has such a step."""
    steps = jax.tree.leaves(h)[0].shape[-2]
    at = jnp.clip(index, 0, steps - 1)[..., None, None]
    found = jax.tree.map(lambda x: jnp.take_along_axis(x, at, axis=-2)[..., 0, :], h)
    return where(((0 <= index) & (index < steps))[..., None], found, otherwise)


class _Chunks:
    """The primals cut into chunks of time; the last one is filled up with zeros."""

    def __init__(self, primals, chunk: int):
        self.u, decay, self.b, self.c, self.h0, self.cut, lengths = primals
        *self.batch, self.time, _ = self.u.shape
        self.chunk = chunk
        self.count = -(-self.time // chunk)
        self.decay = jax.tree.map(lambda x: x.reshape((1,) * (self.u.ndim - 1) + x.shape), decay)
        # The last step of every row, unless that is the end of the last chunk.
        if lengths is not None:
            self.end = lengths - 1
        elif self.time < self.count * chunk:
            self.end = jnp.full(self.batch, self.time - 1)
        else:
            self.end = None
        self.u = self.fill(self.u, -2)
        self.cut = None if self.cut is None else self.fill(self.cut, -1)

    def fill(self, x, axis: int):
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, self.count * self.chunk - self.time)
        return jnp.pad(x, widths)

    def take(self, x, n, axis: int = -2):
        return lax.dynamic_slice_in_dim(x, n * self.chunk, self.chunk, x.ndim + axis)

    def put(self, x, n, value):
        return lax.dynamic_update_slice_in_dim(x, value, n * self.chunk, x.ndim - 2)

    def trim(self, x):
        return lax.slice_in_dim(x, 0, self.time, axis=x.ndim - 2)

    def cut_of(self, n):
        return None if self.cut is None else self.take(self.cut, n, -1)

    def states(self, n, entering):
        """All states of chunk `n`, and the one that leaves it."""
        drive = input_map(self.take(self.u, n), self.b, entering.dtype)
        return scan(self.decay, drive, entering, self.cut_of(n), reverse=False)


def chunked(primals, *, chunk):
    """((y, h_last), borders): one chunk after another."""
    chunks = _Chunks(primals, chunk)
    c, h0, dtype = chunks.c, chunks.h0, chunks.u.dtype

    def step(n, loop):
        entering, h_last, y, borders = loop
        borders = jax.tree.map(lambda x, h: x.at[n].set(h), borders, entering)
        h, leaving = chunks.states(n, entering)
        if chunks.end is not None:
            h_last = state_at(h, chunks.end - n * chunk, h_last)
        return leaving, h_last, chunks.put(y, n, output_map(h, c, dtype)), borders

    y = jnp.zeros((*chunks.batch, chunks.count * chunk, c.shape[0]), dtype)
    borders = jax.tree.map(lambda x: jnp.zeros((chunks.count, *x.shape), x.dtype), h0)
    leaving, h_last, y, borders = lax.fori_loop(0, chunks.count, step, (h0, h0, y, borders))
    return (chunks.trim(y), leaving if chunks.end is None else h_last), borders


def chunked_transpose(primals, outputs, cotangents, *, chunk):
    """The backward pass, from the last chunk to the first."""
    chunks = _Chunks(primals, chunk)
    decay, b, c, h0 = chunks.decay, chunks.b, chunks.c, chunks.h0
    _, borders = outputs
    g_y, g_last = cotangents
    g_y = chunks.fill(g_y, -2)
    wide = h0.dtype
    zeros = lambda tree: jax.tree.map(lambda x: jnp.zeros(x.shape, wide), tree)  # noqa: E731

    def step(i, loop):
        s, du, d_decay, db, dc = loop
        n = chunks.count - 1 - i
        u, g = chunks.take(chunks.u, n), chunks.take(g_y, n)
        entering = jax.tree.map(lambda x: x[n], borders)
        h, _ = chunks.states(n, entering)
        dc = add(dc, _output_weights_gradient(g, h, wide))
        g_h = _output_map_transpose(g, c, wide)
        if chunks.end is not None:
            g_h = _add_at(g_h, chunks.end - n * chunk, g_last)
        d_decay_n, s_all, s = scan_transpose(
            decay, h, entering, chunks.cut_of(n), g_h, s, reverse=False
        )
        db = add(db, _input_weights_gradient(s_all, u, wide))
        du = chunks.put(du, n, _input_map_transpose(s_all, b, u.dtype))
        return s, du, add(d_decay, d_decay_n), db, dc

    s = g_last if chunks.end is None else jax.tree.map(jnp.zeros_like, h0)
    start = (s, jnp.zeros_like(chunks.u), zeros(decay), zeros(b), zeros(c))
    dh0, du, d_decay, db, dc = lax.fori_loop(0, chunks.count, step, start)
    if chunks.end is not None:
        # A row of length zero hands its initial state out as it is.
        dh0 = add(dh0, where((chunks.end >= 0)[..., None], 0.0, g_last))
    gradients = (
        chunks.trim(du),
        jax.tree.map(lambda x: x.reshape(x.shape[-1]), d_decay),
        db,
        dc,
        dh0,
    )
    like = primals[:5]
    return *jax.tree.map(lambda x, p: x.astype(p.dtype), gradients, like), None, None


def _output_map_transpose(g, c, dtype):
    def plane(c):
        weights = c.astype(g.dtype)
        return jnp.einsum("...o,os->...s", g, weights, preferred_element_type=dtype)

    return Planar(plane(c.re), -plane(c.im)) if isinstance(c, Planar) else plane(c)


def _output_weights_gradient(g, h, dtype):
    def plane(h):
        h = h.astype(g.dtype)
        return jnp.einsum("...o,...s->os", g, h, preferred_element_type=dtype)

    return Planar(plane(h.re), -plane(h.im)) if isinstance(h, Planar) else plane(h)


def _input_map_transpose(s, b, dtype):
    def plane(s, b):
        s, weights = s.astype(dtype), b.astype(dtype)
        wide = jnp.promote_types(dtype, jnp.float32)
        return jnp.einsum("...s,si->...i", s, weights, preferred_element_type=wide)

    if isinstance(s, Planar):
        return (plane(s.re, b.re) + plane(s.im, b.im)).astype(dtype)
    return plane(s, b).astype(dtype)


def _input_weights_gradient(s, u, dtype):
    def plane(s):
        s = s.astype(u.dtype)
        return jnp.einsum("...s,...i->si", s, u, preferred_element_type=dtype)

    return jax.tree.map(plane, s)


def _add_at(x, index, value):
    """`x` with `value` added at step `index` of every row that has such a step."""
    here = jnp.arange(x.shape[-2]) == index[..., None]
    return jax.tree.map(lambda x, v: jnp.where(here[..., None], x + v[..., None, :], x), x, value)
