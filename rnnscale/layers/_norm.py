"""Norms over the features, computed in at least float32 and returned in the dtype of the input."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rnnscale._base import at_least_float32, check_features
from rnnscale._checks import NonNegative, Size, check_arguments
from rnnscale._fields import parameter


class LayerNorm(eqx.Module):
    r"""$y = \frac{x - \mathrm E x}{\sqrt{\mathrm{Var}\,x + \epsilon}} \odot s + b$.

    Ba, Kiros, Hinton, *Layer Normalization*, 2016.
    """

    scale: Float[Array, "dim"] = parameter(group="bias")
    bias: Float[Array, "dim"] = parameter(group="bias")
    dim: int = eqx.field(static=True)
    epsilon: float = eqx.field(static=True)

    @check_arguments
    def __init__(self, dim: Size, *, epsilon: NonNegative = 1e-6):
        self.scale = jnp.ones((dim,), jnp.float32)
        self.bias = jnp.zeros((dim,), jnp.float32)
        self.dim, self.epsilon = dim, epsilon

    def __call__(self, x: Float[Array, "*axes dim"]) -> Float[Array, "*axes dim"]:
        check_features(self, x, self.dim)
        wide = at_least_float32(x)
        wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
        variance = jnp.mean(wide**2, axis=-1, keepdims=True)
        wide = wide * jax.lax.rsqrt(variance + self.epsilon)
        return (wide * self.scale + self.bias).astype(x.dtype)


class RMSNorm(eqx.Module):
    r"""$y = \frac{x}{\sqrt{\mathrm E x^2 + \epsilon}} \odot s$.

    Zhang, Sennrich, *Root Mean Square Layer Normalization*, NeurIPS 2019.
    """

    scale: Float[Array, "dim"] = parameter(group="bias")
    dim: int = eqx.field(static=True)
    epsilon: float = eqx.field(static=True)

    @check_arguments
    def __init__(self, dim: Size, *, epsilon: NonNegative = 1e-6):
        self.scale = jnp.ones((dim,), jnp.float32)
        self.dim, self.epsilon = dim, epsilon

    def __call__(self, x: Float[Array, "*axes dim"]) -> Float[Array, "*axes dim"]:
        check_features(self, x, self.dim)
        wide = at_least_float32(x)
        power = jnp.mean(wide**2, axis=-1, keepdims=True)
        return (wide * jax.lax.rsqrt(power + self.epsilon) * self.scale).astype(x.dtype)
