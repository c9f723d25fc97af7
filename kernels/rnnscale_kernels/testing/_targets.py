"""Programs compiled for devices that are not here, and what can be read back from them.

The whole tool chain of the device runs, up to its machine code: XLA with the device's own passes,
and the compilers of the kernels. `JAX_PLATFORMS=cpu` has to be in the environment, and the packages
of the extra `aot` installed.
"""

import contextlib
import importlib.util
import math
import os
import re
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.extend.backend import get_backend
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxlib import _hlo, _jax  # pyright: ignore[reportAttributeAccessIssue]


@dataclass(frozen=True)
class _GPU:
    kind: str
    capability: tuple[int, int]
    cores: int
    fpus_per_core: int
    clock_ghz: float
    memory: int
    memory_bandwidth: int
    l2_cache: int
    shared_memory_per_core: int
    shared_memory_per_block: int

    def config(self) -> str:
        """The description that XLA compiles for."""
        major, minor = self.capability
        return f"""
            platform_name: "CUDA"
            device_description_str: "{self.kind}"
            dnn_version_info {{ major: 9 minor: 12 }}
            gpu_device_info {{
              cuda_compute_capability {{ major: {major} minor: {minor} }}
              core_count: {self.cores} fpus_per_core: {self.fpus_per_core}
              clock_rate_ghz: {self.clock_ghz}
              device_memory_size: {self.memory} memory_bandwidth: {self.memory_bandwidth}
              l2_cache_size: {self.l2_cache}
              shared_memory_per_core: {self.shared_memory_per_core}
              shared_memory_per_block_optin: {self.shared_memory_per_block}
              shared_memory_per_block: 49152
              threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
              registers_per_core_limit: 65536 registers_per_block_limit: 65536
              block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
            }}"""


_GPUS = {
    "a100": _GPU(
        "NVIDIA A100-SXM4-80GB", (8, 0), cores=108, fpus_per_core=64, clock_ghz=1.41,
        memory=85_899_345_920, memory_bandwidth=2_039_000_000_000, l2_cache=41_943_040,
        shared_memory_per_core=167_936, shared_memory_per_block=166_912,
    ),
    "h100": _GPU(
        "NVIDIA H100 80GB HBM3", (9, 0), cores=132, fpus_per_core=128, clock_ghz=1.98,
        memory=84_942_979_072, memory_bandwidth=3_352_320_000_000, l2_cache=52_428_800,
        shared_memory_per_core=233_472, shared_memory_per_block=232_448,
    ),
    "h200": _GPU(
        "NVIDIA H200", (9, 0), cores=132, fpus_per_core=128, clock_ghz=1.98,
        memory=150_754_820_096, memory_bandwidth=4_800_000_000_000, l2_cache=62_914_560,
        shared_memory_per_core=233_472, shared_memory_per_block=232_448,
    ),
}  # fmt: skip
_TPUS = {"v4": "1x1x1", "v5e": "1x1", "v5p": "1x1x1", "v6e": "1x1"}
"""The smallest topology of each."""

# Without these libtpu asks a metadata server that is not there which TPU it is on, and lets only
# one process of a machine load it.
_TPU_ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}

KERNEL_CALLS = {
    "mosaic_gpu_v2": "mosaic_gpu",
    "triton_kernel_call_ffi": "triton",
    "tpu_custom_call": "mosaic_tpu",
}
"""The custom calls of kernels written by hand, and the implementations that make them."""


def missing(target: str) -> str | None:
    """Why nothing can be compiled for the target here, or `None`."""
    name, _ = _parse(target)
    if not jax.config.jax_platforms:
        return "needs JAX_PLATFORMS=cpu in the environment"
    if name in _TPUS:
        lacking = [] if importlib.util.find_spec("libtpu") else ["libtpu"]
    else:
        lacking = [] if importlib.util.find_spec("jax_cuda13_plugin") else ["jax-cuda13-plugin"]
        lacking += [] if _ptxas() else ["ptxas"]
    return f"needs {', '.join(lacking)}: install rnnscale[aot]" if lacking else None


