"""Compiles every kernel for absent devices: bytes, registers, occupancy, predicted time.

A row is one call, forward or with its gradient, compiled to machine code for one device:

- `bytes` are those of the program by XLA's cost model, in which a kernel reads its operands and
    writes its results once. `minimal_bytes` are those if each sequence is moved once in each pass.
    A kernel that reads more has a `note`. A layer with more states than a kernel can keep on chip
    also moves its states; `minimal_bytes_with_states` includes them once in each pass.
- `kernels` are the assembler's figures: registers and spills of a thread, shared memory of a block.
    The number of blocks that fit on a multiprocessor follows from these, and from it the number of
    waves: a second wave that is nearly empty doubles the time.
- `vmem` is the vector memory of a TPU's kernel, the largest of all its calls.
- `predicted_us` is a prediction in microseconds; nothing was timed. It is the longer of two times,
    because they overlap: that of the matrix products, and that of all kernels and of the bytes
    that other operations move. Bytes take the bandwidth of a copy. A kernel takes the longer of
    its bytes and its walk: the waves, times the steps that a thread takes, times the clocks of a
    step. Each launch adds a constant, in loops too. The constants, `MODEL`, are assumptions
    (bandwidth, fraction of the peak); clocks were counted in machine code.

`--before FILE` keeps the rows of an earlier file that come from other commits, so that one file
has both.
"""

import argparse
import dataclasses
import json
import math
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

import rnnscale_kernels
from rnnscale.cli._cell_arguments import CellArguments
from rnnscale_kernels.testing import (
    KERNEL_CALLS,
    MODES,
    BlockArguments,
    CallArguments,
    Kernel,
    Program,
    ScanArguments,
    SSMArguments,
    compile_for,
    failure,
    target_devices,
)

from ._benchmark import Benchmark, Row, case_name, columns
from ._harness import require, target


@dataclasses.dataclass(frozen=True)
class Case:
    """A call to compile.

    - `implementation`: its name, or `None` for the default on the device.
    - `devices`: the targets that it is for; all if empty.
    - `clocks`: of one step of a thread that walks through time, counted in machine code.
    - `note`: what the figures do not say, such as arrays that the kernel itself reads twice.
    """

    arguments: CallArguments
    implementation: str | None = None
    devices: tuple[str, ...] = ()
    clocks: int | None = None
    note: str | None = None


GPU, TPU = ("h100",), ("v5e",)
BFLOAT16 = "bfloat16"


def scans() -> Iterator[Case]:
    for batch, length, channels, dtypes in (
        (8, 4096, 1024, ("float32", BFLOAT16)),
        (64, 1024, 512, ("float32",)),
        (1, 131072, 256, ("float32", BFLOAT16)),
        (5, 4096, 1024, (BFLOAT16,)),
        (1, 4096, 1024, ("float32",)),
        (1, 65536, 256, ("float32",)),
    ):
        for dtype in dtypes:
            for varying in (True, False):
                clocks = 27 if varying else 19
                if batch * channels < 8192:
                    # Time is split: a step is walked twice, and an exchange of totals takes about
                    # 1,200 clocks for 16 to 64 steps of a thread.
                    clocks += 37
                spec = ScanArguments((batch,), length, channels, varying=varying, dtype=dtype)
                yield Case(spec, clocks=clocks)
                if batch == 8:
                    yield Case(spec, "triton", GPU)
                if (batch, dtype) == (8, "float32"):
                    yield Case(dataclasses.replace(spec, planar=True), clocks=clocks)


