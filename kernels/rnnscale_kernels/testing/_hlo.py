"""The text of an optimised program, parsed: its calls, its loops and its collectives."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from jax.extend.backend import get_backend
from jaxlib import _hlo, _jax  # pyright: ignore[reportAttributeAccessIssue]

KERNEL_CALLS = {
    "mosaic_gpu_v2": "mosaic_gpu",
    "triton_kernel_call_ffi": "triton",
    "tpu_custom_call": "mosaic_tpu",
}
"""The custom calls of hand-written kernels, and the implementations that make them."""

_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclass(frozen=True)
class Call:
    """A call of code that XLA has not generated.

    - `target`: the implementation that a hand-written kernel belongs to, otherwise XLA's name.
    - `source`: JAX's name for the place of the call in the program.
    - `bytes_accessed`: bytes of its operands and results, each accessed once.
    - `vmem`: bytes of a TPU's vector memory that the kernel takes; `None` on other devices.
    """

    target: str
    source: str
    bytes_accessed: int
    vmem: int | None


@dataclass(frozen=True)
class Collective:
    """One collective operation.

    - `kind`: `"all-gather"`, `"all-reduce"`, `"reduce-scatter"`, `"all-to-all"` or
        `"collective-permute"`.
    - `axes`: the mesh axes along which the devices of a group differ. If there are none, each group
        is a single device.
    - `devices`: the size of a group; 2 for a permute.
    - `bytes`: bytes of its result on one device, each time that it runs.
    - `turns`: how often it runs; NaN if the program does not say.
    - `loops`: the sources of the loops around it, outermost first. A source is JAX's name for a
        place in the program, such as `"jit(step)/jvp()/while"`.
    - `source`: its own source.
    """

    kind: str
    axes: tuple[str, ...]
    devices: int
    bytes: int
    turns: float
    loops: tuple[str, ...]
    source: str


# Operations that start nothing on a device.
_NO_LAUNCH = (
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
    "call", "after-all", "opt-barrier", "partition-id", "copy-done", "async-done",
)  # fmt: skip
# The bytes that XLA's cost model counts for a call.
_UNKNOWN = -1


@dataclass(frozen=True)
class _Operation:
    """One line of a computation, such as `%y = f32[8] add(%x, %x), metadata={...}`."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    line: str
    root: bool

    def attribute(self, name: str) -> str:
        """The computation that it names under this attribute."""
        (value,) = re.findall(rf"\b{name}=%([^\s,]+)", self.line)
        return value

    @property
    def source(self) -> str:
        found = re.search(r'op_name="([^"]*)"', self.line)
        return found[1] if found else ""


