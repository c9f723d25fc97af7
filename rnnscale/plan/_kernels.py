"""The kernels that a compiler makes of a traced function: how many of them have to run one after
another, and the bytes that they move.

Both follow one model of fusion, that of XLA on GPUs at its best. A matrix product or a recurrence
is a kernel. Elementwise operations, slices and concatenations share a kernel until one of them has
to wait for another kernel, and a reduction ends such a kernel. A reshape or a conversion costs
nothing. Compilers make at least as many kernels.
"""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any

from jax.extend.core import Jaxpr, JaxprEqn, Var

from rnnscale.plan._jaxpr import (
    LOOPS,
    RECURRENCES,
    VIEWS,
    branch_of,
    bytes_of,
    inner_jaxprs,
    is_elementwise,
    turns_of,
)

# Compilers for GPUs fuse these like elementwise operations.
_FUSED = frozenset({"concatenate", "dynamic_slice", "dynamic_update_slice", "gather"})

# They are fused with what they read, and nothing is fused with them.
_REDUCTIONS = frozenset(
    {"argmax", "reduce_and", "reduce_max", "reduce_min", "reduce_or", "reduce_sum"}
)


@dataclass(frozen=True)
class Kernels:
    """The kernels of a traced function.

    - `chain`: the number of kernels in the longest chain in which each needs a result of the one
        before. The body of a loop counts once for each turn.
    - `moved_bytes`: bytes that kernels read from memory and write to it. A loop over time, with no
        other loop and no recurrence inside, reads its arguments once and writes its results once:
        the arrays of one step stay in the caches.
    - `iterated_bytes`: those of them inside loops whose number of turns depends on the data.
    """

    chain: int
    moved_bytes: int
    iterated_bytes: int


def kernels(jaxpr: Jaxpr, iterations: int | None = None) -> Kernels:
    """The kernels of a traced function.

    **Arguments:**

    - `iterations`: the turns of a loop whose number of turns depends on the data.

    **Raises:** `UserError` if there is such a loop and `iterations` is `None`.
    """
    arguments = [_Array(bytes_of(each)) for each in (*jaxpr.constvars, *jaxpr.invars)]
    nodes: list[_Node] = []
    results = _inline(jaxpr, arguments, iterations, nodes)
    for each in results:
        each.needed = True
    nodes = _needed(nodes)
    for node in nodes:
        node.run(iterations)
    for each in results:
        each.written = each.made
    arrays = {id(x): x for node in nodes for x in (*node.arguments, *node.results)}
    return Kernels(
        max((each.ready for each in results), default=0),
        sum(x.moved for x in arrays.values()) + sum(node.moved for node in nodes),
        sum(node.iterated for node in nodes),
    )


@dataclass(eq=False)
class _Array:
    """An array of the function.

    - `size`: bytes.
    - `made`: whether a kernel of the function makes it. Arguments are in memory already.
    - `fused_after`: for an elementwise result, the length of the chain before the kernel that it
        is part of; `None` for other arrays.
    - `ready`: the length of the chain after which it is in memory.
    - `written`: whether it is written to memory.
    - `readers`: the kernels that read it from memory.
    - `needed`: whether a result of the function depends on it.
    """

    size: int
    made: bool = False
    fused_after: int | None = None
    ready: int = 0
    written: bool = False
    readers: set[Hashable] = field(default_factory=set)
    needed: bool = False

    @property
    def moved(self) -> int:
        return self.size * (self.written + len(self.readers))

    def read_by(self, kernel: Hashable) -> None:
        self.readers.add(kernel)
        self.written = self.made