def target_devices(target: str) -> list[Any]:
    """The devices of a target: `"h100"` or `"v5e"` is one, `"h100:8"` eight, `"v5e:4x4"` a slice.

    The GPUs are `"a100"`, `"h100"` and `"h200"`, eight a host; the TPUs `"v4"`, `"v5e"`, `"v5p"`
    and `"v6e"`. They can be compiled for, and cannot run or hold anything. A process that has asked
    for an absent TPU can use none that is there.
    """
    name, shape = _parse(target)
    if (reason := missing(target)) is not None:
        raise RuntimeError(f"cannot compile for {target!r}: {reason}")
    if name in _TPUS:
        options = {} if shape else {"chips_per_host_bounds": (1, 1, 1)}
        with _environment({x: os.environ.get(x, y) for x, y in _TPU_ENVIRONMENT.items()}):
            devices = topologies.get_topology_desc(
                platform="tpu", topology_name=f"{name}:{shape or _TPUS[name]}", **options
            ).devices
        return devices if shape else devices[:1]
    count = int(shape or 1)
    per_host = min(count, 8)
    if count % per_host:
        raise ValueError(f"target {target!r}: more than 8 GPUs must be a multiple of 8")
    return topologies.get_topology_desc(
        platform="cuda",
        topology_name=name,
        target_config=_GPUS[name].config(),
        topology=f"1x{count // per_host}x{per_host}",
    ).devices


def shared_memory_limit(target: str) -> int:
    """Bytes of shared memory that one block of a GPU can have."""
    return _GPUS[_parse(target)[0]].shared_memory_per_block


def compile_for(function: Callable[..., Any], *arguments: Any, target: str | Mesh) -> "Program":
    """Compiles `function` for a device that is not here.

    **Arguments:**

    - `arguments`: trees of `jax.ShapeDtypeStruct`. One without a sharding is replicated.
    - `target`: as in `target_devices`, or a mesh of such devices, which is then the ambient mesh.
    """
    mesh = target
    if isinstance(mesh, str):
        mesh = Mesh(np.array(target_devices(mesh)), ("devices",))
    platform = {"gpu": "cuda"}.get(mesh.devices.flat[0].platform, "tpu")

    def place(x):
        sharding = x.sharding or NamedSharding(mesh, PartitionSpec())
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    arguments = jax.tree.map(place, arguments)
    # Mosaic GPU says what a kernel takes in a folder of dumps only.
    with tempfile.TemporaryDirectory() as folder, jax.set_mesh(mesh):
        with _environment({"MOSAIC_GPU_DUMP_TO": folder}):
            # A function of its own: jax would know one it has seen before, and lower it no more.
            traced = jax.jit(lambda *arguments: function(*arguments)).trace(*arguments)
            compiled = traced.lower(lowering_platforms=(platform,)).compile()
        kernels = tuple(_mosaic_kernel(path) for path in sorted(Path(folder).glob("*.ptxas")))
    return Program(compiled, kernels)


@dataclass(frozen=True)
class Kernel:
    """What a GPU kernel takes.

    - `shared_memory`: bytes a block.
    - `registers`: of one thread.
    - `spills`: bytes that one thread stores to memory for want of registers, and loads again.
    """

    name: str
    shared_memory: int
    registers: int
    spills: int


@dataclass(frozen=True)
class Call:
    """A call of code that XLA has not generated.

    - `target`: the implementation that a kernel written by hand belongs to, else XLA's name.
    - `bytes_accessed`: of its operands and results, each accessed once.
    - `vmem`: bytes of a TPU's vector memory that the kernel takes.
    """

    target: str
    bytes_accessed: int
    vmem: int | None


