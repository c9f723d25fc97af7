"""Rewrites steps so that kernels can run them: traced, and then evaluated equation by equation.

The compilers of kernels have no rules for some primitives that JAX uses in the most ordinary steps:
a function with its own derivative rule, such as `jax.nn.relu`, the sum of two cotangents, a power.
Here such a function is replaced by its equations, and such a primitive by others.
"""

from collections.abc import Callable, Iterator
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal


def by_equation(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, evaluated equation by equation. Arguments and results are trees of arrays."""

    def run(*arguments: Any) -> Any:
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
        results = _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return run


def primitives(jaxpr: Jaxpr) -> Iterator[str]:
    """The names of the primitives that `by_equation` runs."""
    for equation in jaxpr.eqns:
        inner = _inner(equation)
        if inner is None:
            yield equation.primitive.name
        else:
            yield from primitives(inner.jaxpr)


def _evaluate(jaxpr: Jaxpr, consts: list, arguments: list) -> list:
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arguments), strict=True))

    def read(x):
        return x.val if isinstance(x, Literal) else values[x]

    for equation in jaxpr.eqns:
        operands = [read(x) for x in equation.invars]
        name, inner = equation.primitive.name, _inner(equation)
        if inner is not None:
            results = _evaluate(inner.jaxpr, inner.consts, operands)
        elif name in _REPLACED:
            results = [_REPLACED[name](*operands, **equation.params)]
        else:
            results = equation.primitive.bind(*operands, **equation.params)
            results = results if equation.primitive.multiple_results else [results]
        values.update(zip(equation.outvars, results, strict=True))
    return [read(x) for x in jaxpr.outvars]


def _inner(equation) -> ClosedJaxpr | None:
    """What the equation calls, if it is a call."""
    calls = [equation.params.get(name) for name in ("jaxpr", "call_jaxpr")]
    return next((x for x in calls if isinstance(x, ClosedJaxpr)), None)


def _power(x: Any, *, y: int) -> Any:
    product = reduce(lax.mul, [x] * abs(y)) if y else lax.full_like(x, 1)
    return product if y >= 0 else 1 / product


def _log1p(x: Any, **_: Any) -> Any:
    # The rounding error of 1 + x cancels in the quotient (W. Kahan).
    y, one = 1 + x, lax.full_like(x, 1)
    near_zero = lax.select(y == 1, x, jnp.log(y) * (x / lax.select(y == 1, one, y - 1)))
    return lax.select(y == x, jnp.log(y), near_zero)


def _expm1(x: Any, **_: Any) -> Any:
    return jnp.tanh(x / 2) * (jnp.exp(x) + 1)


_REPLACED = {
    "add_any": lax.add,
    "expm1": _expm1,
    "integer_pow": _power,
    "log1p": _log1p,
    "stop_gradient": lambda x, **_: x,
}

OPERATIONS = frozenset(_REPLACED) | {
    "abs", "add", "and", "broadcast_in_dim", "clamp", "convert_element_type", "cos", "div", "eq",
    "erf", "exp", "exp2", "ge", "gt", "log", "log2", "logistic", "lt", "max", "min", "mul", "ne",
    "neg", "not", "one_minus_square", "or", "round", "rsqrt", "select_n", "sign", "sin", "sqrt",
    "square", "sub", "tanh", "xor",
}  # fmt: skip
"""The primitives that the compilers of all kernels take."""
