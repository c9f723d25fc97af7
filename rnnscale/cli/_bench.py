"""`rnnscale bench`: times `linear_scan` on this machine, and plots the times."""

import argparse
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rnnscale._errors import UserError
from rnnscale.cli._options import check_folder_of, write_json

type Row = dict[str, Any]

# The implementations of `linear_scan` and the baselines. Listed, since their table needs jax.
IMPLEMENTATIONS = (
    "chunked", "sequential", "associative", "mosaic_gpu", "triton", "mosaic_tpu",
    "associative_scan", "lax_scan",
)  # fmt: skip


def add_to(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "bench",
        help="time the scan and the textbook forms, and plot the times",
        description="Times the scan and the textbook forms, and plots the times.",
        examples=("rnnscale bench scan --quick", "rnnscale bench plot rows.json --out scan.png"),
    )
    benchmarks = parser.add_subparsers(title="benchmarks", required=True, metavar="BENCHMARK")
    _add_scan(benchmarks)
    _add_plot(benchmarks)


def _add_scan(benchmarks: argparse._SubParsersAction) -> None:
    scan = benchmarks.add_parser(
        "scan",
        help="every implementation of linear_scan, forward and gradient",
        description="Times every implementation of linear_scan that runs here, and autodiff "
        "through jax.lax.associative_scan and jax.lax.scan, in turns. Prints a table for every "
        "combination of the given values. Bandwidth counts the fewest bytes that have to be moved, "
        "and the speed-up is over associative_scan.",
        examples=(
            "rnnscale bench scan --quick",
            "rnnscale bench scan --length 1024 65536 --mode gradient --json rows.json",
        ),
    )
    scan.set_defaults(command=_scan)
    scan.add_argument(
        "--tokens",
        type=int,
        metavar="N",
        help="rows times steps; default: 2^15 on CPUs, otherwise 2^18",
    )
    rows = scan.add_mutually_exclusive_group()
    rows.add_argument(
        "--length", type=int, nargs="+", metavar="L", help="steps of a row; default: 4096"
    )
    rows.add_argument(
        "--batch", type=int, nargs="+", metavar="B", help="rows; default: by --length"
    )
    scan.add_argument("--channels", type=int, nargs="+", metavar="D", help="default: 256")
    for option, choices in (
        ("--dtype", ["float32", "bfloat16"]),
        ("--numbers", ["real", "planar"]),
        ("--decay", ["varying", "invariant"]),
    ):
        first, _ = choices
        scan.add_argument(
            option, nargs="+", choices=choices, default=[first], help=f"default: {first}"
        )
    modes = ["forward", "gradient"]
    scan.add_argument("--mode", nargs="+", choices=modes, default=modes, help="default: both")
    scan.add_argument(
        "--implementation",
        nargs="+",
        choices=IMPLEMENTATIONS,
        metavar="NAME",
        help="implementations or baselines; default: all",
    )
    scan.add_argument(
        "--rounds",
        type=int,
        metavar="N",
        help="turns of each contender; default: 15, or 3 if --quick",
    )
    scan.add_argument("--quick", action="store_true", help="a small case in less than a minute")
    scan.add_argument(
        "--json", metavar="FILE", help="write the rows; - for the standard output; default: no file"
    )


def _add_plot(benchmarks: argparse._SubParsersAction) -> None:
    plot = benchmarks.add_parser(
        "plot",
        help="plot the rows that `rnnscale bench scan --json` wrote",
        description="Plots the percentage of the copy bandwidth over the size that varies most.",
        examples=(
            "rnnscale bench plot rows.json --out scan.png",
            "rnnscale bench plot cpu.json gpu.json --out scan.svg",
        ),
    )
    plot.set_defaults(command=_plot)
    plot.add_argument("rows", nargs="+", metavar="ROWS.json")
    plot.add_argument("--out", required=True, metavar="FILE", help="such as scan.png or scan.svg")


