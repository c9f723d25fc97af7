"""Checks and times every kernel on this machine's accelerator, in less than ten minutes.

Every implementation of an operation has two parts, each in a process of its own: `check` compares
values and gradients with a float64 reference, and `time` times the forward pass and the gradient.
The riskiest and most valuable parts come first (`ORDER`), and so do the cases of a part. If a
kernel hangs, faults or kills its process, only the rest of that part is lost; its times are then
taken last. Every part has a limit in seconds, and the output names the cases that did not fit:
`--budget 1700 --longest 120` gives more time. With `--json FILE`, the file is complete after every
row, so that nothing is lost if the machine goes away.

The textbook forms, plain XLA and cuDNN's LSTM are timed in the same way. The speed-up is over the
textbook form of the same case. Targets are shown only: a kernel that misses its target is no
failure.

`--rehearse` runs the same parts in the same order on a CPU, with interpreted kernels at tiny sizes,
so that mistakes in this code show before a device is paid for. In a rehearsal or on a device,
`--fault diagonal_ssm/mosaic_gpu=hang` makes the check of that implementation raise, exit, abort or
hang after its first row, to show that the others go on.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from rnnscale_kernels.testing import MODES, CallArguments, environment, failure, measure_call

from ._benchmark import Benchmark, Row, Unavailable, case_name, columns, one_line
from ._device_cases import JOBS, Job
from ._parts import DEVICE, FAULTS, REHEARSAL, Part, run_part, write_rows

ORDER = (
    ("linear_scan", "mosaic_gpu"),
    ("diagonal_ssm", "mosaic_gpu"),
    ("diagonal_ssm", "mosaic_gpu_wide"),
    ("linear_scan", "associative_scan"),
    ("elementwise", "mosaic_gpu"),
    ("persistent", "mosaic_gpu"),
    ("diagonal_ssm", "unfused"),
    ("diagonal_ssm", "associative_scan"),
    ("linear_scan", "triton"),
    ("block_scan", "mosaic_gpu"),
    ("linear_scan", "mosaic_tpu"),
    ("diagonal_ssm", "mosaic_tpu"),
    ("block_scan", "mosaic_tpu"),
    ("elementwise", "mosaic_tpu"),
    ("elementwise", "loop"),
    ("persistent", "loop"),
    ("persistent", "cudnn_lstm"),
    ("persistent", "lax_scan"),
    ("elementwise", "lax_scan"),
    ("block_scan", "associative_scan"),
    ("diagonal_ssm", "chunked"),
    ("linear_scan", "associative"),
    ("block_scan", "associative"),
)
"""Jobs and implementations, in the order of their parts. Those that are usable here and not in the
list come last."""
# Loops over time are of little interest on an accelerator, and slow there: of each job, one case.
LOOPS = ("sequential", "lax_scan")
# The most seconds of a part.
LONGEST = {"machine": 60.0, "check": 35.0, "time": 35.0}
# Targets: percent of the copy bandwidth in each pass, and the speed-up over `associative_scan` with
# JAX's own differentiation.
BANDWIDTH = {"forward": 90, "backward": 85}
SPEED_UP = {"forward": 3, "gradient": 6}
MODULE = "benchmarks.gpu"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--budget", type=float, default=560, metavar="SECONDS",
        help="seconds for all parts; default: 560",
    )  # fmt: skip
    parser.add_argument(
        "--rehearse", action="store_true",
        help="on a CPU, with interpreted kernels at tiny sizes and without a budget",
    )  # fmt: skip
    parser.add_argument(
        "--only", nargs="+", metavar="JOB", choices=JOBS,
        help=f"of {', '.join(JOBS)}; default: all",
    )  # fmt: skip
    parser.add_argument(
        "--longest", type=float, metavar="SECONDS",
        help=f"limit of a part; default: {LONGEST['check']:.0f}, with --rehearse 600",
    )  # fmt: skip
    parser.add_argument(
        "--fault", type=fault, metavar="JOB/NAME=KIND",
        help=f"make a check fail; KIND is one of {', '.join(FAULTS)}",
    )  # fmt: skip


def fault(text: str) -> tuple[str, str]:
    """The implementation and the kind of a fault, such as `diagonal_ssm/mosaic_gpu=hang`."""
    name, _, kind = text.partition("=")
    if kind not in FAULTS or "/" not in name:
        raise argparse.ArgumentTypeError(f"must be JOB/NAME=KIND, of {FAULTS}, got {text!r}")
    return name, kind


def run(options: argparse.Namespace) -> Iterator[Row]:
    start = time.monotonic()

    def left() -> float:
        return float("inf") if options.rehearse else start + options.budget - time.monotonic()

    def run_one(kind: str, *words: str) -> Iterator[Row]:
        about = {"part": kind, **dict(zip(("job", "name"), words, strict=False))}
        seconds = options.longest or (600.0 if options.rehearse else LONGEST[kind])
        name, kind_of_fault = options.fault or ("", None)
        here = "/".join(words).removesuffix("_interpreted")
        chosen = kind_of_fault if (kind, here) == ("check", name) else None
        rounds = str(1 if options.rehearse else options.rounds)
        given = ["--rounds", rounds, *(["--rehearse"] if options.rehearse else [])]
        given += ["--tiny"] if options.rehearse or options.quick else []
        yield from run_part(
            Part((kind, *words), about), MODULE, given, min(seconds, left()),
            REHEARSAL if options.rehearse else DEVICE, chosen,
        )  # fmt: skip

    rows = list(run_one("machine"))
    options.machine = {key: value for key, value in rows[0].items() if key != "part"}
    if options.machine.get("platform") == "cpu" and not options.rehearse:
        raise Unavailable("there is no accelerator; --rehearse runs everything on a CPU")
    yield from rows
    usable = options.machine.pop("usable", None)
    if usable is None:
        return
    postponed = []
    for job, name in in_order(usable, options.only):
        rows = []
        if name not in JOBS[job].example.baselines:
            for row in run_one("check", job, name):
                rows.append(row)
                yield row
        if any("ended" in row for row in rows):
            postponed.append((job, name))
        else:
            yield from run_one("time", job, name)
    for job, name in postponed:
        yield from run_one("time", job, name)


def in_order(usable: dict[str, list[str]], only: Sequence[str] | None) -> list[tuple[str, str]]:
    """The usable implementations and textbook forms, in the order of `ORDER`."""
    places = {place: number for number, place in enumerate(ORDER)}

    def place(found: tuple[str, str]) -> int:
        job, name = found
        return places.get((job, name.removesuffix("_interpreted")), len(places))

    found = [(job, name) for job in only or JOBS for name in usable[job]]
    return sorted(found, key=place)


def main() -> None:
    """Runs one part, in its own process."""
    parser = argparse.ArgumentParser(description="One part of `python -m benchmarks gpu`.")
    parser.add_argument("part", nargs="+")
    parser.add_argument("--lines", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--fault", choices=FAULTS)
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds
    kind, *words = options.part
    if kind == "machine":
        rows = iter([machine(options.rehearse)])
    else:
        job, name = words
        cases = cases_of(JOBS[job], kind, name, tiny=options.tiny)
        rows = (
            check_cases(cases, name, deadline)
            if kind == "check"
            else time_cases(cases, name, options.rounds, deadline)
        )
    write_rows(rows, options.lines, options.fault)


def machine(rehearse: bool) -> Row:
    """The device, and for each job the names of what is usable on it and worth a part."""
    here = environment()
    usable = {}
    for job, each in JOBS.items():
        described = each.example.describe(here["platform"])
        names = [name for name, is_usable, _ in described if is_usable]
        if rehearse:
            # The kernels, and what has no kernel: plain XLA.
            names = [n for n in names if n.endswith("_interpreted") or (job, n) in ORDER]
        else:
            names = [name for name in names if not name.endswith("_interpreted")]
        usable[job] = [*names, *each.example.baselines]
    return {**here, "usable": usable}


def cases_of(job: Job, kind: str, name: str, *, tiny: bool) -> Sequence[CallArguments]:
    if kind == "check":
        return job.tiny_checks if tiny else job.checks
    cases = job.tiny_times if tiny else job.times
    return cases[:1] if name in LOOPS else cases


def check_cases(cases: Sequence[CallArguments], name: str, deadline: float) -> Iterator[Row]:
    for arguments in cases:
        row: Row = {"arguments": str(arguments), "bound": arguments.bound}
        if time.monotonic() > deadline:
            yield {**row, "dropped": str(arguments)}
            continue
        try:
            figure = arguments.error(name)
        except Exception as error:  # Reported in the row; the other checks go on.
            row |= failure(error)
        else:
            row["figure"] = figure
            if not figure <= arguments.bound:
                row["error"] = f"is off by {figure:.2g}, more than {arguments.bound:.2g}"
        yield row
        if "error" in row:
            require_device()


def time_cases(
    cases: Sequence[CallArguments], name: str, rounds: int, deadline: float
) -> Iterator[Row]:
    known, longest = environment(), 0.0
    for arguments in cases:
        for mode in MODES:
            begin = time.monotonic()
            if begin + longest > deadline:
                yield {"dropped": f"{mode} {arguments}"}
                continue
            try:
                (row,) = measure_call(arguments, mode, [name], rounds=rounds, seconds=0.5)
            except Exception as error:  # Reported in the row; the other cases go on.
                row = {"mode": mode, "arguments": str(arguments), **failure(error)}
            # The device stands once, beside all rows.
            yield {key: value for key, value in row.items() if key not in known}
            longest = max(longest, time.monotonic() - begin)
            if "error" in row:
                require_device()


def require_device() -> None:
    """Raises the error of a device that has faulted: nothing more can be run in this process."""
    jax.block_until_ready(jnp.zeros(8) + 1)


TIMES = columns(
    *("job", "case", "name", "mode", "time_ms", "bytes / least"),
    *("percent", "percent target", "speed_up", "speed_up target"),
)


def table(rows: Sequence[Row]) -> Group:
    """Failures, what was dropped, and a table for each kind of part."""
    lines = []
    for row in rows:
        words = [row[key] for key in ("part", "job", "name", "mode", "arguments") if key in row]
        if "error" in row:
            lines.append(f"[bold red]FAILED[/] {escape(' '.join(words))}: {one_line(row['error'])}")
        if "dropped" in row:
            lines.append(f"dropped, the budget is used up: {' '.join(words)} {row['dropped']}")
    checks, times = ([row for row in rows if row["part"] == kind] for kind in ("check", "time"))
    tables: list[RenderableType] = [check_table(checks)] if checks else []
    if times:
        tables.append(TIMES(with_targets(times)))
    return Group(*lines, *tables)


def check_table(rows: Sequence[Row]) -> Table:
    table = Table(title="checks; errors are relative to the largest value", box=None)
    for column in ("job", "implementation"):
        table.add_column(column)
    for column in ("passed", "failed", "left out", "error", "error / bound"):
        table.add_column(column, justify="right")
    for job, name in dict.fromkeys((row["job"], row["name"]) for row in rows):
        chosen = [row for row in rows if (row["job"], row["name"]) == (job, name)]
        figures = [(row["figure"], row["bound"]) for row in chosen if "figure" in row]
        table.add_row(
            job,
            name,
            str(sum("figure" in row and "error" not in row for row in chosen)),
            str(sum("error" in row for row in chosen)),
            str(sum("unsupported" in row or "dropped" in row for row in chosen)),
            f"{max(figure for figure, _ in figures):.1e}" if figures else "",
            f"{max(figure / bound for figure, bound in figures):.2f}" if figures else "",
        )
    return table


def with_targets(rows: Sequence[Row]) -> list[Row]:
    """The times, each with the percentage of the copy bandwidth in its own pass, the speed-up over
    the textbook form, and the targets. The backward pass takes the time of the gradient minus that
    of the forward pass."""
    timed = [row for row in rows if "time_ms" in row]
    times = {(row["job"], case_name(row), row["mode"], row["name"]): row for row in timed}
    found = []
    for row in timed:
        job, case, mode, name = row["job"], case_name(row), row["mode"], row["name"]
        percent, aim = row["percent_of_copy"], BANDWIDTH["forward"]
        if mode == "gradient":
            percent = backward_percent(times.get((job, case, "forward", name)), row)
            aim = BANDWIDTH["backward"]
        moved = row["bytes_accessed"]
        textbook = times.get((job, case, mode, next(iter(JOBS[job].example.baselines))))
        found.append(
            {**row, "case": case, "percent": percent, "percent target": aim}
            | {"bytes / least": moved and moved / row["minimal_bytes"]}
            | {"speed_up": textbook and textbook["time_ms"] / row["time_ms"]}
            | {"speed_up target": SPEED_UP[mode]}
        )
    return found


def backward_percent(forward: Row | None, gradient: Row) -> float | None:
    """Percent of the copy bandwidth in the backward pass alone, if it can be computed."""
    if forward is None:
        return None
    seconds = 1e-3 * (gradient["time_ms"] - forward["time_ms"])
    moved = gradient["minimal_bytes"] - forward["minimal_bytes"]
    return 100 * moved / seconds / gradient["copy_bytes_per_second"] if seconds > 0 else None


def device(options: argparse.Namespace) -> Row:
    """The device and the versions, which a part has asked for: this process has used no device."""
    return options.machine


BENCHMARK = Benchmark(run=run, table=table, add_options=add_options, environment=device)


if __name__ == "__main__":
    main()
