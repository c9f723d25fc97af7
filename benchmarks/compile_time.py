"""Seconds to trace and compile a train step, each in a fresh process without a cache.

The step is that of `train_step`, whose time to compile is not that of its job but of its program:
`associative_scan` writes its levels out, so the textbook's program grows with the length.
"""

import argparse
from collections.abc import Iterator, Sequence

from . import train_step
from ._benchmark import Benchmark, Figure, Row, columns
from ._first_step import in_turns
from ._peers import libraries_for, log_missing, versions_of_libraries
from ._plots import legend, lines, styles
from .layers import Shape

PARTS = ("trace_s", "compile_s")
LENGTHS = tuple(Shape(8, time, 64, 256) for time in (256, 2048, 16_384))
JOBS = {**train_step.JOBS, "LRU": LENGTHS, "S5": LENGTHS}
QUICK = {"LRU": (Shape(1, 64, 8, 8),)}


def run(options: argparse.Namespace) -> Iterator[Row]:
    log_missing()
    for layer, shapes in (QUICK if options.quick else JOBS).items():
        # PyTorch compiles nothing.
        forms = ["textbook", "plain"] if layer in ("LRU", "S5") else ["plain"]
        for shape in shapes:
            case = {"layer": layer, **vars(shape)}
            yield from in_turns(case, libraries_for(layer) + forms, options.rounds, PARTS)


def plot(rows: Sequence[Row], figure: Figure) -> None:
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    chosen = styles(row["contender"] for row in rows)
    figure.set_size_inches(3.2 * len(layers) + 1.5, 3.4)
    for panel, layer in zip(figure.subplots(1, len(layers), squeeze=False)[0], layers, strict=True):
        lines(panel, [row for row in rows if row["layer"] == layer], "time", "seconds", chosen)
        panel.set_title(layer)
        panel.set_ylim(bottom=0)
    legend(figure)


BENCHMARK = Benchmark(
    run=run,
    table=columns(
        *("layer", "batch", "time", "features", "units", "contender"),
        *("seconds", "trace_s", "compile_s", "ratio", "ratio_spread"),
    ),
    plot=plot,
    about=versions_of_libraries,
    rounds=3,
    quick_rounds=1,
)
