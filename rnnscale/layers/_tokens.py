"""Tokens and labels of any integer dtype."""

import jax.numpy as jnp
from jaxtyping import Array, Int
from numpy.typing import NDArray


def in_int32(tokens: Int[Array, "*axes"] | NDArray) -> Int[Array, "*axes"]:
    """The tokens in 32 bits, with -1, which is no token, for those that do not fit.

    In 8 bits, the numbers with which `jax.nn.one_hot` compares them would not fit.
    """
    found = tokens.astype(jnp.int32)
    return jnp.where(found.astype(tokens.dtype) == tokens, found, -1)