def layers() -> Iterator[Case]:
    # The fused kernel of Hopper takes a tile of 64 steps in series. With 128 states the two
    # products take 1,024 clocks each, the walk 1,200, shared memory 1,300 for drive, narrow states
    # and y, and barriers 450; two segments of 64 states take 3,900 in all.
    for width, clocks in ((64, 61), (128, 78)):
        yield Case(SSMArguments((8,), 16384, width, width, width, dtype=BFLOAT16), clocks=clocks)
    # That of wide layers has tensor cores work during the walk. Shared memory limits it: a tile
    # takes 832 clocks with 16 states a block, 1,920 and 3,456 with 32 (`_mosaic_gpu_wide_plan`).
    for width, clocks in ((256, 208), (512, 240), (1024, 432)):
        spec = SSMArguments((8,), 16384, width, width, width, dtype=BFLOAT16)
        yield Case(
            spec, clocks=clocks, note="two blocks read the input together, from the L2 cache"
        )
    yield Case(SSMArguments((8,), 16384, 512, 512, 512, dtype=BFLOAT16), "unfused", clocks=27)
    for width in (256, 1024):
        layer = SSMArguments((8,), 16384, width, width, width, dtype=BFLOAT16)
        yield Case(layer, "unfused", TPU)
    yield Case(SSMArguments((1,), 65536, 512, 512, 512, dtype=BFLOAT16), devices=TPU)
    yield Case(SSMArguments((5,), 3000, 96, 200, 72, dtype=BFLOAT16), clocks=27)
    yield Case(SSMArguments((8,), 4096, 256, 256, 256), clocks=27)


def cells() -> Iterator[Case]:
    """The cells by the loop over time, with whatever kernel it chooses."""
    for name in ("indrnn", "paragru", "paralstm", "lrcssm", "unicornn"):
        yield Case(CellArguments(name, (8,), 4096, 256, 1024, dtype=BFLOAT16))
    # With the matrix on chip, a step takes about 16 clocks for each of its 64 to 112 products of a
    # warpgroup, and 1,800 for the rest: its other instructions, and the exchange. A thread has 8
    # numbers for each gate (64 units, 16 rows), or 16 (128 units).
    for name, width, products, units in (
        ("lstm", 128, 64, 16), ("lstm", 256, 64, 8), ("lstm", 384, 96, 8),
        ("gru", 448, 84, 8), ("elman", 640, 80, 16),
    ):  # fmt: skip
        arguments = CellArguments(name, (64,), 1024, 256, width, dtype=BFLOAT16)
        yield Case(arguments, clocks=(16 * products + 1800) // units)


def blocks() -> Iterator[Case]:
    for size in (2, 4):
        for varying in (True, False):
            for dtype in ("float32", BFLOAT16):
                yield Case(BlockArguments((8,), 4096, 512, size, varying, dtype))


CASES: tuple[Case, ...] = (
    *scans(),
    *layers(),
    *blocks(),
    *cells(),
)
"""All that is compiled. A new kernel needs a line here."""
QUICK: tuple[Case, ...] = (
    Case(ScanArguments((8,), 256, 128)),
    Case(SSMArguments((2,), 256, 64, 64, 64, dtype=BFLOAT16), devices=GPU),
)


@dataclasses.dataclass(frozen=True)
class Model:
    """What a prediction takes a device to be.

    - `bandwidth`: bytes per second of a copy; `peak`: operations per second of large products in
        bfloat16; both assumed.
    - `launch`: seconds from one kernel to the next.
    - `cores`, `clock`: multiprocessors, and their clocks per second under load.
    - `shared_memory`, `registers`, `threads`, `blocks`: of a multiprocessor.
    """

    bandwidth: float
    peak: float
    launch: float
    cores: int = 1
    clock: float = 0.0
    shared_memory: int = 0
    registers: int = 65_536
    threads: int = 2048
    blocks: int = 32


MODEL = {
    "h100": Model(2.9e12, 600e12, 2.5e-6, cores=132, clock=1.755e9, shared_memory=233_472),
    "v5e": Model(0.9 * 819e9, 197e12, 1e-6),
}
# What the driver keeps of the shared memory of each block.
_RESERVED = 1024


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--target", type=target, nargs="+", choices=MODEL, default=list(MODEL),
        metavar="NAME", help=f"default: {' '.join(MODEL)}",
    )  # fmt: skip
    parser.add_argument("--only", metavar="WORDS", help="only cases whose name contains this")
    parser.add_argument(
        "--before", type=Path, metavar="FILE", help="also write its rows of other commits"
    )


