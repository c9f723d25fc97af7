"""The loop over chunks of time, forward and back, for any way to compute a chunk.

Only the states that enter the chunks are kept from the forward to the backward pass, which computes
each chunk again.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from .._target import Target


class Chunk(NamedTuple):
    """The inputs of consecutive steps, or of all chunks if there is an axis in front.

    The heads have two axes: `group`, and `head` within the group, which has size 1 where all heads
    of a group share an array.

    - `query`, `key`, `erase`: "*batch group #head step key"; `erase` may be `None`.
    - `value`: "*batch group head step value".
    - `log_decay`: "*batch group head step", with a last axis "key" if it is by channel, or `None`.
    - `cut`: "*batch 1 1 step", true where the state before the step is dropped, or `None`.
    """

    query: Array
    key: Array
    value: Array
    log_decay: Array | None
    erase: Array | None
    cut: Array | None

    @property
    def by_channel(self) -> bool:
        """Whether each channel of the keys has a decay of its own."""
        return self.log_decay is not None and self.log_decay.ndim == self.value.ndim


class ChunkPasses(NamedTuple):
    """The two passes over a chunk.

    - `forward(state, inputs)`: `(leaving, y)`: the state after the chunk and the outputs, "*batch
        group head step value", from the state before it, "*batch group head key value". All arrays
        are in the dtype of the state.
    - `transpose(state, inputs, (g_leaving, g_y))`: `(g_state, g_inputs)`, their cotangents.
    """

    forward: Callable[[Array, Chunk], tuple[Array, Array]]
    transpose: Callable[[Array, Chunk, tuple[Array, Array]], tuple[Array, Chunk]]


def matmul(x, y):
    # States add up over time, and a solve amplifies errors.
    return jnp.matmul(x, y, precision=lax.Precision.HIGHEST)


def pull_back(forward: Callable, state: Array, inputs: Chunk, cotangents) -> tuple[Array, Chunk]:
    """`ChunkPasses.transpose`, by JAX."""
    floats = inputs._replace(cut=None)

    def run(state, floats):
        return forward(state, floats._replace(cut=inputs.cut))

    return jax.vjp(run, state, floats)[1](cotangents)


def forward(
    passes: ChunkPasses, primals, *, chunk: int, target: Target | None = None
) -> tuple[tuple[Array, Array], Array]:
    """The outputs of the operation."""
    _, _, value, _, _, h0, _ = primals
    layout = _Layout(primals, chunk)

    def step(state, inputs, _):
        leaving, y = passes.forward(state, layout.widened(inputs))
        return leaving, y.astype(value.dtype), state

    start = _opaque(layout.by_group(h0, -3))
    h_last, y, borders = _loop(target)(
        layout, step, start, layout.inputs, None, like=layout.inputs.value
    )
    borders = borders.reshape(borders.shape[0], *h0.shape)
    return (layout.trimmed(y), h_last.reshape(h0.shape)), borders


def transpose(
    passes: ChunkPasses, primals, outputs, cotangents, *, chunk: int, target: Target | None = None
) -> tuple:
    """The cotangents of the primals, in one loop back over the chunks."""
    *_, h0, _ = primals
    _, borders = outputs
    g_y, g_last = cotangents
    layout = _Layout(primals, chunk)
    like = layout.inputs._replace(cut=None)

    def step(g_leaving, at, entering):
        inputs, g_y = at
        g_entering, gradients = passes.transpose(
            entering, layout.widened(inputs), (g_leaving, g_y.astype(h0.dtype))
        )
        return g_entering, jax.tree.map(lambda x, like: x.astype(like.dtype), gradients, like), None

    g_last, borders = (_opaque(layout.by_group(x, -3)) for x in (g_last, borders))
    at = layout.inputs, layout.padded(g_y)
    g_h0, gradients, _ = _loop(target)(layout, step, g_last, at, borders, like=like, reverse=True)
    gradients = jax.tree.map(layout.trimmed, gradients)
    return *gradients[:-1], g_h0.reshape(h0.shape), None


def _opaque(state: Array) -> Array:
    """The state, with a value that XLA cannot know.

    A loop over one chunk becomes straight code. XLA for CPUs (jaxlib 0.11) then sees products with
    a state of constant zeros, fuses them with others, and computes those wrongly.
    """
    return lax.optimization_barrier(state)


def chunk_count(time: int, chunk: int) -> int:
    """The number of chunks, one at least."""
    return max(1, -(-time // chunk))


class _Layout:
    """Where the chunks of a call are.

    - `inputs`: its arrays, "*batch time heads ...", with steps that do nothing at the end to fill
        the last chunk: with zeros for all inputs a step keeps the state.
    - `count`: the number of chunks.
    """

    def __init__(self, primals, chunk: int):
        query, key, value, log_decay, erase, h0, cut = primals
        self.axis, self.groups = h0.ndim - 3, min(query.shape[-2], key.shape[-2])
        self.chunk, self.wide = chunk, h0.dtype
        self.time = value.shape[self.axis]
        self.count = chunk_count(self.time, chunk)
        cut = None if cut is None else cut[..., None]
        inputs = Chunk(query, key, value, log_decay, erase, cut)
        self.inputs: Chunk = jax.tree.map(self.padded, inputs)

    def padded(self, x: Array) -> Array:
        widths = [(0, 0)] * x.ndim
        widths[self.axis] = (0, self.count * self.chunk - self.time)
        return jnp.pad(x, widths)

    def trimmed(self, x: Array) -> Array:
        return lax.slice_in_dim(x, 0, self.time, axis=self.axis)

    def by_group(self, x: Array, axis: int) -> Array:
        """`x` with the axis of heads, counted from the end, as two."""
        axis += x.ndim
        heads = x.shape[axis]
        groups = self.groups if heads > 1 else 1
        return x.reshape(*x.shape[:axis], groups, heads // groups, *x.shape[axis + 1 :])

    def split(self, x: Array) -> Array:
        """All chunks, "chunk *batch group #head step ...", of "*batch time heads ..."."""
        at = self.axis
        x = x.reshape(*x.shape[:at], self.count, self.chunk, *x.shape[at + 1 :])
        return jnp.moveaxis(self.by_group(x, at + 2 - x.ndim), (at, at + 1), (0, at + 3))

    def joined(self, x: Array) -> Array:
        """The inverse of `split`."""
        at = self.axis
        x = jnp.moveaxis(x, (0, at + 3), (at, at + 1))
        count, chunk, groups, heads = x.shape[at : at + 4]
        return x.reshape(*x.shape[:at], count * chunk, groups * heads, *x.shape[at + 4 :])

    def take(self, x: Array, n: Array) -> Array:
        """Chunk `n`, "*batch group #head step ...", of "*batch time heads ..."."""
        at = self.axis
        x = lax.dynamic_slice_in_dim(x, n * self.chunk, self.chunk, at)
        return jnp.moveaxis(self.by_group(x, at + 1 - x.ndim), at, at + 2)

    def put(self, x: Array, n: Array, chunk: Array) -> Array:
        """`x`, "*batch time heads ...", with this chunk `n`."""
        at = self.axis
        chunk = jnp.moveaxis(chunk, at + 2, at)
        chunk = chunk.reshape(*x.shape[:at], self.chunk, *x.shape[at + 1 :])
        return lax.dynamic_update_slice_in_dim(x, chunk, n * self.chunk, at)

    def widened(self, inputs: Chunk) -> Chunk:
        """The inputs of a chunk in the dtype of the state."""
        floats = jax.tree.map(lambda x: x.astype(self.wide), inputs._replace(cut=None))
        return floats._replace(cut=inputs.cut)


def _loop(target: Target | None) -> Callable:
    """`(layout, step, carry, inputs, states, like, reverse) -> (carry, outputs, kept)`: the loop
    `step(carry, inputs, state) -> (carry, outputs, kept)` over chunks.

    `inputs` and `outputs` are trees of arrays "*batch time heads ...", the latter like `like`;
    `states` and `kept` have the axis of chunks in front.
    """
    return _in_place if target is not None and target.platform == "cpu" else _by_scan


def _by_scan(layout: _Layout, step, carry, inputs, states, *, like, reverse=False):
    """All chunks are copied first. JAX can transpose it in linear time."""
    del like

    def advance(carry, at):
        carry, outputs, kept = step(carry, *at)
        return carry, (outputs, kept)

    chunks = jax.tree.map(layout.split, inputs)
    carry, (outputs, kept) = lax.scan(advance, carry, (chunks, states), reverse=reverse)
    return carry, jax.tree.map(layout.joined, outputs), kept


def _in_place(layout: _Layout, step, carry, inputs, states, *, like, reverse=False):
    """Each chunk is read and written in place, so that it stays in a CPU's cache."""

    def advance(loop, at):
        (carry, outputs), (n, state) = loop, at
        taken = jax.tree.map(lambda x: layout.take(x, n), inputs)
        carry, new, kept = step(carry, taken, state)
        return (carry, jax.tree.map(lambda x, y: layout.put(x, n, y), outputs, new)), kept

    start = carry, jax.tree.map(jnp.zeros_like, like)
    chunks = jnp.arange(layout.count), states
    (carry, outputs), kept = lax.scan(advance, start, chunks, reverse=reverse)
    return carry, outputs, kept
