"""Dropout with masks that depend on the row, the step and the channel only."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from rnnscale._base import check_features
from rnnscale._checks import Rate, check_arguments
from rnnscale._fields import parameter
from rnnscale.layers._row_keys import fold_keys, row_keys


class Dropout(eqx.Module):
    """Sets entries to zero with probability `rate` and divides the others by `1 - rate`.

    The mask of step `t` of a row is drawn from `fold_in(row_key, t)`, so it is the same on any
    mesh, in any batch and for any length of the sequence. `rate` is an array leaf that is not
    trained: it can be swept without compiling again.

    Srivastava et al., *Dropout*, JMLR 2014.
    """

    rate: Float[Array, ""] = parameter(trainable=False)

    @check_arguments
    def __init__(self, rate: Rate):
        """`rate` is in `[0, 1)`. **Raises** `TypeError` or `ValueError` otherwise."""
        self.rate = jnp.asarray(rate, jnp.float32)

    def __call__(
        self, xs: Float[Array, "*batch time dim"], *, key: Key[Array, "*#batch"] | None
    ) -> Float[Array, "*batch time dim"]:
        """**Arguments:**

        - `xs`: sequences.
        - `key`: one key, or one for each row. `None` means inference and returns `xs`.
        """
        check_features(self, xs, None, rank=2)
        keys = row_keys(key, xs.shape[:-2])
        if keys is None:
            return xs
        step_keys = fold_keys(keys[..., None], jnp.arange(xs.shape[-2]))
        return self._drop(xs, step_keys)

    def step(
        self, x: Float[Array, "*batch dim"], *, key: Key[Array, "*#batch"] | None
    ) -> Float[Array, "*batch dim"]:
        """One step of time, with the key of this step: `fold_in(row_key, t)` as a call would."""
        check_features(self, x, None)
        keys = row_keys(key, x.shape[:-1])
        return x if keys is None else self._drop(x, keys)

    def _drop(
        self, x: Float[Array, "*axes dim"], keys: Key[Array, "*axes"]
    ) -> Float[Array, "*axes dim"]:
        def uniform(key: Key[Array, ""]) -> Float[Array, "dim"]:
            return jax.random.uniform(key, (x.shape[-1],), jnp.float32)

        kept = jnp.vectorize(uniform, signature="()->(dim)")(keys) >= self.rate
        return jnp.where(kept, x / (1 - self.rate).astype(x.dtype), 0)
