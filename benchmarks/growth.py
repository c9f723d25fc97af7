"""How the time and memory of a gradient grow with length, width and batch, in all libraries.

A contender takes part until a gradient takes more than 20 s, or until its program needs more than
60 % of the machine's memory, according to the compiler. `stopped` in its last row says why it has
no rows of larger sizes.

`units` are complex states of an LRU or S5. There are fewer rounds if they would take more than a
minute.
"""

import argparse
import os
import time
from collections.abc import Iterator, Sequence

import jax

from rnnscale_kernels.testing import Thunk

from . import _torch
from ._benchmark import Benchmark, Figure, Row, columns
from ._harness import Contest, compiled, measure
from ._peers import contenders, log_missing, versions_of_libraries
from ._plots import legend, lines, styles
from .layers import Shape, make_ours, torch_module

LONGEST_S = 20
MINUTE_MS = 60_000
PART_OF_MEMORY = 0.6

LSTM = "LongShortTermMemoryCell"
LENGTHS = [Shape(1, 1024 * 4**i, 64, 64) for i in range(5)]
WIDTHS = [Shape(4, 1024, width, width) for width in (32, 64, 128, 256, 512)]
BATCHES = [Shape(batch, 1024, 64, 64) for batch in (1, 4, 16, 64)]
SWEEPS = {
    "length": dict.fromkeys(("LRU", "S5", LSTM), LENGTHS),
    "width": dict.fromkeys(("LRU", LSTM), WIDTHS),
    "batch": dict.fromkeys(("LRU", LSTM), BATCHES),
}
QUICK = {
    "length": {"LRU": [Shape(1, time, 8, 8) for time in (256, 1024)]},
    "width": {LSTM: [Shape(1, 128, width, width) for width in (8, 16)]},
    "batch": {},
}
VARIES = {"length": "time", "width": "units", "batch": "batch"}


def add_options(parser: argparse.ArgumentParser) -> None:
    names = ", ".join(SWEEPS)
    parser.add_argument("--sweep", nargs="+", choices=SWEEPS, metavar="NAME", help=f"of {names}")
    parser.add_argument(
        "--longest", type=int, metavar="N", help="in the sweep of lengths, no more steps than these"
    )


def about(options: argparse.Namespace) -> Row:
    return {**versions_of_libraries(options), "memory_bytes": memory_bytes()}


def run(options: argparse.Namespace) -> Iterator[Row]:
    log_missing()
    for sweep in options.sweep or SWEEPS:
        for layer, shapes in (QUICK if options.quick else SWEEPS)[sweep].items():
            if sweep == "length" and options.longest is not None:
                shapes = [shape for shape in shapes if shape.time <= options.longest]
            yield from grow(sweep, layer, shapes, options.rounds)


def grow(sweep: str, layer: str, shapes: Sequence[Shape], rounds: int) -> Iterator[Row]:
    out: set[str] = set()
    for shape in shapes:
        case = {"sweep": sweep, "layer": layer, **vars(shape)}
        thunks, facts = gradients(layer, shape, out)
        for name in list(thunks):
            if (bytes_ := facts[name].get("temp_bytes", 0)) > PART_OF_MEMORY * memory_bytes():
                out.add(name)
                del thunks[name]
                wants = f"wants {bytes_ / 1e9:.0f} of {memory_bytes() / 1e9:.0f} GB"
                yield {**case, "contender": name, **facts.pop(name), "stopped": wants}
        once = {name: milliseconds(thunk) for name, thunk in thunks.items()}
        for name, ms in once.items():
            if ms > 1000 * LONGEST_S:
                out.add(name)
                facts[name]["stopped"] = f"took more than {LONGEST_S} s"
        in_a_minute = int(MINUTE_MS / max(sum(once.values()), 1))
        yield from measure(Contest(case, thunks, facts), max(1, min(rounds, in_a_minute)))


def gradients(layer: str, shape: Shape, out: set[str]) -> tuple[dict[str, Thunk], dict[str, Row]]:
    """The gradients of the contenders that are not out, and the facts known about them."""
    ours = make_ours(layer, shape.features, shape.units, jax.random.key(0))
    xs = jax.random.normal(jax.random.key(1), (shape.batch, shape.time, shape.features))
    thunks: dict[str, Thunk] = {}
    facts: dict[str, Row] = {}
    for name, contender in contenders(ours).items():
        if name not in out:
            both, compile_facts = compiled(contender.run, contender.module, xs)
            thunks[name], facts[name] = both["gradient"], compile_facts["gradient"]
    if "torch" not in out and (module := torch_module(ours)) is not None:
        thunks["torch"], facts["torch"] = _torch.thunks(module, xs)["gradient"], {}
    return thunks, facts


def memory_bytes() -> int:
    """The memory of the device, or of the machine if the device is a CPU."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return device.memory_stats()["bytes_limit"]


def milliseconds(thunk: Thunk) -> float:
    """The time of the second run, since the first one also sets things up; or of the first one if
    that takes more than a second."""
    ms = 0.0
    for _ in range(2):
        start = time.perf_counter()
        jax.block_until_ready(thunk())
        ms = 1e3 * (time.perf_counter() - start)
        if ms > 1000:
            break
    return ms


def plot(rows: Sequence[Row], figure: Figure) -> None:
    jobs = list(dict.fromkeys((row["sweep"], row["layer"]) for row in rows))
    chosen = styles(row["contender"] for row in rows)
    figure.set_size_inches(3.2 * len(jobs) + 1.5, 6)
    panels = figure.subplots(2, len(jobs), squeeze=False, sharex="col")
    for column, (sweep, layer) in enumerate(jobs):
        of_job = [
            {**row, "seconds": row["median_ms"] / 1e3 if "median_ms" in row else None}
            for row in rows
            if (row["sweep"], row["layer"]) == (sweep, layer)
        ]
        for panel, figure_of in zip(panels[:, column], ("seconds", "temp_bytes"), strict=True):
            lines(panel, of_job, VARIES[sweep], figure_of, chosen)
            panel.set_yscale("log")
        panels[0, column].set_title(layer)
    legend(figure)


BENCHMARK = Benchmark(
    run=run,
    table=columns(
        *("sweep", "layer", "batch", "time", "features", "units", "contender"),
        *("median_ms", "ratio", "temp_bytes", "compile_s", "stopped"),
    ),
    plot=plot,
    add_options=add_options,
    about=about,
    rounds=7,
)
