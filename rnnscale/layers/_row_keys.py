"""Random keys of the rows of a batch, which do not depend on the device that computes a row."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Integer, Key

from rnnscale._base import check_keys
from rnnscale._checks import BatchShape, check_arguments


@check_arguments
def row_keys(
    key: Key[Array, "*#batch"] | None, batch_shape: BatchShape
) -> Key[Array, "*batch"] | None:
    """One key for each row.

    **Arguments:**

    - `key`: row keys of shape `batch_shape`; or one key, in which case the row with the flattened
        index `r` gets `jax.random.fold_in(key, r)`; or `None`.
    - `batch_shape`: the shape of the batch.

    **Returns:** keys of shape `batch_shape`, or `None` if `key` is `None`.

    **Raises:** `TypeError` if `key` is no key, `ValueError` if it has any other shape.
    """
    check_keys(key, batch_shape)
    if key is None:
        return None
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    keys = key if typed else jax.random.wrap_key_data(key)
    if keys.shape == batch_shape:
        return keys
    rows = jnp.arange(math.prod(batch_shape), dtype=jnp.uint32).reshape(batch_shape)
    return fold_keys(keys, rows)


def fold_keys(
    keys: Key[Array, "*#batch"], data: Integer[Array, "*#batch"] | int
) -> Key[Array, "*batch"]:
    """`jax.random.fold_in` for keys and numbers whose shapes broadcast."""
    return jnp.vectorize(jax.random.fold_in, signature="(),()->()")(keys, data)
