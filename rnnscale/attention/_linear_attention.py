"""Causal linear attention, a recurrence whose state is a matrix."""

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, DTypeLike, Float, Int, Key, PRNGKeyArray

from rnnscale import sharding
from rnnscale._base import (
    CausalLayer,
    check_call,
    check_step,
    state_dtype,
    zero_padding,
)
from rnnscale._checks import BatchShape, FloatDType, Size, check_arguments
from rnnscale._fields import parameter
from rnnscale_kernels import vary_alike

# Steps in a chunk, within which attention is computed between all pairs of steps.
_CHUNK = 64

# The feature map is at least e to this power. A product of two, and the square of its inverse in
# the gradient of a quotient, are then within the range of float32.
_LOWEST = -20.0


class AttentionState(NamedTuple):
    r"""$S = \sum \phi(k) v^T$ and $z = \sum \phi(k)$ of every head."""

    memory: Float[Array, "*batch heads key value"]
    normaliser: Float[Array, "*batch heads key"]


class _Chunk(NamedTuple):
    """The inputs of consecutive steps: projections, and the segment and validity of each step."""

    query: Float[Array, "*batch time heads key"]
    key: Float[Array, "*batch time heads key"]
    value: Float[Array, "*batch time heads value"]
    segment: Int[Array, "*batch time"]
    valid: Bool[Array, "*batch time"]