class Program:
    """A compiled program, and what can be read back from it. Sizes are of one device.

    - `compiled`: the `jax.stages.Compiled`.
    - `text`: the program after all of XLA's passes.
    - `calls`: what it calls besides XLA's own code.
    - `kernels`: the GPU kernels written by hand that it contains.
    """

    def __init__(self, compiled: jax.stages.Compiled, mosaic_kernels: tuple[Kernel, ...]):
        self.compiled = compiled
        self.text: str = compiled.as_text() or ""
        self._hlo = _HLO(self.text)
        self.calls = tuple(call for call, _ in self._hlo.calls)
        payloads = re.findall(r'"triton_kernel_call_ffi".*\bopaque = "(.*?)"', self.text)
        self.kernels = mosaic_kernels + tuple(map(_triton_kernel, payloads))

    @property
    def temporaries(self) -> int:
        """Bytes of all buffers besides arguments and results."""
        sizes: Any = self.compiled.memory_analysis()
        return sizes.temp_size_in_bytes

    def bytes_accessed(self) -> int:
        """Bytes that all operations read and write, by XLA's generic cost model.

        Every operation reads its operands from memory and writes its results there: caches are left
        out. The model knows neither the turns of a loop nor what a call does, so here a loop counts
        as often as it runs, and a call reads its operands and writes its results once.

        **Raises:** `ValueError` where the program does not say how often a loop runs.
        """
        return self._hlo.bytes_accessed()


# What XLA's cost model takes for the bytes of a call.
_UNKNOWN = -1


class _HLO:
    """The text of an optimised program.

    - `calls`: each with its turns, which is how often it runs.
    - `loops`: of each the name of its body, its turns, and the turns of what it stands in.
    """

    def __init__(self, text: str):
        self._computations: dict[str, list[str]] = {}
        lines = []
        for line in text.split("\n"):
            if header := re.match(r"(ENTRY )?%(\S+) \(.*\{$", line):
                lines = self._computations[header[2]] = []
                if header[1]:
                    self._entry = header[2]
            lines.append(re.sub(r", metadata=\{[^{}]*\}", "", line.removeprefix("ENTRY ")))
        self.calls: list[tuple[Call, float]] = []
        self.loops: list[tuple[str, float, float]] = []
        self._visit(self._entry, 1)

    def _visit(self, computation: str, turns: float) -> None:
        sizes = {}
        for line in self._computations[computation]:
            found = re.match(r"  (?:ROOT )?%(\S+) = (.*?) ([a-z][\w-]*)\((.*?)\)", line)
            if found is None:
                continue
            name, type_, opcode, operands = found.groups()
            sizes[name] = _size(type_)
            if opcode == "custom-call":
                # One that is passed twice stands in where another would be unused.
                once = set(re.findall(r"%([^\s,]+)", operands))
                size = sizes[name] + sum(sizes[operand] for operand in once)
                self.calls.append((_call(line, size), turns))
            elif opcode == "while":
                count = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line)
                inner = turns * (int(count[1]) if count else math.nan)
                self.loops.append((_attribute(line, "body"), inner, turns))
                self._visit(_attribute(line, "body"), inner)
            elif opcode == "call":
                self._visit(_attribute(line, "to_apply"), turns)

    def bytes_accessed(self) -> int:
        total = self._model(self._entry)
        # The model takes every loop for one turn.
        total += sum((inner - outer) * self._model(body) for body, inner, outer in self.loops)
        total += sum(turns * (call.bytes_accessed - _UNKNOWN) for call, turns in self.calls)
        if math.isnan(total):
            raise ValueError("the program does not say how often one of its loops runs")
        return round(total)

    def _model(self, computation: str) -> float:
        """The cost model's bytes of a computation."""
        lines = ["HloModule model"]
        for name, (header, *body) in self._computations.items():
            lines += ["ENTRY " + header if name == computation else header, *body]
        module = _hlo.hlo_module_from_text("\n".join(lines))
        costs = _jax.hlo_module_cost_analysis(get_backend("cpu"), module)
        return costs.get("bytes accessed", 0.0)


