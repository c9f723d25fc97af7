"""Gated linear attention: a decay of its own for every channel of the keys."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from rnnscale import sharding
from rnnscale._base import (
    CausalLayer,
    at_least_float32,
    check_call,
    check_step,
    state_dtype,
    zero_padding,
)
from rnnscale._checks import BatchShape, FloatDType, Positive, Size, check_arguments
from rnnscale._fields import parameter
from rnnscale.attention._heads import attention_step, features_of_head, from_heads, to_heads
from rnnscale.layers import rms_norm

_EPSILON = 1e-5  # of the norm of each head


class GatedLinearAttention(CausalLayer):
    r"""Linear attention whose memory decays, by a gate for each channel of the keys.

    With $q, k, v$ and the output gate $g$ linear in the input, each head computes

    $$a_t = \mathrm{sigmoid}(W_2 W_1 x_t + b)^{1 / \tau}, \qquad
      S_t = \mathrm{diag}(a_t) S_{t-1} + k_t v_t^T, \qquad
      y_t = \mathrm{norm}(S_t^T q_t / \sqrt{K}) \odot \mathrm{silu}(g_t)$$

    for keys of size $K$, and the output is linear in the $y$ of all heads. The norm is an RMS norm
    of each head, whose scale all heads share. $\tau = 16$ lets a gate that is half open forget 4 %
    in a step. The state is $S$, at least float32.

    All weights start Glorot-uniform with a gain of $2^{-2.5}$, as in the authors' code, and the
    bias of the gate at zero.

    Yang, Wang, Shen, Panda, Kim, *Gated Linear Attention Transformers with Hardware-Efficient
    Training*, ICML 2024.
    """

    query: Float[Array, "heads key idim"] = parameter()
    key: Float[Array, "heads key idim"] = parameter()
    value: Float[Array, "heads value idim"] = parameter()
    output_gate: Float[Array, "heads value idim"] = parameter()
    decay_in: Float[Array, "rank idim"] = parameter()
    decay_out: Float[Array, "heads key rank"] = parameter()
    decay_bias: Float[Array, "heads key"] = parameter(group="bias")
    scale: Float[Array, "value"] = parameter(group="bias")
    output: Float[Array, "odim heads value"] = parameter()
    temperature: Float[Array, ""] = parameter(trainable=False)
    idim: int = eqx.field(static=True)
    odim: int = eqx.field(static=True)
    heads: int = eqx.field(static=True)
    key_dim: int = eqx.field(static=True)
    value_dim: int = eqx.field(static=True)

    @check_arguments
    def __init__(
        self,
        idim: Size,
        heads: Size = 4,
        odim: Size | None = None,
        *,
        key_dim: Size | None = None,
        value_dim: Size | None = None,
        rank: Size = 16,
        temperature: Positive = 16.0,
        key: PRNGKeyArray,
    ):
        r"""**Arguments:**

        - `idim`: features of the input.
        - `heads`: the number of heads.
        - `odim`: features of the output. Default `idim`.
        - `key_dim`: features of queries and keys in a head. Default `idim / (2 heads)`.
        - `value_dim`: features of values in a head. Default `idim / heads`.
        - `rank`: features between the two matrices of the gate.
        - `temperature`: $\tau$. Memories are longer if it is larger. It is not trained.
        - `key`: for the initial parameters.

        **Raises:** `ValueError` if an argument is out of range, or if `heads` does not divide
        `idim`, or its half, and the size that follows from it is not given; `TypeError` if an
        argument is another kind of thing.
        """
        key_dim = features_of_head("GatedLinearAttention", "key_dim", key_dim, idim, heads, part=2)
        value_dim = features_of_head("GatedLinearAttention", "value_dim", value_dim, idim, heads)
        odim = idim if odim is None else odim
        keys = iter(jax.random.split(key, 7))

        def weight(shape: tuple[int, ...], inputs: int, outputs: int) -> Array:
            limit = 2**-2.5 * math.sqrt(6 / (inputs + outputs))
            return jax.random.uniform(next(keys), shape, jnp.float32, -limit, limit)

        self.query = weight((heads, key_dim, idim), idim, heads * key_dim)
        self.key = weight((heads, key_dim, idim), idim, heads * key_dim)
        self.value = weight((heads, value_dim, idim), idim, heads * value_dim)
        self.output_gate = weight((heads, value_dim, idim), idim, heads * value_dim)
        self.decay_in = weight((rank, idim), idim, rank)
        self.decay_out = weight((heads, key_dim, rank), rank, heads * key_dim)
        self.decay_bias = jnp.zeros((heads, key_dim), jnp.float32)
        self.scale = jnp.ones((value_dim,), jnp.float32)
        self.output = weight((odim, heads, value_dim), heads * value_dim, odim)
        self.temperature = jnp.asarray(temperature, jnp.float32)
        self.idim, self.odim, self.heads = idim, odim, heads
        self.key_dim, self.value_dim = key_dim, value_dim

    def __call__(
        self,
        xs: Float[Array, "*batch time idim"],
        state: Float[Array, "*batch heads key value"] | None = None,
        *,
        reset: Bool[Array, "*batch time"] | None = None,
        lengths: Int[Array, "*batch"] | None = None,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[Float[Array, "*batch heads key value"], Float[Array, "*batch time odim"]]:
        carried, lengths = check_call(self, xs, state, reset, lengths, key)
        xs = zero_padding(xs, lengths)
        ys, memory = sharding.linear_attention(
            *self._inputs(xs), h0=carried, reset=reset, lengths=lengths
        )
        return memory, zero_padding(self._read(ys, xs), lengths)

    def step(
        self,
        x: Float[Array, "*batch idim"],
        state: Float[Array, "*batch heads key value"],
        *,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[Float[Array, "*batch heads key value"], Float[Array, "*batch odim"]]:
        state = check_step(self, x, state, key)
        memory, y = attention_step(state, *self._inputs(x))
        return memory, self._read(y, x)

    @check_arguments
    def init_state(
        self, batch_shape: BatchShape = (), dtype: FloatDType | None = None
    ) -> Float[Array, "*batch heads key value"]:
        shape = (*batch_shape, self.heads, self.key_dim, self.value_dim)
        return jnp.zeros(shape, state_dtype(dtype))

    def _inputs(self, x: Float[Array, "*axes idim"]) -> tuple[Array, Array, Array, Array]:
        """Queries, keys, values and the logarithm of the decay, "*axes heads ..."."""
        query = to_heads(self.query, x) / math.sqrt(self.key_dim)
        # Decays are as precise as the state, also for inputs of 16 bits.
        low_rank = at_least_float32(x) @ self.decay_in.T
        gate = to_heads(self.decay_out, low_rank) + self.decay_bias
        log_decay = jax.nn.log_sigmoid(gate) / self.temperature
        return query, to_heads(self.key, x), to_heads(self.value, x), log_decay

    def _read(
        self, ys: Float[Array, "*axes heads value"], x: Float[Array, "*axes idim"]
    ) -> Float[Array, "*axes odim"]:
        normed = rms_norm(ys, self.scale, epsilon=_EPSILON)
        return from_heads(self.output, normed * jax.nn.silu(to_heads(self.output_gate, x)), x.dtype)
