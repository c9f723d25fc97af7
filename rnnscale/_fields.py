"""What a field of a module says about its arrays, read by one walk over the fields.

The shape annotation names the logical axes: a field `b_re: Float[Array, "state idim"]` has the axes
`state` and `idim`, which `rnnscale.sharding` maps to mesh axes. The field's metadata, written by
`parameter`, says whether the array is trained and in which optimiser group it is.
"""

import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import (
    Any,
    Literal,
    TypeAliasType,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import equinox as eqx
import jax
from jax.tree_util import DictKey, GetAttrKey, SequenceKey, keystr
from jaxtyping import AbstractArray, PyTree

type Group = Literal["weight", "bias", "recurrence"]
"""Optimiser groups. Of these only `weight` has weight decay, and `recurrence` (eigenvalues, time
scales, input maps of a state-space layer) trains at a learning rate of its own."""

_GROUP, _TRAINABLE = "rnnscale.group", "rnnscale.trainable"


def parameter(*, group: Group = "weight", trainable: bool = True) -> Any:
    """A field of a module that holds arrays.

    **Arguments:**

    - `group`: the optimiser group; see `Group`.
    - `trainable`: false for values that stay as they are, or that one sweeps without compiling
        anew. Everything below such a field is not trained either.
    """
    return eqx.field(metadata={_GROUP: group, _TRAINABLE: trainable})


@dataclass(frozen=True)
class Parameter:
    """An array of a module and what its field says about it.

    - `path`: where it is, such as `"stack.blocks.layer.b_re"`.
    - `value`: the array, or its `jax.ShapeDtypeStruct`.
    - `axes`: a logical name, or `None`, for each of its axes. Leading axes beyond those of the
        annotation are stacks of equal modules and have no name; nor have those that `...` stands
        for.
    """

    path: str
    value: Any
    axes: tuple[str | None, ...]
    group: Group
    trainable: bool


def parameters(tree: PyTree) -> list[Parameter]:
    """All arrays of a module, or of any tree with modules in it, in the order of its leaves.

    Arrays outside every module (a step counter of an optimiser) have no named axes and are not
    trainable.

    **Raises:** `TypeError`, naming class and field, for an array whose field has no shape
    annotation, for an annotation that cannot be resolved or does not fit, and for a leaf that is
    no array.
    """
    return list(_walk(tree, _Field(PyTree, "the tree"), ()))


def map_parameters(fn: Callable[[Parameter], Any], tree: PyTree) -> PyTree:
    """The tree with `fn` of its `Parameter` in place of every array."""
    leaves = [fn(each) for each in parameters(tree)]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def trainable(model: PyTree) -> PyTree[bool]:
    """True for every array that training changes: a filter for `eqx.partition` and `eqx.filter`."""
    return map_parameters(lambda each: each.trainable, model)


def groups(model: PyTree) -> PyTree[str]:
    """The optimiser group of every array: labels for `optax.partition`."""
    return map_parameters(lambda each: each.group, model)


@dataclass(frozen=True)
class _Field:
    """What is known of a value on the way down: its annotation and the field it came through."""

    annotation: Any
    name: str
    group: Group = "weight"
    trainable: bool = False
    frozen: bool = False  # by a field above it


def _walk(value: Any, field: _Field, path: tuple[Any, ...]) -> Iterator[Parameter]:
    children, _ = jax.tree_util.tree_flatten_with_path(value, is_leaf=lambda x: x is not value)
    for key, child in children:
        if child is not value:
            yield from _walk(child, _child_field(value, field, *key), (*path, *key))
        elif hasattr(value, "shape") and hasattr(value, "dtype"):
            name = keystr(path, simple=True, separator=".")
            trained = field.trainable and not field.frozen
            yield Parameter(name, value, _axes(value, field), field.group, trained)
        else:
            raise TypeError(
                f"{field.name} holds {type(value).__name__} {value!r}, which is no array. Mark the "
                "field static with eqx.field(static=True), or make the value an array."
            )


def _child_field(value: Any, field: _Field, key: Any) -> _Field:
    if isinstance(value, eqx.Module) and isinstance(key, GetAttrKey):
        own = _module_fields(type(value))[key.name]
        return replace(own, frozen=field.frozen or not own.trainable)
    return replace(field, annotation=_element_annotation(value, field, key))


@cache
def _module_fields(cls: type[eqx.Module]) -> Mapping[str, _Field]:
    try:
        hints = get_type_hints(cls, include_extras=True)
    except NameError as error:
        raise TypeError(
            f"{cls.__module__}.{cls.__qualname__} has a field annotation that cannot be resolved: "
            f"{error}. Axes are read from annotations, so they may not use names that exist for "
            "type checkers only."
        ) from error
    return {
        each.name: _Field(
            hints[each.name],
            f"{cls.__qualname__}.{each.name}",
            each.metadata.get(_GROUP, "weight"),
            each.metadata.get(_TRAINABLE, True),
        )
        for each in fields(cls)
    }


def _element_annotation(value: Any, field: _Field, key: Any) -> Any:
    """The annotation of a container's element; `None` where the container has none."""
    for annotation in _alternatives(field.annotation):
        origin, arguments = get_origin(annotation), get_args(annotation)
        if _is_pytree(annotation):
            return PyTree
        if origin is tuple and isinstance(value, tuple) and isinstance(key, SequenceKey):
            return arguments[0] if arguments[-1] is Ellipsis else arguments[key.idx]
        if origin is list and isinstance(value, list):
            return arguments[0]
        if isinstance(value, dict) and isinstance(key, DictKey) and len(arguments) == 2:
            return arguments[1]
        if isinstance(annotation, type) and isinstance(value, annotation):
            if isinstance(key, GetAttrKey):
                return get_type_hints(annotation, include_extras=True).get(key.name)
    return None


def _axes(value: Any, field: _Field) -> tuple[str | None, ...]:
    candidates = list(_alternatives(field.annotation))
    if any(_is_pytree(each) for each in candidates):
        return (None,) * value.ndim
    shapes = [_names(each.dim_str.split()) for each in candidates if _is_array_type(each)]
    if not shapes:
        raise TypeError(
            f"{field.name} holds an array of shape {value.shape}, but its annotation "
            f'{field.annotation!r} names no axes. Write for example Float[Array, "state idim"].'
        )
    fitting = [each for each in shapes if len(each[0]) + len(each[1]) <= value.ndim]
    if not fitting:
        raise TypeError(
            f"{field.name} holds an array of shape {value.shape}, which has fewer axes than its "
            f"annotation {field.annotation!r}"
        )
    leading, trailing = max(fitting, key=lambda each: len(each[0]) + len(each[1]))
    return leading + (None,) * (value.ndim - len(leading) - len(trailing)) + trailing


type _Names = tuple[str | None, ...]


def _names(words: list[str]) -> tuple[_Names, _Names]:
    """Logical names of the axes before the first variadic one, and of those behind the last."""
    variadic = [i for i, word in enumerate(words) if word == "..." or word.startswith("*")]
    names = tuple(word if word.isidentifier() and word != "_" else None for word in words)
    return (names[: variadic[0]], names[variadic[-1] + 1 :]) if variadic else ((), names)


def _alternatives(annotation: Any) -> Iterator[Any]:
    """The members of unions and aliases, each once, leaves first to last."""
    if isinstance(annotation, TypeAliasType):
        yield from _alternatives(annotation.__value__)
    elif isinstance(get_origin(annotation), TypeAliasType):
        yield from _alternatives(get_origin(annotation).__value__)
    elif get_origin(annotation) in (Union, types.UnionType):
        for each in get_args(annotation):
            yield from _alternatives(each)
    elif isinstance(annotation, TypeVar):
        yield from _alternatives(annotation.__bound__)
    else:
        yield annotation


def _is_array_type(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, AbstractArray)


def _is_pytree(annotation: Any) -> bool:
    return PyTree in getattr(annotation, "__mro__", ())
