"""`rnnscale bench`: times the operations on this machine, and plots the times."""

import argparse
import itertools
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rnnscale._errors import UserError, as_user_error
from rnnscale.cli._bench_operations import OPERATIONS, Operation
from rnnscale.cli._bench_plot import Row, draw_times, new_figure
from rnnscale.cli._options import check_file, write_json

if TYPE_CHECKING:
    from rnnscale_kernels.testing import CallArguments

_MODES = ["forward", "gradient"]


def add_to(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "bench",
        help="time recurrences, layers and cells, and plot the times",
        description="Times recurrences, layers and cells, compares them with their textbook forms, "
        "and plots the times.",
        examples=("rnnscale bench scan --quick", "rnnscale bench plot rows.json --out scan.png"),
    )
    benchmarks = parser.add_subparsers(title="benchmarks", required=True, metavar="BENCHMARK")
    for operation in OPERATIONS:
        _add_operation(benchmarks, operation)
    _add_plot(benchmarks)


def _add_operation(benchmarks: argparse._SubParsersAction, operation: Operation) -> None:
    parser = benchmarks.add_parser(
        operation.name,
        help=operation.summary,
        description=f"{operation.description} Prints a table for every combination of the given "
        "values: the time; the bandwidth, which is the least number of bytes that must be moved, "
        "divided by the time, and its percentage of that of a copy; the bytes of the compiled "
        "program, as a multiple of the least; the speed-up over the first textbook form; memory; "
        "and the time to compile.",
        examples=tuple(f"rnnscale bench {operation.name} {each}" for each in operation.examples),
    )
    parser.set_defaults(command=partial(_time, operation))
    on_cpus, elsewhere = (tokens.bit_length() - 1 for tokens in operation.tokens)
    parser.add_argument(
        "--tokens",
        type=int,
        metavar="N",
        help=f"rows times steps; default: 2^{on_cpus} on CPUs, otherwise 2^{elsewhere}",
    )
    rows = parser.add_mutually_exclusive_group()
    rows.add_argument(
        "--length",
        type=int,
        nargs="+",
        metavar="L",
        help=f"steps of a row; default: {operation.length}",
    )
    rows.add_argument(
        "--batch", type=int, nargs="+", metavar="B", help="rows; default: by --length"
    )
    for name, size in operation.sizes.items():
        parser.add_argument(
            f"--{name}",
            type=int,
            nargs="+",
            metavar="N",
            help=f"{size.meaning}; default: {size.default}",
        )
    for name, choices in operation.kinds.items():
        parser.add_argument(
            f"--{name}",
            nargs="+",
            choices=choices,
            default=[choices[0]],
            metavar="NAME" if len(choices) > 2 else None,
            help=f"default: {choices[0]}" + (f"; of {', '.join(choices)}" * (len(choices) > 2)),
        )
    parser.add_argument("--mode", nargs="+", choices=_MODES, default=_MODES, help="default: both")
    parser.add_argument(
        "--implementation",
        nargs="+",
        choices=operation.implementations,
        metavar="NAME",
        help="implementations or textbook forms; default: all",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        metavar="N",
        help="turns of each contender; default: 15, or 3 if --quick",
    )
    parser.add_argument("--quick", action="store_true", help="a small case in less than a minute")
    parser.add_argument(
        "--json", metavar="FILE", help="write the rows; - for the standard output; default: no file"
    )


def _add_plot(benchmarks: argparse._SubParsersAction) -> None:
    plot = benchmarks.add_parser(
        "plot",
        help="plot rows that the other benchmarks wrote with --json",
        description="Plots the percentage of the copy bandwidth against the size that varies most. "
        "It is one that all rows have.",
        examples=(
            "rnnscale bench plot rows.json --out scan.png",
            "rnnscale bench plot cpu.json gpu.json --out scan.svg",
        ),
    )
    plot.set_defaults(command=_plot)
    plot.add_argument("rows", nargs="+", metavar="ROWS.json")
    plot.add_argument("--out", required=True, metavar="FILE", help="such as scan.png or scan.svg")


def _time(operation: Operation, arguments: argparse.Namespace) -> int:
    shapes = _shapes(operation, arguments)
    rounds = (3 if arguments.quick else 15) if arguments.rounds is None else arguments.rounds
    if rounds < 3:
        raise UserError(f"--rounds must be at least 3, for a median, got {rounds}")
    check_file("--json", arguments.json)
    from rnnscale.cli._console import Console
    from rnnscale_kernels.testing import measure_call

    console = Console(width=100, stderr=arguments.json == "-")
    cases = [
        (call, _names(operation, call, arguments.implementation))
        for call in _calls(operation, arguments, shapes)
    ]
    with as_user_error():
        for call, _ in cases:
            call.structs()  # sizes that do not fit are found before anything is timed
    rows: list[Row] = []
    for call, names in cases:
        for mode in arguments.mode:
            with console.status(f"{mode}, {call}"):
                measured = measure_call(call, mode, names, rounds=rounds)
            console.print(_table(measured))
            rows += measured
    write_json(arguments.json, rows, indent=1)
    return 1 if any("error" in row for row in rows) else 0


