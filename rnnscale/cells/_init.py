"""The distributions that the papers draw initial parameters from, in float32."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


def uniform(key: PRNGKeyArray, shape: tuple[int, ...], limit: float) -> Float[Array, "..."]:
    """Uniform in `[-limit, limit)`."""
    return jax.random.uniform(key, shape, jnp.float32, -limit, limit)


def normal(key: PRNGKeyArray, shape: tuple[int, ...], std: float) -> Float[Array, "..."]:
    """Normal with the standard deviation `std`."""
    return std * jax.random.normal(key, shape, jnp.float32)


def xavier_normal(key: PRNGKeyArray, shape: tuple[int, int]) -> Float[Array, "out in"]:
    """Normal of variance `2 / (in + out)`."""
    return normal(key, shape, math.sqrt(2 / sum(shape)))
