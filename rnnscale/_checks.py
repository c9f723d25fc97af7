"""The arguments of public functions, checked by their annotations before anything uses them.

An annotation says what its argument may be: `idim: Size`, `leak: Fraction`, `cell: Cell`. Anything
else is refused by `check_arguments`, with the same words everywhere, so that no function repeats in
code what its signature says.
"""

import collections.abc
import math
import operator
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, wraps
from inspect import Parameter, signature
from numbers import Real
from typing import (
    Annotated,
    Any,
    Literal,
    TypeAliasType,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

import jaxtyping
import numpy as np
from jaxtyping import AbstractArray, Int, Integer, Key
from numpy.typing import ArrayLike

# jax is imported at the first check, and so are the types of jaxtyping that are written with a dot:
# sources of data are checked too, and the command line needs their names long before it needs jax.


@dataclass(frozen=True)
class Must:
    """A condition in an annotation: `Annotated[int, Must("be at least 1", lambda n: n >= 1)]`."""

    expected: str
    holds: Callable[[Any], bool]


type Size = Annotated[int, Must("be at least 1", lambda n: n >= 1)]
type Width = Annotated[int, Must("be at least 2", lambda n: n >= 2)]
type Count = Annotated[int, Must("be at least 0", lambda n: n >= 0)]
type Positive = Annotated[float, Must("be positive and finite", lambda x: 0 < x < math.inf)]
type NonNegative = Annotated[float, Must("be at least 0 and finite", lambda x: 0 <= x < math.inf)]
type Finite = Annotated[float, Must("be finite", math.isfinite)]
type Fraction = Annotated[float, Must("be in (0, 1]", lambda x: 0 < x <= 1)]
type Rate = Annotated[float, Must("be in [0, 1)", lambda x: 0 <= x < 1)]
type Share = Annotated[float, Must("be in [0, 1]", lambda x: 0 <= x <= 1)]
type Range[T] = Annotated[
    tuple[T, T], Must("be (low, high) with low <= high", lambda each: each[0] <= each[1])
]
type NonEmpty[T] = Annotated[
    Sequence[T], Must("have at least one element", lambda each: len(each) > 0)
]
type BatchShape = tuple[Count, ...]
type FloatDType = Annotated[
    jaxtyping.DTypeLike, Must("be a floating dtype", lambda each: _is_floating(each))
]


def check_arguments[F: Callable](function: F) -> F:
    """Decorates a function, so that an argument that its annotation does not allow is an error.

    Integers of NumPy become those of Python; everything else is handed on as it is. Nothing of it
    is left in a compiled program.

    **Raises:** `TypeError` if an argument is another kind of thing; `ValueError` if it is the right
    kind, and out of range.
    """
    owner = function.__qualname__.removesuffix(".__init__").removesuffix(".__call__")
    parameters = signature(function).parameters.values()
    names = [each.name for each in parameters if each.kind is not Parameter.KEYWORD_ONLY]

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        hints = _hints(function)

        def check(name: str, value: Any) -> Any:
            # `self`, and names that the function does not have.
            if name == "self" or name not in hints:
                return value
            return _checked(name, hints[name], value)

        # Arguments too few or too many are left to the call, whose errors name them.
        try:
            args = (*map(check, names, args), *args[len(names) :])
            kwargs = {name: check(name, value) for name, value in kwargs.items()}
        except _Refused as refused:
            raise refused.error(owner) from None
        return function(*args, **kwargs)

    return cast(F, checked)


def check_value(owner: str, name: str, annotation: Any, value: Any) -> Any:
    """The value of an option that comes from a file, checked like an argument.

    **Raises:** as a function with `check_arguments` does; `owner` is named in its place.
    """
    try:
        return _checked(name, annotation, value)
    except _Refused as refused:
        raise refused.error(owner) from None


@cache
def _hints(function: Callable) -> Mapping[str, Any]:
    return get_type_hints(function, include_extras=True)


CELL_PAGE = '"A cell of your own" in rnnscale/cells/README.md'
LAYER_PAGE = '"A layer of your own" in rnnscale/ssm/README.md'

# How to get an instance of a class.
_ADVICE = {
    "jax.Mesh": "rnnscale.sharding.make_mesh(data=2) makes one.",
    "collections.abc.Iterator": "iter(...) makes one from a list.",
    "rnnscale.cells.Cell": f"See {CELL_PAGE}.",
    "rnnscale.SequenceLayer": f"See {LAYER_PAGE}.",
    "rnnscale.training.HasStep": "It counts its steps in `step`, as a TrainState does.",
    "optax.GradientTransformation": "Make one with optax, as optax.adam(1e-3).",
}


class _Refused(Exception):
    """A value that an annotation does not allow. `name` is that of an argument or its element."""

    def __init__(self, kind: type[Exception], name: str, expected: str, value: Any):
        self.kind, self.name, self.expected, self.value = kind, name, expected, value

    def error(self, owner: str) -> Exception:
        message = f"{owner}: {self.name} must {self.expected}; got {shown(self.value)}."
        advice = [text for name, text in _ADVICE.items() if name in self.expected]
        return self.kind(" ".join([message, *advice]))


def _checked(name: str, annotation: Any, value: Any) -> Any:
    """The value, if the annotation allows it. Raises `_Refused` otherwise."""
    origin, arguments = get_origin(annotation) or annotation, get_args(annotation)
    if annotation is Any or _is(annotation, jaxtyping.PyTree):
        return value
    if isinstance(origin, TypeAliasType):
        meaning = origin.__value__[arguments] if arguments else origin.__value__
        return _checked(name, meaning, value)
    if isinstance(annotation, TypeVar):
        bound = annotation.__bound__
        return value if bound is None else _checked(name, bound, value)
    if origin is Annotated:
        return _meeting(name, annotation.__origin__, annotation.__metadata__, value)
    if annotation in _kinds():
        return _of_kind(name, *_kinds()[annotation], value)
    if origin in (Union, types.UnionType):
        return _one_of(name, arguments, value)
    if origin is Literal:
        expected = f"be one of {', '.join(arguments)}"
        choice = _of_kind(name, expected, lambda each: isinstance(each, str), value)
        return _meeting(name, Any, [Must(expected, lambda each: each in arguments)], choice)
    if origin in (collections.abc.Sequence, list, tuple):
        return _with_elements(name, origin, arguments, value)
    if _is(annotation, AbstractArray):
        return _array(name, annotation, value)
    if origin is collections.abc.Callable:
        return _of_kind(name, "be a function", callable, value)
    if isinstance(origin, type):
        # Names of rnnscale are public two levels down, and others without their private modules.
        package = origin.__module__.partition("._")[0].split(".")[:2]
        article = "an" if package[0][0] in "aeiou" else "a"
        expected = f"be {article} {'.'.join([*package, origin.__qualname__])}"
        return _of_kind(name, expected, lambda each: isinstance(each, origin), value)
    raise TypeError(f"check_arguments cannot read the annotation {annotation!r} of {name}")


def _is(annotation: Any, kind: type) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, kind)


