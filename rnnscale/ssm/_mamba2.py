"""Mamba-2, a state-space model with one decay for each head, in its gated block."""

from typing import Annotated, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from rnnscale import sharding
from rnnscale._base import CausalLayer, check_call, check_step, state_dtype, zero_padding
from rnnscale._checks import (
    BatchShape,
    FloatDType,
    Must,
    Positive,
    Size,
    Width,
    check_arguments,
)
from rnnscale._fields import parameter
from rnnscale.layers import CausalConv, rms_norm
from rnnscale.ssm._selective import initial_dt_bias, project, short_conv, uniform_linear

type Limit = Annotated[
    tuple[float, float],
    Must("be (low, high) with 0 <= low < high", lambda each: 0 <= each[0] < each[1]),
]


class Mamba2State(NamedTuple):
    """The last inputs of the two convolutions, and the matrix of every head."""

    past: Float[Array, "*batch past channels"]
    past_maps: Float[Array, "*batch past maps"]
    hidden: Float[Array, "*batch heads modes value"]


class _Step(NamedTuple):
    """The arguments of the recurrence at one step, or at all of them."""

    u: Float[Array, "*axes heads value"]
    delta: Float[Array, "*axes heads"]
    b: Float[Array, "*axes groups modes"]
    c: Float[Array, "*axes groups modes"]


