"""`Embedding`, a trained vector for each token."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from rnnscale import sharding
from rnnscale._checks import FloatDType, Size, check_arguments
from rnnscale._fields import parameter


class Embedding(eqx.Module):
    """A trained vector for each of `vocab` tokens, drawn from N(0, 1).

    A token outside `0 <= token < vocab` gives NaN, so that the mistake shows.
    """

    weight: Float[Array, "vocab dim"] = parameter()
    vocab: int = eqx.field(static=True)
    dim: int = eqx.field(static=True)

    @check_arguments
    def __init__(self, vocab: Size, dim: Size, *, key: PRNGKeyArray):
        self.weight = jax.random.normal(key, (vocab, dim), jnp.float32)
        self.vocab, self.dim = vocab, dim

    @check_arguments
    def __call__(
        self, tokens: Int[Array, "*axes"], dtype: FloatDType = jnp.float32
    ) -> Float[Array, "*axes dim"]:
        # Gather the table once. Otherwise the compiler looks up in each part of the table that
        # `fsdp` splits, and sums over devices.
        weight = sharding.gathered(self).weight.astype(dtype)
        # Negative indices would count from the end.
        tokens = jnp.where(tokens < 0, self.vocab, tokens.astype(jnp.int32))
        return weight.at[tokens].get(mode="fill", fill_value=jnp.nan)
