"""The pointwise part of a step, evaluated on one array for each of the numbers that a unit has.

A step is written for one unit: it takes vectors with a number for each state, gate and extra input.
A kernel holds those numbers for many units and rows at once, each as an array of its own, because
its arrays cannot be sliced or joined. So the step is traced, and every operation of the trace is
repeated for each number. So is its derivative.
"""

from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Literal

from .._by_equation import OPERATIONS, by_equation, primitives

type Planes = tuple[Any, ...]
"""Arrays of one shape: one for each number of a unit."""

Step = Callable[[tuple, Any, Any], tuple]
"""`after = step(before, gates, extras)` for one unit: `before` and `after` are tuples of vectors
with one number, `gates` and `extras` vectors."""

_RESHAPES = frozenset(("reshape", "squeeze", "expand_dims"))


class Pointwise:
    """The pointwise part of a step, and its derivative, on planes.

    `states`, `gates` and `extras` are the numbers of a unit, in `dtype`.
    """

    def __init__(self, step: Step, states: int, gates: int, extras: int, dtype: Any = jnp.float32):
        self.sizes = states, gates, extras
        self._dtype = jnp.dtype(dtype)
        self._jaxpr = _trace(step, *self.sizes, self._dtype)

    def advance(self, before: Planes, gates: Planes, extras: Planes) -> Planes:
        """The states after a step."""
        vectors = [*([x] for x in before), [*gates], [*extras]]
        return tuple(x for (x,) in _evaluate(self._jaxpr, vectors))

    def pull_back(
        self, before: Planes, gates: Planes, extras: Planes, g_after: Planes
    ) -> tuple[Planes, Planes, Planes]:
        """The cotangents of the three arguments of `advance`, for those of its results."""
        planes = [*before, *gates, *extras, *g_after]
        results = [x for (x,) in _evaluate(self._adjoint, [[x] for x in planes])]
        # A constant result, such as zero, is a number.
        results = [x if jnp.ndim(x) else jnp.full_like(planes[-1], x) for x in results]
        states, count, _ = self.sizes
        return (
            tuple(results[:states]),
            tuple(results[states : states + count]),
            tuple(results[states + count :]),
        )

    @cached_property
    def _adjoint(self) -> ClosedJaxpr:
        states, gates, extras = self.sizes

        def pull(*planes):
            arguments, g = planes[:-states], planes[-states:]
            parts = arguments[:states], arguments[states : states + gates]
            return jax.vjp(self.advance, *parts, arguments[states + gates :])[1](g)

        number = jax.ShapeDtypeStruct((1,), self._dtype)
        return jax.make_jaxpr(by_equation(pull))(*[number] * (2 * states + gates + extras))

    def unsupported(self) -> str | None:
        """Why a kernel cannot evaluate it, or `None`."""
        known = OPERATIONS | _RESHAPES | {"split", "slice", "concatenate"}
        names = {x for each in (self._jaxpr, self._adjoint) for x in primitives(each.jaxpr)}
        unknown = sorted(names - known)
        return f"its step uses {', '.join(unknown)}" if unknown else None

    def reads(self) -> tuple[bool, ...]:
        """For each state, whether its value before the step has an influence."""
        jaxpr = self._jaxpr.jaxpr
        read = {x for eqn in jaxpr.eqns for x in eqn.invars if not isinstance(x, Literal)}
        read |= {x for x in jaxpr.outvars if not isinstance(x, Literal)}
        return tuple(x in read for x in jaxpr.invars[: self.sizes[0]])


@lru_cache(maxsize=64)
def _trace(step: Step, states: int, gates: int, extras: int, dtype: Any) -> ClosedJaxpr:
    def number(size: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((size,), dtype)

    def flat(*arguments):
        *before, gates, extras = arguments
        return step(tuple(before), gates, extras)

    numbers = *[number(1)] * states, number(gates), number(extras)
    return jax.make_jaxpr(by_equation(flat))(*numbers)


def _evaluate(closed: ClosedJaxpr, arguments: Sequence[list]) -> list[list]:
    """The results of a trace for vectors given as lists of planes."""
    jaxpr = closed.jaxpr
    values: dict[Any, list] = dict(zip(jaxpr.invars, arguments, strict=True))
    values |= {x: [*jnp.ravel(c)] for x, c in zip(jaxpr.constvars, closed.consts, strict=True)}

    def read(x: Any) -> list:
        return [x.val] if isinstance(x, Literal) else values[x]

    for eqn in jaxpr.eqns:
        results = _apply(eqn, [read(x) for x in eqn.invars])
        values |= dict(zip(eqn.outvars, results, strict=True))
    return [read(x) for x in jaxpr.outvars]


def _apply(eqn: Any, operands: list[list]) -> list[list]:
    name, params = eqn.primitive.name, eqn.params
    size = eqn.outvars[0].aval.size
    if name == "split":
        ends = [sum(params["sizes"][: n + 1]) for n in range(len(params["sizes"]))]
        return [operands[0][end - n : end] for n, end in zip(params["sizes"], ends, strict=True)]
    if name == "slice":
        (first,), (limit,) = params["start_indices"], params["limit_indices"]
        return [operands[0][first : limit : (params["strides"] or (1,))[0]]]
    if name == "concatenate":
        return [[x for operand in operands for x in operand]]
    if name in _RESHAPES or name == "broadcast_in_dim":
        (operand, *_) = operands
        return [operand if len(operand) == size else operand * size]
    rows = [operand if len(operand) == size else operand * size for operand in operands]
    columns = zip(*rows, strict=True)
    return [[eqn.primitive.bind(*_as_planes(column), **params) for column in columns]]


def _as_planes(operands: Sequence) -> list:
    """The operands, with constants as planes if one of them is a plane."""
    plane = next((x for x in operands if jnp.ndim(x)), None)
    if plane is None:
        return list(operands)
    return [x if jnp.ndim(x) else jnp.full(plane.shape, x, jnp.result_type(x)) for x in operands]
