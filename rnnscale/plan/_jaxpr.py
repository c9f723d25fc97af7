"""Operation counts, memory and recurrences of a traced function, read from its jaxpr.

How often a `while` loop runs is not in a jaxpr. Newton's method over time is such a loop, so the
functions here take its number of `iterations`, and raise without it.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
from jax.core import ShapedArray
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Var

from rnnscale._errors import UserError
from rnnscale.cells import Newton

_BACKWARD = "_transpose"


@dataclass(frozen=True)
class KernelCall:
    """A call of a recurrence, and the sizes of its arguments.

    - `operation`: `"linear_scan"`, `"block_scan"`, `"matrix_scan"`, `"diagonal_ssm"`,
        `"selective_scan"` or `"linear_attention"`.
    - `backward`: whether this is the backward pass of the operation.
    - `turns`: the number of times that it runs.
    - `rows`: the number of sequences.
    - `tokens`: the number of time steps of all rows together.
    - `idim`, `odim`: the numbers of input and output features of `diagonal_ssm`; else of states.
    - `states`: the number of states of a row.
    - `planes`: the planes of a state: 2 if it is complex, and the rows of a block of `block_scan`.
    - `iterated`: whether it is an iteration of Newton's method.
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
    iterated: bool

    @property
    def flops(self) -> int:
        """Floating-point operations of one turn."""
        scan = self.tokens * self.states * 2 * self.planes**2
        if self.operation == "matrix_scan":
            # In parallel over time, each matrix is multiplied by the product of those before it.
            scan = self.tokens * 2 * self.states**2 * (self.states + 1)
        if self.operation == "selective_scan":
            # An input and an output map for each state, and in the backward pass their gradients.
            return 9 * scan if self.backward else 3 * scan
        if self.operation != "diagonal_ssm":
            return 2 * scan if self.backward else scan
        drive = 2 * self.planes * self.tokens * self.states * self.idim
        read = 2 * self.planes * self.tokens * self.states * self.odim
        # The backward pass recomputes the states, runs the reverse scan of the cotangents, and
        # needs two products for each of the input and output maps.
        return 3 * scan + 3 * drive + 2 * read if self.backward else scan + drive + read

    @property
    def total(self) -> int:
        """The numbers by which a device describes what its steps do to one row: the state that
        leaves it, and the product of all decays or matrices if they vary in time. An iteration of
        Newton's method adds the last state and four measures of its progress."""
        state = self.planes * self.states
        decays = {
            "diagonal_ssm": 0,
            "linear_scan": state,
            "selective_scan": state,
            "block_scan": self.planes**2 * self.states,
            "matrix_scan": self.states**2,
        }
        return state + decays[self.operation] + (state + 4 if self.iterated else 0)


@dataclass(frozen=True)
class AttentionCall(KernelCall):
    """A call of `linear_attention`, whose `states` are those of all heads.

    - `heads`, `key`, `value`: the number of heads, and the sizes of a head.
    - `decay`: the numbers of a decay in a head: none, one, or one for each channel.
    - `erases`: whether there is erasure.
    - `chunk`: the steps of a chunk.
    """

    heads: int
    key: int
    value: int
    decay: int
    erases: bool
    chunk: int

    @property
    def flops(self) -> int:
        # For each step: all pairs of steps in a chunk, what it reads from the state, and what it
        # adds. Erasure reads once more, and solves a triangular system for each chunk.
        pairs = self.chunk * (self.key + self.value) + 2 * self.key * self.value
        solve = self.chunk * (2 * self.key + self.value) // 2 + self.key * self.value
        forward = 2 * self.tokens * self.heads * (pairs + self.erases * solve)
        # The backward pass computes a chunk again, and has two products for each one.
        return 3 * forward if self.backward else forward

    @property
    def total(self) -> int:
        if self.backward:
            return self.states
        return self.states + self.heads * (self.key**2 if self.erases else self.decay)


def flops(jaxpr: Jaxpr, iterations: int | None = None) -> int:
    """Floating-point operations of all matrix products and kernel calls; a multiply-add counts two.

    The body of a loop counts once for each turn, a conditional as its most expensive branch.
    Elementwise operations do not count, since they are bound by memory.

    **Arguments:**

    - `iterations`: the turns of a loop whose number of turns depends on the data.

    **Raises:** `UserError` if there is such a loop and `iterations` is `None`.
    """
    products = sum(turns * _product_flops(eqn) for eqn, turns, _ in _equations(jaxpr, iterations))
    return products + sum(each.turns * each.flops for each in kernel_calls(jaxpr, iterations))


def kernel_calls(jaxpr: Jaxpr, iterations: int | None = None) -> list[KernelCall]:
    """The calls of the recurrences, backward passes included; see `flops` for `iterations`."""
    return [
        _kernel_call(eqn, turns, iterated)
        for eqn, turns, iterated in _equations(jaxpr, iterations)
        if eqn.primitive.name in RECURRENCES
    ]


def turns_of(loop: JaxprEqn, iterations: int | None) -> int:
    """The number of times that the body of a `scan` or a `while` runs.

    **Raises:** `UserError` if this depends on the data and `iterations` is `None`.
    """
    if loop.primitive.name == "scan":
        return loop.params["length"]
    if iterations is None:
        raise UserError(
            "the number of iterations depends on the data, as in Newton's method over time: give "
            "iterations (--iterations), which rnnscale.analysis.parallelisable measures"
        )
    return iterations


