"""From hand-written kernels to an implementation: batch axes folded, time split.

A kernel runs every chunk of time of every row as a program of its own. Where rows and channels fill
the device there is one chunk. Where they don't, a first pass reads the inputs once for what each
chunk does to the state that enters it, h_out = decay h_in + end; a scan over these few totals gives
the states that enter the chunks, and with them the kernel runs on all chunks side by side.
"""

import math
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from .._planar import Planes, as_number, as_planes, conjugate, power, product
from .._target import Target
from ._backward import previous, sum_to
from ._xla import associative


class Kernels(Protocol):
    """The four kernels of a toolchain, on `B` rows of `L` steps of `D` channels.

    `a` is "R L D" or "R 1 D", and row r uses its row (r // inner) % R. Chunk c of the S chunks
    holds the times from c * chunk on, `chunk` of them or up to the end. What enters and leaves
    chunks is "B S D" in float32, all else of the size of the sequence in the dtype given. Complex
    arrays are tuples of two planes, real ones of one.
    """

    @property
    def DTYPES(self) -> tuple[str, ...]:
        """What `a` and `b` may be of."""
        ...

    def unavailable(self, target: Target) -> str | None:
        """Why they cannot run there, or `None`."""
        ...

    def unsuited(self, target: Target, spec: Any) -> str | None:
        """Why another would be faster, or `None`."""
        ...

    def chunk_steps(self, target: Target, spec: Any) -> int:
        """Steps of a chunk: all of them where rows and channels fill the device."""
        ...

    def forward(
        self,
        a: Planes,
        b: Planes,
        h0: Planes,
        cut: Array | None,
        *,
        chunk: int,
        inner: int,
        reverse: bool,
        target: Target,
    ) -> tuple[Planes, Planes]:
        """(h, last): all states, and those that leave the chunks which `h0` entered."""
        ...

    def forward_totals(
        self,
        a: Planes,
        b: Planes,
        cut: Array | None,
        *,
        chunk: int,
        inner: int,
        reverse: bool,
        target: Target,
    ) -> tuple[Planes | None, Planes]:
        """(product, end): of each chunk the product of its decays, whatever is cut, and the state
        that leaves it if zero enters it. No product for a time-invariant decay."""
        ...

    def backward(
        self,
        a: Planes,
        h: Planes,
        h0: Planes,
        cut: Array | None,
        g: Planes,
        c: Planes,
        *,
        chunk: int,
        inner: int,
        reverse: bool,
        da_dtype: Any,
        target: Target,
    ) -> tuple[Planes, Planes, Planes]:
        """(da, db, c_out): one pass, from the step processed last to the first.

        With c the cotangent that comes from the steps processed after t, the state h_p before t
        and zero for both products where t is cut: s_t = g_t + c, db_t = s_t, da_t = s_t conj(h_p),
        and c = conj(a_t) s_t goes on. `c` enters the chunks and `c_out` leaves them; `h0` is the
        state before the row, "B D". The gradient of a time-invariant decay is summed over each
        chunk, "B S D" in float32.
        """
        ...

    def backward_totals(
        self,
        a: Planes,
        g: Planes,
        cut: Array | None,
        *,
        chunk: int,
        inner: int,
        reverse: bool,
        target: Target,
    ) -> tuple[Planes | None, Planes]:
        """(product, end): the same product, and the c that leaves a chunk if zero enters it."""
        ...


def unsupported(kernels: Kernels, spec: Any) -> str | None:
    """Why the kernels cannot take these arguments, or `None`."""
    for dtype in (spec.dtype, spec.decay_dtype):
        if dtype not in kernels.DTYPES:
            return f"takes {', '.join(kernels.DTYPES)}, not {dtype}"
    if spec.state_dtype != "float32":
        return f"carries states in float32, not {spec.state_dtype}"
    if spec.batch * spec.channels == 0:
        return "a kernel needs something to compute"
    return None


def forward(kernels: Kernels, primals, *, reverse: bool, target: Target, spec):
    """The forward pass of the operation."""
    a, b, h0, cut = primals
    rows = _Rows(a, b.shape, cut, kernels.chunk_steps(target, spec))
    run: dict[str, Any] = {"reverse": reverse, "target": target, **rows.static}
    b, h0 = _fold(b, rows.batch), _fold(h0, rows.batch)
    entering = jax.tree.map(lambda x: x[:, None], h0)
    if rows.chunks > 1:
        parts, end = kernels.forward_totals(rows.a, as_planes(b), rows.cut, **run)
        entering = rows.entering(rows.total_decay(parts), as_number(end), h0, reverse=reverse)
    h, last = kernels.forward(rows.a, as_planes(b), as_planes(entering), rows.cut, **run)
    h_last = jax.tree.map(lambda x: x[:, 0 if reverse else -1], as_number(last))
    return _unfold((as_number(h), h_last), rows.batch), ()


