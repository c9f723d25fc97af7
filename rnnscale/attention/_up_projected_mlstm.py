"""The matrix memory of the xLSTM between an up- and a down-projection, as in the first paper."""

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float, Int, Key, PRNGKeyArray

from rnnscale._base import CausalLayer, check_call, check_step, state_dtype, zero_padding
from rnnscale._checks import BatchShape, FloatDType, Size, Width, check_arguments
from rnnscale._fields import parameter
from rnnscale.attention._heads import from_heads, to_heads
from rnnscale.attention._mlstm import (
    MLSTMInputs,
    MLSTMState,
    initial_forget_bias,
    mlstm,
    mlstm_state,
    mlstm_step,
)
from rnnscale.layers import CausalConv, layer_norm

_EPSILON = 1e-5  # of the norm of each head


class UpProjectedMLSTMState(NamedTuple):
    """The inputs that the convolution still needs, and the state of the recurrence."""

    past: Float[Array, "*batch past features"]
    memory: MLSTMState


class UpProjectedMLSTM(CausalLayer):
    r"""The mLSTM of the first paper, between an up-projection and a down-projection.

    $$(x', z) = W_{\mathrm{up}} x_t, \qquad u = \mathrm{silu}(\mathrm{conv}(x')), \qquad
      q, k = W_{q,k} u, \qquad v = W_v x', \qquad
      \tilde \imath, \tilde f = W_{i,f} [q, k, v] + b$$
    $$y_t = W_{\mathrm{down}} \big( (\mathrm{norm}(h_t) + s \odot u) \odot \mathrm{silu}(z) \big)$$

    with the recurrence of `MLSTM` for $h$, whose gates are not capped here. $W_q, W_k, W_v$ are
    block-diagonal, and the norm is a layer norm for each head. Maps have a leading axis, in the
    orders `x', z`, `q, k, v` and `i, f`. The layer has no mixer after it in the authors' models.

    Maps start normal with variance `2 / (5 idim)`, the weights of gates at zero, the biases of
    input gates normal with a standard deviation of 0.1, those of forget gates evenly from 3 to 6
    over the heads, $s$ and the scale of the norm at one, the convolution as in `CausalConv`, and
    the output with standard deviation `2 / (depth sqrt(idim))`.

    Beck, Pöppel, Spanring, Auer, Prudnikova, Kopp, Klambauer, Brandstetter, Hochreiter, *xLSTM:
    Extended Long Short-Term Memory*, NeurIPS 2024.

    **Differs from the authors' code:** it rounds the inner features up to a multiple of 64.
    """

    up: Float[Array, "2 heads value idim"] = parameter()
    conv: CausalConv
    qkv: Float[Array, "3 blocks out in"] = parameter()
    gates: Float[Array, "2 heads features"] = parameter()
    gate_bias: Float[Array, "2 heads"] = parameter(group="bias")
    scale: Float[Array, "heads value"] = parameter(group="bias")
    skip: Float[Array, "heads value"] = parameter(group="bias")
    down: Float[Array, "odim heads value"] = parameter()
    idim: int = eqx.field(static=True)
    odim: int = eqx.field(static=True)
    heads: int = eqx.field(static=True)
    value_dim: int = eqx.field(static=True)

    @check_arguments
    def __init__(
        self,
        idim: Size,
        heads: Size = 4,
        odim: Size | None = None,
        *,
        expand: Size = 2,
        block_size: Size = 4,
        conv_width: Width = 4,
        depth: Size = 1,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `idim`: features of the input.
        - `heads`: the number of heads, a divisor of `expand * idim`.
        - `odim`: features of the output. Default `idim`.
        - `expand`: inner features for each feature of the input.
        - `block_size`: features of a block of the maps to queries, keys and values, a divisor of
            `expand * idim`.
        - `conv_width`: steps of the convolution, at least 2.
        - `depth`: the number of blocks of the model, for the initial output weights.
        - `key`: for the initial parameters.

        **Raises:** `ValueError` if an argument is out of range; `TypeError` if it is another kind
        of thing.
        """
        inner = expand * idim
        for name, size in (("heads", heads), ("block_size", block_size)):
            if inner % size:
                raise ValueError(
                    f"UpProjectedMLSTM: {name} must divide expand * idim = {inner}; got "
                    f"{name}={size}. Choose a divisor."
                )
        odim = idim if odim is None else odim
        keys = jax.random.split(key, 5)
        std = math.sqrt(2 / (5 * idim))
        width = inner // heads
        self.up = std * jax.random.normal(keys[0], (2, heads, width, idim), jnp.float32)
        self.conv = CausalConv(inner, conv_width, key=keys[1])
        blocks = (3, inner // block_size, block_size, block_size)
        self.qkv = std * jax.random.normal(keys[2], blocks, jnp.float32)
        self.gates = jnp.zeros((2, heads, 3 * inner), jnp.float32)
        i_bias = 0.1 * jax.random.normal(keys[3], (heads,), jnp.float32)
        self.gate_bias = jnp.stack([i_bias, initial_forget_bias(heads)])
        # Two arrays, since one would be donated twice to a training step.
        self.scale, self.skip = (jnp.ones((heads, width), jnp.float32) for _ in range(2))
        std = 2 / (depth * math.sqrt(idim))
        self.down = std * jax.random.normal(keys[4], (odim, heads, width), jnp.float32)
        self.idim, self.odim, self.heads, self.value_dim = idim, odim, heads, width

    def __call__(
        self,
        xs: Float[Array, "*batch time idim"],
        state: UpProjectedMLSTMState | None = None,
        *,
        reset: Bool[Array, "*batch time"] | None = None,
        lengths: Int[Array, "*batch"] | None = None,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[UpProjectedMLSTMState, Float[Array, "*batch time odim"]]:
        carried, lengths = check_call(self, xs, state, reset, lengths, key)
        inner, z = self._up(zero_padding(xs, lengths))
        past, us = self.conv(inner, carried.past, reset=reset, lengths=lengths)
        us = jax.nn.silu(us)
        inputs = self._inputs(us, inner)
        memory, hs = mlstm(inputs, carried.memory, reset=reset, lengths=lengths)
        ys = self._down(hs, us, z, xs.dtype)
        return UpProjectedMLSTMState(past, memory), zero_padding(ys, lengths)

    def step(
        self,
        x: Float[Array, "*batch idim"],
        state: UpProjectedMLSTMState,
        *,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[UpProjectedMLSTMState, Float[Array, "*batch odim"]]:
        state = check_step(self, x, state, key)
        inner, z = self._up(x)
        past, u = self.conv.step(inner, state.past)
        u = jax.nn.silu(u)
        memory, h = mlstm_step(self._inputs(u, inner), state.memory)
        return UpProjectedMLSTMState(past, memory), self._down(h, u, z, x.dtype)

    @check_arguments
    def init_state(
        self, batch_shape: BatchShape = (), dtype: FloatDType | None = None
    ) -> UpProjectedMLSTMState:
        sizes = self.heads, self.value_dim, self.value_dim
        return UpProjectedMLSTMState(
            self.conv.init_state(batch_shape, dtype),
            mlstm_state(batch_shape, *sizes, state_dtype(dtype)),
        )

    def _up(
        self, x: Float[Array, "*axes idim"]
    ) -> tuple[Float[Array, "*axes features"], Float[Array, "*axes heads value"]]:
        inner, z = (to_heads(weight, x) for weight in self.up)
        return inner.reshape(*x.shape[:-1], self.conv.idim).astype(x.dtype), z

    def _inputs(
        self, u: Float[Array, "*axes features"], inner: Float[Array, "*axes features"]
    ) -> MLSTMInputs:
        axes, (_, blocks, size, _) = u.shape[:-1], self.qkv.shape
        features = jnp.stack([u, u, inner], axis=-2).reshape(*axes, 3, blocks, size)
        wide = state_dtype(u.dtype)
        qkv = jnp.einsum(
            *("...pbi,pboi->...pbo", features, self.qkv.astype(u.dtype)),
            preferred_element_type=wide,
        ).reshape(*axes, 3 * self.conv.idim)
        gates = to_heads(self.gates, qkv) + self.gate_bias
        qkv = qkv.reshape(*axes, 3, self.heads, self.value_dim)
        query, key, value = (qkv[..., place, :, :] for place in range(3))
        return MLSTMInputs(
            query, key / math.sqrt(self.value_dim), value, gates[..., 0, :], gates[..., 1, :]
        )

    def _down(
        self,
        h: Float[Array, "*axes heads value"],
        u: Float[Array, "*axes features"],
        z: Float[Array, "*axes heads value"],
        dtype: DTypeLike,
    ) -> Float[Array, "*axes odim"]:
        normed = layer_norm(h, self.scale, epsilon=_EPSILON)
        total = normed + self.skip * u.reshape(h.shape)
        return from_heads(self.down, total * jax.nn.silu(z), dtype)
