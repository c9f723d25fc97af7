"""Causal linear attention, a recurrence whose state is a matrix."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
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
from rnnscale.attention._heads import (
    attention_step,
    features_of_head,
    from_heads,
    lecun_normal,
    to_heads,
    with_ones,
)

# The feature map is at least e to this power. A product of two, and the square of its inverse in
# the gradient of a quotient, are then within the range of float32.
_LOWEST = -20.0


class AttentionState(NamedTuple):
    r"""$S = \sum \phi(k) v^T$ and $z = \sum \phi(k)$ of every head."""

    memory: Float[Array, "*batch heads key value"]
    normaliser: Float[Array, "*batch heads key"]


class LinearAttention(CausalLayer):
    r"""Attention without a softmax, as a recurrence whose state is a matrix in each head.

    With $q, k, v$ linear in the input, each head computes

    $$S_t = S_{t-1} + \phi(k_t) v_t^T, \qquad z_t = z_{t-1} + \phi(k_t), \qquad
      y_t = \frac{S_t^T \phi(q_t)}{z_t^T \phi(q_t)}, \qquad \phi(x) = \mathrm{elu}(x) + 1$$

    and the output is linear in the $y$ of all heads. The state is `(S, z)`, at least float32.

    `rnnscale.sharding.linear_attention` computes all steps, in time that is linear in the length. A
    NaN in the input also reaches earlier steps of its segment.

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
        key_dim = features_of_head("LinearAttention", "key_dim", key_dim, idim, heads)
        value_dim = key_dim if value_dim is None else value_dim
        odim = idim if odim is None else odim
        keys = jax.random.split(key, 4)
        self.query = lecun_normal(keys[0], (heads, key_dim, idim), idim)
        self.key = lecun_normal(keys[1], (heads, key_dim, idim), idim)
        self.value = lecun_normal(keys[2], (heads, value_dim, idim), idim)
        self.output = lecun_normal(keys[3], (odim, heads, value_dim), heads * value_dim)
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
        query, key_, value = self._project(zero_padding(xs, lengths))
        ys, memory = sharding.linear_attention(
            query, key_, with_ones(value), h0=_joined(carried), reset=reset, lengths=lengths
        )
        return _state(memory), self._read(ys, xs.dtype)

    def step(
        self,
        x: Float[Array, "*batch idim"],
        state: AttentionState,
        *,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[AttentionState, Float[Array, "*batch odim"]]:
        carried = _joined(check_step(self, x, state, key))
        query, key_, value = self._project(x)
        memory, y = attention_step(carried, query, key_, with_ones(value))
        return _state(memory), self._read(y, x.dtype)

    @check_arguments
    def init_state(
        self, batch_shape: BatchShape = (), dtype: FloatDType | None = None
    ) -> AttentionState:
        shape, dtype = (*batch_shape, self.heads, self.key_dim), state_dtype(dtype)
        return AttentionState(jnp.zeros((*shape, self.value_dim), dtype), jnp.zeros(shape, dtype))

    def _project(self, x: Float[Array, "*axes idim"]) -> tuple[Array, Array, Array]:
        """The features of queries and keys, and the values: `*axes heads ...`, at least float32."""
        weights = self.query, self.key, self.value
        query, key, value = (to_heads(weight, x, state_dtype(x.dtype)) for weight in weights)
        return _features(query), _features(key), value

    def _read(
        self, ys: Float[Array, "*axes heads extended"], dtype: DTypeLike
    ) -> Float[Array, "*axes odim"]:
        # The weights of a step are positive; their sum is zero in the padding only, as ys is.
        total = jnp.where(ys[..., -1:] == 0, 1, ys[..., -1:])
        return from_heads(self.output, ys[..., :-1] / total, dtype)


def _features(x: Float[Array, "*axes"]) -> Float[Array, "*axes"]:
    """elu(x) + 1, without loss of precision below zero."""
    # Not `jnp.minimum(x, 0)`, whose gradient at zero is one half.
    below = jnp.where(x > 0, 0, x)
    return jnp.where(x > 0, x + 1, jnp.exp(jnp.maximum(below, _LOWEST)))


def _joined(state: AttentionState) -> Float[Array, "*batch heads key extended"]:
    return jnp.concatenate([state.memory, state.normaliser[..., None]], axis=-1)


def _state(memory: Float[Array, "*batch heads key extended"]) -> AttentionState:
    return AttentionState(memory[..., :-1], memory[..., -1])
