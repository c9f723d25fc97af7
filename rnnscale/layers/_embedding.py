"""`Embedding`, a trained vector for each token."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from rnnscale import sharding
from rnnscale._checks import FloatDType, Positive, Size, check_arguments
from rnnscale._fields import parameter
from rnnscale.layers._tokens import in_int32


class Embedding(eqx.Module):
    r"""A trained vector for each of `vocab` tokens, times `scale`.

    The vectors start with variance $1 / \mathrm{scale}^2$, so the output has unit variance. In a
    `LanguageModel` whose head is tied to the embedding, so have the logits if
    $\mathrm{scale} = \sqrt{\mathrm{dim}}$.

    A token outside `0 <= token < vocab` gives NaN, so that the mistake shows.
    """

    weight: Float[Array, "vocab dim"] = parameter()
    vocab: int = eqx.field(static=True)
    dim: int = eqx.field(static=True)
    scale: float = eqx.field(static=True)

    @check_arguments
    def __init__(self, vocab: Size, dim: Size, *, scale: Positive = 1.0, key: PRNGKeyArray):
        self.weight = jax.random.normal(key, (vocab, dim), jnp.float32) / scale
        self.vocab, self.dim, self.scale = vocab, dim, float(scale)

    @check_arguments
    def __call__(
        self, tokens: Int[Array, "*axes"], dtype: FloatDType = jnp.float32
    ) -> Float[Array, "*axes dim"]:
        # Gather the table once. Otherwise the compiler looks up in each part of the table that
        # `fsdp` splits, and sums over devices.
        weight = sharding.gathered(self).weight.astype(dtype)
        index = in_int32(tokens)
        index = jnp.where(index < 0, self.vocab, index)  # it would count from the end
        return self.scale * weight.at[index].get(mode="fill", fill_value=jnp.nan)