def _attribute(line: str, name: str) -> str:
    (value,) = re.findall(rf"\b{name}=%([^\s,]+)", line)
    return value


def _call(line: str, size: int) -> Call:
    target: str = re.findall(r'custom_call_target="(.*?)"', line)[0]
    vmem = re.search(
        r'"used_scoped_memory_configs":\[\{"memory_space":"1","offset":"\d+","size":"(\d+)"', line
    )
    return Call(KERNEL_CALLS.get(target, target), size, int(vmem[1]) if vmem else None)


def _size(type_: str) -> int:
    """Bytes of an array or of a tuple of arrays, such as "(f32[8,128]{1,0}, pred[])"."""
    bits = 0
    for dtype, shape in re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", type_):
        width = re.search(r"\d+", dtype)
        bits += (int(width[0]) if width else 8) * math.prod(int(n) for n in shape.split(",") if n)
    return bits // 8


def _mosaic_kernel(log: Path) -> Kernel:
    passes = log.with_suffix(".mlir-passes.log").read_text()
    shared_memory = re.findall(r"dynamic_shared_memory_size %c(\d+)_", passes)[-1]
    return _kernel(log.read_text(), int(shared_memory))


def _triton_kernel(payload: str) -> Kernel:
    escapes = rb"\\([0-9A-F]{2}|.)"
    compressed = re.sub(
        escapes,
        lambda found: bytes.fromhex(found[1].decode()) if len(found[1]) == 2 else found[1],
        payload.encode(),
    )
    # The messages of jaxlib's triton.proto: a call holds one kernel.
    message: Any = _protobuf(zlib.decompress(compressed))
    kernel = _protobuf(_protobuf(message[1])[1])
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_bytes(kernel[4])
        (architecture,) = re.findall(r"^\.target (\w+)", kernel[4].decode(), re.MULTILINE)
        log = subprocess.run(
            [str(_ptxas()), "--verbose", f"--gpu-name={architecture}", "kernel.ptx"],
            cwd=folder, capture_output=True, text=True, check=True,
        ).stderr  # fmt: skip
    return _kernel(log, kernel.get(3, 0))


def _kernel(log: str, dynamic_shared_memory: int) -> Kernel:
    """What `ptxas --verbose` says of one kernel."""
    (name,) = re.findall(r"Compiling entry function '(.*?)'", log)
    (registers,) = re.findall(r"Used (\d+) registers", log)
    spills = re.findall(r"(\d+) bytes spill", log)
    static = re.search(r"(\d+) bytes smem", log)
    shared_memory = dynamic_shared_memory + (int(static[1]) if static else 0)
    return Kernel(name, shared_memory, int(registers), sum(map(int, spills)))


def _protobuf(message: bytes) -> dict[int, Any]:
    """The last value of every field: integers, and bytes for strings and messages."""

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    fields, at = {}, 0
    while at < len(message):
        key = varint()
        number = varint()
        if key & 7 == 2:
            number, at = message[at : at + number], at + number
        fields[key >> 3] = number
    return fields


def _ptxas() -> str | None:
    """Where XLA would find it, too: on the path, in CUDA's folder, or in NVIDIA's wheel."""
    folders = [os.environ.get("PATH", ""), "/usr/local/cuda/bin"]
    wheel = importlib.util.find_spec("nvidia.cu13") if importlib.util.find_spec("nvidia") else None
    if wheel is not None:
        folders += [f"{folder}/bin" for folder in wheel.submodule_search_locations or ()]
    return shutil.which("ptxas", path=os.pathsep.join(folders))


def _parse(target: str) -> tuple[str, str]:
    name, _, shape = target.partition(":")
    if name not in _GPUS and name not in _TPUS:
        raise ValueError(f"target must be one of {[*_GPUS, *_TPUS]}, got {target!r}")
    return name, shape


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
