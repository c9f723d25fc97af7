"""Programs compiled for absent devices.

The full toolchain of the device runs, down to machine code: XLA with the passes for the device, and
the compilers of the kernels. It needs `JAX_PLATFORMS=cpu` in the environment, and the packages of
the extra `aot`.
"""

import contextlib
import importlib.util
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .._target import known_capability
from ._gpu_kernels import mosaic_kernel, ptxas
from ._program import Program


@dataclass(frozen=True)
class _GPU:
    """A GPU as XLA describes it. Sizes are in bytes, the bandwidth in bytes per second."""

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
    "b200": _GPU(
        "NVIDIA B200", (10, 0), cores=148, fpus_per_core=128, clock_ghz=1.965,
        memory=191_514_411_008, memory_bandwidth=7_672_320_000_000, l2_cache=132_644_864,
        shared_memory_per_core=233_472, shared_memory_per_block=232_448,
    ),
}  # fmt: skip
_TPUS = {"v4": "1x1x1", "v5e": "1x1", "v5p": "1x1x1", "v6e": "1x1"}
"""The smallest topology of each."""
_GPUS_PER_HOST = 8

_ASSEMBLED_FOR: list[str] = []
"""The GPU for which this process has assembled kernels of Mosaic GPU, if it has."""

# Without these, libtpu asks a metadata server, which does not exist here, which TPU it runs on, and
# only one process on a machine can load it.
_TPU_ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


def target_shape(target: str) -> tuple[str, tuple[int, ...]]:
    """The kind and the shape of a target: `("v5e", (4, 4))` for `"v5e:4x4"`.

    A target without a shape, which is one device, has the shape `()`.

    **Raises:** `ValueError` if there is no such target.
    """
    name, colon, shape = target.partition(":")
    if name not in (*_GPUS, *_TPUS, "cpu"):
        raise ValueError(f"target must be one of {[*_GPUS, *_TPUS, 'cpu']}, got {target!r}")
    if not colon:
        return name, ()
    rank = _TPUS[name].count("x") + 1 if name in _TPUS else 1
    sizes = shape.split("x")
    if len(sizes) != rank or not all(each.isdecimal() and int(each) > 0 for each in sizes):
        example = f"{name}:" + "x".join(["4"] * rank if rank > 1 else ["8"])
        raise ValueError(f"target {target!r} has no such shape; write it like {example!r}")
    return name, tuple(map(int, sizes))


def missing(target: str) -> str | None:
    """Why this machine cannot compile for the target, or `None`."""
    name, shape = target_shape(target)
    if name == "cpu":
        here = jax.local_device_count("cpu")
        wanted = math.prod(shape)
        return f"needs JAX_NUM_CPU_DEVICES={wanted}: there are {here}" if wanted > here else None
    if not jax.config.jax_platforms:
        return "needs JAX_PLATFORMS=cpu in the environment"
    if name in _TPUS:
        lacking = [] if importlib.util.find_spec("libtpu") else ["libtpu"]
    else:
        lacking = [] if importlib.util.find_spec("jax_cuda13_plugin") else ["jax-cuda13-plugin"]
        lacking += [] if ptxas() else ["ptxas"]
    return f"needs {', '.join(lacking)}: install rnnscale[aot]" if lacking else None


def target_devices(target: str) -> list[Any]:
    """The devices of a target: `"h100"` or `"v5e"` is one, `"h100:8"` eight, `"v5e:4x4"` a slice.

    The GPUs are `"a100"`, `"h100"`, `"h200"` and `"b200"`, eight on a host; the TPUs are `"v4"`,
    `"v5e"`, `"v5p"` and `"v6e"`. Programs can be compiled for them, but they cannot run a program
    or hold an array. A process that has asked for an absent TPU cannot use a present one any more.
    `"cpu:8"` is eight devices of the CPU, which do run.

    **Raises:** `ValueError` if there is no such target; `RuntimeError` if `missing` gives a reason.
    """
    name, shape = target_shape(target)
    if (reason := missing(target)) is not None:
        raise RuntimeError(f"cannot compile for {target!r}: {reason}")
    if name == "cpu":
        return jax.local_devices(backend="cpu")[: math.prod(shape)]
    if name in _TPUS:
        return _tpus(target, name, shape)
    (count,) = shape or (1,)
    per_host = min(count, _GPUS_PER_HOST)
    if count % per_host:
        raise ValueError(f"target {target!r}: more than 8 GPUs must be a multiple of 8")
    return topologies.get_topology_desc(
        platform="cuda",
        topology_name=name,
        target_config=_GPUS[name].config(),
        topology=f"1x{count // per_host}x{per_host}",
    ).devices