def _calls(
    operation: Operation, arguments: argparse.Namespace, shapes: Sequence[tuple[int, int]]
) -> "Iterator[CallArguments]":
    """The arguments of all calls."""
    given = vars(arguments)
    sizes = [
        given[name] or [size.quick if arguments.quick else size.default]
        for name, size in operation.sizes.items()
    ]
    for (name, size), each in zip(operation.sizes.items(), sizes, strict=True):
        if min(each) < 1:
            raise UserError(f"--{name} must be positive, got {min(each)}")
        if size.most is not None and max(each) > size.most:
            raise UserError(f"--{name} must be at most {size.most}, got {max(each)}")
    kinds = [given[name] for name in operation.kinds]
    for (batch, time), size, kind in itertools.product(
        shapes, list(itertools.product(*sizes)), list(itertools.product(*kinds))
    ):
        yield operation.make(
            batch,
            time,
            dict(zip(operation.sizes, size, strict=True)),
            dict(zip(operation.kinds, kind, strict=True)),
        )


def _names(operation: Operation, call: "CallArguments", asked: Sequence[str] | None) -> list[str]:
    from rnnscale_kernels import local_platform
    from rnnscale_kernels.testing import usable_implementations

    usable = [*usable_implementations(call), *call.baselines]
    reasons = {name: why for name, is_usable, why in call.describe(local_platform())}
    for name in asked or ():
        if name not in usable:
            reason = reasons.get(name, f"{call} has no such form")
            raise UserError(f"cannot time {name}: {reason}; choose from {', '.join(usable)}")
    return list(asked or usable)


def _shapes(operation: Operation, arguments: argparse.Namespace) -> list[tuple[int, int]]:
    """The rows and steps of all cases."""
    from rnnscale_kernels import local_platform

    quick, tokens = arguments.quick, arguments.tokens
    if tokens is None:
        on_cpus, elsewhere = operation.tokens
        here = on_cpus if local_platform() == "cpu" else elsewhere
        tokens = operation.quick_tokens if quick else here
    option = "length" if arguments.batch is None else "batch"
    length = operation.quick_length if quick else operation.length
    parts = arguments.batch or arguments.length or [min(tokens, length)]
    for name, sizes in {"tokens": [tokens], option: parts}.items():
        if min(sizes) < 1:
            raise UserError(f"--{name} must be positive, got {min(sizes)}")
    for part in parts:
        if tokens % part:
            raise UserError(f"--{option} {part} does not divide the {tokens} tokens")
    pairs = [(part, tokens // part) for part in parts]
    return [(batch, time) for time, batch in pairs] if option == "length" else pairs


_LETTERS = {
    "batch": "B", "time": "L", "channels": "D", "planes": "k", "features": "H", "states": "P",
    "units": "N",
}  # fmt: skip


def _title(row: Row) -> str:
    """Sizes and kinds of a call in one line."""
    sizes = " ".join(f"{letter}={row[name]}" for name, letter in _LETTERS.items() if name in row)
    words = [f"{row['dtype']} {row.get('numbers', '')}".strip()]
    words += [f"{row['decay']} decay"] if "decay" in row else []
    what = row.get("cell", row["operation"])
    return ", ".join([f"{row['mode']} of {what}", sizes, *words, row["device"]])


def _table(rows: Sequence[Row]) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    title = _title(rows[0])
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
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("implementation", no_wrap=True)
    for column in (
        *("ms", "spread", "GB/s", "of copy", "bytes", "speed-up", "peak MB", "compile"),
    ):
        table.add_column(column, justify="right")
    for row in timed:
        moved = row["bytes_accessed"]
        table.add_row(
            row["name"] + (", default" if row["default"] else ""),
            f"{row['time_ms']:.4g}",
            f"{100 * row['spread']:.0f} %",
            f"{row['bytes_per_second'] / 1e9:.4g}",
            f"{row['percent_of_copy']:.0f} %",
            "" if moved is None else f"{moved / row['minimal_bytes']:.3g}x",
            "" if row["speed_up"] is None else f"{row['speed_up']:.2f}",
            f"{row['peak_bytes'] / 1e6:.4g}",
            f"{row['compile_s']:.1f} s",
        )
    return table


def _plot(arguments: argparse.Namespace) -> int:
    rows = [row for file in arguments.rows for row in _read(file)]
    figure = new_figure("--out", arguments.out)
    draw_times(figure, rows)
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
