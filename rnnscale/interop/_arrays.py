"""The named arrays of another library, checked by name and shape: what all importers share."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray
from numpy.typing import NDArray

from rnnscale._errors import UserError


@runtime_checkable
class _TorchTensor(Protocol):
    """What the importers use of a tensor of torch, which need not be installed."""

    def detach(self) -> "_TorchTensor": ...
    def cpu(self) -> "_TorchTensor": ...
    def float(self) -> "_TorchTensor": ...
    def is_floating_point(self) -> bool: ...


type Arrays = dict[str, NDArray[np.float32]]


def read_arrays(owner: str, tree: Any, shapes: Mapping[str, str], sizes: dict[str, int]) -> Arrays:
    """The arrays of `tree` as NumPy arrays of float32.

    **Arguments:**

    - `owner`: what the weights belong to, for error messages.
    - `tree`: arrays by name.
    - `shapes`: for each name the axes, such as `"4*units inputs"` or `"states 2"`. A size has the
        same value wherever it occurs.
    - `sizes`: the sizes known so far. Every other size is added, from the first axis that has it.

    **Raises:** `UserError` if `tree` is not a mapping or has other names, or if an array has
    another shape or does not hold real numbers.
    """
    tree = check_mapping(owner, tree)
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
    return {name: read_array(owner, name, tree[name], axes, sizes) for name, axes in shapes.items()}


def check_mapping(owner: str, tree: Any) -> Mapping[str, Any]:
    """The tree itself. Raises `UserError` unless it is a mapping."""
    if not isinstance(tree, Mapping):
        raise UserError(
            f"{owner} must be a mapping from names to arrays, such as a state_dict or params; got "
            f"{type(tree).__name__}"
        )
    return tree


def make_with(make: Callable[[PRNGKeyArray], Any], **arrays: Any) -> Any:
    """The module that `make(key)` returns, with `arrays` as its parameters. No random numbers are
    drawn."""
    module = eqx.filter_eval_shape(make, jax.random.key(0))
    return with_parts(module, {name: jnp.asarray(x, jnp.float32) for name, x in arrays.items()})


def with_parts(module: Any, parts: Mapping[str, Any]) -> Any:
    """The module with these fields replaced."""
    return eqx.tree_at(
        lambda module: [getattr(module, name) for name in parts], module, list(parts.values())
    )


def read_array(
    owner: str, name: str, value: Any, axes: str, sizes: dict[str, int]
) -> NDArray[np.float32]:
    """One array as `read_arrays` returns it."""
    array = _as_array(owner, name, value)
    wanted = axes.split()
    # Without the sizes that this array adds, because it may be the wrong one.
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
    if isinstance(value, _TorchTensor):
        # NumPy accepts no tensor that has a gradient, is on a device or is bfloat16.
        value = value.detach().cpu()
        # Integers, those of a quantised model, stay what they are and are refused below.
        value = value.float() if value.is_floating_point() else value
    if isinstance(value, Mapping):
        raise UserError(f"{owner}: {name} must be an array; got a mapping of {', '.join(value)}")
    array = np.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise UserError(f"{owner}: {name} must hold real numbers; got {array.dtype}")
    return array.astype(np.float32)
