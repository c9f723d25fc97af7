"""Seconds from a cold process to the end of the first train step, each in a fresh process.

`import_s` is of what a user imports, jax and optax among it, `make_s` until the
device, the layer and the optimiser's state are there, then the step of `train_step` is traced,
compiled and run once.
"""

import argparse
from collections.abc import Iterator

from . import _torch
from ._benchmark import Benchmark, Row, columns
from ._first_step import in_turns
from ._peers import libraries_for, log_missing, versions_of_libraries
from ._plots import ratios
from .layers import Shape
from .train_step import JOBS

PARTS = ("import_s", "make_s", "trace_s", "compile_s", "run_s")
QUICK = {"LongShortTermMemoryCell": (Shape(1, 32, 8, 8),)}


def run(options: argparse.Namespace) -> Iterator[Row]:
    log_missing()
    for layer, (shape, *_) in (QUICK if options.quick else JOBS).items():
        names = libraries_for(layer)
        if layer in _torch.MODULES and _torch.here():
            names.append("torch")
        yield from in_turns({"layer": layer, **vars(shape)}, names, options.rounds, PARTS)


BENCHMARK = Benchmark(
    run=run,
    table=columns(
        *("layer", "batch", "time", "features", "units", "contender", "seconds", *PARTS, "ratio")
    ),
    plot=ratios("Cold start to the first step", lambda row: row["layer"]),
    about=versions_of_libraries,
    rounds=3,
    quick_rounds=1,
)
