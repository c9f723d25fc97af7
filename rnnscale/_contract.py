"""Checks of what users write, where it enters: whether the methods of an object fit its class.

The checks run at construction and while a program is traced, so they cost nothing at run time.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, use_abstract_mesh
from jaxtyping import PyTree

from rnnscale._base import SequenceLayer, has_step
from rnnscale._checks import LAYER_PAGE

_ROWS, _STEPS = 2, 8  # of the sequences that a layer is traced with


def check_layer(layer: SequenceLayer) -> None:
    """Raises unless the call and the step of a layer return what they have to."""
    name = type(layer).__name__
    check_sizes(name, LAYER_PAGE, idim=layer.idim, odim=layer.odim)
    odim = layer.odim

    def call(layer: Any, xs: jax.Array) -> None:
        with blame(f"{name}.init_state((2,))", LAYER_PAGE):
            before = layer.init_state((_ROWS,), xs.dtype)
        written = f"{name}.__call__(xs, state, reset=None, lengths=None, key=None)"
        with blame(written, LAYER_PAGE):
            result = layer(xs, before, reset=None, lengths=None, key=None)
        check_result(written, result, before, (_ROWS, _STEPS, odim), LAYER_PAGE)
        if has_step(layer):
            written = f"{name}.step(x, state, key=None)"
            with blame(written, LAYER_PAGE):
                result = layer.step(xs[:, 0], before, key=None)
            check_result(written, result, before, (_ROWS, odim), LAYER_PAGE)

    trace(call, layer, jax.ShapeDtypeStruct((_ROWS, _STEPS, layer.idim), jnp.float32))


def check_sizes(name: str, page: str, **sizes: Any) -> None:
    """Raises `TypeError` unless the sizes that an object declares are Python integers."""
    for field, size in sizes.items():
        if not isinstance(size, int | np.integer) or isinstance(size, bool):
            raise TypeError(
                f"{name}.{field} must be an int, declared as `{field}: int = "
                f"eqx.field(static=True)`; got {type(size).__name__}. See {page}."
            )


def check_result(call: str, result: Any, before: PyTree, shape: tuple[int, ...], page: str) -> None:
    """Raises unless `result` is `(state, y)`, with a state like `before` and `y` of that shape."""
    if not isinstance(result, tuple) or len(result) != 2:
        raise TypeError(
            f"{call} must return a pair (state, y), like jax.lax.scan; got {shapes(result)}. "
            f"See {page}."
        )
    after, y = result
    check_state(call, after, before, page)
    check_output(call, y, shape, page)


def check_output(call: str, y: Any, shape: tuple[int, ...], page: str) -> None:
    """Raises `ValueError` unless `y` is an array of that shape."""
    if not isinstance(y, jax.Array) or y.shape != shape:
        raise ValueError(
            f"{call} must return an output of shape {shape}; got {shapes(y)}. See {page}."
        )


def check_state(call: str, after: Any, before: PyTree, page: str) -> None:
    """Raises `ValueError` unless two states have the same structure, shapes and dtypes."""
    if shapes(after) != shapes(before):
        raise ValueError(
            f"{call} must return a state like init_state, {shapes(before)}; got {shapes(after)}. "
            f"See {page}."
        )


def shapes(tree: PyTree) -> str:
    """The tree in words, with `float32[2,8]` for an array."""

    def describe(leaf: Any) -> Any:
        if not isinstance(leaf, _ARRAYS):
            return type(leaf).__name__
        return f"{leaf.dtype}{list(leaf.shape)}".replace(" ", "")

    return str(jax.tree.map(describe, tree)).replace("'", "")


@contextmanager
def blame(call: str, page: str, hint: str = "") -> Iterator[None]:
    """Adds a note to an error that a user's code raises: what was called, and where to read on."""
    try:
        yield
    except Exception as error:
        error.add_note(f"It was raised by {call}, which rnnscale called. {hint}See {page}.")
        raise


def trace(fn: Callable[..., Any], *arguments: Any) -> Any:
    """`jax.eval_shape`, for modules too, apart from any mesh and from any trace around it."""
    arrays, static = eqx.partition(arguments, lambda x: isinstance(x, _ARRAYS))
    structs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arrays)
    with use_abstract_mesh(AbstractMesh((), ())):
        return jax.eval_shape(lambda arrays: fn(*eqx.combine(arrays, static)), structs)


_ARRAYS = (jax.Array, jax.ShapeDtypeStruct)
