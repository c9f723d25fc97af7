"""The distributions that the papers draw initial parameters from, in float32."""

import math
from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from rnnscale._checks import Must

type Horizon = Annotated[int, Must("be at least 3", lambda steps: steps >= 3)]


def uniform(key: PRNGKeyArray, shape: tuple[int, ...], limit: float) -> Float[Array, "..."]:
    """Uniform in `[-limit, limit)`."""
    return jax.random.uniform(key, shape, jnp.float32, -limit, limit)


def normal(key: PRNGKeyArray, shape: tuple[int, ...], std: float) -> Float[Array, "..."]:
    """Normal with the standard deviation `std`."""
    return std * jax.random.normal(key, shape, jnp.float32)


def xavier_normal(key: PRNGKeyArray, shape: tuple[int, int]) -> Float[Array, "out in"]:
    """Normal of variance `2 / (in + out)`."""
    return normal(key, shape, math.sqrt(2 / sum(shape)))


def chrono_bias(key: PRNGKeyArray, hdim: int, t_max: int) -> Float[Array, "hdim"]:
    r"""$\log u$ for $u$ uniform in `[1, t_max - 1)`. A gate with this bias keeps the share
    $u / (1 + u)$ of a state in a step, so that units remember for times of up to `t_max` steps.

    Tallec, Ollivier, *Can Recurrent Neural Networks Warp Time?*, ICLR 2018.
    """
    return jnp.log(jax.random.uniform(key, (hdim,), jnp.float32, 1, t_max - 1))
