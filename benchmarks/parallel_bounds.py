"""Bounds on a loop over time and on Newton's method on an H100, which need no GPU.

For a gradient of a cell, from the trace (`rnnscale.plan.cell_cost`). The bound on each is the
largest of three times: matrix products at the rate of the datasheet, bytes at the bandwidth of the
memory, and the launches of kernels that wait for one another. They say where Newton's method can
pay, and no more. The loop is that in XLA, which takes several times as long as its bound. Cells
with a kernel for all steps, such as a GRU in 16 bits or ParaGRU, wait for no launches there.

The iterations are measured on this machine, at initialisation, on the steps of one sequence of
normal inputs, and taken to be the same for all lengths. `peak_bytes` are those of all steps at
once, without a window.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax

from rnnscale import CoupledOscillatoryRNNCell, GatedRecurrentUnitCell, LongShortTermMemoryCell
from rnnscale.cells import Cell, Newton, ParaGRUCell, certified_time_loop
from rnnscale.plan import HARDWARE, Hardware, cell_cost

from ._benchmark import Benchmark, Row, columns

FEATURES = UNITS = 64
CELLS: dict[str, type[Cell]] = {
    "GRU": GatedRecurrentUnitCell,
    "LSTM": LongShortTermMemoryCell,
    "coRNN": CoupledOscillatoryRNNCell,
    "ParaGRU": ParaGRUCell,
}
METHODS = {
    "GRU": ("dense", "diagonal"),
    "LSTM": ("block", "diagonal"),
    "coRNN": ("block",),
    "ParaGRU": ("diagonal",),
}
BATCHES = (1, 8, 64)
LENGTHS = (1024, 8192, 65_536, 1_048_576)
MEASURED = 1024
QUICK_CELLS, QUICK_BATCHES, QUICK_LENGTHS, QUICK_MEASURED = ("ParaGRU",), (1,), (1024,), 64
DEVICE = "h100"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--launch-us",
        type=float,
        metavar="US",
        default=1e6 * HARDWARE[DEVICE].launch,
        help="time from the end of a kernel to the start of the next; default: %(default)s, the "
        "least that NVIDIA has published, for a node of a CUDA graph",
    )


def about(options: argparse.Namespace) -> Row:
    hardware = chosen(options)
    return {
        "hardware": hardware.name,
        "source": hardware.source,
        "launch_us": 1e6 * hardware.launch,
        "measured_steps": QUICK_MEASURED if options.quick else MEASURED,
    }


def chosen(options: argparse.Namespace) -> Hardware:
    return replace(HARDWARE[DEVICE], launch=1e-6 * options.launch_us)


def make_cell(name: str) -> Cell:
    make: Any = CELLS[name]
    return make(FEATURES, UNITS, key=jax.random.key(0))


def run(options: argparse.Namespace) -> Iterator[Row]:
    hardware = chosen(options)
    for name in QUICK_CELLS if options.quick else CELLS:
        for jacobian in METHODS[name]:
            iterations, stepped = measured(name, jacobian, about(options)["measured_steps"])
            case = {"cell": name, "jacobian": jacobian, "features": FEATURES, "units": UNITS}
            case |= {"iterations": iterations, "stepped": stepped}
            for batch in QUICK_BATCHES if options.quick else BATCHES:
                for length in QUICK_LENGTHS if options.quick else LENGTHS:
                    yield (
                        case
                        | {"batch": batch, "length": length}
                        | bounds(name, jacobian, iterations, batch, length, hardware)
                    )


def measured(name: str, jacobian: Any, steps: int) -> tuple[int, float]:
    """The iterations of one solve, and the share of steps that were taken one after another. The
    certificate counts two: of the states, and of how rounding errors grow."""
    xs = jax.random.normal(jax.random.key(1), (1, steps, FEATURES))
    solve = jax.jit(
        lambda xs: certified_time_loop(make_cell(name), xs, parallel=Newton(jacobian))[2]
    )
    found = solve(xs)
    return -(-int(found.iterations.max()) // 2), float(found.stepped.sum()) / steps


def bounds(
    name: str, jacobian: Any, iterations: int, batch: int, length: int, hardware: Hardware
) -> Row:
    cell = make_cell(name)
    loop = cell_cost(cell, batch, length)
    newton = cell_cost(cell, batch, length, parallel=Newton(jacobian), iterations=iterations)
    on_loop, on_newton = loop.bound(hardware), newton.bound(hardware)
    return {
        "loop_ms": 1e3 * on_loop.step,
        "loop_bottleneck": on_loop.bottleneck,
        "loop_launches": loop.chain,
        "loop_bytes": loop.moved_bytes,
        "newton_ms": 1e3 * on_newton.step,
        "newton_bottleneck": on_newton.bottleneck,
        "newton_launches": newton.chain,
        "newton_bytes": newton.moved_bytes,
        "ratio": on_loop.step / on_newton.step,
        "peak_bytes": newton.peak_bytes,
        "fits": newton.peak_bytes <= hardware.memory,
    }


BENCHMARK = Benchmark(
    run=run,
    table=columns(
        *("cell", "jacobian", "iterations", "batch", "length", "loop_ms", "loop_bottleneck"),
        *("newton_ms", "newton_bottleneck", "ratio", "peak_bytes", "fits"),
    ),
    add_options=add_options,
    about=about,
    rounds=None,
)
