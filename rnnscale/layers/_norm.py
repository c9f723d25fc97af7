"""Norms over the last axis, computed in at least float32 and returned in the dtype of the input.

The functions take the parameters, with any shape that broadcasts. The modules hold one for each
feature.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rnnscale._base import at_least_float32, check_features
from rnnscale._checks import Positive, Size, check_arguments
from rnnscale._fields import parameter


def layer_norm(
    x: Float[Array, "*axes dim"],
    scale: Float[Array, "*#axes dim"],
    bias: Float[Array, "*#axes dim"] | None = None,
    *,
    epsilon: float = 1e-6,
) -> Float[Array, "*axes dim"]:
    r"""$\frac{x - \mathrm E x}{\sqrt{\mathrm{Var}\,x + \epsilon}} \odot s + b$ over the last axis.

    `scale` and `bias` broadcast to `x`: with the axes "heads dim", a norm for each head has
    parameters of its own.
    """
    wide = at_least_float32(x)
    wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(wide**2, axis=-1, keepdims=True)
    y = wide * jax.lax.rsqrt(variance + epsilon) * scale
    return (y if bias is None else y + bias).astype(x.dtype)


def rms_norm(
    x: Float[Array, "*axes dim"], scale: Float[Array, "*#axes dim"], *, epsilon: float = 1e-6
) -> Float[Array, "*axes dim"]:
    r"""$\frac{x}{\sqrt{\mathrm E x^2 + \epsilon}} \odot s$ over the last axis.

    `scale` broadcasts to `x`: with the axes "heads dim", each head has one of its own.
    """
    wide = at_least_float32(x)
    power = jnp.mean(wide**2, axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(power + epsilon) * scale).astype(x.dtype)


class LayerNorm(eqx.Module):
    r"""$y = \frac{x - \mathrm E x}{\sqrt{\mathrm{Var}\,x + \epsilon}} \odot s + b$.

    Ba, Kiros, Hinton, *Layer Normalization*, 2016.
    """

    scale: Float[Array, "dim"] = parameter(group="bias")
    bias: Float[Array, "dim"] = parameter(group="bias")
    dim: int = eqx.field(static=True)
    epsilon: float = eqx.field(static=True)

    @check_arguments
    def __init__(self, dim: Size, *, epsilon: Positive = 1e-6):
        self.scale = jnp.ones((dim,), jnp.float32)
        self.bias = jnp.zeros((dim,), jnp.float32)
        self.dim, self.epsilon = dim, epsilon

    def __call__(self, x: Float[Array, "*axes dim"]) -> Float[Array, "*axes dim"]:
        check_features(self, x, self.dim)
        return layer_norm(x, self.scale, self.bias, epsilon=self.epsilon)


class RMSNorm(eqx.Module):
    r"""$y = \frac{x}{\sqrt{\mathrm E x^2 + \epsilon}} \odot s$.

    Zhang, Sennrich, *Root Mean Square Layer Normalization*, NeurIPS 2019.
    """

    scale: Float[Array, "dim"] = parameter(group="bias")
    dim: int = eqx.field(static=True)
    epsilon: float = eqx.field(static=True)

    @check_arguments
    def __init__(self, dim: Size, *, epsilon: Positive = 1e-6):
        self.scale = jnp.ones((dim,), jnp.float32)
        self.dim, self.epsilon = dim, epsilon

    def __call__(self, x: Float[Array, "*axes dim"]) -> Float[Array, "*axes dim"]:
        check_features(self, x, self.dim)
        return rms_norm(x, self.scale, epsilon=self.epsilon)
