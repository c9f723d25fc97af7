"""Named arrays of another library, checked by name and shape."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray
from numpy.typing import NDArray

from rnnscale._errors import UserError

type Arrays = dict[str, NDArray[np.float32]]


def read_arrays(
    owner: str, tree: Mapping[str, Any], shapes: Mapping[str, str], sizes: dict[str, int]
) -> Arrays:
    """The arrays of `tree`, which are those of `shapes` and no others.

    **Arguments:**

    - `owner`: what they are the weights of, for messages.
    - `tree`: arrays by name.
    - `shapes`: for each name its axes, such as `"4*units inputs"` or `"states 2"`. A size has the
        same value wherever it stands.
    - `sizes`: those that are known. The others are added, from the first axis that has them.
    """
    missing = [name for name in shapes if name not in tree]
    unknown = [name for name in tree if name not in shapes]
    if missing or unknown:
        raise UserError(
            f"{owner} is {', '.join(shapes)}; "
            + " and ".join(
                f"{what} {', '.join(map(str, names))}"
                for what, names in (("there is no", missing), ("there is besides", unknown))
                if names
            )
        )
    return {name: _checked(owner, name, tree[name], axes, sizes) for name, axes in shapes.items()}


def check_mapping(owner: str, tree: Any) -> Mapping[str, Any]:
    """The tree. Raises unless it has arrays or trees by name."""
    if not isinstance(tree, Mapping):
        raise UserError(
            f"{owner} must be a mapping from names to arrays, such as a state_dict or params; got "
            f"{type(tree).__name__}"
        )
    return tree


def filled(make: Callable[[PRNGKeyArray], Any], **arrays: Any) -> Any:
    """The module that `make(key)` makes, with these arrays for its own. Nothing is drawn."""
    module = eqx.filter_eval_shape(make, jax.random.key(0))
    return eqx.tree_at(
        lambda module: [getattr(module, name) for name in arrays],
        module,
        [jnp.asarray(array, jnp.float32) for array in arrays.values()],
    )


def _checked(
    owner: str, name: str, value: Any, axes: str, sizes: dict[str, int]
) -> NDArray[np.float32]:
    array = _as_array(owner, name, value)
    wanted = axes.split()
    # Not those that this array, which may be the wrong one, adds.
    known = [f"{size}={sizes[size]}" for size in sizes if size in axes]
    fits = array.ndim == len(wanted)
    if fits:
        for axis, length in zip(wanted, array.shape, strict=True):
            factor, _, size = axis.rpartition("*")
            if not size.isdigit():
                sizes.setdefault(size, length // int(factor or 1))
        fits = array.shape == tuple(_length(axis, sizes) for axis in wanted)
    if not fits:
        raise UserError(
            f"{owner}: {name} must have the shape ({', '.join(wanted)})"
            + (f" with {', '.join(known)}" if known else "")
            + f"; got {array.shape}"
        )
    return array


def _length(axis: str, sizes: Mapping[str, int]) -> int:
    factor, _, size = axis.rpartition("*")
    return int(factor or 1) * (int(size) if size.isdigit() else sizes[size])


def _as_array(owner: str, name: str, value: Any) -> NDArray[np.float32]:
    # A tensor of torch. NumPy takes none that has a gradient, is on a device or is bfloat16.
    if callable(getattr(value, "detach", None)):
        value = value.detach().cpu()
        # Integers, as of a quantised model, are refused below and not made into numbers.
        value = value.float() if value.is_floating_point() else value
    if isinstance(value, Mapping):
        raise UserError(f"{owner}: {name} must be an array; got a mapping of {', '.join(value)}")
    array = np.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise UserError(f"{owner}: {name} must hold real numbers; got {array.dtype}")
    return array.astype(np.float32)
