"""Operation counts, memory and kernel calls of a traced function, read from its jaxpr."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
from jax.core import ShapedArray
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Var

_BACKWARD = "_transpose"


@dataclass(frozen=True)
class KernelCall:
    """A call of `linear_scan` or `diagonal_ssm`, and the sizes of its arguments.

    - `operation`: `"linear_scan"` or `"diagonal_ssm"`.
    - `backward`: whether this is the backward pass of the operation.
    - `turns`: the number of times that it runs.
    - `rows`: the number of sequences.
    - `tokens`: the number of time steps of all rows together.
    - `idim`, `odim`: the numbers of input and output features; for `linear_scan`, of states.
    - `states`: the number of states of a row.
    - `planes`: 2 if the states are complex, else 1.
    """

    operation: str
    backward: bool
    turns: int
    rows: int
    tokens: int
    idim: int
    odim: int
    states: int
    planes: int

    @property
    def flops(self) -> int:
        """Floating-point operations of one turn."""
        step = 8 if self.planes == 2 else 2
        scan = self.tokens * self.states * step
        if self.operation == "linear_scan":
            return 2 * scan if self.backward else scan
        drive = 2 * self.planes * self.tokens * self.states * self.idim
        read = 2 * self.planes * self.tokens * self.states * self.odim
        # The backward pass recomputes the states, runs the reverse scan of the cotangents, and
        # needs two products for each of the input and output maps.
        return 3 * scan + 3 * drive + 2 * read if self.backward else scan + drive + read


def flops(jaxpr: Jaxpr) -> int:
    """Floating-point operations of all matrix products and kernel calls; a multiply-add counts two.

    The body of a scan counts once for each turn, a conditional as its most expensive branch.
    Elementwise operations do not count, since they are bound by memory.
    """
    products = sum(turns * _product_flops(eqn) for eqn, turns in _equations(jaxpr))
    return products + sum(each.turns * each.flops for each in kernel_calls(jaxpr))


def kernel_calls(jaxpr: Jaxpr) -> list[KernelCall]:
    """The calls of `linear_scan` and `diagonal_ssm`, backward passes included."""
    return [
        _kernel_call(eqn, turns)
        for eqn, turns in _equations(jaxpr)
        if eqn.primitive.name.removesuffix(_BACKWARD) in ("linear_scan", "diagonal_ssm")
    ]


def total_bytes(variables: Iterable[Var]) -> int:
    """Bytes of all variables together, each counted once."""
    return sum(map(_bytes, set(variables)))


def peak_bytes(jaxpr: Jaxpr) -> int:
    """The most bytes that are alive at one time, arguments excluded.

    The estimate runs the operations in program order and keeps an array until its last use. An
    elementwise result with a single elementwise consumer takes no memory, since compilers fuse the
    two.
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
    live = peak = 0
    for index, eqn in enumerate(jaxpr.eqns):
        results = [each for each in eqn.outvars if each in last]
        inner = max((peak_bytes(each) for each in _inner_jaxprs(eqn)), default=0)
        if eqn.primitive.name not in _LOOPS:
            # The results of a call are results of its inner jaxpr, and counted there already.
            inner -= min(inner, total_bytes(results))
        for each in results:
            alive[each] = 0 if _is_fused(eqn, readers[each]) else _bytes(each)
            live += alive[each]
        peak = max(peak, live + inner)
        for each in (*eqn.invars, *results):
            if isinstance(each, Var) and last[each] == index:
                live -= alive.pop(each, 0)
    return peak


_LOOPS = frozenset({"scan", "while"})

# Results of these are views or conversions, which compilers fuse into every consumer.
_VIEWS = frozenset(
    {"broadcast_in_dim", "convert_element_type", "copy", "iota", "reshape", "squeeze", "transpose"}
)

# Operations that are not fused: compilers write their operands and results to memory.
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
    return eqn is not None and eqn.primitive.name not in _WRITTEN and not any(_inner_jaxprs(eqn))


def _equations(jaxpr: Jaxpr, turns: int = 1) -> Iterator[tuple[JaxprEqn, int]]:
    """Every equation without an inner jaxpr, and the number of times that it runs."""
    for eqn in jaxpr.eqns:
        inner = list(_inner_jaxprs(eqn))
        if not inner:
            yield eqn, turns
        elif eqn.primitive.name == "cond":
            yield from _equations(max(inner, key=flops), turns)
        else:
            times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
            for each in inner:
                yield from _equations(each, turns * times)


def _inner_jaxprs(eqn: JaxprEqn) -> Iterator[Jaxpr]:
    for value in eqn.params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            if isinstance(each, ClosedJaxpr):
                yield each.jaxpr
            elif isinstance(each, Jaxpr):
                yield each


def _product_flops(eqn: JaxprEqn) -> int:
    if eqn.primitive.name != "dot_general":
        return 0
    (contracted, _), _ = eqn.params["dimension_numbers"]
    argument: Any = eqn.invars[0].aval
    result: Any = eqn.outvars[0].aval
    return 2 * math.prod(result.shape) * math.prod(argument.shape[axis] for axis in contracted)


def _kernel_call(eqn: JaxprEqn, turns: int) -> KernelCall:
    operation = eqn.primitive.name.removesuffix(_BACKWARD)
    primals, *_ = jax.tree.unflatten(eqn.params["tree"], [each.aval for each in eqn.invars])
    if operation == "linear_scan":
        planes = jax.tree.leaves(primals[1])
        *batch, time, states = planes[0].shape
        idim = odim = states
    else:
        u, _, b, c, *_ = primals
        *batch, time, _ = u.shape
        planes = jax.tree.leaves(b)
        states, idim = planes[0].shape
        odim = jax.tree.leaves(c)[0].shape[0]
    return KernelCall(
        operation,
        backward=eqn.primitive.name.endswith(_BACKWARD),
        turns=turns,
        rows=math.prod(batch),
        tokens=math.prod(batch) * time,
        idim=idim,
        odim=odim,
        states=states,
        planes=len(planes),
    )


def _bytes(variable: Var) -> int:
    aval = variable.aval
    # Tokens and other abstract values without a shape take no memory.
    return math.prod(aval.shape) * aval.dtype.itemsize if isinstance(aval, ShapedArray) else 0
