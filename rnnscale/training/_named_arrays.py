"""The arrays of a checkpoint, under the names that they have in the state: what is stored for each,
and how a state is put together from them."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jaxtyping import PyTree

_NAMED_AT_MOST = 4


def named(tree: PyTree) -> dict[str, Any]:
    """The leaves under their paths: `model.blocks.layer.b_re`, `opt_state.0.mu.blocks...`."""
    leaves = jax.tree.leaves_with_path(tree)
    found = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
    if len(found) != len(leaves):
        raise ValueError("two leaves of the state have the same path; no key may contain a '.'")
    return found


def check_arrays(arrays: Mapping[str, Any]) -> None:
    """**Raises:** `TypeError`, naming the leaf, if one is no array of JAX."""
    for name, x in arrays.items():
        if not isinstance(x, jax.Array):
            raise TypeError(
                f"the state must hold arrays of JAX, and {name} is {type(x).__name__}: make it one "
                "with jax.numpy.asarray, or leave it out"
            )


def described(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Shapes and dtypes, as JSON holds them."""
    return {name: [list(x.shape), str(x.dtype)] for name, x in arrays.items()}


def storable(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """What Orbax is given. It refuses arrays without elements, which their shape says all about,
    and typed keys."""
    return {name: jax.random.key_data(x) if _is_key(x) else x for name, x in _with_elements(arrays)}


def read_meta(folder: Path) -> dict[str, Any]:
    """What a checkpoint holds besides its arrays: their description, and the caller's `meta`."""
    return json.loads((folder / "meta" / "metadata").read_text())


class Request:
    """The arrays to restore, and where to put them.

    **Arguments:**

    - `like`: a PyTree of arrays or `jax.ShapeDtypeStruct`s.
    - `shardings`: a PyTree like it; None for the first device.
    """

    def __init__(self, like: PyTree, shardings: PyTree[jax.sharding.Sharding] | None):
        self._structure = jax.tree.structure(like)
        self._wanted = named(like)
        if shardings is None:
            default = jax.sharding.SingleDeviceSharding(jax.devices()[0])
            self._placed = dict.fromkeys(self._wanted, default)
        else:
            self._placed = named(shardings)

    def difference(self, stored: Mapping[str, Any]) -> str:
        """Which arrays of a description differ from the wanted ones, in words, or ''."""
        wanted = self._wanted
        changed = []
        for name, x in wanted.items():
            if name in stored:
                shape, dtype = stored[name]
                if tuple(shape) != tuple(x.shape) or dtype != str(x.dtype):
                    there, here = f"{dtype}{shape}", f"{x.dtype}{list(x.shape)}"
                    changed.append(f"{name} is {there} there and {here} here")
        parts = [
            f"{title}: {', '.join(names[:_NAMED_AT_MOST])}"
            + (f" and {len(names) - _NAMED_AT_MOST} more" if len(names) > _NAMED_AT_MOST else "")
            for title, names in (
                ("other shape or type", changed),
                ("only in the model", [name for name in wanted if name not in stored]),
                ("only in the checkpoint", [name for name in stored if name not in wanted]),
            )
            if names
        ]
        return "; ".join(parts)

    def orbax(self, **options: Any) -> ocp.args.PyTreeRestore:
        """The arguments for Orbax."""
        target = {}
        for name, x in _with_elements(self._wanted):
            x = jax.eval_shape(jax.random.key_data, x) if _is_key(x) else x
            target[name] = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._placed[name])
        restore_args = ocp.checkpoint_utils.construct_restore_args(target)
        return ocp.args.PyTreeRestore(target, restore_args=restore_args, **options)

    def tree(self, arrays: Mapping[str, jax.Array]) -> PyTree[jax.Array]:
        """The PyTree, from what Orbax returned."""
        leaves = []
        for name, x in self._wanted.items():
            if name not in arrays:  # no elements
                leaves.append(jnp.zeros(x.shape, x.dtype, device=self._placed[name]))
            else:
                leaves.append(_wrap_key(arrays[name], x) if _is_key(x) else arrays[name])
        return jax.tree.unflatten(self._structure, leaves)


def _with_elements(arrays: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    return ((name, x) for name, x in arrays.items() if x.size)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _wrap_key(data: jax.Array, like: Any) -> jax.Array:
    # `like` may be abstract, and jax gives the implementation of arrays and tracers only.
    impls = []
    jax.eval_shape(lambda key: impls.append(jax.random.key_impl(key)), like)
    return jax.random.wrap_key_data(data, impl=impls[0])