def _tpus(target: str, name: str, shape: tuple[int, ...]) -> list[Any]:
    smallest = _TPUS[name]
    options = {} if shape else {"chips_per_host_bounds": (1, 1, 1)}
    topology = "x".join(map(str, shape)) or smallest
    with _environment({x: os.environ.get(x, y) for x, y in _TPU_ENVIRONMENT.items()}):
        try:
            devices = topologies.get_topology_desc(
                platform="tpu", topology_name=f"{name}:{topology}", **options
            ).devices
        except jax.errors.JaxRuntimeError as error:
            raise ValueError(f"target {target!r}: there is no such slice: {error}") from error
    return devices if shape else devices[:1]


def shared_memory_limit(target: str) -> int:
    """Bytes of shared memory that one block of a GPU can have.

    **Raises:** `ValueError` if there is no such target.
    """
    return _GPUS[target_shape(target)[0]].shared_memory_per_block


def compile_for(function: Callable[..., Any], *arguments: Any, target: str | Mesh) -> Program:
    """Compiles `function` for an absent device, and reads its kernels back.

    **Arguments:**

    - `function`: a function. If it is jitted, the arguments that it donates are donated.
    - `arguments`: trees of `jax.ShapeDtypeStruct`. One without a sharding is replicated.
    - `target`: a target of `target_devices`, or a mesh of such devices, which is then the ambient
        mesh.

    **Raises:** `RuntimeError` if kernels of Mosaic GPU were compiled for another architecture in
    this process: jaxlib keeps the first one.
    """
    mesh = target
    if isinstance(mesh, str):
        mesh = Mesh(np.array(target_devices(mesh)), ("devices",))
    # Mosaic GPU reports the resources of a kernel in a folder of dumps only.
    with tempfile.TemporaryDirectory() as folder, _environment({"MOSAIC_GPU_DUMP_TO": folder}):
        try:
            compiled = compile_on(mesh, function, *arguments)
        except jax.errors.JaxRuntimeError as error:
            here = mesh.devices.flat[0].device_kind
            capability = known_capability(here)  # of a GPU
            for first in _ASSEMBLED_FOR:
                if capability not in (None, known_capability(first)):
                    raise RuntimeError(
                        f"this process has compiled kernels of Mosaic GPU for {first}, and jaxlib "
                        "assembles them for one architecture only in a process: compile for "
                        f"{here} in a process of its own"
                    ) from error
            raise
        kernels = tuple(mosaic_kernel(path) for path in sorted(Path(folder).glob("*.ptxas")))
    if kernels and not _ASSEMBLED_FOR:
        _ASSEMBLED_FOR.append(mesh.devices.flat[0].device_kind)
    return Program(compiled, mesh, kernels)


def compile_on(mesh: Mesh, function: Callable[..., Any], *arguments: Any) -> jax.stages.Compiled:
    """Compiles `function` as `compile_for` does, without reading the kernels back."""
    platform: str = mesh.devices.flat[0].platform

    def place(x):
        sharding = x.sharding or NamedSharding(mesh, PartitionSpec())
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    arguments = jax.tree.map(place, arguments)
    with jax.set_mesh(mesh):
        # Wrapped in a new function, because JAX does not lower the same function twice.
        own = jax.jit(
            lambda *arguments: function(*arguments), donate_argnums=_donated(function, arguments)
        )
        return (
            own.trace(*arguments)
            .lower(lowering_platforms=({"gpu": "cuda"}.get(platform, platform),))
            .compile()
        )


def _donated(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[int, ...]:
    if not isinstance(function, jax.stages.Wrapped):
        return ()
    infos, _ = function.trace(*arguments).args_info
    return tuple(
        index
        for index, info in enumerate(infos)
        if any(leaf.donated for leaf in jax.tree.leaves(info))
    )


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