class HLO:
    """The text of an optimised program.

    - `calls`: each with its turns, which is how often it runs.
    - `fused_calls`: calls of kernels whose operands are slices of arrays, which XLA then passes
        where they are, in one operation with the call.
    - `launches`: how many operations run, those of loops as often as they run.
    - `loops`: for each the name of its body, its turns, and the turns of what is around it.

    `iterations` are the turns of a loop if the program does not say how many it has.
    """

    def __init__(self, text: str, iterations: float = math.nan):
        self._text: dict[str, list[str]] = {}
        self._computations: dict[str, dict[str, _Operation]] = {}
        lines: list[str] = []
        operations: dict[str, _Operation] = {}
        for line in text.split("\n"):
            if header := re.match(r"(ENTRY )?%(\S+) \(.*\{$", line):
                lines = self._text[header[2]] = []
                operations = self._computations[header[2]] = {}
                if header[1]:
                    self._entry = header[2]
            lines.append(re.sub(r", metadata=\{[^{}]*\}", "", line.removeprefix("ENTRY ")))
            if operation := _operation(line):
                operations[operation.name] = operation
        self.calls: list[tuple[Call, float]] = []
        self.fused_calls: list[Call] = []
        self.loops: list[tuple[str, float, float]] = []
        self.launches = 0.0
        self._on_chip: list[tuple[int, float]] = []
        self._collectives: list[tuple[_Operation, int, float, tuple[str, ...]]] = []
        self._iterations = iterations
        self._visit(self._entry, 1, ())

    def _visit(self, computation: str, turns: float, loops: tuple[str, ...]) -> None:
        operations = self._computations[computation]
        for each in operations.values():
            self._on_chip.append((_on_chip_bytes(each, operations), turns))
            self.launches += turns * (each.opcode not in _NO_LAUNCH)
            if each.opcode == "custom-call":
                self.calls.append((_call(each, operations), turns))
            elif each.opcode == "while":
                count = _trip_count(each, operations, self._computations)
                inner = turns * (self._iterations if math.isnan(count) else count)
                self.loops.append((each.attribute("body"), inner, turns))
                for part in ("condition", "body"):
                    self._visit(each.attribute(part), inner, (*loops, each.source))
            elif each.opcode == "call":
                self._visit(each.attribute("to_apply"), turns, loops)
            elif each.opcode == "async-start":
                self._visit(each.attribute("calls"), turns, loops)
            elif each.opcode == "conditional":
                for branch in _branches(each.line):
                    self._visit(branch, turns, loops)
            elif each.opcode == "fusion":
                # What a fusion calls is not a call, but it may hold a kernel or a collective.
                fused = self._computations[each.attribute("calls")]
                for inner in fused.values():
                    if inner.opcode == "custom-call":
                        call = _call(inner, fused)
                        self.fused_calls += [call] * (call.target in KERNEL_CALLS.values())
                    if not _was_started_elsewhere(inner, fused):
                        self._collect(inner, fused, turns, loops)
            else:
                self._collect(each, operations, turns, loops)

    def _collect(
        self,
        operation: _Operation,
        operations: Mapping[str, _Operation],
        turns: float,
        loops: tuple[str, ...],
    ) -> None:
        if operation.opcode.removesuffix("-start") in _COLLECTIVES:
            size = _size(_result(operation, operations))
            self._collectives.append((operation, size, turns, loops))

    def collectives(self, axes: Mapping[str, int]) -> Iterator[Collective]:
        """The collectives on a mesh whose devices are numbered in order."""
        for each, size, turns, loops in self._collectives:
            groups = _groups(each.line)
            yield Collective(
                each.opcode.removesuffix("-start"),
                _axes_of(groups, axes),
                groups.shape[1],
                size,
                turns,
                loops,
                each.source,
            )

    def bytes_accessed(self) -> int:
        total = self._model(self._entry)
        # The model counts one turn for every loop.
        total += sum((inner - outer) * self._model(body) for body, inner, outer in self.loops)
        total += sum(turns * (call.bytes_accessed - _UNKNOWN) for call, turns in self.calls)
        # Nor does it know that a TPU keeps some arrays in its vector memory.
        total -= sum(turns * size for size, turns in self._on_chip)
        if math.isnan(total):
            raise ValueError("the program does not say how often one of its loops runs")
        return round(total)

    def _model(self, computation: str) -> float:
        """The cost model's bytes of a computation."""
        lines = ["HloModule model"]
        for name, (header, *body) in self._text.items():
            lines += ["ENTRY " + header if name == computation else header, *body]
        module = _hlo.hlo_module_from_text("\n".join(lines))
        costs = _jax.hlo_module_cost_analysis(get_backend("cpu"), module)
        return costs.get("bytes accessed", 0.0)


def _operation(line: str) -> _Operation | None:
    found = re.match(r"  (ROOT )?%(\S+) = (.*?) ([a-z][\w-]*)\((.*?)\)", line)
    if found is None:
        return None
    root, name, type_, opcode, operands = found.groups()
    return _Operation(
        name, type_, opcode, tuple(re.findall(r"%([^\s,]+)", operands)), line, bool(root)
    )


