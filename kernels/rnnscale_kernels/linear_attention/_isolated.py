"""Segments of a chunk, and passes over a chunk in which NaN and infinities stay in their segment.

Products of matrices cannot keep them there: zero times NaN is NaN. So what is not finite is
replaced by zero first, and afterwards all results that depend on it are NaN.
"""

from collections.abc import Callable
from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ._chunks import Chunk, ChunkPasses, pull_back


class Segments(NamedTuple):
    """The segments into which cuts split a chunk. The state before the chunk enters the first.

    - `alike`: whether two steps are in the same segment, "*rows step step".
    - `first`, `last`: whether a step is in the first or last segment, "*rows step".
    - `uncut`: whether there is one segment only, "*rows".
    """

    alike: Array
    first: Array
    last: Array
    uncut: Array

    @classmethod
    def of(cls, cut: Array) -> "Segments":
        index = jnp.cumsum(cut, -1)
        alike = index[..., :, None] == index[..., None, :]
        first = index == 0
        return cls(alike, first, index == index[..., -1:], first[..., -1])


def isolated(run: Callable[[Array, Chunk], tuple[Array, Array]]) -> ChunkPasses:
    """The passes of a chunk by `run`. If the chunk is cut, what is not finite in its state, its
    inputs or its cotangents changes no results in other segments."""

    def forward(state: Array, inputs: Chunk):
        if inputs.cut is None:
            return run(state, inputs)
        segments = Segments.of(inputs.cut)
        state, bad_state = _finite(state, 2)
        inputs, bad = _finite_inputs(inputs)
        leaving, y = run(state, inputs)
        earlier = segments.alike & jnp.tri(y.shape[-2], dtype=bool)
        bad_y = _any(earlier & bad[..., None, :]) | (segments.first & bad_state[..., None])
        bad_leaving = _any(segments.last & bad) | (segments.uncut & bad_state)
        return _spoiled(leaving, bad_leaving), _spoiled(y, bad_y)

    def transpose(state: Array, inputs: Chunk, cotangents: tuple[Array, Array]):
        if inputs.cut is None:
            return pull_back(run, state, inputs, cotangents)
        segments = Segments.of(inputs.cut)
        state, bad_state = _finite(state, 2)
        inputs, bad = _finite_inputs(inputs)
        g_leaving, bad_leaving = _finite(cotangents[0], 2)
        g_y, bad_y = _finite(cotangents[1], 1)
        g_state, gradients = pull_back(run, state, inputs, (g_leaving, g_y))
        bad = _any(segments.alike & (bad | bad_y)[..., None, :])
        bad_g_state = _any(segments.first & bad) | (segments.uncut & bad_leaving)
        bad |= (segments.first & bad_state[..., None]) | (segments.last & bad_leaving[..., None])

        def spoil(x):
            # All heads of a group add to the gradient of an array that they share.
            shared = x.shape[bad.ndim - 2] < bad.shape[-2]
            return _spoiled(x, jnp.any(bad, -2, keepdims=True) if shared else bad)

        return _spoiled(g_state, bad_g_state), jax.tree.map(spoil, gradients)

    return ChunkPasses(forward, transpose)


def _finite(x: Array, axes: int) -> tuple[Array, Array]:
    """`x` with zeros for what is not finite, and where there was any along the last `axes` axes."""
    finite = jnp.isfinite(x)
    return jnp.where(finite, x, 0), ~jnp.all(finite, tuple(range(x.ndim - axes, x.ndim)))


def _finite_inputs(inputs: Chunk) -> tuple[Chunk, Array]:
    """The same for all inputs, with the steps at which one of them was not, "*rows step"."""
    rows = inputs.value.ndim - 1
    floats, tree = jax.tree.flatten(inputs._replace(cut=None))
    floats, bad = zip(*(_finite(x, x.ndim - rows) for x in floats), strict=True)
    return jax.tree.unflatten(tree, floats)._replace(cut=inputs.cut), reduce(jnp.logical_or, bad)


def _any(x):
    return jnp.any(x, -1)


def _spoiled(x, bad):
    return jnp.where(bad.reshape(*bad.shape, *(1,) * (x.ndim - bad.ndim)), jnp.nan, x)