def run(options: argparse.Namespace) -> Iterator[Row]:
    for device in options.target:
        require(device)
    commit = commit_of(rnnscale_kernels)
    if options.before is not None:
        yield from rows_before(options.before, commit)
    for device in options.target:
        for case in QUICK if options.quick else CASES:
            if case.devices and device not in case.devices:
                continue
            if options.only and options.only not in name_of(case):
                continue
            for mode in MODES:
                yield {"commit": commit, **compiled(case, mode, device)}


def rows_before(file: Path, commit: str) -> Iterator[Row]:
    """The rows of a file that are of other commits, with predictions by the model of today."""
    cases = {identity(row_of(case, mode, "")): case for case in CASES for mode in MODES}
    for row in json.loads(file.read_text(encoding="utf-8"))["rows"]:
        case = cases.get(identity(row))
        if row["commit"] != commit and case is not None:
            yield row if "bytes" not in row else row | prediction(row, case)


def identity(row: Row) -> str:
    """What distinguishes the call of a row from others, on any device and at any commit."""
    return f"{row['operation']} {row['named']} {row['mode']} {case_name(row)}"


def row_of(case: Case, mode: str, device: str) -> Row:
    """What a row says of its call."""
    about = {"target": device, "operation": case.arguments.operation, "mode": mode}
    row = {**about, "named": case.implementation, **case.arguments.sizes(), "clocks": case.clocks}
    return row if case.note is None else {**row, "note": case.note}


