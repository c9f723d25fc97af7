"""The passes of the operation on hand-written kernels: batch axes folded, time split into chunks.

A kernel runs every chunk of every row as a program of its own. If rows and channels fill the
device, or the kernel splits time by itself, there is one chunk. Otherwise a first kernel reads the
inputs once and finds the total of each chunk, which turns the state that enters it into
h_out = decay h_in + end. A scan over these few totals gives the states that enter the chunks, and
with them a second kernel runs all chunks at the same time.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .._algebra import adjoint, power, product, sum_to
from .._dispatch import Implementation
from .._target import Target
from ._backward import previous
from ._kernels import Kernels, Launch
from ._spec import ScanSpec
from ._xla import associative


def by_kernels(name: str, kernels: Kernels) -> Implementation:
    """The implementation that these kernels make."""

    def adapted(run: Callable[..., Any], *, backward: bool) -> Callable[..., Any]:
        def adapt(primals, *others, reverse, target):
            chunk = kernels.chunk_steps(target, ScanSpec.of(primals, reverse=reverse))
            with jax.enable_x64(False):  # indices in kernels have 32 bits
                rows = _Rows(primals, chunk, descending=reverse != backward, target=target)
                return run(kernels, rows, primals, *others)

        return adapt

    return Implementation(
        name,
        adapted(_forward, backward=False),
        adapted(_transpose, backward=True),
        adapted(_totals, backward=False),
        adapted(_transpose_totals, backward=True),
        unavailable=kernels.unavailable,
        unsupported=kernels.unsupported,
        unsuited=kernels.unsuited,
    )


class _Rows:
    """The rows of one pass: their batch axes folded into one, their time split into chunks.

    `launch` says in which direction this pass takes the chunks.
    """

    def __init__(self, primals, chunk: int, *, descending: bool, target: Target):
        a, b, _, cut = primals
        *self.batch, self.time, _ = b.shape
        chunk = min(chunk, self.time)
        self.chunks = -(-self.time // chunk)
        self.a, inner = _fold_decay(a, self.batch)
        self.cut = self.fold(cut)
        self.launch = Launch(chunk, inner, descending, target)

    def fold(self, tree):
        """All batch axes as one."""
        rows = math.prod(self.batch)
        return jax.tree.map(lambda x: x.reshape(rows, *x.shape[len(self.batch) :]), tree)

    def unfold(self, tree):
        """The inverse of `fold`."""
        return jax.tree.map(lambda x: x.reshape(*self.batch, *x.shape[1:]), tree)

    def last_chunk(self, tree):
        """What belongs to the chunk that this pass takes last, of arrays "B S D"."""
        return jax.tree.map(lambda x: x[:, 0 if self.launch.descending else -1], tree)

    def total_decay(self, products):
        """The product of the decays of every chunk, "B S D".

        `products` come from the kernel. They are `None` for a time-invariant decay, where they are
        powers: one for the chunks of full length, and one for the last chunk.
        """
        if products is not None:
            return products
        chunk = self.launch.chunk
        last = self.time - (self.chunks - 1) * chunk

        def by_chunk(full, last):
            by_decay = jnp.concatenate([full] * (self.chunks - 1) + [last], axis=1)
            row = jnp.arange(math.prod(self.batch)) // self.launch.inner % len(by_decay)
            return by_decay[row]

        return jax.tree.map(by_chunk, power(self.a, chunk), power(self.a, last))

    def leaving(self, decay, end, start):
        """What leaves each chunk, "B S D", and the chunk taken last, when `start` enters the one
        taken first."""
        cut = None
        if self.cut is not None:
            chunk = self.launch.chunk
            padded = jnp.pad(self.cut, [(0, 0), (0, self.chunks * chunk - self.time)])
            cut = jnp.any(padded.reshape(-1, self.chunks, chunk), axis=-1)
        return associative(decay, end, start, cut, reverse=self.launch.descending)

    def entering(self, decay, end, start):
        """What enters each chunk, "B S D"."""
        leaving, _ = self.leaving(decay, end, start)
        return previous(leaving, start, None, reverse=self.launch.descending)


def _forward(kernels: Kernels, rows: _Rows, primals):
    """The forward pass of the operation."""
    _, b, h0, _ = primals
    b, h0 = rows.fold(b), rows.fold(h0)
    entering = jax.tree.map(lambda x: x[:, None], h0)
    if rows.chunks > 1:
        products, end = kernels.forward_totals(rows.a, b, rows.cut, rows.launch)
        entering = rows.entering(rows.total_decay(products), end, h0)
    h, last = kernels.forward(rows.a, b, entering, rows.cut, rows.launch)
    return rows.unfold((h, rows.last_chunk(last))), ()


def _transpose(kernels: Kernels, rows: _Rows, primals, outputs, cotangents):
    """The backward pass of the operation."""
    a, _, h0, _ = primals
    (h, _), _ = outputs
    h, h0, g, g_last = rows.fold((h, h0, *cotangents))
    entering = jax.tree.map(lambda x: x[:, None], g_last)
    if rows.chunks > 1:
        products, end = kernels.backward_totals(rows.a, g, rows.cut, rows.launch)
        entering = rows.entering(adjoint(rows.total_decay(products)), end, g_last)
    # A gradient that is still to be summed over the rows that share a decay keeps its precision.
    own_decay = rows.a.shape[0] == math.prod(rows.batch)
    da_dtype = a.dtype if own_decay else jnp.dtype(jnp.float32)
    da, db, c_out = kernels.backward(
        rows.a, h, h0, rows.cut, g, entering, rows.launch, da_dtype=da_dtype
    )
    if a.shape[-2] == 1:
        da = jax.tree.map(lambda x: jnp.sum(x, axis=1, keepdims=True), da)
    da, db, dh0 = rows.unfold((da, db, rows.last_chunk(c_out)))
    return sum_to(da, a), db, dh0, None


def _totals(kernels: Kernels, rows: _Rows, primals):
    """The reduction `totals` of the operation, which reads the inputs once and writes no state."""
    _, b, h0, _ = primals
    products, end = kernels.forward_totals(rows.a, rows.fold(b), rows.cut, rows.launch)
    start = jax.tree.map(jnp.zeros_like, rows.fold(h0))
    _, end = rows.leaving(rows.total_decay(products), end, start)
    total = None if products is None else product(products, reverse=rows.launch.descending)
    return rows.unfold(total), rows.unfold(end)


def _transpose_totals(kernels: Kernels, rows: _Rows, primals):
    """The reduction `transpose_totals` of the operation."""
    _, g, h0, _ = primals
    products, end = kernels.backward_totals(rows.a, rows.fold(g), rows.cut, rows.launch)
    start = jax.tree.map(jnp.zeros_like, rows.fold(h0))
    _, end = rows.leaving(adjoint(rows.total_decay(products)), end, start)
    return rows.unfold(end)


def _fold_decay(a, batch: list[int]):
    """`(a, inner)`: "R time channel", where row r of the folded batch has row `(r // inner) % R`.

    The batch axes that the decay has of its own have to be neighbours for that. If they are not,
    the decay is repeated along the axes between them.
    """
    own = [i for i, (n, size) in enumerate(zip(a.shape[:-2], batch, strict=True)) if n == size > 1]
    first, end = (own[0], own[-1] + 1) if own else (0, 0)
    if any(n != size for n, size in zip(a.shape[first:end], batch[first:end], strict=True)):
        a = jax.tree.map(lambda x: jnp.broadcast_to(x, (*batch, *x.shape[-2:])), a)
        first, end = 0, len(batch)
    rows = math.prod(batch[first:end])
    return jax.tree.map(lambda x: x.reshape(rows, *x.shape[-2:]), a), math.prod(batch[end:])