@dataclass(eq=False)
class _Node:
    """An operation, after all calls were inlined. A loop is one operation.

    - `moved`, `iterated`: for a loop with other loops or recurrences inside, the bytes that its
        turns move, and the part that `Kernels.iterated_bytes` counts.
    """

    eqn: JaxprEqn
    arguments: list[_Array]
    results: list[_Array]
    moved: int = 0
    iterated: int = 0

    def run(self, iterations: int | None) -> None:
        """Count the node, after those that make its arguments."""
        name = self.eqn.primitive.name
        if is_elementwise(self.eqn) or name in _FUSED or name in _REDUCTIONS:
            self._run_fused(ends=name in _REDUCTIONS)
        elif name in LOOPS:
            self._run_loop(iterations)
        else:
            self._run_kernel(1)

    def _run_fused(self, ends: bool) -> None:
        start = max((_available(each) for each in self.arguments), default=0)
        for each in self.arguments:
            if each.fused_after != start:
                each.read_by(("fused", start))
        for each in self.results:
            each.fused_after, each.ready = None if ends else start, start + 1
            each.written = ends

    def _run_loop(self, iterations: int | None) -> None:
        turns, body = turns_of(self.eqn, iterations), _body(self.eqn)
        found = kernels(body, iterations)
        iterative = self.eqn.primitive.name == "while"
        if not iterative and not _has_loops(body):
            self._run_kernel(turns * found.chain)
            return
        # The arguments are read in each turn, and the results written.
        self.moved = turns * found.moved_bytes
        self.iterated = self.moved if iterative else turns * found.iterated_bytes
        start = max((each.ready for each in self.arguments), default=0)
        for each in self.arguments:
            each.written = each.made
        for each in self.results:
            each.made, each.ready = False, start + turns * found.chain

    def _run_kernel(self, length: int) -> None:
        start = max((each.ready for each in self.arguments), default=0)
        for each in self.arguments:
            each.read_by(id(self))
        for each in self.results:
            each.ready, each.written = start + length, True


def _available(argument: _Array) -> int:
    """The length of the chain after which an elementwise operation can use an array."""
    return argument.ready if argument.fused_after is None else argument.fused_after


def _needed(nodes: list[_Node]) -> list[_Node]:
    """The nodes on which a result depends."""
    found = []
    for node in reversed(nodes):
        if any(each.needed for each in node.results):
            found.append(node)
            for each in node.arguments:
                each.needed = True
    return found[::-1]


def _inline(
    jaxpr: Jaxpr, arguments: Iterable[_Array], iterations: int | None, nodes: list[_Node]
) -> list[_Array]:
    """Append the operations of a function, and of the functions that it calls, to `nodes`.

    **Returns:** the results of the function.
    """
    arrays: dict[Var, _Array] = {}
    arrays.update(zip((*jaxpr.constvars, *jaxpr.invars), arguments, strict=True))

    def array(variable: Any) -> _Array:
        return arrays[variable] if isinstance(variable, Var) else _Array(0)

    for eqn in jaxpr.eqns:
        inputs = [array(each) for each in eqn.invars]
        if eqn.primitive.name == "optimization_barrier":
            results = inputs
        elif eqn.primitive.name in VIEWS:
            results = inputs[:1] or [_Array(0)]
        elif (function := _called(eqn, iterations)) is not None:
            constants = [_Array(bytes_of(each)) for each in function.constvars]
            operands = inputs[len(inputs) - len(function.invars) :]
            results = _inline(function, [*constants, *operands], iterations, nodes)
        else:
            results = [_Array(bytes_of(each), made=True) for each in eqn.outvars]
            nodes.append(_Node(eqn, inputs, results))
        arrays.update(zip(eqn.outvars, results, strict=True))
    return [array(each) for each in jaxpr.outvars]


_CALLS = frozenset(
    {
        "checkpoint",
        "closed_call",
        "custom_jvp_call",
        "custom_vjp_call",
        "jit",
        "pjit",
        "remat",
        "remat2",
        "shard_map",
    }
)


def _called(eqn: JaxprEqn, iterations: int | None) -> Jaxpr | None:
    """The function that an equation calls, if it does nothing else."""
    if eqn.primitive.name == "cond":
        return branch_of(eqn, iterations)
    return next(inner_jaxprs(eqn)) if eqn.primitive.name in _CALLS else None


def _body(loop: JaxprEqn) -> Jaxpr:
    name = "jaxpr" if loop.primitive.name == "scan" else "body_jaxpr"
    return loop.params[name].jaxpr


def _has_loops(jaxpr: Jaxpr) -> bool:
    return any(
        eqn.primitive.name in LOOPS | RECURRENCES or any(map(_has_loops, inner_jaxprs(eqn)))
        for eqn in jaxpr.eqns
    )
