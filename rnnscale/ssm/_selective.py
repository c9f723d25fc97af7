"""What the two layers of Mamba share: their initial parameters, and products with weights."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

from rnnscale.layers import CausalConv

_SHORTEST_STEP = 1e-4


def uniform_linear(key: PRNGKeyArray, shape: tuple[int, ...], inputs: int) -> Float[Array, "..."]:
    r"""Uniform in $\pm n^{-1/2}$ for $n$ inputs, as PyTorch's linear maps and biases start."""
    bound = 1 / math.sqrt(inputs)
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def short_conv(key: PRNGKeyArray, channels: int, width: int, *, use_bias: bool) -> CausalConv:
    """A convolution whose weights and bias start as PyTorch's do."""
    weight_key, bias_key = jax.random.split(key)
    conv = CausalConv(channels, width, use_bias=use_bias, key=weight_key)
    if not use_bias:
        return conv
    bias = uniform_linear(bias_key, (channels,), width)
    return eqx.tree_at(lambda conv: conv.bias, conv, bias)


def initial_dt_bias(
    owner: str, key: PRNGKeyArray, count: int, dt_min: float, dt_max: float
) -> Float[Array, "..."]:
    r"""Numbers whose softplus is log-uniform between `dt_min` and `dt_max`, at least $10^{-4}$.

    **Raises:** `ValueError`, naming `owner`, if `dt_min` is above `dt_max`.
    """
    if dt_min > dt_max:
        raise ValueError(
            f"{owner}: dt_min must be at most dt_max; got dt_min={dt_min}, dt_max={dt_max}."
        )
    logs = jax.random.uniform(key, (count,), jnp.float32, math.log(dt_min), math.log(dt_max))
    steps = jnp.maximum(jnp.exp(logs), _SHORTEST_STEP)
    return steps + jnp.log(-jnp.expm1(-steps))


def project(
    axes: str, x: Array, weight: Array, dtype: DTypeLike | None = None
) -> Float[Array, "..."]:
    """The product of `x` and a weight in the dtype of `x`, returned in `dtype` if it is given."""
    return jnp.einsum(axes, x, weight.astype(x.dtype), preferred_element_type=dtype)