class Mamba2(CausalLayer):
    r"""Mamba-2: a state-space model with a matrix state and one decay in each head (SSD).

    The recurrence stands between a short convolution and a gated norm:

    $$[z; x; B; C; \delta] = W_{in} v, \qquad
      [u; B; C] = \mathrm{silu}(\mathrm{conv}([x; B; C])), \qquad
      \Delta = \mathrm{softplus}(\delta + b_\Delta)$$
    $$H_t = e^{\Delta_t A} H_{t-1} + \Delta_t B_t u_t^T, \qquad
      y_t = H_t^T C_t + d\, u_t, \qquad A = -e^{a}$$
    $$o_t = W_{out} \, \mathrm{norm}(y_t \odot \mathrm{silu}(z_t))$$

    for the input $v$. There are `expand * idim` channels in heads of `head_dim`; $\Delta$, $A$ and
    $d$ are one number for each head, and the heads of a group share $B$ and $C$, with `state_dim`
    features. The norm is an RMS norm over the channels of a group, after the gate.
    The state is `Mamba2State(past, past_maps, hidden)`, at least float32, as are $\Delta$ and the
    decays.

    As published, $A$ starts uniform between -16 and -1, $d$ at one, and $b_\Delta$ so that
    $\mathrm{softplus}(b_\Delta)$ is log-uniform between `dt_min` and `dt_max`, at least $10^{-4}$.
    Maps start uniform in $\pm n^{-1/2}$ for $n$ inputs. $a$, $d$, $b_\Delta$ and the norm have no
    weight decay.

    The parts of $W_{in}$ are arrays of their own, and so are the convolutions of $x$ and of
    $[B; C]$, so that a mesh can split heads.

    Dao, Gu, *Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured
    State Space Duality*, ICML 2024.

    **Differs from the authors' code**, whose language models divide the initial $W_{out}$ by the
    root of the number of layers, which a layer does not know.
    """

    zx_proj: Float[Array, "2 heads value idim"] = parameter()
    bc_proj: Float[Array, "2 groups modes idim"] = parameter()
    dt_proj: Float[Array, "heads idim"] = parameter()
    conv: CausalConv
    conv_maps: CausalConv
    dt_bias: Float[Array, "heads"] = parameter(group="recurrence")
    a_log: Float[Array, "heads"] = parameter(group="recurrence")
    d: Float[Array, "heads"] = parameter(group="bias")
    norm_scale: Float[Array, "heads value"] = parameter(group="bias")
    out_proj: Float[Array, "odim heads value"] = parameter()
    idim: int = eqx.field(static=True)
    odim: int = eqx.field(static=True)
    heads: int = eqx.field(static=True)
    head_dim: int = eqx.field(static=True)
    state_dim: int = eqx.field(static=True)
    groups: int = eqx.field(static=True)
    norm_groups: int = eqx.field(static=True)
    dt_limit: tuple[float, float] = eqx.field(static=True)
    epsilon: float = eqx.field(static=True)

    @check_arguments
    def __init__(
        self,
        idim: Size,
        state_dim: Size = 128,
        odim: Size | None = None,
        *,
        head_dim: Size | None = None,
        groups: Size = 1,
        norm_groups: Size | None = None,
        expand: Size = 2,
        conv_width: Width = 4,
        dt_min: Positive = 1e-3,
        dt_max: Positive = 1e-1,
        dt_limit: Limit = (0.0, float("inf")),
        use_conv_bias: bool = True,
        epsilon: Positive = 1e-5,
        key: PRNGKeyArray,
    ):
        r"""**Arguments:**

        - `idim`: features of the input.
        - `state_dim`: the paper's $N$, features of $B$ and $C$. Default 128.
        - `odim`: features of the output. Default `idim`.
        - `head_dim`: the paper's $P$, channels of a head; a divisor of `expand * idim`. Default 64,
            or `expand * idim` if that is less.
        - `groups`: groups of heads that share $B$ and $C$; a divisor of the number of heads.
            Default 1.
        - `norm_groups`: groups of channels with a norm of their own, a divisor of `expand * idim`.
            Default `groups`, as in the authors' code. Older versions of `transformers` have 1, and
            so have models that were trained with them.
        - `expand`: channels for each feature of the input. Default 2.
        - `conv_width`: steps of the convolution, at least 2. Default 4.
        - `dt_min`, `dt_max`: the steps start log-uniformly between them, `0 < dt_min <= dt_max`.
            Defaults 0.001 and 0.1.
        - `dt_limit`: the least and the largest $\Delta$. Default no limits.
        - `use_conv_bias`: whether the convolution has a bias. Default true.
        - `epsilon`: epsilon of the norm, positive. Default 1e-5.
        - `key`: for the initial parameters.

        **Raises:** `ValueError` if a size or range is invalid; `TypeError` if an argument is
        another kind of thing.
        """
        odim = idim if odim is None else odim
        norm_groups = groups if norm_groups is None else norm_groups
        hdim = expand * idim
        head_dim = min(64, hdim) if head_dim is None else head_dim
        heads = hdim // head_dim
        for name, size, of, total in (
            ("head_dim", head_dim, "expand * idim", hdim),
            ("norm_groups", norm_groups, "expand * idim", hdim),
            ("groups", groups, "the number of heads", heads),
        ):
            if not total or total % size:
                raise ValueError(
                    f"Mamba2: {name} must divide {of}, {total}; got {name}={size}. Give a divisor "
                    f"as {name}."
                )
        keys = jax.random.split(key, 8)
        self.zx_proj = uniform_linear(keys[0], (2, heads, head_dim, idim), idim)
        self.bc_proj = uniform_linear(keys[1], (2, groups, state_dim, idim), idim)
        self.dt_proj = uniform_linear(keys[2], (heads, idim), idim)
        self.conv = short_conv(keys[3], hdim, conv_width, use_bias=use_conv_bias)
        maps = 2 * groups * state_dim
        self.conv_maps = short_conv(keys[4], maps, conv_width, use_bias=use_conv_bias)
        self.dt_bias = initial_dt_bias("Mamba2", keys[5], heads, dt_min, dt_max)
        a = jax.random.uniform(keys[6], (heads,), jnp.float32, 1.0, 16.0)
        self.a_log = jnp.log(a)
        self.d = jnp.ones((heads,), jnp.float32)
        self.norm_scale = jnp.ones((heads, head_dim), jnp.float32)
        self.out_proj = uniform_linear(keys[7], (odim, heads, head_dim), hdim)
        self.idim, self.odim, self.heads, self.head_dim = idim, odim, heads, head_dim
        self.state_dim, self.groups, self.norm_groups = state_dim, groups, norm_groups
        self.dt_limit, self.epsilon = dt_limit, epsilon

    def __call__(
        self,
        xs: Float[Array, "*batch time idim"],
        state: Mamba2State | None = None,
        *,
        reset: Bool[Array, "*batch time"] | None = None,
        lengths: Int[Array, "*batch"] | None = None,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[Mamba2State, Float[Array, "*batch time odim"]]:
        before, lengths = check_call(self, xs, state, reset, lengths, key)
        if xs.shape[-2] == 0:
            return before, jnp.zeros((*xs.shape[:-1], self.odim), xs.dtype)
        xs = zero_padding(xs, lengths)
        gate, us, maps = self._branches(xs)
        past, us = self.conv(us, before.past, reset=reset, lengths=lengths)
        past_maps, maps = self.conv_maps(maps, before.past_maps, reset=reset, lengths=lengths)
        steps = self._select(xs, us, maps)
        ys, hidden = sharding.linear_attention(
            steps.c,
            steps.b,
            _times(steps.delta, steps.u),
            self._log_decay(steps.delta),
            h0=before.hidden,
            reset=reset,
            lengths=lengths,
        )
        ys = zero_padding(self._mix(ys, steps.u, gate), lengths)
        return Mamba2State(past, past_maps, hidden), ys

    def step(
        self,
        x: Float[Array, "*batch idim"],
        state: Mamba2State,
        *,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[Mamba2State, Float[Array, "*batch odim"]]:
        before = check_step(self, x, state, key)
        gate, u, maps = self._branches(x)
        past, u = self.conv.step(u, before.past)
        past_maps, maps = self.conv_maps.step(maps, before.past_maps)
        u, delta, b, c = self._select(x, u, maps)
        wide = before.hidden.dtype
        b, c = (jnp.repeat(each.astype(wide), self.heads // self.groups, -2) for each in (b, c))
        drive = b[..., :, None] * _times(delta, u).astype(wide)[..., None, :]
        hidden = jnp.exp(self._log_decay(delta))[..., None, None] * before.hidden + drive
        y = jnp.einsum("...hn,...hnv->...hv", c, hidden).astype(x.dtype)
        return Mamba2State(past, past_maps, hidden), self._mix(y, u, gate)

    @check_arguments
    def init_state(
        self, batch_shape: BatchShape = (), dtype: FloatDType | None = None
    ) -> Mamba2State:
        shape = (*batch_shape, self.heads, self.state_dim, self.head_dim)
        return Mamba2State(
            self.conv.init_state(batch_shape, dtype),
            self.conv_maps.init_state(batch_shape, dtype),
            jnp.zeros(shape, state_dtype(dtype)),
        )

    def _branches(self, x: Float[Array, "*axes idim"]) -> tuple[Array, Array, Array]:
        """The gate before its activation, "*axes heads value", and the inputs of the two
        convolutions, "*axes channels" and "*axes maps"."""
        both = project("...i,bhvi->...bhv", x, self.zx_proj)
        maps = project("...i,bgni->...bgn", x, self.bc_proj)
        axes = x.shape[:-1]
        gate, u = both[..., 0, :, :], both[..., 1, :, :]
        return (
            gate,
            u.reshape(*axes, self.heads * self.head_dim),
            maps.reshape(*axes, 2 * self.groups * self.state_dim),
        )

    def _select(self, x: Array, u: Array, maps: Array) -> _Step:
        """The recurrence's arguments, from the layer's input and what the convolutions return."""
        axes = x.shape[:-1]
        u = jax.nn.silu(u).reshape(*axes, self.heads, self.head_dim)
        maps = jax.nn.silu(maps).reshape(*axes, 2, self.groups, self.state_dim)
        delta = project("...i,hi->...h", x, self.dt_proj, state_dtype(x.dtype))
        delta = jnp.clip(jax.nn.softplus(delta + self.dt_bias), *self.dt_limit)
        return _Step(u, delta, maps[..., 0, :, :], maps[..., 1, :, :])

    def _log_decay(self, delta: Float[Array, "*axes heads"]) -> Float[Array, "*axes heads"]:
        return -delta * jnp.exp(self.a_log.astype(delta.dtype))

    def _mix(
        self,
        y: Float[Array, "*axes heads value"],
        u: Float[Array, "*axes heads value"],
        gate: Float[Array, "*axes heads value"],
    ) -> Float[Array, "*axes odim"]:
        y = (y + self.d.astype(u.dtype)[:, None] * u) * jax.nn.silu(gate)
        width = self.norm_scale.size // self.norm_groups
        groups = y.reshape(*y.shape[:-2], self.norm_groups, width)
        scale = self.norm_scale.reshape(self.norm_groups, width)
        y = rms_norm(groups, scale, epsilon=self.epsilon).reshape(y.shape)
        return project("...hv,ohv->...o", y, self.out_proj)


def _times(
    delta: Float[Array, "*axes heads"], u: Float[Array, "*axes heads value"]
) -> Float[Array, "*axes heads value"]:
    """The input over the length of a step, in the dtype of the input."""
    return (delta[..., None] * u).astype(u.dtype)
