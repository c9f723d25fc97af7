"""The loop over time against Newton's method: milliseconds of a layer alone, measured.

`rnnscale` is the loop, one step after another; the others compute all steps at once, with the part
of the Jacobian in their name. `iterations` are those of the row that took the most, and `stepped`
is the share of steps that were taken one after another in the end. A contender takes part until a
gradient takes more than 20 s, or until its program needs more than 60 % of the memory, according to
the compiler.

It runs on a GPU if there is one. On a CPU the loop is faster: see the results.
"""

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from rnnscale.cells import Cell, Newton, certified_time_loop, time_loop
from rnnscale_kernels.testing import MODES, Thunk

from ._benchmark import OURS, Benchmark, Row, columns
from ._harness import Contest, compiled, measure
from ._plots import ratios
from .growth import LONGEST_S, PART_OF_MEMORY, memory_bytes, milliseconds
from .parallel_bounds import (
    BATCHES,
    FEATURES,
    LENGTHS,
    METHODS,
    QUICK_BATCHES,
    QUICK_CELLS,
    UNITS,
    make_cell,
)

QUICK_LENGTHS = (64,)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cell", nargs="+", choices=METHODS, metavar="NAME")
    parser.add_argument("--batch", nargs="+", type=int, metavar="N", default=BATCHES)
    parser.add_argument("--longest", type=int, metavar="N", help="no more steps than these")


def run(options: argparse.Namespace) -> Iterator[Row]:
    lengths = QUICK_LENGTHS if options.quick else LENGTHS
    if options.longest is not None:
        lengths = tuple(length for length in lengths if length <= options.longest)
    for name in options.cell or (QUICK_CELLS if options.quick else METHODS):
        for batch in QUICK_BATCHES if options.quick else options.batch:
            yield from contests(name, batch, lengths, options.rounds)


def contests(name: str, batch: int, lengths: Sequence[int], rounds: int) -> Iterator[Row]:
    methods: dict[str, Any] = {OURS: None, **{x: Newton(x) for x in METHODS[name]}}
    for length in lengths:
        cell = make_cell(name)
        xs = jax.random.normal(jax.random.key(1), (batch, length, FEATURES))
        thunks: dict[str, dict[str, Thunk]] = {mode: {} for mode in MODES}
        facts: dict[str, dict[str, Row]] = {mode: {} for mode in MODES}
        case = {"cell": name, "batch": batch, "length": length, "units": UNITS}
        for contender, newton in list(methods.items()):
            made, found = gradient_and_value(cell, xs, newton)
            if reason := too_much(made["gradient"], found["gradient"]):
                del methods[contender]
                for mode in MODES:
                    yield {**case, "mode": mode, "contender": contender, "stopped": reason}
                continue
            certificate = certified(cell, xs, newton)
            for mode in MODES:
                thunks[mode][contender] = made[mode]
                facts[mode][contender] = found[mode] | certificate
        for mode in MODES:
            contest = Contest({**case, "mode": mode}, thunks[mode], facts[mode])
            yield from measure(contest, rounds)
        if OURS not in methods:
            return


def gradient_and_value(
    cell: Cell, xs: jax.Array, newton: Newton | None
) -> tuple[dict[str, Thunk], dict[str, Row]]:
    return compiled(lambda cell, xs: time_loop(cell, xs, parallel=newton)[1], cell, xs)


def too_much(gradient: Thunk, facts: Row) -> str | None:
    """Why a contender takes part no more."""
    if (wants := facts["temp_bytes"]) > PART_OF_MEMORY * memory_bytes():
        return f"wants {wants / 1e9:.0f} of {memory_bytes() / 1e9:.0f} GB"
    return f"took more than {LONGEST_S} s" if milliseconds(gradient) > 1000 * LONGEST_S else None


def certified(cell: Cell, xs: jax.Array, newton: Newton | None) -> Row:
    if newton is None:
        return {}
    solve = jax.jit(lambda xs: certified_time_loop(cell, xs, parallel=newton)[2])
    found = solve(xs)
    stepped = float(found.stepped.sum()) / (xs.shape[0] * xs.shape[1])
    return {"iterations": int(found.iterations.max()), "stepped": stepped}


def _label(row: Row) -> str:
    return f"{row['cell']}, B={row['batch']} L={row['length']:,}"


BENCHMARK = Benchmark(
    run=run,
    table=columns(
        *("cell", "batch", "length", "mode", "contender", "iterations", "stepped"),
        *("median_ms", "ratio", "temp_bytes", "compile_s", "stopped"),
    ),
    plot=ratios("Gradient", _label, height=4.8),
    add_options=add_options,
    rounds=5,
)