def _of_kind(name: str, expected: str, accepts: Callable[[Any], bool], value: Any) -> Any:
    if not accepts(value):
        raise _Refused(TypeError, name, expected, value)
    return operator.index(value) if isinstance(value, np.integer) else value


def _meeting(name: str, kind: Any, conditions: Sequence[Must], value: Any) -> Any:
    value = _checked(name, kind, value)
    for condition in conditions:
        if not condition.holds(value):
            raise _Refused(ValueError, name, condition.expected, value)
    return value


def _one_of(name: str, alternatives: Sequence[Any], value: Any) -> Any:
    keys = get_args(jaxtyping.PRNGKeyArray)
    if set(keys) <= set(alternatives):  # a union within the union
        rest = [each for each in alternatives if each not in keys]
        alternatives = [jaxtyping.PRNGKeyArray, *rest]
    kind: type[Exception] = TypeError
    expected = []
    for each in alternatives:
        try:
            return _checked(name, each, value)
        except _Refused as refused:
            if refused.kind is ValueError and get_origin(each) is Literal:
                # Another word than those: that of an alternative may have been meant.
                kind = ValueError
            elif refused.kind is ValueError or refused.name != name:
                # The kind is right; the range, or an element, is not.
                raise
            expected.append(refused.expected)
    kinds = dict.fromkeys(each.removeprefix("be ") for each in expected)
    phrase = f"be {' or '.join(kinds)}"
    raise _Refused(kind, name, phrase, value)


