"""`Embedding`, a trained vector for each token."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Int, PRNGKeyArray

from rnnscale import sharding
from rnnscale._base import check_size
from rnnscale._fields import parameter


class Embedding(eqx.Module):
    """A trained vector for each of `vocab` tokens, drawn from N(0, 1).

    A token outside `0 <= token < vocab` gives NaN, so that the mistake shows.
    """

    weight: Float[Array, "vocab dim"] = parameter()
    vocab: int = eqx.field(static=True)
    dim: int = eqx.field(static=True)

    def __init__(self, vocab: int, dim: int, *, key: PRNGKeyArray):
        check_size(Embedding, vocab=vocab, dim=dim)
        self.weight = jax.random.normal(key, (vocab, dim), jnp.float32)
        self.vocab, self.dim = vocab, dim

    def __call__(
        self, tokens: Int[Array, "*axes"], dtype: DTypeLike = jnp.float32
    ) -> Float[Array, "*axes dim"]:
        if not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise TypeError(f"Embedding takes integer tokens; got {tokens.dtype}.")
        # Gather the table once. Otherwise the compiler looks up in each part of the table that
        # `fsdp` splits, and sums over devices.
        weight = sharding.gathered(self).weight.astype(dtype)
        # Negative indices would count from the end.
        tokens = jnp.where(tokens < 0, self.vocab, tokens.astype(jnp.int32))
        return weight.at[tokens].get(mode="fill", fill_value=jnp.nan)
