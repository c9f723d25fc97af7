"""The loop over chunks of time, forward and back, for any way to compute a chunk.

Only the states that enter the chunks are kept from the forward to the backward pass, which computes
each chunk again.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax


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


def forward(passes: ChunkPasses, primals, *, chunk: int, target: Any = None):
    """The outputs of the operation."""
    *_, h0, _ = primals
    layout = _Layout(primals, chunk)

    def step(state, inputs):
        leaving, y = passes.forward(state, layout.widened(inputs))
        return leaving, (y.astype(layout.dtype), state)

    h_last, (y, borders) = lax.scan(step, layout.by_group(h0, -3), layout.chunks)
    borders = borders.reshape(borders.shape[0], *h0.shape)
    return (layout.joined(y), h_last.reshape(h0.shape)), borders


def transpose(passes: ChunkPasses, primals, outputs, cotangents, *, chunk: int, target: Any = None):
    """The cotangents of the primals, in one loop back over the chunks."""
    *_, h0, _ = primals
    _, borders = outputs
    g_y, g_last = cotangents
    layout = _Layout(primals, chunk)

    def step(g_leaving, at):
        inputs, entering, g_y = at
        g_entering, gradients = passes.transpose(
            entering, layout.widened(inputs), (g_leaving, g_y.astype(h0.dtype))
        )
        return g_entering, jax.tree.map(
            lambda x, like: x.astype(like.dtype), gradients, inputs._replace(cut=None)
        )

    g_last, borders = (layout.by_group(x, -3) for x in (g_last, borders))
    xs = layout.chunks, borders, layout.split(g_y)
    g_h0, gradients = lax.scan(step, g_last, xs, reverse=True)
    gradients = jax.tree.map(layout.joined, gradients._replace(cut=None))
    return *gradients[:-1], g_h0.reshape(h0.shape), None


class _Layout:
    """The primals in chunks of time, "chunk *batch group #head step ...".

    Steps that do nothing fill the last chunk: with zeros for all inputs they keep the state.
    """

    def __init__(self, primals, chunk: int):
        query, key, value, log_decay, erase, h0, cut = primals
        self.chunk, self.wide, self.dtype = chunk, h0.dtype, value.dtype
        self.axis, self.groups = h0.ndim - 3, min(query.shape[-2], key.shape[-2])
        self.time = value.shape[self.axis]
        cut = None if cut is None else cut[..., None]
        arrays = Chunk(query, key, value, log_decay, erase, cut)
        self.chunks = jax.tree.map(self.split, arrays)

    def by_group(self, x, axis: int):
        """`x` with the axis of heads, counted from the end, as two."""
        axis += x.ndim
        heads = x.shape[axis]
        groups = self.groups if heads > 1 else 1
        return x.reshape(*x.shape[:axis], groups, heads // groups, *x.shape[axis + 1 :])

    def split(self, x):
        """ "*batch time heads ..." in chunks."""
        at = self.axis
        padding = [(0, 0)] * x.ndim
        padding[at] = (0, -self.time % self.chunk)
        x = jnp.pad(x, padding)
        x = x.reshape(*x.shape[:at], x.shape[at] // self.chunk, self.chunk, *x.shape[at + 1 :])
        x = self.by_group(x, at + 2 - x.ndim)
        return jnp.moveaxis(x, (at, at + 1), (0, at + 3))

    def joined(self, x):
        """The inverse of `split`."""
        at = self.axis
        x = jnp.moveaxis(x, (0, at + 3), (at, at + 1))
        count, chunk, groups, heads = x.shape[at : at + 4]
        x = x.reshape(*x.shape[:at], count * chunk, groups * heads, *x.shape[at + 4 :])
        return lax.slice_in_dim(x, 0, self.time, axis=at)

    def widened(self, inputs: Chunk) -> Chunk:
        """The inputs of a chunk in the dtype of the state."""
        floats = jax.tree.map(lambda x: x.astype(self.wide), inputs._replace(cut=None))
        return floats._replace(cut=inputs.cut)
