"""Parameters that are born where they live."""

from collections.abc import Callable

import equinox as eqx
import jax
from jax.sharding import Mesh
from jaxtyping import Array, Key

from rnnscale.sharding._rules import shardings


def sharded_init[T](init: Callable[[Key[Array, ""]], T], key: Key[Array, ""], mesh: Mesh) -> T:
    """Builds a model, or a whole training state, directly in its layout over the mesh.

    Each device computes its own part only, so what is built may be larger than any one device.
    The numbers are those of `init(key)` on one device.

    **Arguments:**

    - `init`: builds the tree from a key. It is traced, not run.
    - `key`: the random key.
    - `mesh`: from `make_mesh`.

    **Returns:** the tree, laid out by `shardings`.

    **Raises:** `ValueError`, naming the parameter, where a size does not divide its mesh axis.
    """
    abstract = eqx.filter_eval_shape(init, key)
    arrays, static = eqx.partition(abstract, lambda x: isinstance(x, jax.ShapeDtypeStruct))
    build = jax.jit(
        lambda key: eqx.filter(init(key), eqx.is_array), out_shardings=shardings(arrays, mesh)
    )
    return eqx.combine(build(key), static)