def _on_chip_bytes(operation: _Operation, operations: Mapping[str, _Operation]) -> int:
    """Bytes that the cost model counts for an operation although they stay in vector memory."""
    if operation.opcode == "copy-done":  # counted once more, after the start of the copy
        return 2 * _size(operation.type)
    if operation.opcode in ("copy", "copy-start"):
        # The type of a start is a tuple: the copy, the original, and a token.
        types = (
            operation.type.removeprefix("(").partition("}, ")[0],
            *(operations[x].type for x in operation.operands),
        )
        return sum(_size(x, on_chip=True) for x in types)
    # The model knows that other operations may read or write a part of an array only.
    return 0


def _branches(line: str) -> list[str]:
    if found := re.search(r"branch_computations=\{(.*?)\}", line):
        return re.findall(r"%([^\s,]+)", found[1])
    return re.findall(r"\b(?:true|false)_computation=%([^\s,]+)", line)


def _was_started_elsewhere(collective: _Operation, fused: Mapping[str, _Operation]) -> bool:
    """Whether a fused collective was started in another fusion.

    A TPU runs a collective during several fusions, and each of them names it again.
    """
    starts = (each for each in fused.values() if '"AsyncCollectiveStart"' in each.line)
    return "chain_id=" in collective.line and not any(
        collective.name in each.operands for each in starts
    )


def _result(collective: _Operation, operations: Mapping[str, _Operation]) -> str:
    """The type of the collective's result; for an asynchronous one, that of its end."""
    if not collective.opcode.endswith("-start"):
        return collective.type
    done = f"{collective.opcode.removesuffix('-start')}-done"
    (result,) = (
        each.type
        for each in operations.values()
        if each.opcode == done and collective.name in each.operands
    )
    return result


def _trip_count(
    loop: _Operation,
    operations: Mapping[str, _Operation],
    computations: Mapping[str, Mapping[str, _Operation]],
) -> float:
    """How often a loop runs; NaN if it is not `while (i < n) i += k` with known numbers."""
    if count := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.line):
        return int(count[1])
    condition = computations[loop.attribute("condition")]
    body = computations[loop.attribute("body")]
    initial, test, results = operations[loop.operands[0]], _root(condition), _root(body)
    if (initial.opcode, test.opcode, results.opcode) != ("tuple", "compare", "tuple"):
        return math.nan

    def at_start(operation: _Operation) -> int | None:
        """The value of an operation of the condition or of the body in the first turn."""
        index = _element(operation)
        if index is not None:
            operation = _origin(initial.operands[index], operations)
        found = re.search(r" constant\((-?\d+)\)", operation.line)
        return int(found[1]) if found else None

    counter, bound = (_origin(name, condition) for name in test.operands)
    index = _element(counter)
    if index is None or "direction=LT" not in test.line:
        return math.nan
    add = _origin(results.operands[index], body)
    if add.opcode != "add" or _element(_origin(add.operands[0], body)) != index:
        return math.nan
    start, end, step = map(at_start, (counter, bound, _origin(add.operands[1], body)))
    if start is None or end is None or not step:
        return math.nan
    return max(0, math.ceil((end - start) / step))


def _root(computation: Mapping[str, _Operation]) -> _Operation:
    (root,) = (each for each in computation.values() if each.root)
    return root


def _origin(name: str, computation: Mapping[str, _Operation]) -> _Operation:
    """The operation that a value comes from, past all copies."""
    operation = computation[name]
    while operation.opcode in ("copy", "copy-start", "copy-done", "bitcast"):
        operation = computation[operation.operands[0]]
    return operation


def _element(operation: _Operation) -> int | None:
    """The index of the element that it reads from a loop's tuple; `None` if it reads none."""
    found = re.search(r" get-tuple-element\(.*?\), index=(\d+)", operation.line)
    return int(found[1]) if found else None