def _scan(arguments: argparse.Namespace) -> int:
    names = _names(arguments.implementation)
    shapes = _shapes(arguments)
    rounds = (3 if arguments.quick else 15) if arguments.rounds is None else arguments.rounds
    if rounds < 3:
        raise UserError(f"--rounds must be at least 3, for a median, got {rounds}")
    if arguments.json not in (None, "-"):
        check_file("--json", arguments.json)
    from rnnscale.cli._console import Console
    from rnnscale_kernels.testing import ScanArguments, measure_call

    console = Console(width=100, stderr=arguments.json == "-")
    rows = []
    kinds = itertools.product(arguments.dtype, arguments.numbers, arguments.decay, arguments.mode)
    for (batch, time, channels), kind in itertools.product(shapes, list(kinds)):
        dtype, numbers, decay, mode = kind
        case = ScanArguments(
            (batch,), time, channels,
            planar=numbers == "planar", varying=decay == "varying", dtype=dtype,
        )  # fmt: skip
        with console.status(f"{mode}, {case}"):
            measured = measure_call(case, mode, names, rounds=rounds)
        console.print(_table(measured))
        rows += measured
    write_json(arguments.json, rows, indent=1)
    return 1 if any("error" in row for row in rows) else 0


def _names(asked: Sequence[str] | None) -> list[str]:
    from rnnscale_kernels import implementations, local_platform
    from rnnscale_kernels.testing import ScanArguments, usable_implementations

    usable = [*usable_implementations(ScanArguments()), *ScanArguments().baselines]
    described = implementations(local_platform())["linear_scan"]
    reasons = {name: why for name, is_usable, why in described}
    for name in asked or ():
        if name not in usable:
            raise UserError(f"cannot time {name}: {reasons[name]}; choose from {', '.join(usable)}")
    return list(asked or usable)


