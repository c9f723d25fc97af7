"""The selective scan in chunks of time, each of which runs by `linear_scan`.

The decays and inputs of a chunk are expanded for it. Only the state that enters each chunk is kept;
the backward pass computes the others from it.
"""

import jax.numpy as jnp
from jax import lax

from .._target import Target
from . import _expanded


class _Chunks:
    """The sequences in chunks of time, of which steps of length zero fill the last one."""

    def __init__(self, primals, chunk: int):
        u, delta, self.a, b, c, _, cut = primals
        self.time, self.chunk = u.shape[-2], chunk
        self.count = -(-self.time // chunk)
        self.sequences = tuple(self.fill(x, -2) for x in (u, delta, b, c))
        self.cut = None if cut is None else self.fill(cut, -1)

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

    def primals(self, n, entering):
        u, delta, b, c = (self.take(x, n) for x in self.sequences)
        cut = None if self.cut is None else self.take(self.cut, n, -1)
        return u, delta, self.a, b, c, entering, cut


def forward(primals, *, chunk: int, target: Target):
    """`((y, h_last), borders)`, one chunk after another."""
    chunks, h0 = _Chunks(primals, chunk), primals[5]

    def turn(n, loop):
        entering, y, borders = loop
        borders = lax.dynamic_update_index_in_dim(borders, entering, n, 0)
        y_n, leaving = _expanded.public(chunks.primals(n, entering))
        return leaving, chunks.put(y, n, y_n), borders

    start = h0, jnp.zeros_like(chunks.sequences[0]), jnp.zeros((chunks.count, *h0.shape), h0.dtype)
    h_last, y, borders = lax.fori_loop(0, chunks.count, turn, start)
    return (chunks.trim(y), h_last), borders


def transpose(primals, outputs, cotangents, *, chunk: int, target: Target):
    """The backward pass, from the last chunk to the first."""
    chunks = _Chunks(primals, chunk)
    (_, borders), (g, g_last) = outputs, cotangents
    g = chunks.fill(g, -2)

    def turn(i, loop):
        s, da, *gradients = loop
        n = chunks.count - 1 - i
        given, cotangents = chunks.primals(n, borders[n]), (chunks.take(g, n), s)
        du, d_delta, da_n, db, dc, s, _ = _expanded.transpose(given, None, cotangents)
        found = zip(gradients, (du, d_delta, db, dc), strict=True)
        return s, da + da_n, *(chunks.put(x, n, y) for x, y in found)

    start = g_last, jnp.zeros_like(primals[2]), *map(jnp.zeros_like, chunks.sequences)
    s, da, *gradients = lax.fori_loop(0, chunks.count, turn, start)
    du, d_delta, db, dc = map(chunks.trim, gradients)
    return du, d_delta, da, db, dc, s, None