def _array(name: str, annotation: Any, value: Any) -> Any:
    """Shapes are left to the function, which knows the sizes."""
    import jax

    if annotation.dtype is Key:
        return _of_kind(name, "be a random key, or one for each row", are_keys, value)
    expected = f'be an array {annotation.dtype.__name__}[Array, "{annotation.dim_str}"]'
    dtype: Any = Integer if annotation.dtype is Int else annotation.dtype  # unsigned ones too
    any_shape = dtype[jax.Array | np.ndarray, "..."]
    return _of_kind(name, expected, lambda each: isinstance(each, any_shape), value)


def _with_elements(name: str, origin: Any, arguments: tuple[Any, ...], value: Any) -> Any:
    fixed = origin is tuple and arguments[-1] is not Ellipsis
    expected = f"be a tuple of {len(arguments)}" if fixed else "be a list or a tuple"
    if not isinstance(value, collections.abc.Sequence) or isinstance(value, str | bytes):
        raise _Refused(TypeError, name, expected, value)
    if fixed and len(value) != len(arguments):
        raise _Refused(ValueError, name, expected, value)
    if not fixed:
        arguments = arguments[:1] * len(value)
    each = (f"{name}[{i}]" for i in range(len(value)))
    return tuple(map(_checked, each, arguments, value))


def _is_integer(value: Any) -> bool:
    from jax.export import is_symbolic_dim

    integer = is_symbolic_dim(value) or isinstance(value, int | np.integer)
    return integer and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    import jax.numpy as jnp
    from jax.core import Tracer

    if isinstance(value, jnp.ndarray | np.ndarray):
        real = jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)
        return real and value.ndim == 0 and not isinstance(value, Tracer)
    return isinstance(value, Real) and not isinstance(value, bool)


def are_keys(value: Any) -> bool:
    """Whether the value is a random key or an array of them, typed or raw."""
    import jax

    if not isinstance(value, jax.Array | np.ndarray):
        return False
    if jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key):
        return True
    return value.dtype == np.uint32 and value.shape[-1:] in ((2,), (4,))


def _is_key(value: Any) -> bool:
    return are_keys(value) and value.ndim == (value.dtype == np.uint32)


def _is_array_like(value: Any) -> bool:
    try:
        return np.asarray(value).dtype.kind in "biuf"
    except ValueError:  # rows of different lengths
        return False


def _is_floating(dtype: Any) -> bool:
    import jax

    return jax.numpy.issubdtype(dtype, jax.numpy.floating)


def _is_dtype(value: Any) -> bool:
    import jax

    if value is None:
        return False  # NumPy takes it for float64
    try:
        jax.numpy.dtype(value)
    except TypeError:
        return False
    return True


@cache
def _kinds() -> dict[Any, tuple[str, Callable[[Any], bool]]]:
    """The kinds that are not classes to inherit from: what is said of them, and how they are
    recognised."""
    return {
        bool: ("be True or False", lambda value: isinstance(value, bool | np.bool_)),
        int: ("be an integer", _is_integer),
        float: ("be a number", _is_number),
        str: ("be a string", lambda value: isinstance(value, str)),
        type(None): ("be None", lambda value: value is None),
        jaxtyping.DTypeLike: ("be a dtype, such as jnp.float32", _is_dtype),
        ArrayLike: ("be an array, or lists of numbers", _is_array_like),
        jaxtyping.PRNGKeyArray: ("be one random key, such as jax.random.key(0)", _is_key),
    }


def shown(value: Any) -> str:
    """The value in an error message: short, and without the numbers of arrays."""
    import jax

    if isinstance(value, jax.Array | np.ndarray):
        return f"an array {value.dtype} of shape {value.shape}"
    if isinstance(value, list | tuple) and len(value) <= 8:
        texts = ", ".join(map(shown, value)) + "," * (isinstance(value, tuple) and len(value) == 1)
        return f"[{texts}]" if isinstance(value, list) else f"({texts})"
    if value is None or isinstance(value, str | bytes | Real | np.dtype):
        return repr(value)[:80]
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
