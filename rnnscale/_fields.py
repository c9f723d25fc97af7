"""One walk over the fields of a module, which finds the axes, group and trainability of each array.

The shape annotation names the logical axes: a field `b_re: Float[Array, "state idim"]` has the axes
`state` and `idim`, which `rnnscale.sharding` maps to mesh axes. The field's metadata, written by
`parameter`, holds its optimiser group and whether it is trained.
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
import numpy as np
from jax.tree_util import DictKey, GetAttrKey, SequenceKey, keystr
from jaxtyping import AbstractArray, PyTree

type Group = Literal["weight", "bias", "recurrence"]
"""Optimiser groups. Weight decay applies to `weight` only; `recurrence` (eigenvalues, time scales
and input maps of a state-space layer) has its own learning rate."""

_ARRAYS = (jax.Array, jax.ShapeDtypeStruct, np.ndarray, np.generic)
_GROUP, _TRAINABLE = "rnnscale.group", "rnnscale.trainable"


def parameter(*, group: Group = "weight", trainable: bool = True) -> Any:
    """A field of an `equinox.Module` that holds one or more arrays.

    **Arguments:**

    - `group`: the optimiser group, `"weight"`, `"bias"` or `"recurrence"`.
    - `trainable`: false for values that training does not change. It holds for every array below
        the field, and is true by default.
    """
    return eqx.field(metadata={_GROUP: group, _TRAINABLE: trainable})


@dataclass(frozen=True)
class Parameter:
    """An array of a module, and the properties that its field declares.

    - `path`: its position in the tree, such as `"stack.blocks.layer.b_re"`.
    - `value`: the array, or its `jax.ShapeDtypeStruct`.
    - `axes`: the logical name of each of its axes, or `None`. Leading axes that the annotation does
        not mention (stacks of equal modules) have no name, nor do the axes that `...` matches.
    - `group`, `trainable`: see `parameter`.
    """

    path: str
    value: Any
    axes: tuple[str | None, ...]
    group: Group
    trainable: bool


def parameters(tree: PyTree) -> list[Parameter]:
    """All arrays of a module, or of any tree that contains modules, in the order of its leaves.

    Arrays outside every module, such as the step counter of an optimiser, have no named axes and
    are not trainable.

    **Raises:** `TypeError`, naming class and field, if the field of an array has no shape
    annotation, if an annotation can't be resolved or has more axes than the array, or if a leaf is
    not an array.
    """
    return list(_walk(tree, _Field(PyTree, "the tree"), ()))


def map_parameters(fn: Callable[[Parameter], Any], tree: PyTree) -> PyTree:
    """Replace every array of the tree by `fn(parameter)`, where `parameter` is its `Parameter`."""
    leaves = [fn(each) for each in parameters(tree)]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def trainable(model: PyTree) -> PyTree[bool]:
    """True for every array that is trained: a filter for `eqx.partition` and `eqx.filter`."""
    return map_parameters(lambda each: each.trainable, model)


def groups(model: PyTree) -> PyTree[str]:
    """The optimiser group of every array, as labels for `optax.partition`."""
    return map_parameters(lambda each: each.group, model)


@dataclass(frozen=True)
class _Field:
    """The annotation of a value, and the properties of the field above it."""

    annotation: Any
    name: str
    group: Group = "weight"
    trainable: bool = False
    frozen: bool = False  # a field further up is not trainable


def _walk(value: Any, field: _Field, path: tuple[Any, ...]) -> Iterator[Parameter]:
    children, _ = jax.tree_util.tree_flatten_with_path(value, is_leaf=lambda x: x is not value)
    for key, child in children:
        if child is not value:
            yield from _walk(child, _child_field(value, field, *key), (*path, *key))
        elif isinstance(value, _ARRAYS):
            name = keystr(path, simple=True, separator=".")
            trained = field.trainable and not field.frozen
            yield Parameter(name, value, _axes(value, field), field.group, trained)
        else:
            raise TypeError(
                f"{field.name} holds {type(value).__name__} {value!r}, which is not an array. Mark "
                "the field static with eqx.field(static=True), or make the value an array."
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
            f"{error}. Axes are read from annotations, so they may not use names that are "
            "imported for type checkers only."
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
    """The annotation of a container's element, or `None` if the container does not declare one."""
    for annotation in _alternatives(field.annotation):
        origin, arguments = get_origin(annotation), get_args(annotation)
        if _is(annotation, PyTree):
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
    if any(_is(each, PyTree) for each in candidates):
        return (None,) * value.ndim
    shapes = [_names(each.dim_str.split()) for each in candidates if _is(each, AbstractArray)]
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


def _names(words: list[str]) -> tuple[tuple[str | None, ...], tuple[str | None, ...]]:
    """Names of the axes before the first variadic axis, and of those after the last one."""
    variadic = [i for i, word in enumerate(words) if word == "..." or word.startswith("*")]
    names = tuple(word if word.isidentifier() and word != "_" else None for word in words)
    return (names[: variadic[0]], names[variadic[-1] + 1 :]) if variadic else ((), names)


def _alternatives(annotation: Any) -> Iterator[Any]:
    """The members of unions, aliases and type variables, in order."""
    origin = get_origin(annotation) or annotation
    if isinstance(origin, TypeAliasType):
        yield from _alternatives(origin.__value__)
    elif origin in (Union, types.UnionType):
        for each in get_args(annotation):
            yield from _alternatives(each)
    elif isinstance(annotation, TypeVar):
        yield from _alternatives(annotation.__bound__)
    else:
        yield annotation


def _is(annotation: Any, kind: type) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, kind)
