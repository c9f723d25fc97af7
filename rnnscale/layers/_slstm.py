"""The authors' block around the scalar memory of the xLSTM."""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from rnnscale._base import (
    CausalLayer,
    at_least_float32,
    check_call,
    check_step,
    zero_padding,
)
from rnnscale._checks import BatchShape, FloatDType, Share, Size, Width, check_arguments
from rnnscale._fields import parameter
from rnnscale.cells import Parallel, SLSTMCell
from rnnscale.layers._causal_conv import CausalConv
from rnnscale.layers._encoder import RNNEncoder
from rnnscale.layers._norm import layer_norm

_EPSILON = 1e-5  # of the norm of each head


class SLSTMLayerState(NamedTuple):
    """The inputs that the convolution still needs, if there is one, and the state of the cell."""

    past: Float[Array, "*batch past idim"] | None
    cell: Any


class SLSTM(CausalLayer):
    r"""The sLSTM in its authors' block: a short convolution before two of the gates, and a norm.

    $$u_t = \mathrm{silu}(\mathrm{conv}(x)_t), \qquad
      (\tilde \imath, \tilde f) = W_{i,f} u_t + \dots, \qquad
      (\tilde z, \tilde o) = W_{z,o} x_t + \dots, \qquad y_t = \mathrm{norm}(h_t)$$

    with the recurrence of `SLSTMCell`, a layer norm for each head, and as many units as features.
    The matrices $W$ are block-diagonal, like those of the recurrence: a block reads the features of
    its own head. In the authors' blocks a GeGLU network follows, in a residual branch of its own:
    `make_ffn=GatedFFN` of `rnnscale.models.Block`, with `activation=jax.nn.gelu`.

    The cell sees its own output, so the steps run one after another; see `parallel`.

    $W$ starts normal with variance `2 / (5 idim)`, the scale of the norm at one, the convolution as
    in `CausalConv` and the cell as in `SLSTMCell`.

    Beck, Pöppel, Spanring, Auer, Prudnikova, Kopp, Klambauer, Brandstetter, Hochreiter, *xLSTM:
    Extended Long Short-Term Memory*, NeurIPS 2024.
    """

    conv: CausalConv | None
    input: Float[Array, "4 heads out in"] = parameter()
    encoder: RNNEncoder
    scale: Float[Array, "heads out"] = parameter(group="bias")
    idim: int = eqx.field(static=True)
    odim: int = eqx.field(static=True)
    heads: int = eqx.field(static=True)

    @check_arguments
    def __init__(
        self,
        idim: Size,
        heads: Size = 4,
        *,
        conv_width: Width | None = 4,
        position: Share = 0.0,
        parallel: Parallel = None,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `idim`: features of the input, and of the output.
        - `heads`: the number of heads, a divisor of `idim`.
        - `conv_width`: steps of the convolution, at least 2. `None` for no convolution: then
            $u = x$.
        - `position`: of the layer in a stack, from 0 for the first to 1 for the last, for the
            initial bias of the forget gate.
        - `parallel`: see `RNNEncoder`. Default: one step after another.
        - `key`: for the initial parameters.

        **Raises:** `TypeError` if an argument has another kind, `ValueError` if it is out of range.
        """
        if idim % heads:
            raise ValueError(
                f"SLSTM: heads must divide idim={idim}; got heads={heads}. Choose a divisor."
            )
        conv_key, input_key, cell_key = jax.random.split(key, 3)
        self.conv = None if conv_width is None else CausalConv(idim, conv_width, key=conv_key)
        shape = (4, heads, idim // heads, idim // heads)
        std = math.sqrt(2 / (5 * idim))
        self.input = std * jax.random.normal(input_key, shape, jnp.float32)
        cell = SLSTMCell(
            *(4 * idim, idim),
            heads=heads,
            position=position,
            use_input_weights=False,
            key=cell_key,
        )
        self.encoder = RNNEncoder(cell, parallel=parallel)
        self.scale = jnp.ones(shape[1:3], jnp.float32)
        self.idim = self.odim = idim
        self.heads = heads

    def __call__(
        self,
        xs: Float[Array, "*batch time idim"],
        state: SLSTMLayerState | None = None,
        *,
        reset: Bool[Array, "*batch time"] | None = None,
        lengths: Int[Array, "*batch"] | None = None,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[SLSTMLayerState, Float[Array, "*batch time idim"]]:
        carried, lengths = check_call(self, xs, state, reset, lengths, key)
        xs = zero_padding(xs, lengths)
        past, us = carried.past, xs
        if self.conv is not None:
            past, us = self.conv(xs, past, reset=reset, lengths=lengths)
            us = jax.nn.silu(us)
        gates = self._gates(us, xs)
        cell, hs = self.encoder(gates, carried.cell, reset=reset, lengths=lengths)
        return SLSTMLayerState(past, cell), zero_padding(self._normed(hs).astype(xs.dtype), lengths)

    def step(
        self,
        x: Float[Array, "*batch idim"],
        state: SLSTMLayerState,
        *,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[SLSTMLayerState, Float[Array, "*batch idim"]]:
        carried = check_step(self, x, state, key)
        past, u = carried.past, x
        if self.conv is not None:
            past, u = self.conv.step(x, past)
            u = jax.nn.silu(u)
        cell, h = self.encoder.step(self._gates(u, x), carried.cell)
        return SLSTMLayerState(past, cell), self._normed(h).astype(x.dtype)

    @check_arguments
    def init_state(
        self, batch_shape: BatchShape = (), dtype: FloatDType | None = None
    ) -> SLSTMLayerState:
        past = None if self.conv is None else self.conv.init_state(batch_shape, dtype)
        return SLSTMLayerState(past, self.encoder.init_state(batch_shape, dtype))

    def _gates(
        self, u: Float[Array, "*axes idim"], x: Float[Array, "*axes idim"]
    ) -> Float[Array, "*axes gates"]:
        """The part of the pre-activations that comes from the input, at least float32."""
        pair = jnp.stack([u, x], axis=-2)
        pair = pair.reshape(*x.shape[:-1], 2, self.heads, self.idim // self.heads)
        weight = self.input.reshape(2, 2, *self.input.shape[1:])
        gates = jnp.einsum(
            "...phi,pghoi->...pgho",
            pair,
            weight.astype(x.dtype),
            preferred_element_type=at_least_float32(x).dtype,
        )
        return gates.reshape(*x.shape[:-1], 4 * self.idim)

    def _normed(self, hs: Float[Array, "*axes idim"]) -> Float[Array, "*axes idim"]:
        heads = hs.reshape(*hs.shape[:-1], *self.scale.shape)
        return layer_norm(heads, self.scale, epsilon=_EPSILON).reshape(hs.shape)