def transpose(kernels: Kernels, primals, outputs, cotangents, *, reverse, target: Target, spec):
    """The backward pass of the operation."""
    a, _, h0, cut = primals
    (h, _), _ = outputs
    g, g_last = cotangents
    rows = _Rows(a, g.shape, cut, kernels.chunk_steps(target, spec))
    run: dict[str, Any] = {"reverse": reverse, "target": target, **rows.static}
    h, h0, g, g_last = (_fold(x, rows.batch) for x in (h, h0, g, g_last))
    entering = jax.tree.map(lambda x: x[:, None], g_last)
    if rows.chunks > 1:
        parts, end = kernels.backward_totals(rows.a, as_planes(g), rows.cut, **run)
        total = conjugate(rows.total_decay(parts))
        entering = rows.entering(total, as_number(end), g_last, reverse=not reverse)
    # What is yet to be added up over the rows that share a decay keeps its precision.
    da_dtype = a.dtype if len(rows.a[0]) == math.prod(rows.batch) else jnp.dtype(jnp.float32)
    da, db, c_out = kernels.backward(
        rows.a, as_planes(h), as_planes(h0), rows.cut, as_planes(g), as_planes(entering),
        da_dtype=da_dtype, **run,
    )  # fmt: skip
    dh0 = jax.tree.map(lambda x: x[:, -1 if reverse else 0], as_number(c_out))
    da = as_number(da)
    if a.shape[-2] == 1:
        da = jax.tree.map(lambda x: jnp.sum(x, axis=1, keepdims=True), da)
    da, db, dh0 = _unfold((da, as_number(db), dh0), rows.batch)
    return sum_to(da, a), db, dh0, None


def totals(kernels: Kernels, primals, *, reverse: bool, target: Target, spec):
    """The reduction `totals` of the operation, which reads the inputs once and writes no state."""
    a, b, h0, cut = primals
    rows = _Rows(a, b.shape, cut, kernels.chunk_steps(target, spec))
    run: dict[str, Any] = {"reverse": reverse, "target": target, **rows.static}
    parts, end = kernels.forward_totals(rows.a, as_planes(_fold(b, rows.batch)), rows.cut, **run)
    start = jax.tree.map(jnp.zeros_like, _fold(h0, rows.batch))
    _, end = rows.leaving(rows.total_decay(parts), as_number(end), start, reverse=reverse)
    whole = None if parts is None else _unfold(product(as_number(parts)), rows.batch)
    return whole, _unfold(end, rows.batch)


def transpose_totals(kernels: Kernels, primals, *, reverse: bool, target: Target, spec):
    """The reduction `transpose_totals` of the operation."""
    a, g, h0, cut = primals
    rows = _Rows(a, g.shape, cut, kernels.chunk_steps(target, spec))
    run: dict[str, Any] = {"reverse": reverse, "target": target, **rows.static}
    parts, end = kernels.backward_totals(rows.a, as_planes(_fold(g, rows.batch)), rows.cut, **run)
    start = jax.tree.map(jnp.zeros_like, _fold(h0, rows.batch))
    total = conjugate(rows.total_decay(parts))
    _, end = rows.leaving(total, as_number(end), start, reverse=not reverse)
    return _unfold(end, rows.batch)


class _Rows:
    """The decay and the cuts of `B` rows, and how their time is split."""

    def __init__(self, a, shape: tuple[int, ...], cut, chunk: int):
        *self.batch, self.time, _ = shape
        self.chunk = min(chunk, self.time)
        self.chunks = -(-self.time // self.chunk)
        a, self.inner = _fold_decay(a, self.batch)
        self.a = as_planes(a)
        self.cut = None if cut is None else _fold(cut, self.batch)

    @property
    def static(self) -> dict[str, int]:
        return {"chunk": self.chunk, "inner": self.inner}

    def total_decay(self, parts: Planes | None):
        """The product of the decays of every chunk, "B S D"."""
        if parts is not None:
            return as_number(parts)
        last = self.time - (self.chunks - 1) * self.chunk
        decay = as_number(self.a)
        whole, rest = power(decay, self.chunk), power(decay, last)

        def spread(whole, rest):
            per_decay = jnp.concatenate([whole] * (self.chunks - 1) + [rest], axis=1)
            row = jnp.arange(math.prod(self.batch)) // self.inner % len(per_decay)
            return per_decay[row]

        return jax.tree.map(spread, whole, rest)

    def leaving(self, decay, end, start, *, reverse: bool):
        """What leaves the chunks, "B S D", and the last of it, where `start` enters the first one
        processed."""
        cut = None
        if self.cut is not None:
            padded = jnp.pad(self.cut, [(0, 0), (0, self.chunks * self.chunk - self.time)])
            cut = jnp.any(padded.reshape(-1, self.chunks, self.chunk), axis=-1)
        return associative(decay, end, start, cut, reverse=reverse)

    def entering(self, decay, end, start, *, reverse: bool):
        """What enters the chunks, "B S D"."""
        leaving, _ = self.leaving(decay, end, start, reverse=reverse)
        return previous(leaving, start, None, reverse=reverse)


def _fold_decay(a, batch: list[int]):
    """(a, inner): "R time channel", where row r of the folded batch has row (r // inner) % R."""
    own = [i for i, (n, size) in enumerate(zip(a.shape[:-2], batch, strict=True)) if n == size > 1]
    first, end = (own[0], own[-1] + 1) if own else (0, 0)
    if any(n != size for n, size in zip(a.shape[first:end], batch[first:end], strict=True)):
        a = jax.tree.map(lambda x: jnp.broadcast_to(x, (*batch, *x.shape[-2:])), a)
        first, end = 0, len(batch)
    rows = math.prod(batch[first:end])
    return jax.tree.map(lambda x: x.reshape(rows, *x.shape[-2:]), a), math.prod(batch[end:])


def _fold(x, batch: list[int]):
    rows = math.prod(batch)
    return jax.tree.map(lambda x: x.reshape(rows, *x.shape[len(batch) :]), x)


def _unfold(x, batch: list[int]):
    return jax.tree.map(lambda x: x.reshape(*batch, *x.shape[1:]), x)
