"""The selective scan in plain XLA, in chunks of time.

Only the state that enters each chunk is kept; the backward pass computes the others from it. The
gradient of `a` is added up chunk by chunk.

On CPUs a chunk is a loop over its steps, which holds one state, or for the backward pass those of
one chunk. All numbers of a step are computed at once from what is in cache: an exponential for each
takes longer than everything else. Elsewhere a chunk runs by `linear_scan`, for which decays and
inputs of its steps are expanded.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from .._algebra import sum_to
from .._target import Target
from . import _expanded


class _Passes(NamedTuple):
    """How a chunk is computed. A state is `enter(h0)` inside, and `leave` is the inverse.

    - `forward(primals)`: `(y, h_last)`.
    - `transpose(primals, g, g_last)`: the cotangents of all primals but `cut`.
    """

    enter: Callable[[Any, Any], Any]
    leave: Callable[[Any], Any]
    forward: Callable[..., Any]
    transpose: Callable[..., Any]


def _passes(target: Target) -> _Passes:
    if target.platform == "cpu":
        return _Passes(_modes_first, _channels_first, _loop, _loop_transpose)
    return _Passes(lambda h0, a: h0, lambda h: h, _expanded.public, _expanded_transpose)


def _expanded_transpose(primals, g, g_last):
    return _expanded.transpose(primals, None, (g, g_last))[:-1]


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
        return lax.dynamic_update_slice_in_dim(x, value.astype(x.dtype), n * self.chunk, x.ndim - 2)

    def trim(self, x):
        return lax.slice_in_dim(x, 0, self.time, axis=x.ndim - 2)

    def primals(self, n, entering):
        u, delta, b, c = (self.take(x, n) for x in self.sequences)
        cut = None if self.cut is None else self.take(self.cut, n, -1)
        return u, delta, self.a, b, c, entering, cut


def chunked(primals, *, chunk, target):
    """`((y, h_last), borders)`, one chunk after another."""
    passes, chunks = _passes(target), _Chunks(primals, chunk)
    h0 = passes.enter(primals[5], primals[2])

    def turn(n, loop):
        entering, y, borders = loop
        borders = lax.dynamic_update_index_in_dim(borders, entering, n, 0)
        y_n, leaving = passes.forward(chunks.primals(n, entering))
        return leaving, chunks.put(y, n, y_n), borders

    start = h0, jnp.zeros_like(chunks.sequences[0]), jnp.zeros((chunks.count, *h0.shape), h0.dtype)
    h_last, y, borders = lax.fori_loop(0, chunks.count, turn, start)
    borders = borders.reshape(chunks.count, *primals[5].shape)
    return (chunks.trim(y), passes.leave(h_last)), borders


def chunked_transpose(primals, outputs, cotangents, *, chunk, target):
    """The backward pass, from the last chunk to the first."""
    passes, chunks = _passes(target), _Chunks(primals, chunk)
    (_, borders), (g, g_last) = outputs, cotangents
    g, s = chunks.fill(g, -2), passes.enter(g_last, primals[2])
    borders = borders.reshape(chunks.count, *s.shape)

    def turn(i, loop):
        s, da, gradients = loop
        n = chunks.count - 1 - i
        given = chunks.primals(n, borders[n])
        du, d_delta, da_n, db, dc, s = passes.transpose(given, chunks.take(g, n), s)
        found = du, d_delta, db, dc
        gradients = tuple(chunks.put(x, n, y) for x, y in zip(gradients, found, strict=True))
        return s, da + da_n, gradients

    start = s, jnp.zeros_like(primals[2]), tuple(map(jnp.zeros_like, chunks.sequences))
    s, da, gradients = lax.fori_loop(0, chunks.count, turn, start)
    du, d_delta, db, dc = map(chunks.trim, gradients)
    return du, d_delta, da, db, dc, passes.leave(s), None


def _modes_first(h0, a):
    """From "*batch state" to "*batch modes channel": sums over modes then add up vectors."""
    return jnp.swapaxes(h0.reshape(*h0.shape[:-1], *a.shape[-2:]), -1, -2)


def _channels_first(h):
    *batch, modes, channels = h.shape
    return jnp.swapaxes(h, -1, -2).reshape(*batch, channels * modes)


class _Step(NamedTuple):
    """The numbers of one step of a chunk; or of all of them, with the axis of time in front."""

    u: Any
    delta: Any
    b: Any
    c: Any
    cut: Any


def _steps(primals) -> _Step:
    """The sequences of a chunk, with the axis of time in front."""
    u, delta, _, b, c, entering, cut = primals
    axis = u.ndim - 2
    u, delta, b, c = (jnp.moveaxis(x, axis, 0).astype(entering.dtype) for x in (u, delta, b, c))
    return _Step(u, delta, b, c, None if cut is None else jnp.moveaxis(cut, axis, 0))


def _at(x, t) -> Any:
    return None if x is None else lax.dynamic_index_in_dim(x, t, 0, False)


def _decayed(step: _Step, a, h):
    """The part of the next state that comes from `h`."""
    return _keep(step, jnp.exp(step.delta[..., None, :] * a) * h)


def _keep(step: _Step, h):
    return h if step.cut is None else jnp.where(step.cut[..., None, None], 0, h)


def _loop(primals):
    steps, a, h0 = _steps(primals), jnp.swapaxes(primals[2], -1, -2), primals[5]

    def step(t, loop):
        h, y = loop
        now = _Step(*(_at(x, t) for x in steps))
        drive = (now.delta * now.u)[..., None, :] * now.b[..., None]
        # The barrier makes the state one value, computed once for both of its uses.
        h = lax.optimization_barrier(_decayed(now, a, h) + drive)
        y_t = jnp.sum(h * now.c[..., None], axis=-2)
        return h, lax.dynamic_update_index_in_dim(y, y_t, t, 0)

    h_last, y = lax.fori_loop(0, steps.u.shape[0], step, (h0, jnp.zeros_like(steps.u)))
    return jnp.moveaxis(y, 0, -2), h_last


def _loop_transpose(primals, g, g_last):
    steps, a, h0 = _steps(primals), jnp.swapaxes(primals[2], -1, -2), primals[5]
    g = jnp.moveaxis(g, -2, 0).astype(h0.dtype)
    time = g.shape[0]

    def forward(t, hs):
        now = _Step(*(_at(x, t) for x in steps))
        drive = (now.delta * now.u)[..., None, :] * now.b[..., None]
        return lax.dynamic_update_index_in_dim(hs, _decayed(now, a, _at(hs, t)) + drive, t + 1, 0)

    hs = jnp.zeros((time + 1, *h0.shape), h0.dtype).at[0].set(h0)
    hs = lax.fori_loop(0, time, forward, hs)

    def step(i, loop):
        s, da, du, d_delta, db, dc = loop
        t = time - 1 - i
        now = _Step(*(_at(x, t) for x in steps))
        g_t, before, h = _at(g, t), _keep(now, _at(hs, t)), _at(hs, t + 1)
        dc_t = jnp.sum(g_t[..., None, :] * h, axis=-1)
        s = lax.optimization_barrier(s + g_t[..., None, :] * now.c[..., None])
        db_t = jnp.sum((now.delta * now.u)[..., None, :] * s, axis=-1)
        read = jnp.sum(now.b[..., None] * s, axis=-2)
        s = lax.optimization_barrier(_decayed(now, a, s))
        # The cotangent of the exponents.
        d_log = s * before
        d_delta_t = now.u * read + jnp.sum(a * d_log, axis=-2)
        da = da + now.delta[..., None, :] * d_log
        found = zip((du, d_delta, db, dc), (now.delta * read, d_delta_t, db_t, dc_t), strict=True)
        put = (lax.dynamic_update_index_in_dim(x, y, t, 0) for x, y in found)
        return s, da, *put

    empty = (jnp.zeros_like(x) for x in (steps.u, steps.delta, steps.b, steps.c))
    start = g_last, jnp.zeros_like(h0), *empty
    s, da, *gradients = lax.fori_loop(0, time, step, start)
    du, d_delta, db, dc = (jnp.moveaxis(x, 0, -2) for x in gradients)
    return du, d_delta, sum_to(jnp.swapaxes(da, -1, -2), primals[2]), db, dc, s