class LinearAttention(CausalLayer):
    r"""Attention without a softmax, as a recurrence whose state is a matrix in each head.

    With $q, k, v$ linear in the input, each head computes

    $$S_t = S_{t-1} + \phi(k_t) v_t^T, \qquad z_t = z_{t-1} + \phi(k_t), \qquad
      y_t = \frac{S_t^T \phi(q_t)}{z_t^T \phi(q_t)}, \qquad \phi(x) = \mathrm{elu}(x) + 1$$

    and the output is linear in the $y$ of all heads. The state is `(S, z)`, at least float32.

    A sequence is computed in chunks of 64 steps: attention between all pairs of steps in a chunk,
    and the state from chunk to chunk, so the time is linear in the length. The backward pass keeps
    $q, k, v$ and a state every 64 steps, and computes the pairs again. A NaN in the input reaches
    every step of its chunk, including earlier steps and other segments.

    All weights start Lecun-normal.

    Katharopoulos, Vyas, Pappas, Fleuret, *Transformers are RNNs: Fast Autoregressive Transformers
    with Linear Attention*, ICML 2020.

    **Differs from the paper:** $\phi$ is at least $e^{-20}$, so that the quotient and its gradient
    are finite in float32.
    """

    query: Float[Array, "heads key idim"] = parameter()
    key: Float[Array, "heads key idim"] = parameter()
    value: Float[Array, "heads value idim"] = parameter()
    output: Float[Array, "odim heads value"] = parameter()
    idim: int = eqx.field(static=True)
    odim: int = eqx.field(static=True)
    heads: int = eqx.field(static=True)
    key_dim: int = eqx.field(static=True)
    value_dim: int = eqx.field(static=True)

    @check_arguments
    def __init__(
        self,
        idim: Size,
        heads: Size,
        odim: Size | None = None,
        *,
        key_dim: Size | None = None,
        value_dim: Size | None = None,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `idim`: features of the input.
        - `heads`: the number of heads.
        - `odim`: features of the output. Default `idim`.
        - `key_dim`: features of queries and keys in a head. Default `idim / heads`.
        - `value_dim`: features of values in a head. Default `key_dim`.
        - `key`: for the initial parameters.

        **Raises:** `ValueError` if a size is below 1, or if `heads` does not divide `idim` and
        there is no `key_dim`; `TypeError` if an argument is another kind of thing.
        """
        if key_dim is None:
            if idim % heads:
                raise ValueError(
                    f"LinearAttention: heads must divide idim={idim}; got heads={heads}. Choose a "
                    "divisor, or give key_dim."
                )
            key_dim = idim // heads
        value_dim = key_dim if value_dim is None else value_dim
        odim = idim if odim is None else odim
        keys = jax.random.split(key, 4)
        inputs = 1 / math.sqrt(idim)
        self.query = inputs * jax.random.normal(keys[0], (heads, key_dim, idim), jnp.float32)
        self.key = inputs * jax.random.normal(keys[1], (heads, key_dim, idim), jnp.float32)
        self.value = inputs * jax.random.normal(keys[2], (heads, value_dim, idim), jnp.float32)
        mixed = 1 / math.sqrt(heads * value_dim)
        self.output = mixed * jax.random.normal(keys[3], (odim, heads, value_dim), jnp.float32)
        self.idim, self.odim, self.heads = idim, odim, heads
        self.key_dim, self.value_dim = key_dim, value_dim

    def __call__(
        self,
        xs: Float[Array, "*batch time idim"],
        state: AttentionState | None = None,
        *,
        reset: Bool[Array, "*batch time"] | None = None,
        lengths: Int[Array, "*batch"] | None = None,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[AttentionState, Float[Array, "*batch time odim"]]:
        carried, lengths = check_call(self, xs, state, reset, lengths, key)
        batch_shape, time = xs.shape[:-2], xs.shape[-2]
        if time == 0:
            return carried, jnp.zeros((*batch_shape, 0, self.odim), xs.dtype)
        ends = jnp.array(time) if lengths is None else lengths[..., None]
        valid = jnp.broadcast_to(jnp.arange(time) < ends, (*batch_shape, time))
        start = jnp.zeros_like(valid) if reset is None else valid & reset

        # 1. To "*batch part step ...": each device computes its part of time as a row of its own,
        # padded to a multiple of the chunk.
        rank, parts = len(batch_shape), sharding.time_parts(time)
        steps_of_part = time // parts
        chunk = min(steps_of_part, _CHUNK)
        padded = steps_of_part + -steps_of_part % chunk

        def in_parts(x: Array) -> Array:
            return _padded(sharding.split_time(x, parts, time_axis=rank), padded, axis=rank + 1)

        query, key_, value = self._project(in_parts(zero_padding(xs, lengths)))
        segment = jnp.cumsum(in_parts(start), axis=-1)
        steps = _Chunk(query, key_, value, segment, in_parts(valid))

        # 2. The memory that enters each part. The normaliser is its last column, which belongs to a
        # further feature of the values that is always one.
        memory = jnp.concatenate([carried.memory, carried.normaliser[..., None]], axis=-1)
        # Inside a `shard_map`, the carry of the loops below has to vary over the axes of the steps.
        memory, steps = vary_alike((memory, steps))
        entering = jnp.expand_dims(memory, rank)
        if parts > 1:
            memory, entering = _between_parts(memory, steps, rank)

        # 3. To "chunk *batch part step ...", and the chunks of all parts one after another.
        chunks = jax.tree.map(
            lambda x: jnp.moveaxis(
                x.reshape(*batch_shape, parts, padded // chunk, chunk, *x.shape[rank + 2 :]),
                rank + 1,
                0,
            ),
            steps,
        )
        carry = entering, jnp.zeros_like(steps.segment[..., 0])
        (leaving, _), ys = lax.scan(jax.checkpoint(_attend), carry, chunks)
        if parts == 1:
            memory = jnp.squeeze(leaving, rank)
        ys = jnp.moveaxis(ys, 0, rank + 1)
        ys = ys.reshape(*batch_shape, parts, padded, self.heads, self.value_dim)
        ys = lax.slice_in_dim(ys, 0, steps_of_part, axis=rank + 1)
        ys = self._mix(sharding.join_time(ys, time_axis=rank), xs.dtype)
        return AttentionState(memory[..., :-1], memory[..., -1]), zero_padding(ys, lengths)

    def step(
        self,
        x: Float[Array, "*batch idim"],
        state: AttentionState,
        *,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[AttentionState, Float[Array, "*batch odim"]]:
        state = check_step(self, x, state, key)
        query, key_, value = self._project(x)
        memory = state.memory + key_[..., :, None] * value[..., None, :]
        normaliser = state.normaliser + key_
        mixed = jnp.einsum("...hk,...hkv->...hv", query, memory)
        weight = jnp.sum(query * normaliser, axis=-1, keepdims=True)
        return AttentionState(memory, normaliser), self._mix(mixed / weight, x.dtype)

    @check_arguments
    def init_state(
        self, batch_shape: BatchShape = (), dtype: FloatDType | None = None
    ) -> AttentionState:
        shape, dtype = (*batch_shape, self.heads, self.key_dim), state_dtype(dtype)
        return AttentionState(jnp.zeros((*shape, self.value_dim), dtype), jnp.zeros(shape, dtype))

    def _project(self, x: Float[Array, "*axes idim"]) -> tuple[Array, Array, Array]:
        """The features of queries and keys, and the values: `*axes heads ...`, at least float32."""

        def project(weight: Array) -> Array:
            wide = state_dtype(x.dtype)
            weight = weight.astype(x.dtype)
            return jnp.einsum("...i,hki->...hk", x, weight, preferred_element_type=wide)

        return _features(project(self.query)), _features(project(self.key)), project(self.value)

    def _mix(self, ys: Float[Array, "*axes heads value"], dtype: DTypeLike) -> Array:
        return jnp.einsum("...hv,ohv->...o", ys.astype(dtype), self.output.astype(dtype))


def _features(x: Float[Array, "*axes"]) -> Float[Array, "*axes"]:
    """elu(x) + 1, without loss of precision below zero."""
    return jnp.where(x > 0, x + 1, jnp.exp(jnp.clip(x, _LOWEST, 0)))


def _padded(x: Array, size: int, *, axis: int) -> Array:
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, size - x.shape[axis])
    return jnp.pad(x, padding)


def _attend(carry: tuple[Array, Array], steps: _Chunk) -> tuple[tuple[Array, Array], Array]:
    """The outputs of one chunk. The carry is the memory and the segment that it belongs to."""
    memory, segment = carry
    query, key, value, segments, _ = steps
    value = _with_ones(value)

    pairs = jnp.einsum("...thk,...shk->...hts", query, key)
    seen = jnp.tri(query.shape[-3], dtype=bool) & (segments[..., :, None] == segments[..., None, :])
    pairs = jnp.where(seen[..., None, :, :], pairs, 0)
    within = jnp.einsum("...hts,...shv->...thv", pairs, value)

    # Both the input and the output are masked: the memory of a segment that has ended may be NaN.
    carried = (segments == segment[..., None])[..., None, None]
    before = jnp.einsum("...thk,...hkv->...thv", jnp.where(carried, query, 0), memory)
    total = within + jnp.where(carried, before, 0)

    last = segments[..., -1]
    goes_on = (last == segment)[..., None, None, None]
    memory = jnp.where(goes_on, memory, 0) + _added(steps)
    return (memory, last), total[..., :-1] / total[..., -1:]


def _added(steps: _Chunk) -> Float[Array, "*rows heads key extended"]:
    """The sum of key-value products of the last segment, which is added to the memory."""
    kept = steps.valid & (steps.segment == steps.segment[..., -1:])
    key = jnp.where(kept[..., None, None], steps.key, 0)
    return jnp.einsum("...thk,...thv->...hkv", key, _with_ones(steps.value))


def _with_ones(value: Float[Array, "*axes value"]) -> Float[Array, "*axes value+1"]:
    return jnp.concatenate([value, jnp.ones_like(value[..., :1])], axis=-1)


def _between_parts(memory: Array, steps: _Chunk, rank: int) -> tuple[Array, Array]:
    """The memory after all parts of time and before each part, given the one before the first.

    **Arguments:**

    - `memory`: "*batch heads key value+1".
    - `steps`: "*batch part step ...", with `rank` axes of batch.
    """

    def gathered(x: Array) -> Array:
        """All parts on every device, so that the loop over them, and its transpose, is local."""
        batch = ("batch",)[:rank]
        return sharding.constrain(x, *batch, *(None,) * (x.ndim - len(batch)))

    added = _added(steps)
    cut = steps.segment[..., -1:] > 0
    # Concatenated, so that it takes one gather.
    totals = jnp.concatenate([added.reshape(*cut.shape[:-1], -1), cut.astype(added.dtype)], -1)
    totals = gathered(sharding.constrain_time(totals, time_axis=rank))

    def add(memory: Array, total: Array) -> tuple[Array, Array]:
        cut = total[..., -1, None, None, None] > 0
        return jnp.where(cut, 0, memory) + total[..., :-1].reshape(memory.shape), memory

    memory, before = lax.scan(add, memory, jnp.moveaxis(totals, rank, 0))
    before = gathered(jnp.moveaxis(before, 0, rank))
    return memory, sharding.constrain_time(before, time_axis=rank)