def _shapes(arguments: argparse.Namespace) -> list[tuple[int, int, int]]:
    """The (batch, time, channels) of all cases."""
    from rnnscale_kernels import local_platform

    quick = arguments.quick
    tokens = arguments.tokens
    if tokens is None:
        tokens = 1 << (14 if quick else 15 if local_platform() == "cpu" else 18)
    channels = arguments.channels or [128 if quick else 256]
    option = "length" if arguments.batch is None else "batch"
    parts = arguments.batch or arguments.length or [min(tokens, 2048 if quick else 4096)]
    for name, sizes in {"tokens": [tokens], option: parts, "channels": channels}.items():
        if min(sizes) < 1:
            raise UserError(f"--{name} must be positive, got {min(sizes)}")
    for part in parts:
        if tokens % part:
            raise UserError(f"--{option} {part} does not divide the {tokens} tokens")
    pairs = [(part, tokens // part) for part in parts]
    if option == "length":
        pairs = [(batch, time) for time, batch in pairs]
    return [(*pair, width) for pair in pairs for width in channels]


def check_file(option: str, file: str) -> None:
    """Checks that it can be written, before an hour is spent on its content."""
    check_folder_of(option, file)
    path = Path(file)
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError(f"{option} {file}: cannot be written")


def new_figure(option: str, file: str) -> Any:
    """An empty figure of matplotlib, after checking that it can be saved in the file."""
    check_file(option, file)
    from rnnscale.analysis import figure_class

    figure = figure_class()(layout="constrained")
    kinds = figure.canvas.get_supported_filetypes()
    if Path(file).suffix.removeprefix(".") not in kinds:
        raise UserError(f"{option} {file}: must end in one of .{', .'.join(sorted(kinds))}")
    return figure


def _table(rows: Sequence[Row]) -> Any:
    from rich.table import Table
    from rich.text import Text

    case = rows[0]
    title = (
        f"{case['mode']}, B={case['batch']} L={case['time']} D={case['channels']}, {case['dtype']} "
        f"{case['numbers']}, {case['decay']} decay, {case['device']}"
    )
    timed = sorted((row for row in rows if "time_ms" in row), key=lambda row: row["time_ms"])
    if timed:
        title += (
            f"\nat least {timed[0]['minimal_bytes'] / 1e6:.4g} MB must be moved; "
            f"a copy moves {timed[0]['copy_bytes_per_second'] / 1e9:.4g} GB/s"
        )
    failures = []
    for row in rows:
        for kind, verdict in (("unsupported", "left out"), ("error", ("FAILED", "bold red"))):
            if kind in row:
                reason = " ".join(row[kind].split())[:400]
                failures.append(Text.assemble(f"{row['name']} ", verdict, f": {reason}"))
    table = Table(
        title=title,
        title_justify="left",
        caption=Text("\n").join(failures),
        caption_justify="left",
    )
    table.add_column("implementation")
    for column in ("ms", "spread", "GB/s", "% of copy", "speed-up", "peak MB", "compile s"):
        table.add_column(column, justify="right")
    for row in timed:
        table.add_row(
            row["name"] + (", default" if row["default"] else ""),
            f"{row['time_ms']:.4g}",
            f"{100 * row['spread']:.0f} %",
            f"{row['bytes_per_second'] / 1e9:.4g}",
            f"{row['percent_of_copy']:.0f}",
            "" if row["speed_up"] is None else f"{row['speed_up']:.2f}",
            f"{row['peak_bytes'] / 1e6:.4g}",
            f"{row['compile_s']:.1f}",
        )
    return table


def _plot(arguments: argparse.Namespace) -> int:
    rows = [row for file in arguments.rows for row in _read(file)]
    figure = new_figure("--out", arguments.out)
    draw_scan_times(figure, rows)
    figure.savefig(arguments.out)
    return 0


def _read(file: str) -> list[Row]:
    """The rows that have times."""
    try:
        rows = [row for row in json.loads(Path(file).read_text()) if "percent_of_copy" in row]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"cannot read rows from {file}: {error}") from None
    if not rows:
        raise UserError(f"{file} holds no times")
    return rows


def draw_scan_times(figure: Any, rows: Sequence[Row]) -> None:
    """Draws a panel for each mode and kind of arguments, with a line for each implementation."""
    from rnnscale_kernels.testing import ScanArguments

    # At a constant number of tokens, batch and time vary together: the axis shows time.
    varied = max(("time", "channels", "batch"), key=lambda size: len({row[size] for row in rows}))
    fixed = ("batch", "time") if varied == "channels" else ("channels",)

    def kind(row: Row) -> tuple:
        return row["device"], row["dtype"], row["numbers"], row["decay"], *(row[x] for x in fixed)

    kinds = list(dict.fromkeys(map(kind, rows)))
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    names = list(dict.fromkeys(row["name"] for row in rows))
    figure.set_size_inches(4 * len(kinds) + 2, 3.2 * len(modes))
    panels = figure.subplots(len(modes), len(kinds), squeeze=False, sharex=True, sharey=True)
    lines = {}
    for (i, mode), (j, of_kind) in itertools.product(enumerate(modes), enumerate(kinds)):
        panel = panels[i, j]
        chosen = [row for row in rows if (row["mode"], kind(row)) == (mode, of_kind)]
        for color, name in enumerate(names):
            points = sorted(
                (row[varied], row["percent_of_copy"]) for row in chosen if row["name"] == name
            )
            if points:
                style = "o--" if name in ScanArguments().baselines else "o-"
                xs, ys = zip(*points, strict=True)
                (lines[name],) = panel.plot(xs, ys, style, color=f"C{color}", label=name)
        panel.axhline(100, color="black", linewidth=0.8, linestyle=":")
        panel.set_xscale("log", base=2)
        device, *words = of_kind
        sizes = " ".join(f"{size}={n}" for size, n in zip(fixed, words[3:], strict=True))
        panel.set_title(f"{device}\n{' '.join(words[:3])}, {sizes}", fontsize="small")
        panel.set_xlabel(varied)
        panel.set_ylabel(f"{mode}, % of copy bandwidth")
    figure.legend(handles=list(lines.values()), loc="outside right upper")