def _groups(line: str) -> np.ndarray:
    """The devices of a collective, with a row for each group, or for each pair of a permute."""
    if pairs := re.search(r"source_target_pairs=\{(\{.*?\})\}", line):
        return _rows(pairs[1])
    if listed := re.search(r"replica_groups=\{(\{.*?\})\}", line):
        return _rows(listed[1])
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=(\[.*?), \w+=", line):
        return _iota(iota[2]).reshape(_integers(iota[1]))
    if named := re.search(
        r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?)\))? \{(.*?)\}", line
    ):
        return _groups_of_axes(*named.groups())
    raise ValueError(f"the groups of a collective are in an unknown syntax: {line.strip()[:300]}")


def _rows(listed: str) -> np.ndarray:
    """Groups that are listed, such as `{0,1},{2,3}`."""
    return np.array([_integers(row) for row in re.findall(r"\{([\d,]+)\}", listed)])


def _iota(text: str) -> np.ndarray:
    """All devices in an order, such as `[8]` or `[4,2]T(1,0)`."""
    shape, transposed = re.findall(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)[0]
    devices = np.arange(math.prod(_integers(shape))).reshape(_integers(shape))
    return devices.transpose(_integers(transposed) or None).reshape(-1)


def _groups_of_axes(mesh: str, order: str | None, grouped: str) -> np.ndarray:
    """Groups along named axes, such as `'seq'` of the mesh `'data'=2,'seq'=4`.

    An axis may be split into digits: `'seq':(2)2` is the digit of size 2 after digits of size 2 in
    all. Names and sizes may differ from those of the program's mesh.
    """
    sizes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", mesh)}
    shape = tuple(sizes.values())
    devices = np.arange(math.prod(shape))
    if order:
        devices = _iota(order) if "[" in order else np.array(_integers(order))
    coordinates = np.unravel_index(np.arange(len(devices)), shape)
    first = dict(zip(sizes, coordinates, strict=True))
    for name, before, part in re.findall(r"'([^']*)'(?::\((\d+)\)(\d+))?", grouped):
        after = sizes[name] // (int(before or 1) * int(part or sizes[name]))
        digit = coordinates[list(sizes).index(name)] // after % int(part or sizes[name])
        first[name] = first[name] - digit * after
    # The devices of a group share their first device.
    group = np.ravel_multi_index(tuple(first.values()), shape)
    return devices[np.argsort(group, kind="stable")].reshape(len(np.unique(group)), -1)


def _axes_of(groups: np.ndarray, axes: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes along which the devices of some group differ."""
    coordinates = np.unravel_index(groups, tuple(axes.values()))
    return tuple(
        name for name, each in zip(axes, coordinates, strict=True) if np.any(each != each[:, :1])
    )


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(",") if n)


def _call(operation: _Operation, operations: Mapping[str, _Operation]) -> Call:
    line = operation.line
    # An operand that is passed twice is counted once: the second is a placeholder.
    types = [operation.type, *(operations[x].type for x in set(operation.operands))]
    size = sum(_size(x) - _size(x, on_chip=True) for x in types)
    target: str = re.findall(r'custom_call_target="(.*?)"', line)[0]
    vmem = re.search(
        r'"used_scoped_memory_configs":\[\{"memory_space":"1","offset":"\d+","size":"(\d+)"', line
    )
    vmem_bytes = int(vmem[1]) if vmem else None
    return Call(KERNEL_CALLS.get(target, target), operation.source, size, vmem_bytes)


def _size(type_: str, *, on_chip: bool = False) -> int:
    """Bytes of an array or of a tuple of arrays, such as "(f32[8,128]{1,0}, pred[])"; only of those
    in a TPU's vector memory, such as "f32[8,128]{1,0:S(1)}", if `on_chip`."""
    bits = 0
    for dtype, shape, layout in re.findall(r"\b([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?", type_):
        if on_chip and "S(1)" not in layout:
            continue
        width = re.search(r"\d+", dtype)
        bits += (int(width[0]) if width else 8) * math.prod(int(n) for n in shape.split(",") if n)
    return bits // 8
