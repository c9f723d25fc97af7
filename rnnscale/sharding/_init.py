"""Initialisation of parameters directly in their layout over a mesh."""

from collections.abc import Callable

import equinox as eqx
import jax
from jax.sharding import Mesh
from jaxtyping import Array, Key

from rnnscale._checks import check_arguments
from rnnscale.sharding._rules import shardings


@check_arguments
def sharded_init[T](init: Callable[[Key[Array, ""]], T], key: Key[Array, ""], mesh: Mesh) -> T:
    """Build a model, or a training state, directly in its layout over the mesh.

    Each device computes only its own part, so the tree may be larger than the memory of a device.
    The values are those of `init(key)` on one device.

    **Arguments:**

    - `init`: a function from a key to the tree. It is traced and compiled.
    - `key`: the random key.
    - `mesh`: from `make_mesh`.

    **Returns:** the tree, laid out by `shardings`.

    **Raises:** `ValueError`, naming the parameter, if a mesh axis does not divide its size.
    """
    abstract = eqx.filter_eval_shape(init, key)
    arrays, static = eqx.partition(abstract, lambda x: isinstance(x, jax.ShapeDtypeStruct))
    build = jax.jit(
        lambda key: eqx.filter(init(key), eqx.is_array), out_shardings=shardings(arrays, mesh)
    )
    return eqx.combine(build(key), static)
