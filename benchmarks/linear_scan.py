"""The linear recurrence over lengths, widths and kinds of numbers, and its textbook forms.

Times every implementation that runs here, and `jax.lax.associative_scan` and `jax.lax.scan` with
JAX's own differentiation, in turns (`rnnscale_kernels.testing.measure_call`). The number of tokens
is the same in all cases. `ratio` is over the implementation that is chosen by default, and a
textbook form that takes less time is `ahead`.
"""

import argparse
from collections.abc import Iterator, Sequence

from rnnscale.cli._bench_plot import draw_times
from rnnscale_kernels import local_platform
from rnnscale_kernels.testing import (
    MODES,
    ScanArguments,
    environment,
    measure_call,
    usable_implementations,
)

from ._benchmark import Benchmark, Figure, Row, columns

BASELINES = ScanArguments().baselines
SWEEPS = ("length", "channels", "numbers")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sweep", nargs="+", choices=SWEEPS, help="default: all; with --quick length"
    )


def run(options: argparse.Namespace) -> Iterator[Row]:
    names = [*usable_implementations(ScanArguments()), *BASELINES]
    for sweep in options.sweep or (("length",) if options.quick else SWEEPS):
        for arguments in cases(sweep, quick=options.quick):
            for mode in MODES:
                rows = measure_call(arguments, mode, names, rounds=options.rounds)
                yield from ({"sweep": sweep, **row} for row in with_ratios(rows))


def cases(sweep: str, *, quick: bool) -> Iterator[ScanArguments]:
    tokens = 2**12 if quick else 2**15 if local_platform() == "cpu" else 2**18
    time, channels = (256, 32) if quick else (4096, 256)
    if sweep == "length":
        for length in (64, 256) if quick else (256, 1024, 4096, 16384, 32768):
            yield ScanArguments((tokens // length,), length, channels)
    elif sweep == "channels":
        for width in (64,) if quick else (64, 256, 1024):
            yield ScanArguments((tokens // time,), time, width)
    else:
        for dtype in ("float32",) if quick else ("float32", "bfloat16"):
            for planar in (True,) if quick else (False, True):
                for varying in (False,) if quick else (True, False):
                    yield ScanArguments(
                        (tokens // time,), time, channels,
                        dtype=dtype, planar=planar, varying=varying,
                    )  # fmt: skip


def with_ratios(rows: Sequence[Row]) -> Iterator[Row]:
    """The rows of one case, without the environment, which stands beside all rows."""
    known = environment()
    chosen = next((row["time_ms"] for row in rows if row["default"] and "time_ms" in row), None)
    for row in rows:
        row = {key: value for key, value in row.items() if key not in known}
        if "time_ms" in row and chosen is not None:
            row["ratio"] = row["time_ms"] / chosen
            if row["name"] in BASELINES and row["ratio"] < 1:
                row["ahead"] = True
        yield row


def plot(rows: Sequence[Row], figure: Figure) -> None:
    """Percent of the copy bandwidth, over lengths and widths."""
    draw_times(figure, [row for row in rows if "time_ms" in row and row["sweep"] != "numbers"])


BENCHMARK = Benchmark(
    run=run,
    table=columns(
        *("mode", "batch", "time", "channels", "dtype", "numbers", "decay"),
        *("name", "time_ms", "spread", "ratio", "percent_of_copy", "peak_bytes", "compile_s"),
    ),
    plot=plot,
    add_options=add_options,
)
