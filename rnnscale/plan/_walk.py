"""What can be read from a traced function: its arithmetic, its memory, its recurrences."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Var

_BACKWARD = "_transpose"


@dataclass(frozen=True)
class Recurrence:
    """A call of one of our kernels.

    - `operation`: `"linear_scan"` or `"diagonal_ssm"`; `backward`: whether it is its backward pass.
    - `turns`: how often it runs.
    - `tokens`: steps of all rows; `rows`: rows.
    - `idim`, `odim`: features in and out, those of the states for `linear_scan`.
    - `states`: how many each row has; `planes`: 2 where they are complex, else 1.
    """

    operation: str
    backward: bool
    turns: float
    tokens: int
    rows: int
    idim: int
    odim: int
    states: int
    planes: int

    @property
    def flops(self) -> float:
        """Of one turn. The backward pass of `diagonal_ssm` computes its states again."""
        step = 8 if self.planes == 2 else 2
        scan = self.tokens * self.states * step
        if self.operation == "linear_scan":
            return 2 * scan if self.backward else scan
        drive = 2 * self.planes * self.tokens * self.states * self.idim
        read = 2 * self.planes * self.tokens * self.states * self.odim
        # States again, of the cotangents too; gradients of both maps and of their input.
        return 3 * scan + 3 * drive + 2 * read if self.backward else scan + drive + read


def flops(jaxpr: Jaxpr) -> float:
    """Floating-point operations of all matrix products and recurrences, two for a multiply-add.

    A scan counts as often as it runs, a conditional as its largest branch. Elementwise arithmetic
    is left out: no device is bound by it.
    """
    products = sum(turns * _product_flops(eqn) for eqn, turns in _equations(jaxpr))
    return products + sum(each.turns * each.flops for each in recurrences(jaxpr))


def recurrences(jaxpr: Jaxpr) -> list[Recurrence]:
    """The calls of our kernels."""
    return [
        _recurrence(eqn, turns)
        for eqn, turns in _equations(jaxpr)
        if eqn.primitive.name.removesuffix(_BACKWARD) in ("linear_scan", "diagonal_ssm")
    ]


def size(variables: Iterable[Var]) -> int:
    """Bytes of the different arrays among the variables."""
    return sum(map(_bytes, set(variables)))


def peak(jaxpr: Jaxpr) -> int:
    """The most bytes that are needed at one time besides the arguments.

    Operations run in their order and an array lives until it is last read. An elementwise result
    that one elementwise operation reads is never written: compilers fuse the two.
    """
    readers: dict[Var, list[JaxprEqn | None]] = {}
    last: dict[Var, int] = {}
    for index, eqn in enumerate(jaxpr.eqns):
        for each in eqn.invars:
            if isinstance(each, Var):
                readers.setdefault(each, []).append(eqn)
                last[each] = index
    for each in jaxpr.outvars:
        if isinstance(each, Var):
            readers.setdefault(each, []).append(None)
            last[each] = len(jaxpr.eqns)
    alive: dict[Var, int] = {}
    live = most = 0
    for index, eqn in enumerate(jaxpr.eqns):
        results = [each for each in eqn.outvars if each in last]
        inner = max((peak(each) for each in _inner(eqn)), default=0)
        if eqn.primitive.name not in _LOOPS:
            inner -= min(inner, size(results))  # these are the inner results
        for each in results:
            alive[each] = 0 if _is_fused(eqn, readers[each]) else _bytes(each)
            live += alive[each]
        most = max(most, live + inner)
        for each in (*eqn.invars, *results):
            if isinstance(each, Var) and last[each] == index:
                live -= alive.pop(each, 0)
    return most


_LOOPS = frozenset({"scan", "while"})

# What is laid out anew, or is a copy in another form, until it is read.
_VIEWS = frozenset(
    {"broadcast_in_dim", "convert_element_type", "copy", "iota", "reshape", "squeeze", "transpose"}
)

# Compilers write the results of these, and what they read.
_WRITTEN = frozenset(
    {
        "argmax",
        "concatenate",
        "conv_general_dilated",
        "cumsum",
        "diagonal_ssm",
        "diagonal_ssm_transpose",
        "dot_general",
        "dynamic_slice",
        "dynamic_update_slice",
        "gather",
        "linear_scan",
        "linear_scan_transpose",
        "optimization_barrier",
        "reduce_max",
        "reduce_sum",
        "scatter",
        "scatter-add",
        "sort",
    }
)


def _is_fused(eqn: JaxprEqn, readers: list[JaxprEqn | None]) -> bool:
    if eqn.primitive.name in _VIEWS:
        return True
    return len(readers) == 1 and _is_elementwise(eqn) and _is_elementwise(readers[0])


def _is_elementwise(eqn: JaxprEqn | None) -> bool:
    return eqn is not None and eqn.primitive.name not in _WRITTEN and not any(_inner(eqn))


def _equations(jaxpr: Jaxpr, turns: float = 1) -> Iterator[tuple[JaxprEqn, float]]:
    """Every equation without equations in it, and how often it runs."""
    for eqn in jaxpr.eqns:
        inner = list(_inner(eqn))
        if not inner:
            yield eqn, turns
        elif eqn.primitive.name == "cond":
            yield from _equations(max(inner, key=flops), turns)
        else:
            times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
            for each in inner:
                yield from _equations(each, turns * times)


def _inner(eqn: JaxprEqn) -> Iterator[Jaxpr]:
    for value in eqn.params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            if isinstance(each, ClosedJaxpr):
                yield each.jaxpr
            elif isinstance(each, Jaxpr):
                yield each


def _product_flops(eqn: JaxprEqn) -> float:
    if eqn.primitive.name != "dot_general":
        return 0
    (contracted, _), _ = eqn.params["dimension_numbers"]
    argument: Any = eqn.invars[0].aval
    result: Any = eqn.outvars[0].aval
    return 2 * math.prod(result.shape) * math.prod(argument.shape[axis] for axis in contracted)


def _recurrence(eqn: JaxprEqn, turns: float) -> Recurrence:
    operation = eqn.primitive.name.removesuffix(_BACKWARD)
    primals, *_ = jax.tree.unflatten(eqn.params["tree"], [each.aval for each in eqn.invars])
    if operation == "linear_scan":
        steps = jax.tree.leaves(primals[1])
        *batch, time, states = steps[0].shape
        idim = odim = states
        planes = len(steps)
    else:
        u, _, b, c, *_ = primals
        *batch, time, _ = u.shape
        states, idim = jax.tree.leaves(b)[0].shape
        odim = jax.tree.leaves(c)[0].shape[0]
        planes = len(jax.tree.leaves(b))
    rows = math.prod(batch)
    return Recurrence(
        operation,
        eqn.primitive.name.endswith(_BACKWARD),
        turns,
        rows * time,
        rows,
        idim,
        odim,
        states,
        planes,
    )


def _bytes(variable: Any) -> int:
    aval = variable.aval
    return math.prod(aval.shape) * aval.dtype.itemsize if hasattr(aval, "shape") else 0