def total_bytes(variables: Iterable[Var]) -> int:
    """Bytes of all variables together, each counted once."""
    return sum(map(bytes_of, set(variables)))


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
        inner = max((peak_bytes(each) for each in inner_jaxprs(eqn)), default=0)
        if eqn.primitive.name not in LOOPS:
            # The results of a call are results of its inner jaxpr, and counted there already.
            inner -= min(inner, total_bytes(results))
        for each in results:
            alive[each] = 0 if _is_fused(eqn, readers[each]) else bytes_of(each)
            live += alive[each]
        peak = max(peak, live + inner)
        for each in (*eqn.invars, *results):
            if isinstance(each, Var) and last[each] == index:
                live -= alive.pop(each, 0)
    return peak


LOOPS = frozenset({"scan", "while"})

RECURRENCES = frozenset(
    f"{name}{direction}"
    for name in (
        *("linear_scan", "diagonal_ssm", "block_scan", "matrix_scan"),
        *("selective_scan", "linear_attention"),
    )
    for direction in ("", _BACKWARD)
)

# Results of these are views or conversions, which compilers fuse into every consumer.
VIEWS = frozenset(
    {"broadcast_in_dim", "convert_element_type", "copy", "iota", "reshape", "squeeze", "transpose"}
)

# Operations that are not fused: compilers write their operands and results to memory.
_WRITTEN = RECURRENCES | frozenset(
    {
        "argmax",
        "concatenate",
        "conv_general_dilated",
        "cumsum",
        "dot_general",
        "dynamic_slice",
        "dynamic_update_slice",
        "gather",
        "optimization_barrier",
        "reduce_max",
        "reduce_sum",
        "scatter",
        "scatter-add",
        "sort",
    }
)


def _is_fused(eqn: JaxprEqn, readers: list[JaxprEqn | None]) -> bool:
    if eqn.primitive.name in VIEWS:
        return True
    return len(readers) == 1 and is_elementwise(eqn) and is_elementwise(readers[0])


def is_elementwise(eqn: JaxprEqn | None) -> bool:
    """Whether compilers fuse the operation with others that are elementwise too."""
    return eqn is not None and eqn.primitive.name not in _WRITTEN and not any(inner_jaxprs(eqn))


def _equations(
    jaxpr: Jaxpr, iterations: int | None, turns: int = 1, iterated: bool = False
) -> Iterator[tuple[JaxprEqn, int, bool]]:
    """Every equation without an inner jaxpr, the number of times that it runs, and whether that
    depends on the data."""
    for eqn in jaxpr.eqns:
        inner = list(inner_jaxprs(eqn))
        if not inner:
            yield eqn, turns, iterated
        elif eqn.primitive.name == "cond":
            yield from _equations(branch_of(eqn, iterations), iterations, turns, iterated)
        else:
            times = turns_of(eqn, iterations) if eqn.primitive.name in LOOPS else 1
            unknown = iterated or eqn.primitive.name == "while"
            for each in inner:
                yield from _equations(each, iterations, turns * times, unknown)


def branch_of(conditional: JaxprEqn, iterations: int | None) -> Jaxpr:
    """The branch of a conditional that counts. Between platforms, it is the default, which is that
    of accelerators; between Newton's solution and the loop by steps, the solution; otherwise, the
    most expensive one."""
    branches = [each.jaxpr for each in conditional.params["branches"]]
    if Newton.scope in str(conditional.source_info.name_stack):
        return branches[True]
    if (platforms := conditional.params.get("branches_platforms")) is not None:
        return branches[platforms.index(None)]
    return max(branches, key=lambda branch: flops(branch, iterations))


def inner_jaxprs(eqn: JaxprEqn) -> Iterator[Jaxpr]:
    """The functions that an equation calls."""
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


def _kernel_call(eqn: JaxprEqn, turns: int, iterated: bool) -> KernelCall:
    operation = eqn.primitive.name.removesuffix(_BACKWARD)
    primals, *_ = jax.tree.unflatten(eqn.params["tree"], [each.aval for each in eqn.invars])
    if operation == "linear_attention":
        return _attention_call(primals, eqn, turns, iterated)
    if operation == "selective_scan":
        planes, states = (primals[0],), primals[5].shape[-1]
        *batch, time, idim = primals[0].shape
        odim = idim
    elif operation != "diagonal_ssm":
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
        iterated=iterated,
    )


def _attention_call(primals: Any, eqn: JaxprEqn, turns: int, iterated: bool) -> AttentionCall:
    _, _, value, log_decay, erase, h0, _ = primals
    *batch, heads, keys, width = h0.shape
    rows, time = math.prod(batch), value.shape[h0.ndim - 3]
    decay = 0
    if log_decay is not None:
        decay = keys if log_decay.ndim == value.ndim else 1
    return AttentionCall(
        "linear_attention",
        backward=eqn.primitive.name.endswith(_BACKWARD),
        turns=turns,
        rows=rows,
        tokens=rows * time,
        idim=heads * width,
        odim=heads * width,
        states=heads * keys * width,
        planes=1,
        iterated=iterated,
        heads=heads,
        key=keys,
        value=width,
        decay=decay,
        erases=erase is not None,
        chunk=eqn.params["chunk"],
    )


def bytes_of(variable: Var) -> int:
    """The size of an array."""
    aval = variable.aval
    # Tokens and other abstract values without a shape take no memory.
    return math.prod(aval.shape) * aval.dtype.itemsize if isinstance(aval, ShapedArray) else 0
