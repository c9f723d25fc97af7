"""What the layers with a delta rule share: projections, short convolution, unit keys, readout.

DeltaNet, Gated DeltaNet and DeltaProduct derive from `DeltaRule`, with their own sizes, decays and
defaults.
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Annotated, NamedTuple

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
from rnnscale._checks import BatchShape, FloatDType, Must, check_arguments
from rnnscale._fields import parameter
from rnnscale.attention._heads import from_heads, lecun_normal, to_heads
from rnnscale.layers import CausalConv, rms_norm
from rnnscale_kernels import linear_attention

type Strength = Annotated[float, Must("be in (0, 2]", lambda x: 0 < x <= 2)]

_EPSILON = 1e-5  # of the norm of each head's output


class DeltaState(NamedTuple):
    """The inputs that the convolution still needs, if there is one, and every head's matrix."""

    past: Float[Array, "*batch past features"] | None
    memory: Float[Array, "*batch heads key value"]


class DeltaRule(CausalLayer):
    r"""A matrix in every head, which a step corrects along unit keys, $m$ times one after another:

    $$H \leftarrow \alpha_t H, \qquad
      H \leftarrow H + \beta_t k_t (v_t - H^T k_t)^T \;(m \text{ times}), \qquad
      y_t = H^T q_t / \sqrt{K}$$

    Queries, keys and values are $\mathrm{silu}(\mathrm{conv}(W x))$, then queries and keys have
    unit length in each head. $\beta_t = \beta_{\max} \, \mathrm{sigmoid}(W x_t)$. The outputs of
    each head go through an RMS norm, then perhaps through a gate $\mathrm{silu}(W x_t)$.

    A subclass chooses the sizes, and defines `log_decay`.
    """

    query: Float[Array, "heads key idim"] = parameter()
    key: Float[Array, "heads keys idim"] = parameter()
    value: Float[Array, "heads values idim"] = parameter()
    beta: Float[Array, "heads substeps idim"] = parameter()
    conv: CausalConv | None
    gate: Float[Array, "heads value idim"] | None = parameter()
    scale: Float[Array, "value"] = parameter(group="bias")
    output: Float[Array, "odim heads value"] = parameter()
    beta_max: Float[Array, ""] = parameter(trainable=False)
    idim: int = eqx.field(static=True)
    odim: int = eqx.field(static=True)
    heads: int = eqx.field(static=True)
    key_dim: int = eqx.field(static=True)
    value_dim: int = eqx.field(static=True)
    substeps: int = eqx.field(static=True)

    def __init__(
        self,
        idim: int,
        heads: int,
        odim: int | None,
        *,
        key_dim: int,
        value_dim: int,
        substeps: int = 1,
        conv_width: int | None,
        gate: bool,
        beta_max: float,
        key: PRNGKeyArray,
    ):
        odim = idim if odim is None else odim
        keys = jax.random.split(key, 7)

        def projection(key: PRNGKeyArray, features: int) -> Array:
            return lecun_normal(key, (heads, features, idim), idim)

        self.query = projection(keys[0], key_dim)
        self.key = projection(keys[1], substeps * key_dim)
        self.value = projection(keys[2], substeps * value_dim)
        self.beta = projection(keys[3], substeps)
        self.gate = projection(keys[4], value_dim) if gate else None
        features = heads * (key_dim + substeps * (key_dim + value_dim))
        self.conv = (
            None
            if conv_width is None
            else CausalConv(features, conv_width, use_bias=False, key=keys[5])
        )
        self.scale = jnp.ones((value_dim,), jnp.float32)
        self.output = lecun_normal(keys[6], (odim, heads, value_dim), heads * value_dim)
        self.beta_max = jnp.asarray(beta_max, jnp.float32)
        self.idim, self.odim, self.heads = idim, odim, heads
        self.key_dim, self.value_dim, self.substeps = key_dim, value_dim, substeps

    @abstractmethod
    def log_decay(self, xs: Float[Array, "*axes idim"]) -> Float[Array, "*axes heads"] | None:
        r"""$\log \alpha$, at least float32, or `None` if nothing decays."""

    def __call__(
        self,
        xs: Float[Array, "*batch time idim"],
        state: DeltaState | None = None,
        *,
        reset: Bool[Array, "*batch time"] | None = None,
        lengths: Int[Array, "*batch"] | None = None,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[DeltaState, Float[Array, "*batch time odim"]]:
        carried, lengths = check_call(self, xs, state, reset, lengths, key)
        xs = zero_padding(xs, lengths)
        state, ys = self._run(sharding.linear_attention, xs, carried, reset, lengths)
        return state, zero_padding(ys, lengths)

    def step(
        self,
        x: Float[Array, "*batch idim"],
        state: DeltaState,
        *,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[DeltaState, Float[Array, "*batch odim"]]:
        state = check_step(self, x, state, key)
        # A single step is not split over devices.
        state, ys = self._run(linear_attention, x[..., None, :], state, None, None)
        return state, ys[..., 0, :]

    @check_arguments
    def init_state(
        self, batch_shape: BatchShape = (), dtype: FloatDType | None = None
    ) -> DeltaState:
        shape = (*batch_shape, self.heads, self.key_dim, self.value_dim)
        past = None if self.conv is None else self.conv.init_state(batch_shape, dtype)
        return DeltaState(past, jnp.zeros(shape, state_dtype(dtype)))

    def _run(
        self,
        attend: Callable[..., tuple[Array, Array]],
        xs: Float[Array, "*batch time idim"],
        state: DeltaState,
        reset: Bool[Array, "*batch time"] | None,
        lengths: Int[Array, "*batch"] | None,
    ) -> tuple[DeltaState, Float[Array, "*batch time odim"]]:
        past, (query, key, value) = self._project(xs, state.past, reset, lengths)
        # Each step is `m` steps of the recurrence: the state decays in the first and is read after
        # the last.
        m = self.substeps
        strength = to_heads(self.beta, xs, at_least_float32(xs).dtype)
        strength = self.beta_max * jax.nn.sigmoid(_substeps(strength, m))
        key = unit(_substeps(key, m))
        value = (strength * _substeps(value, m)).astype(xs.dtype)
        decay = self.log_decay(xs)
        ys, memory = attend(
            jnp.repeat(unit(query) / math.sqrt(self.key_dim), m, axis=-3),
            key,
            value,
            None if decay is None else first_substep(decay, m, axis=-2),
            erase=strength * key,
            h0=state.memory,
            reset=None if reset is None else first_substep(reset, m, axis=-1),
            lengths=None if lengths is None else m * lengths,
        )
        ys = ys.reshape(*xs.shape[:-1], m, self.heads, self.value_dim)[..., -1, :, :]

        ys = rms_norm(ys, self.scale, epsilon=_EPSILON)
        if self.gate is not None:
            ys = ys * jax.nn.silu(to_heads(self.gate, xs))
        ys = from_heads(self.output, ys, xs.dtype)
        return DeltaState(past, memory), ys

    def _project(
        self,
        xs: Float[Array, "*batch time idim"],
        past: Array | None,
        reset: Bool[Array, "*batch time"] | None,
        lengths: Int[Array, "*batch"] | None,
    ) -> tuple[Array | None, list[Array]]:
        """Queries, keys and values, "*batch time heads ...", and the state of the convolution."""
        # Head by head, so that a mesh that splits the heads splits the features of the convolution.
        weights = jnp.concatenate([self.query, self.key, self.value], axis=1)
        features = to_heads(weights, xs)
        if self.conv is not None:
            flat = features.reshape(*xs.shape[:-1], self.conv.idim)
            past, flat = self.conv(flat, past, reset=reset, lengths=lengths)
            features = flat.reshape(features.shape)
        ends = [self.key_dim, self.key_dim + self.key.shape[1]]
        return past, jnp.split(jax.nn.silu(features), ends, axis=-1)


class Decay(eqx.Module):
    r"""The decay of each head, $\log \alpha_t = -e^{a} \, \mathrm{softplus}(W x_t + b)$.

    $e^a$ starts uniform in $(0, 16]$, and $\mathrm{softplus}(b)$ log-uniform in $[0.001, 0.1]$.
    """

    weight: Float[Array, "heads idim"] = parameter()
    log_rate: Float[Array, "heads"] = parameter(group="recurrence")
    bias: Float[Array, "heads"] = parameter(group="recurrence")

    def __init__(self, idim: int, heads: int, *, key: PRNGKeyArray):
        weight_key, rate_key, step_key = jax.random.split(key, 3)
        self.weight = lecun_normal(weight_key, (heads, idim), idim)
        # Uniform numbers may be zero, but not one.
        self.log_rate = jnp.log(16 * (1 - jax.random.uniform(rate_key, (heads,), jnp.float32)))
        low, high = math.log(1e-3), math.log(1e-1)
        step = jnp.exp(jax.random.uniform(step_key, (heads,), jnp.float32, low, high))
        self.bias = step + jnp.log(-jnp.expm1(-step))  # the inverse of softplus

    def __call__(self, xs: Float[Array, "*axes idim"]) -> Float[Array, "*axes heads"]:
        wide = at_least_float32(xs)
        return -jnp.exp(self.log_rate) * jax.nn.softplus(wide @ self.weight.T + self.bias)


def unit(x: Float[Array, "*axes dim"], epsilon: float = 1e-6) -> Float[Array, "*axes dim"]:
    r"""$x / \sqrt{\|x\|^2 + \epsilon}$ over the last axis, in at least float32."""
    wide = at_least_float32(x)
    return wide * jax.lax.rsqrt(jnp.sum(wide**2, axis=-1, keepdims=True) + epsilon)


def _substeps(x: Float[Array, "*axes time heads features"], m: int) -> Array:
    """From "time heads m*features" to "time*m heads features"."""
    *axes, time, heads, features = x.shape
    x = jnp.moveaxis(x.reshape(*axes, time, heads, m, features // m), -2, -3)
    return x.reshape(*axes, time * m, heads, features // m)


def first_substep(x: Array, m: int, *, axis: int) -> Array:
    """Each entry of an axis followed by `m - 1` zeros, so that `time` becomes `time * m`."""
    axis %= x.ndim
    padding = [(0, 0)] * (x.ndim + 1)
    padding[axis + 1] = (0, m - 1)
    padded = jnp.pad(jnp.expand_dims(x, axis + 1), padding)
    return padded.reshape(*x.shape[:axis], m * x.shape[axis], *x.shape[axis + 1 :])
