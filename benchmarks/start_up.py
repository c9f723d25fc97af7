"""Seconds from a cold process to the end of the first train step, each in a fresh process.

`import_s` is of what a user imports, jax and optax among it, `make_s` until the
device, the layer and the optimiser's state are there, then the step of `train_step` is traced,
compiled and run once.
"""

import argparse
from collections.abc import Iterator, Sequence

from . import _torch
from ._benchmark import Benchmark, Figure, Row, columns
from ._first_step import case_of, in_turns
from ._peers import libraries_for, log_missing, versions_of_libraries
from ._plots import legend
from ._ratios import draw_ratios

PARTS = ("import_s", "make_s", "trace_s", "compile_s", "run_s")
JOBS = (
    ("LRU", 8, 2048, 64, 256),
    ("S5", 8, 2048, 64, 256),
    ("LongShortTermMemoryCell", 32, 512, 64, 256),
    ("GatedRecurrentUnitCell", 32, 512, 64, 256),
)
QUICK = (("LongShortTermMemoryCell", 1, 32, 8, 8),)


def run(options: argparse.Namespace) -> Iterator[Row]:
    log_missing()
    for job in QUICK if options.quick else JOBS:
        case = case_of(job)
        names = libraries_for(job[0])
        if job[0] in _torch.MODULES and _torch.here():
            names.append("torch")
        yield from in_turns(case, names, 1 if options.quick else options.rounds, PARTS)


def plot(rows: Sequence[Row], figure: Figure) -> None:
    figure.set_size_inches(9, 3.5)
    draw_ratios(figure.subplots(), rows, lambda row: row["layer"])
    legend(figure)
    figure.suptitle("Cold start to the first step, times as long as rnnscale")


BENCHMARK = Benchmark(
    run=run,
    table=columns(
        *("layer", "batch", "time", "features", "units", "contender", "seconds", *PARTS, "ratio")
    ),
    plot=plot,
    about=versions_of_libraries,
    rounds=3,
)
