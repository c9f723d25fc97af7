"""Mamba, a state-space model whose steps and maps depend on the input, in its gated block."""

import math
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
from rnnscale._checks import BatchShape, FloatDType, Positive, Size, Width, check_arguments
from rnnscale._fields import parameter
from rnnscale.layers import CausalConv
from rnnscale.ssm._selective import initial_dt_bias, project, short_conv, uniform_linear


class MambaState(NamedTuple):
    """The last inputs of the convolution, and the states of all channels."""

    past: Float[Array, "*batch past state"]
    hidden: Float[Array, "*batch state modes"]


class _Step(NamedTuple):
    """The arguments of the recurrence at one step, or at all of them."""

    u: Float[Array, "*axes state"]
    delta: Float[Array, "*axes state"]
    b: Float[Array, "*axes modes"]
    c: Float[Array, "*axes modes"]


class Mamba(CausalLayer):
    r"""Mamba: diagonal state-space models whose parameters depend on the input (S6), with a gate.

    There is one model for each channel, between a short convolution and the gate. The step
    $\Delta$, the input map $B$ and the output map $C$ are functions of the input $v$:

    $$[x; z] = W_{in} v, \qquad u = \mathrm{silu}(\mathrm{conv}(x)), \qquad
      [\delta; B; C] = W_x u, \qquad \Delta = \mathrm{softplus}(W_\Delta \delta + b_\Delta)$$
    $$h_{t} = e^{\Delta_t A} \odot h_{t-1} + \Delta_t u_t B_t, \qquad
      o_t = W_{out} \big((C_t \cdot h_t + d \odot u_t) \odot \mathrm{silu}(z_t)\big), \qquad
      A = -e^{a}$$

    There are `expand * idim` channels with `state_dim` real states each. $B_t$ and $C_t$ are the
    same for all channels, $\Delta_t$ is one number for each. The state is
    `MambaState(past, hidden)`, at least float32, as are $\Delta$ and the decays.

    As published, $A$ starts as $-1, -2, \dots, -N$ in each channel, $d$ at one, and $b_\Delta$ so
    that $\mathrm{softplus}(b_\Delta)$ is log-uniform between `dt_min` and `dt_max`, at least
    $10^{-4}$. $W_\Delta$ starts uniform in $\pm R^{-1/2}$ for `dt_rank` $R$, the other maps uniform
    in $\pm n^{-1/2}$ for $n$ inputs. $a$, $d$ and $b_\Delta$ have no weight decay.

    Gu, Dao, *Mamba: Linear-Time Sequence Modeling with Selective State Spaces*, 2023.

    **Differs from the paper:** as in the authors' code, the input is discretised by Euler's rule,
    $\bar B = \Delta B$, where the paper writes zero-order hold. The authors' language models
    divide the initial $W_{out}$ by the root of the number of layers, which a layer does not know.
    """

    in_proj: Float[Array, "2 state idim"] = parameter()
    in_bias: Float[Array, "2 state"] | None = parameter(group="bias")
    conv: CausalConv
    x_proj: Float[Array, "projected state"] = parameter()
    dt_proj: Float[Array, "state rank"] = parameter()
    dt_bias: Float[Array, "state"] = parameter(group="recurrence")
    a_log: Float[Array, "state modes"] = parameter(group="recurrence")
    d: Float[Array, "state"] = parameter(group="bias")
    out_proj: Float[Array, "odim state"] = parameter()
    out_bias: Float[Array, "odim"] | None = parameter(group="bias")
    idim: int = eqx.field(static=True)
    odim: int = eqx.field(static=True)
    hdim: int = eqx.field(static=True)
    state_dim: int = eqx.field(static=True)
    dt_rank: int = eqx.field(static=True)

    @check_arguments
    def __init__(
        self,
        idim: Size,
        state_dim: Size = 16,
        odim: Size | None = None,
        *,
        expand: Size = 2,
        conv_width: Width = 4,
        dt_rank: Size | None = None,
        dt_min: Positive = 1e-3,
        dt_max: Positive = 1e-1,
        use_bias: bool = False,
        use_conv_bias: bool = True,
        key: PRNGKeyArray,
    ):
        r"""**Arguments:**

        - `idim`: features of the input.
        - `state_dim`: the paper's $N$, states of each channel. Default 16.
        - `odim`: features of the output. Default `idim`.
        - `expand`: channels for each feature of the input. Default 2.
        - `conv_width`: steps of the convolution, at least 2. Default 4.
        - `dt_rank`: the paper's $R$, the rank of the map to $\Delta$. Default `idim / 16`, rounded
            up.
        - `dt_min`, `dt_max`: the steps start log-uniformly between them, `0 < dt_min <= dt_max`.
            Defaults 0.001 and 0.1.
        - `use_bias`: whether $W_{in}$ and $W_{out}$ have biases. Default false.
        - `use_conv_bias`: whether the convolution has one. Default true.
        - `key`: for the initial parameters.

        **Raises:** `ValueError` if a size or range is invalid; `TypeError` if an argument is
        another kind of thing.
        """
        odim = idim if odim is None else odim
        dt_rank = math.ceil(idim / 16) if dt_rank is None else dt_rank
        hdim = expand * idim
        keys = jax.random.split(key, 8)
        self.in_proj = uniform_linear(keys[0], (2, hdim, idim), idim)
        self.in_bias = uniform_linear(keys[1], (2, hdim), idim) if use_bias else None
        self.conv = short_conv(keys[2], hdim, conv_width, use_bias=use_conv_bias)
        self.x_proj = uniform_linear(keys[3], (dt_rank + 2 * state_dim, hdim), hdim)
        self.dt_proj = uniform_linear(keys[4], (hdim, dt_rank), dt_rank)
        self.dt_bias = initial_dt_bias("Mamba", keys[5], hdim, dt_min, dt_max)
        modes = jnp.arange(1, state_dim + 1, dtype=jnp.float32)
        self.a_log = jnp.broadcast_to(jnp.log(modes), (hdim, state_dim))
        self.d = jnp.ones((hdim,), jnp.float32)
        self.out_proj = uniform_linear(keys[6], (odim, hdim), hdim)
        self.out_bias = uniform_linear(keys[7], (odim,), hdim) if use_bias else None
        self.idim, self.odim, self.hdim = idim, odim, hdim
        self.state_dim, self.dt_rank = state_dim, dt_rank

    def __call__(
        self,
        xs: Float[Array, "*batch time idim"],
        state: MambaState | None = None,
        *,
        reset: Bool[Array, "*batch time"] | None = None,
        lengths: Int[Array, "*batch"] | None = None,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[MambaState, Float[Array, "*batch time odim"]]:
        before, lengths = check_call(self, xs, state, reset, lengths, key)
        if xs.shape[-2] == 0:
            return before, jnp.zeros((*xs.shape[:-1], self.odim), xs.dtype)
        xs = zero_padding(xs, lengths)
        us, gate = self._branches(xs)
        past, us = self.conv(us, before.past, reset=reset, lengths=lengths)
        steps = self._select(jax.nn.silu(us))
        ys, hidden = sharding.selective_scan(
            steps.u, steps.delta, self._eigenvalues(xs.dtype), steps.b, steps.c, before.hidden,
            reset=reset, lengths=lengths,
        )  # fmt: skip
        return MambaState(past, hidden), zero_padding(self._mix(ys, steps.u, gate), lengths)

    def step(
        self,
        x: Float[Array, "*batch idim"],
        state: MambaState,
        *,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[MambaState, Float[Array, "*batch odim"]]:
        before = check_step(self, x, state, key)
        u, gate = self._branches(x)
        past, u = self.conv.step(u, before.past)
        u, delta, b, c = self._select(jax.nn.silu(u))
        wide = before.hidden.dtype
        decay = jnp.exp(delta[..., None] * self._eigenvalues(x.dtype))
        drive = (delta * u.astype(wide))[..., None] * b.astype(wide)[..., None, :]
        hidden = decay * before.hidden + drive
        y = jnp.sum(hidden * c.astype(wide)[..., None, :], axis=-1).astype(x.dtype)
        return MambaState(past, hidden), self._mix(y, u, gate)

    @check_arguments
    def init_state(
        self, batch_shape: BatchShape = (), dtype: FloatDType | None = None
    ) -> MambaState:
        hidden = jnp.zeros((*batch_shape, self.hdim, self.state_dim), state_dtype(dtype))
        return MambaState(self.conv.init_state(batch_shape, dtype), hidden)

    def _eigenvalues(self, dtype: DTypeLike) -> Float[Array, "state modes"]:
        return -jnp.exp(self.a_log.astype(state_dtype(dtype)))

    def _branches(self, x: Float[Array, "*axes idim"]) -> tuple[Array, Array]:
        """The input of the convolution, and the gate before its activation."""
        both = project("...i,gsi->...gs", x, self.in_proj)
        if self.in_bias is not None:
            both = both + self.in_bias.astype(x.dtype)
        return both[..., 0, :], both[..., 1, :]

    def _select(self, u: Float[Array, "*axes state"]) -> _Step:
        """The recurrence's arguments, as functions of its input."""
        selected = project("...s,ps->...p", u, self.x_proj)
        borders = self.dt_rank, self.dt_rank + self.state_dim
        low, b, c = jnp.split(selected, borders, axis=-1)
        delta = project("...r,sr->...s", low, self.dt_proj, state_dtype(u.dtype))
        return _Step(u, jax.nn.softplus(delta + self.dt_bias), b, c)

    def _mix(
        self,
        y: Float[Array, "*axes state"],
        u: Float[Array, "*axes state"],
        gate: Float[Array, "*axes state"],
    ) -> Float[Array, "*axes odim"]:
        y = (y + self.d.astype(u.dtype) * u) * jax.nn.silu(gate)
        out = project("...s,os->...o", y, self.out_proj)
        return out if self.out_bias is None else out + self.out_bias.astype(u.dtype)
