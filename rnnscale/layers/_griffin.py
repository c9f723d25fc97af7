"""`GriffinRecurrence`, the recurrent layer of Griffin."""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float, Int, Key, PRNGKeyArray

from rnnscale import sharding
from rnnscale._base import CausalLayer, check_call, check_step, zero_padding
from rnnscale._checks import BatchShape, FloatDType, Size, Width, check_arguments
from rnnscale._fields import parameter
from rnnscale.cells import RGLRUCell, compute_weights
from rnnscale.layers._causal_conv import CausalConv


class GriffinState(NamedTuple):
    """The last inputs of the convolution, the state of the RG-LRU, and 1 after the first step."""

    past: Float[Array, "*batch past state"]
    hidden: Float[Array, "*batch state"]
    started: Int[Array, "*batch"]


class GriffinRecurrence(CausalLayer):
    r"""The recurrent layer of Griffin: a short convolution and an RG-LRU, next to a gate.

    $$u_t = \mathrm{conv}(W_x x + b_x)_t, \qquad
      h_t = a_t \odot h_{t-1} + \sqrt{1 - a_t^2} \odot (i_t \odot u_t), \qquad
      y_t = W_o (h_t \odot \mathrm{gelu}(W_y x_t + b_y)) + b_o$$

    `RGLRUCell` has the gates $a_t, i_t$. At the first step of a sequence and at a reset the root is
    1, as in the authors' code. Input maps have a leading axis, in the order `x, y`. The state is
    the convolution's last inputs, $h$, and whether there was a step.

    In Griffin, two of three layers are this one and the third is `LocalAttention`, in blocks with a
    feed-forward network (`make_ffn=GatedFFN` of `rnnscale.models.Block`).

    Maps start Lecun-normal, the convolution with the variance `0.01 / conv_width`, biases at zero.

    De et al., *Griffin: Mixing Gated Linear Recurrences with Local Attention for Efficient Language
    Models*, 2024.

    **Differs from the paper** in what `RGLRUCell` says, and in the initial output map, whose
    variance the authors divide by half the number of layers.
    """

    w_in: Float[Array, "2 state idim"] = parameter()
    b_in: Float[Array, "2 state"] = parameter(group="bias")
    conv: CausalConv
    cell: RGLRUCell
    w_out: Float[Array, "odim state"] = parameter()
    b_out: Float[Array, "odim"] = parameter(group="bias")
    idim: int = eqx.field(static=True)
    odim: int = eqx.field(static=True)
    hdim: int = eqx.field(static=True)

    @check_arguments
    def __init__(
        self,
        idim: Size,
        hdim: Size | None = None,
        odim: Size | None = None,
        *,
        blocks: Size = 1,
        conv_width: Width = 4,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `idim`: features of the input.
        - `hdim`: units of the RG-LRU. Default `idim`; a third more in Griffin.
        - `odim`: features of the output. Default `idim`.
        - `blocks`: blocks of the gates' matrices, a divisor of `hdim`; see `RGLRUCell`.
        - `conv_width`: steps of the convolution, at least 2.
        - `key`: for the initial parameters.

        **Raises:** `TypeError` if an argument has another kind, `ValueError` if it is out of range.
        """
        hdim = idim if hdim is None else hdim
        odim = idim if odim is None else odim
        if hdim % blocks:
            raise ValueError(
                f"GriffinRecurrence: blocks must divide hdim={hdim}; got blocks={blocks}. Choose a "
                "divisor."
            )
        in_key, conv_key, cell_key, out_key = jax.random.split(key, 4)
        self.w_in = jax.random.normal(in_key, (2, hdim, idim), jnp.float32) / math.sqrt(idim)
        self.b_in = jnp.zeros((2, hdim), jnp.float32)
        taps = jax.random.normal(conv_key, (hdim, conv_width), jnp.float32)
        self.conv = eqx.tree_at(
            lambda conv: conv.weight,
            CausalConv(hdim, conv_width, key=conv_key),
            0.1 / math.sqrt(conv_width) * taps,
        )
        self.cell = RGLRUCell(hdim, blocks=blocks, key=cell_key)
        self.w_out = jax.random.normal(out_key, (odim, hdim), jnp.float32) / math.sqrt(hdim)
        self.b_out = jnp.zeros((odim,), jnp.float32)
        self.idim, self.odim, self.hdim = idim, odim, hdim

    def __call__(
        self,
        xs: Float[Array, "*batch time idim"],
        state: GriffinState | None = None,
        *,
        reset: Bool[Array, "*batch time"] | None = None,
        lengths: Int[Array, "*batch"] | None = None,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[GriffinState, Float[Array, "*batch time odim"]]:
        before, lengths = check_call(self, xs, state, reset, lengths, key)
        batch_shape, time = xs.shape[:-2], xs.shape[-2]
        if time == 0:
            return before, jnp.zeros((*batch_shape, 0, self.odim), xs.dtype)
        us, gate = self._branches(zero_padding(xs, lengths))
        past, us = self.conv(us, before.past, reset=reset, lengths=lengths)
        first = (jnp.arange(time) == 0) & (before.started == 0)[..., None]
        a, b = self._coefficients(us, first if reset is None else first | reset)
        scanned: Any = sharding.linear_scan(a, b, before.hidden, reset=reset, lengths=lengths)
        hs, hidden = scanned
        took_a_step = jnp.ones(batch_shape, bool) if lengths is None else lengths > 0
        started = jnp.where(took_a_step, 1, before.started)
        ys = zero_padding(self._mix(hs, gate, xs.dtype), lengths)
        return GriffinState(past, hidden, started), ys

    def step(
        self,
        x: Float[Array, "*batch idim"],
        state: GriffinState,
        *,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[GriffinState, Float[Array, "*batch odim"]]:
        before = check_step(self, x, state, key)
        u, gate = self._branches(x)
        past, u = self.conv.step(u, before.past)
        a, b = self._coefficients(u, before.started == 0)
        hidden = a * before.hidden + b
        started = jnp.ones_like(before.started)
        return GriffinState(past, hidden, started), self._mix(hidden, gate, x.dtype)

    @check_arguments
    def init_state(
        self, batch_shape: BatchShape = (), dtype: FloatDType | None = None
    ) -> GriffinState:
        hidden = self.cell.init_state(batch_shape, dtype)
        past = self.conv.init_state(batch_shape, dtype)
        return GriffinState(past, hidden, jnp.zeros(batch_shape, jnp.int32))

    def _branches(self, x: Float[Array, "*axes idim"]) -> tuple[Array, Array]:
        """The input of the convolution and the gate, both "*axes state"."""
        u, gate = (
            x @ weight.astype(x.dtype).T + bias.astype(x.dtype)
            for weight, bias in zip(self.w_in, self.b_in, strict=True)
        )
        return u, jax.nn.gelu(gate)

    def _coefficients(
        self, u: Float[Array, "*axes state"], first: Bool[Array, "*axes"]
    ) -> tuple[Array, Array]:
        a, root, gated = self.cell.gated(compute_weights(self.cell, u.dtype), u)
        return a, jnp.where(first[..., None], 1, root) * gated

    def _mix(
        self, h: Float[Array, "*axes state"], gate: Float[Array, "*axes state"], dtype: DTypeLike
    ) -> Float[Array, "*axes odim"]:
        return (h.astype(dtype) * gate) @ self.w_out.astype(dtype).T + self.b_out.astype(dtype)
