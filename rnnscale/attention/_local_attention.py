"""`LocalAttention`: softmax attention within a window, whose state is a ring of keys and values."""

import math
from functools import partial
from typing import Annotated, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, DTypeLike, Float, Int, Key, PRNGKeyArray

from rnnscale import sharding
from rnnscale._base import CausalLayer, check_call, check_step, state_dtype, zero_padding
from rnnscale._checks import (
    BatchShape,
    FloatDType,
    Must,
    Positive,
    Share,
    Size,
    check_arguments,
)
from rnnscale._fields import parameter
from rnnscale.attention._heads import features_of_head, from_heads, lecun_normal, to_heads

type Window = Annotated[int, Must("be at least 2", lambda n: n >= 2)]

# Steps whose weights exist at one time, in rows of one window or more.
_TOGETHER = 1024


class WindowState(NamedTuple):
    """The last keys and values, before rotation, and how many there were in the segment.

    Step `n` of a segment is at the place `n % window`. Places that hold no step are zero. From
    `window` on, `position` counts modulo `window`, so that it never overflows.
    """

    keys: Float[Array, "*batch window kv_heads key"]
    values: Float[Array, "*batch window kv_heads key"]
    position: Int[Array, "*batch"]


class LocalAttention(CausalLayer):
    r"""Softmax attention of each step to the last `window` steps, its own included.

    With $q, k, v$ linear in the input, $R_t$ the rotation by the step's position, and the segment
    that begins at step $t_0$, each head computes

    $$y_t = \sum_{s = \max(t_0, t - w + 1)}^{t} p_{ts} v_s, \qquad
      p_{ts} = \mathrm{softmax}_s \left( \frac{(R_t q_t)^T R_s k_s}{\sqrt{d}} \right)$$

    and the output is linear in the $y$ of all heads. With `kv_heads` below `heads`, groups of heads
    share keys and values. $R_t$ turns feature $i$ and feature $i + r / 2$, for $i < r / 2$ and the
    first $r$ features of a head, by the angle $t \, b^{-2 i / r}$. Products depend on $t - s$ only,
    so positions here count from the start of a block, and sequences may be of any length.

    The state is a ring of the last `window` keys and values, so `step` takes constant time and
    memory. A sequence is computed in blocks of `window` steps, each of which sees itself and the
    block before: time and memory are linear in its length. Weights are computed in float32, by
    `jax.nn.dot_product_attention`, and again in the backward pass.

    Over a mesh that splits time, each device sends its last `window - 1` keys and values to the
    next, in one collective-permute. Each device must hold at least as many steps. Heads are split
    over `tensor`, while all of its devices have all keys and values.

    All weights start Lecun-normal.

    Beltagy, Peters, Cohan, *Longformer: The Long-Document Transformer*, 2020. Su et al.,
    *RoFormer: Enhanced Transformer with Rotary Position Embedding*, 2021. Ainslie et al., *GQA:
    Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints*, 2023.
    """

    query: Float[Array, "heads key idim"] = parameter()
    key: Float[Array, "kv_heads key idim"] = parameter()
    value: Float[Array, "kv_heads key idim"] = parameter()
    output: Float[Array, "odim heads key"] = parameter()
    bias: Float[Array, "odim"] | None = parameter(group="bias")
    idim: int = eqx.field(static=True)
    odim: int = eqx.field(static=True)
    window: int = eqx.field(static=True)
    rotated: int = eqx.field(static=True)
    rotary_base: float = eqx.field(static=True)

    @check_arguments
    def __init__(
        self,
        idim: Size,
        heads: Size,
        window: Window,
        odim: Size | None = None,
        *,
        kv_heads: Size | None = None,
        key_dim: Size | None = None,
        rotary: Share = 1.0,
        rotary_base: Positive = 10_000.0,
        use_bias: bool = False,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `idim`: features of the input.
        - `heads`: the number of heads.
        - `window`: the steps that a step attends to, its own included; at least 2.
        - `odim`: features of the output. Default `idim`.
        - `kv_heads`: heads of keys and values, a divisor of `heads`; 1 for multi-query attention.
            Default `heads`.
        - `key_dim`: features of queries, keys and values in a head. Default `idim / heads`.
        - `rotary`: the part of these features that is rotated, from 0, for no positions, to 1;
            0.5 in RecurrentGemma. `rotary * key_dim` must be an even integer.
        - `rotary_base`: the base of the angles, $b$.
        - `use_bias`: whether the output has a bias.
        - `key`: for the initial parameters.

        **Raises:** `ValueError` if a size is out of range or does not divide another, or
        `rotary * key_dim` is not an even integer; `TypeError` if an argument is another kind of
        thing.
        """
        kv_heads = heads if kv_heads is None else kv_heads
        odim = idim if odim is None else odim
        key_dim = features_of_head("LocalAttention", "key_dim", key_dim, idim, heads)
        if heads % kv_heads:
            raise ValueError(
                f"LocalAttention: kv_heads must divide heads={heads}; got kv_heads={kv_heads}."
            )
        if round(rotary * key_dim, 6) % 2:
            raise ValueError(
                "LocalAttention: features are rotated in pairs, so rotary * key_dim must be an "
                f"even integer; got rotary={rotary} of key_dim={key_dim}."
            )
        keys = jax.random.split(key, 4)
        self.query = lecun_normal(keys[0], (heads, key_dim, idim), idim)
        self.key = lecun_normal(keys[1], (kv_heads, key_dim, idim), idim)
        self.value = lecun_normal(keys[2], (kv_heads, key_dim, idim), idim)
        self.output = lecun_normal(keys[3], (odim, heads, key_dim), heads * key_dim)
        self.bias = jnp.zeros((odim,), jnp.float32) if use_bias else None
        self.idim, self.odim, self.window = idim, odim, window
        self.rotated, self.rotary_base = round(rotary * key_dim), float(rotary_base)

    def __call__(
        self,
        xs: Float[Array, "*batch time idim"],
        state: WindowState | None = None,
        *,
        reset: Bool[Array, "*batch time"] | None = None,
        lengths: Int[Array, "*batch"] | None = None,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[WindowState, Float[Array, "*batch time odim"]]:
        before, lengths = check_call(self, xs, state, reset, lengths, key)
        batch_shape, time = xs.shape[:-2], xs.shape[-2]
        if xs.size == 0:
            return before, jnp.zeros((*batch_shape, time, self.odim), xs.dtype)
        rank, size = len(batch_shape), self.window - 1
        parts = sharding.time_parts(time)
        if parts > 1:
            sharding.check_halo("LocalAttention", size, time, parts)
        starts = jnp.zeros((*batch_shape, time), bool) if reset is None else reset
        if lengths is not None:
            starts &= jnp.arange(time) < lengths[..., None]

        # 1. To "*batch part step ...". Each part begins with the last steps of the one before, of
        # which those of another segment have the segment -1. Its own segments count from 0.
        xs = sharding.split_time(zero_padding(xs, lengths), parts, time_axis=rank)
        segments = jnp.cumsum(sharding.split_time(starts, parts, time_axis=rank), axis=-1)
        query = to_heads(self.query, xs)
        memory = jnp.stack([to_heads(self.key, xs), to_heads(self.value, xs)], axis=-2)
        past = _in_order(before, xs.dtype)
        seen_past = jnp.arange(size) >= size - before.position[..., None]
        memory, segments = _with_past(memory, segments, past[..., 1:, :, :, :], seen_past)

        # 2. The blocks, and the steps at which the rows end.
        ys = self._attend_in_blocks(query, memory, segments)
        ys = self._mix(sharding.join_time(ys, time_axis=rank))
        ends = jnp.full(batch_shape, time) if lengths is None else lengths
        last = (
            jnp.max(jnp.where(starts, jnp.arange(time), -1), axis=-1) if reset is not None else -1
        )
        count = jnp.where(last >= 0, ends - last, before.position + ends).astype(jnp.int32)
        after = _ring(_at_ends(memory, self.window, lengths), _bounded(count, self.window), before)
        after = jax.tree.map(
            lambda new, old: jnp.where(_expand(ends > 0, new.ndim), new, old), after, before
        )
        return after, zero_padding(ys, lengths)

    def step(
        self,
        x: Float[Array, "*batch idim"],
        state: WindowState,
        *,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[WindowState, Float[Array, "*batch odim"]]:
        keys, values, position = check_step(self, x, state, key)
        place = position % self.window
        keys = _put(keys, to_heads(self.key, x).astype(keys.dtype), place)
        values = _put(values, to_heads(self.value, x).astype(values.dtype), place)
        age = (place[..., None] - jnp.arange(self.window)) % self.window
        y = _attend(
            to_heads(self.query, x)[..., None, :, :],
            self._rotate(keys.astype(x.dtype), -age),
            values.astype(x.dtype),
            (age <= position[..., None])[..., None, :],
        )
        after = WindowState(keys, values, _bounded(position + 1, self.window))
        return after, self._mix(y[..., 0, :, :])

    @check_arguments
    def init_state(
        self, batch_shape: BatchShape = (), dtype: FloatDType | None = None
    ) -> WindowState:
        kv_heads, key_dim, _ = self.key.shape[-3:]
        ring = jnp.zeros((*batch_shape, self.window, kv_heads, key_dim), state_dtype(dtype))
        return WindowState(ring, jnp.zeros_like(ring), jnp.zeros(batch_shape, jnp.int32))

    def _attend_in_blocks(
        self,
        query: Float[Array, "*rows time heads key"],
        memory: Float[Array, "*rows past_and_time kv_heads 2 key"],
        segments: Int[Array, "*rows past_and_time"],
    ) -> Float[Array, "*rows time heads key"]:
        """The outputs of the heads. `memory` begins `window - 1` steps before `query`."""
        rank, (time, heads, key_dim) = query.ndim - 3, query.shape[-3:]
        window, block = self.window, min(self.window, time)
        count = -(-time // block)
        missing = count * block - time

        def padded(x: Array, before: int) -> Array:
            widths = [(0, 0)] * x.ndim
            widths[rank] = (before, missing)
            return jnp.pad(x, widths)

        def blocks(x: Array, *, overlap: bool) -> Array:
            """To "block *rows step ...", with `overlap` after the `window` steps before."""
            if count == 1:
                return x[None]
            x = x.reshape(*x.shape[:rank], x.shape[rank] // block, block, *x.shape[rank + 1 :])
            if overlap:
                x = jnp.concatenate(
                    [
                        lax.slice_in_dim(x, 0, count, axis=rank),
                        lax.slice_in_dim(x, 1, count + 1, axis=rank),
                    ],
                    axis=rank + 1,
                )
            return jnp.moveaxis(x, rank, 0)

        # With one more step, which no query sees, the past of a block is as long as the block.
        memory, segments = padded(memory, 1), padded(segments, 1)
        age = jnp.arange(block)[:, None] + window - jnp.arange(window + block)
        near = (age >= 0) & (age < window)

        def attend(steps: tuple[Array, Array, Array]) -> Array:
            query, memory, segments = steps
            own = segments[..., window:, None]
            key = self._rotate(memory[..., 0, :], jnp.arange(-window, block))
            query = self._rotate(query, jnp.arange(block))
            return _attend(query, key, memory[..., 1, :], near & (segments[..., None, :] == own))

        steps = (
            blocks(padded(query, 0), overlap=False),
            blocks(memory, overlap=True),
            blocks(segments, overlap=True),
        )
        together = min(count, max(1, _TOGETHER // block))
        ys = lax.map(jax.checkpoint(attend), steps, batch_size=together)
        ys = jnp.moveaxis(ys, 0, rank)
        ys = ys.reshape(*query.shape[:rank], count * block, heads, key_dim)
        return lax.slice_in_dim(ys, 0, time, axis=rank)

    def _mix(self, y: Float[Array, "*axes heads key"]) -> Float[Array, "*axes odim"]:
        y = from_heads(self.output, y, y.dtype)
        return y if self.bias is None else y + self.bias.astype(y.dtype)

    def _rotate(
        self, x: Float[Array, "*axes time heads key"], position: Int[Array, "*#axes time"]
    ) -> Float[Array, "*axes time heads key"]:
        """The features turned by the angles of their positions."""
        if not self.rotated:
            return x
        wide, half = state_dtype(x.dtype), self.rotated // 2
        rates = self.rotary_base ** (-jnp.arange(half, dtype=wide) / half)
        angles = (position[..., None] * rates)[..., None, :]
        cos, sin = jnp.cos(angles), jnp.sin(angles)
        first, second, rest = jnp.split(x, [half, 2 * half], axis=-1)
        turned = first * cos - second * sin, second * cos + first * sin
        return jnp.concatenate([*(each.astype(x.dtype) for each in turned), rest], axis=-1)


@partial(jnp.vectorize, signature="(t,h,k),(s,g,k),(s,g,k),(t,s)->(t,h,k)")
def _attend(
    query: Float[Array, "time heads key"],
    key: Float[Array, "source kv_heads key"],
    value: Float[Array, "source kv_heads key"],
    seen: Bool[Array, "time source"],
) -> Float[Array, "time heads key"]:
    """Attention to the steps that are `seen`, of which each query sees one or more.

    A NaN or an infinity reaches the queries that see it and no other: a weight of zero would not
    keep it out, so those steps are left out, and the queries that see one get NaN afterwards.
    """
    finite = jnp.isfinite(key).all((-2, -1)) & jnp.isfinite(value).all((-2, -1))
    spoiled = (seen & ~finite).any(-1)[:, None, None]
    key, value = (jnp.where(finite[:, None, None], x, 0) for x in (key, value))
    dtype = query.dtype
    if dtype == jnp.float16:  # CPUs do not multiply these with the precision that JAX asks for
        query, key, value = (x.astype(jnp.float32) for x in (query, key, value))
    y = jax.nn.dot_product_attention(
        jnp.where(spoiled, 0, query), key, value, mask=seen[None, None]
    )
    return jnp.where(spoiled, jnp.nan, y).astype(dtype)


@partial(jnp.vectorize, signature="(w,h,k),(h,k),()->(w,h,k)")
def _put(ring: Array, step: Array, place: Int[Array, ""]) -> Array:
    """The ring with another step at a place."""
    return lax.dynamic_update_index_in_dim(ring, step, place, axis=0)


def _with_past(
    memory: Float[Array, "*batch parts time kv_heads 2 key"],
    segments: Int[Array, "*batch parts time"],
    past: Float[Array, "*batch past kv_heads 2 key"],
    seen: Bool[Array, "*batch past"],
) -> tuple[Array, Array]:
    """Each part after the steps before it, which come from the part before or from the state."""
    rank, size = segments.ndim - 2, seen.shape[-1]
    shape = memory.shape[rank + 2 :]

    def packed(memory: Array, seen: Array) -> Array:
        """With the flag as a feature, so that it takes one collective."""
        memory = jnp.where(_expand(seen, memory.ndim), memory, 0)
        flat = memory.reshape(*seen.shape, math.prod(shape))
        return jnp.concatenate([flat, seen[..., None].astype(memory.dtype)], axis=-1)

    past = packed(past, seen)
    if memory.shape[rank] == 1:  # which may have fewer steps than `size`
        before = jnp.expand_dims(past, rank)
    else:
        ends = lax.slice_in_dim(memory, memory.shape[rank + 1] - size, None, axis=rank + 1)
        goes_on = segments[..., -size:] == segments[..., -1:]
        before = sharding.from_neighbour(packed(ends, goes_on), past, parts_axis=rank)
    flags = before[..., -1] > 0
    before = before[..., :-1].reshape(*before.shape[:-1], *shape)
    memory = jnp.concatenate([before, memory], axis=rank + 1)
    return memory, jnp.concatenate([jnp.where(flags, 0, -1), segments], axis=-1)


def _in_order(state: WindowState, dtype: DTypeLike) -> Float[Array, "*batch window kv_heads 2 key"]:
    """The keys and values of the state, from the oldest to the newest."""
    memory = jnp.stack([state.keys, state.values], axis=-2).astype(dtype)
    window = memory.shape[-4]
    index = (state.position[..., None] + jnp.arange(window)) % window
    return jnp.take_along_axis(memory, _expand(index, memory.ndim), axis=-4)


def _ring(
    memory: Float[Array, "*batch window kv_heads 2 key"],
    position: Int[Array, "*batch"],
    like: WindowState,
) -> WindowState:
    """The inverse of `_in_order`, without the steps of earlier segments."""
    window = memory.shape[-4]
    index = (jnp.arange(window) - position[..., None]) % window
    within = index >= window - position[..., None]
    memory = jnp.take_along_axis(memory, _expand(index, memory.ndim), axis=-4)
    memory = jnp.where(_expand(within, memory.ndim), memory, 0).astype(like.keys.dtype)
    return WindowState(memory[..., 0, :], memory[..., 1, :], position)


def _at_ends(
    memory: Float[Array, "*batch parts past_and_time kv_heads 2 key"],
    window: int,
    lengths: Int[Array, "*batch"] | None,
) -> Float[Array, "*batch window kv_heads 2 key"]:
    """The last `window` steps before each row's end."""
    *batch_shape, parts, steps = memory.shape[:-3]
    rank, time = len(batch_shape), steps - (window - 1)
    part: Array | int = parts - 1
    if lengths is None:
        memory = lax.slice_in_dim(memory, steps - window, None, axis=rank + 1)
    else:
        part = jnp.maximum(lengths - 1, 0) // time
        # `take_step` reads them from that part only.
        index = (lengths - part * time - 1)[..., None, None] + jnp.arange(window)
        index = jnp.maximum(index, 0)
        memory = jnp.take_along_axis(memory, _expand(index, memory.ndim), axis=rank + 1)
    shape = memory.shape[rank + 1 :]
    flat = memory.reshape(*batch_shape, parts, math.prod(shape))
    return sharding.take_step(flat, part).reshape(*batch_shape, *shape)


def _bounded(position: Int[Array, "*batch"], window: int) -> Int[Array, "*batch"]:
    return jnp.where(position < window, position, window + position % window)


def _expand(x: Array, ndim: int) -> Array:
    """`x` with trailing axes of size one."""
    return x.reshape(*x.shape, *(1,) * (ndim - x.ndim))
