"""The resources that the GPU kernels of a compiled program take, as the assembler reports them."""

import importlib.util
import math
import os
import re
import shutil
import subprocess
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Kernel:
    """The resources of a GPU kernel.

    - `blocks`: blocks of a launch; `threads`: threads of a block.
    - `shared_memory`: bytes for one block.
    - `registers`: registers of one thread.
    - `spills`: bytes that one thread stores to memory, and loads again, for lack of registers.
    """

    name: str
    blocks: int
    threads: int
    shared_memory: int
    registers: int
    spills: int


def mosaic_kernel(log: Path) -> Kernel:
    """The kernel whose dump has this log of the assembler."""
    passes = log.with_suffix(".mlir-passes.log").read_text()
    # Such as "blocks(...) in (%x = %c1, ...) threads(...) in (...) dynamic_... %c8_i32".
    launch = re.findall(r"gpu\.launch .*dynamic_shared_memory_size %c\d+_", passes)[-1]
    blocks, threads = (
        math.prod(
            map(
                int, re.findall(r"= %c(\d+)", re.findall(rf"{word}\(.*?\) in \((.*?)\)", launch)[0])
            )
        )
        for word in ("blocks", "threads")
    )
    shared_memory = re.findall(r"dynamic_shared_memory_size %c(\d+)_", launch)[-1]
    return _kernel(log.read_text(), blocks, threads, int(shared_memory))


def triton_kernel(payload: str) -> Kernel:
    """The kernel in the payload of a call, assembled once more."""
    escapes = rb"\\([0-9A-F]{2}|.)"
    compressed = re.sub(
        escapes,
        lambda found: bytes.fromhex(found[1].decode()) if len(found[1]) == 2 else found[1],
        payload.encode(),
    )
    # The messages of jaxlib's triton.proto: a call holds one kernel.
    message: Any = _protobuf(zlib.decompress(compressed))
    call = _protobuf(message[1])
    kernel = _protobuf(call[1])
    blocks = math.prod(call.get(axis, 1) for axis in (2, 3, 4))
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_bytes(kernel[4])
        (architecture,) = re.findall(r"^\.target (\w+)", kernel[4].decode(), re.MULTILINE)
        log = subprocess.run(
            [str(ptxas()), "--verbose", f"--gpu-name={architecture}", "kernel.ptx"],
            cwd=folder, capture_output=True, text=True, check=True,
        ).stderr  # fmt: skip
    return _kernel(log, blocks, 32 * kernel[2], kernel.get(3, 0))


def _kernel(log: str, blocks: int, threads: int, dynamic_shared_memory: int) -> Kernel:
    """The kernel that a log of `ptxas --verbose` describes."""
    (name,) = re.findall(r"Compiling entry function '(.*?)'", log)
    (registers,) = re.findall(r"Used (\d+) registers", log)
    spills = re.findall(r"(\d+) bytes spill", log)
    static = re.search(r"(\d+) bytes smem", log)
    shared_memory = dynamic_shared_memory + (int(static[1]) if static else 0)
    return Kernel(name, blocks, threads, shared_memory, int(registers), sum(map(int, spills)))


def _protobuf(message: bytes) -> dict[int, Any]:
    """The last value of each field of a message: an integer, or bytes for strings and messages."""

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


def ptxas() -> str | None:
    """The path of `ptxas`, looked for where XLA does: on the path, in CUDA's folder, in NVIDIA's
    wheel."""
    folders = [os.environ.get("PATH", ""), "/usr/local/cuda/bin"]
    wheel = importlib.util.find_spec("nvidia.cu13") if importlib.util.find_spec("nvidia") else None
    if wheel is not None:
        folders += [f"{folder}/bin" for folder in wheel.submodule_search_locations or ()]
    return shutil.which("ptxas", path=os.pathsep.join(folders))