def commit_of(module: Any) -> str:
    """The commit of the sources of a package, with a `+` if they were changed."""
    folder = Path(module.__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=folder, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", ".") else "")


def name_of(case: Case) -> str:
    arguments = case.arguments
    return f"{arguments.operation} {case.implementation or 'default'} {arguments}"


def compiled(case: Case, mode: str, device: str) -> Row:
    """The row of a case. One that cannot be compiled has an `error`."""
    arguments, row = case.arguments, row_of(case, mode, device)
    row["implementation"] = case.implementation
    begin = time.perf_counter()
    try:
        mesh = Mesh(np.array(target_devices(device)), ("devices",))
        if case.implementation is None:
            platform = {"gpu": "cuda"}.get(mesh.devices.flat[0].platform, "tpu")
            with jax.set_mesh(mesh):
                row["implementation"] = arguments.default(platform)
        program = compile_call(arguments, mode, case.implementation, mesh)
    except Exception as error:  # Reported in the row; the other cases go on.
        return row | failure(error)
    least = arguments.minimal_bytes(mode)
    moved, launches = bytes_of(program), program.launches
    kernels = [figures(kernel, MODEL[device]) for kernel in program.kernels]
    row |= {
        "compile_s": time.perf_counter() - begin,
        "bytes": moved,
        "minimal_bytes": least,
        "bytes_ratio": None if moved is None else moved / least,
        "minimal_bytes_with_states": least + arguments.state_bytes(mode),
        "temporaries": program.temporaries,
        "kernels": kernels,
        "calls": calls_of(program, kernels),
        "launches": None if math.isnan(launches) else launches,
        "vmem": max((call.vmem or 0 for call in program.calls), default=0) or None,
    }
    return row | prediction(row, case)


def compile_call(
    arguments: CallArguments, mode: str, implementation: str | None, mesh: Mesh
) -> Program:
    start, inputs = arguments.structs()

    def run(start, inputs):
        return arguments.run(start, inputs, implementation)

    given = (start, inputs)
    if mode == "gradient":
        given += (jax.eval_shape(run, start, inputs)[0],)
    return compile_for(arguments.call(mode, run), *given, target=mesh)


def bytes_of(program: Program) -> int | None:
    """The bytes that the program moves, or `None` if it has a loop of an unknown length."""
    try:
        return program.bytes_accessed()
    except ValueError:
        return None


def figures(kernel: Kernel, model: Model) -> Row:
    """The figures of a kernel, with the blocks that fit on a multiprocessor, and the waves."""
    warps = -(-kernel.threads // 32)
    # A warp gets registers in units of 256.
    of_warp = -(-32 * kernel.registers // 256) * 256
    fitting = min(
        model.registers // (of_warp * warps),
        model.shared_memory // (kernel.shared_memory + _RESERVED),
        model.threads // kernel.threads,
        model.blocks,
    )
    waves = math.ceil(kernel.blocks / (fitting * model.cores)) if fitting else None
    name = re.sub(r"_mosaic_gpu_kernel$", "", kernel.name)
    return {**dataclasses.asdict(kernel), "name": name, "blocks_per_core": fitting, "waves": waves}


def prediction(row: Row, case: Case) -> Row:
    """The predicted time and what limits it: `bytes`, `walk`, `products` or `launches`.

    The clocks are those of the row: other commits had other kernels.
    """
    model, calls, launches = MODEL[row["target"]], row["calls"], row["launches"]
    if row["bytes"] is None or launches is None:
        return {"predicted_us": None, "limit": None}
    of_calls = sum(call["bytes"] for call in calls)
    others = max(0, row["bytes"] - of_calls) / model.bandwidth
    streamed = of_calls / model.bandwidth + others
    walked = others
    for call in calls:
        walk = 0.0
        if call["kernel"] is not None:
            kernel = row["kernels"][call["kernel"]]
            steps = state_steps(case.arguments) / (kernel["blocks"] * kernel["threads"])
            walk = kernel["waves"] * steps * (row["clocks"] or 0) / model.clock
        walked += max(walk, call["bytes"] / model.bandwidth)
    products = case.arguments.products(row["mode"]) / model.peak
    products *= 1 if row["dtype"] == BFLOAT16 else 2
    total = max(walked, products) + model.launch * launches
    limits = {
        "bytes": streamed, "walk": walked if walked > 1.05 * streamed else 0.0,
        "products": products, "launches": model.launch * launches,
    }  # fmt: skip
    return {
        "predicted_us": 1e6 * total,
        "limit": max(limits, key=limits.__getitem__),
        "predicted_percent": 100 * row["minimal_bytes"] / model.bandwidth / total,
    }


def calls_of(program: Program, kernels: Sequence[Row]) -> list[Row]:
    """The calls of kernels, each with its bytes and the index of its kernel among `kernels`.

    Calls of one kernel share it; a TPU's have none.
    """
    found: list[Row] = []
    for call in program.calls:
        if call.target not in KERNEL_CALLS.values():
            continue
        named = [i for i, x in enumerate(kernels) if f"/{x['name']}/" in f"{call.source}/"]
        place = named[0] if named else len(found) if len(found) < len(kernels) else None
        found.append({"name": call.target, "bytes": call.bytes_accessed, "kernel": place})
    return found


def state_steps(arguments: CallArguments) -> int:
    """Steps of all states: what the threads of a kernel share."""
    sizes = arguments.sizes()
    width = next(sizes[name] for name in ("channels", "states", "units") if name in sizes)
    return sizes["batch"] * sizes["time"] * width


def table(rows: Sequence[Row]) -> Any:
    return COLUMNS([shown(row) for row in rows])


COLUMNS = columns(
    *("call", "mode", "implementation", "MB", "ratio", "registers", "spills", "KB"),
    *("blocks", "per core", "waves", "us", "limit"),
)


def shown(row: Row) -> Row:
    """The row with the figures of its kernels side by side."""
    kernels: Sequence[Row] = row.get("kernels", ())
    names = {
        "registers": "registers", "spills": "spills", "blocks": "blocks", "waves": "waves",
        "blocks_per_core": "per core",
    }  # fmt: skip
    of_kernels: Row = {
        column: tuple(kernel[name] for kernel in kernels) for name, column in names.items()
    }
    on_chip = [kernel["shared_memory"] for kernel in kernels] or [row.get("vmem") or 0]
    of_kernels["KB"] = tuple(size >> 10 for size in on_chip)
    scaled = {
        column: row[name] and row[name] / unit
        for name, column, unit in (
            ("bytes", "MB", 1e6), ("bytes_ratio", "ratio", 1), ("predicted_us", "us", 1),
        )
        if name in row
    }  # fmt: skip
    call = f"{row['commit']} {row['target']} {row['operation']} {case_name(row)}"
    return {**row, **of_kernels, **scaled, "call": call}


BENCHMARK = Benchmark(run=run, table=table, add_options=add_options, rounds=None)
