"""Checks and times every kernel on this machine's accelerator, in less than eight minutes.

The checks come first. They compare values and gradients with the float64 reference, for each
implementation of `linear_scan` and then of `diagonal_ssm`, in the order in which they are chosen by
default. They take at most half of the budget. The times follow, in the order of `timed_cases`.
Cases at the end of each list that do not fit into the budget are dropped, and the output names
them. A kernel that is slower than its target does not fail.

Without an accelerator, `--target h100` compiles the kernels for one and reports the registers and
the memory that they use. `--target cpu` checks and times the implementations for CPUs.

Every part runs in its own process. If a kernel hangs or kills its process, its part fails and it is
not timed; the other parts go on.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from rnnscale_kernels import (
    Planar,
    diagonal_ssm,
    linear_scan,
    scan_implementations,
    ssm_implementations,
)
from rnnscale_kernels.testing import (
    MODES,
    SCAN_ARGUMENTS,
    ScanArguments,
    compile_for,
    environment,
    failure,
    measure_call,
    reference,
    rounded,
    target_devices,
    to_jax,
    to_numpy,
)

from ._benchmark import Benchmark, Row, Unavailable, columns, one_line
from ._harness import require, target
from .linear_scan import case_name, with_ratios

BASELINES = ScanArguments().baselines
# The most seconds that a part may take, and the fewest that must be left to start one.
LONGEST, SHORTEST = {"machine": 60, "check": 100}, 10
# The command that runs a part, and the folder to run it in.
PART, ROOT = (sys.executable, "-m", "benchmarks.gpu"), Path(__file__).parents[1]
# The largest error in float32 and bfloat16, relative to the largest value.
SINGLE, HALF = 1e-6, 1e-2
# Loops over time are of little interest on an accelerator, so they are timed in one case only.
LOOPS = ("sequential", "chunked", "lax_scan")
# Targets: percent of the copy bandwidth in each pass, and the speed-up over `associative_scan` with
# JAX's own differentiation.
BANDWIDTH = {"forward": 90, "backward": 85}
SPEED_UP = {"forward": 3, "gradient": 6}
# The implementations that are hand-written kernels, by platform.
KERNELS = {"cuda": ("mosaic_gpu", "triton"), "tpu": ("mosaic_tpu",)}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--target", type=target, help="a device that is not here, such as h100 or v5e; or cpu"
    )
    parser.add_argument("--budget", type=float, default=450, metavar="SECONDS", help="default: 450")


def run(options: argparse.Namespace) -> Iterator[Row]:
    start = time.monotonic()

    def part(*words: str, until: float) -> list[Row]:
        left = start + until * options.budget - time.monotonic()
        return run_in_a_process(words, options, left)

    if options.target not in (None, "cpu"):
        require(options.target)
        yield from part("compile", options.target, until=1)
        return
    machine, *rest = part("machine", until=1)
    if options.target is None and machine.get("platform") == "cpu":
        raise Unavailable("there is no accelerator; --target h100 compiles for one")
    yield from (machine, *rest)
    if "error" in machine:
        return
    names = []
    for name in machine["linear_scan"]:
        checks = part("check", "linear_scan", name, until=0.5)
        yield from checks
        if not any("ended" in row for row in checks):
            names.append(name)
    for name in machine["diagonal_ssm"]:
        yield from part("check", "diagonal_ssm", name, until=0.5)
    yield from part("time", *names, "associative_scan", "lax_scan", until=1)


def run_in_a_process(part: Sequence[str], options: argparse.Namespace, left: float) -> list[Row]:
    """The rows of one part, and if its process failed, one more with an `error`."""
    kind, *what = part
    about = {"part": kind}
    if kind == "check":
        about |= dict(zip(("operation", "name"), what, strict=True))
    if left < SHORTEST:
        return [{**about, "dropped": "all"}]
    seconds = min(left, LONGEST.get(kind, left))
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        # The process gets a shorter budget, so that it can stop by itself before it is killed.
        budget = str(seconds - SHORTEST / 2)
        command = [*PART, *part, "--out", folder, "--budget", budget]
        command += ["--rounds", str(options.rounds), *(["--quick"] if options.quick else [])]
        with log.open("w") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT)
            try:
                end = f"exit code {process.wait(seconds)}"
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                end = f"no end after {seconds:.0f} s"
        rows = [{**about, **row} for row in read_rows(Path(folder))]
        if process.returncode:
            said = log.read_text(errors="replace")[-1500:]
            rows.append({**about, "ended": end, "error": f"{end} after {len(rows)} rows; {said}"})
    failed = sum("error" in row for row in rows)
    taken = time.monotonic() - begin
    print(f"{' '.join(part)}: {len(rows)} rows, {failed} failed, {taken:.0f} s", flush=True)
    return rows


def run_part() -> None:
    """Runs one part, in its own process. Each row is written as a line at once."""
    parser = argparse.ArgumentParser(description="One part of `python -m benchmarks gpu`.")
    parser.add_argument("part", nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", type=float, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    deadline = time.monotonic() + options.budget
    kind, *what = options.part
    if kind == "machine":
        rows = [machine()]
    elif kind == "check":
        operation, name = what
        checks = {"linear_scan": scan_checks, "diagonal_ssm": ssm_checks}[operation]
        rows = run_checks(checks(name, options.quick), deadline)
    elif kind == "compile":
        (device,) = what
        rows = compile_kernels(device, options.quick, deadline)
    else:
        rows = time_cases(what, options.quick, options.rounds, deadline)
    with (options.out / "lines").open("w") as file:
        for row in rows:
            print(json.dumps(row), file=file, flush=True)


def read_rows(folder: Path) -> Iterator[Row]:
    """The rows of the lines that were written to their end."""
    file = folder / "lines"
    if file.exists():
        for line in file.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                yield json.loads(line)


def machine() -> Row:
    here = environment()
    for operation, implementations in (
        ("linear_scan", scan_implementations),
        ("diagonal_ssm", ssm_implementations),
    ):
        here[operation] = [
            name
            for name, usable, _ in implementations(here["platform"])
            if usable and not name.endswith("_interpreted")
        ]
    return here


type Check = tuple[str, float, Callable[[], float]]
"""A description of the arguments, the bound of the error, and a function that measures the error,
relative to the largest value of each result."""


def run_checks(checks: Iterator[Check], deadline: float) -> Iterator[Row]:
    for arguments, bound, measure in checks:
        row: Row = {"arguments": arguments, "bound": bound}
        if time.monotonic() > deadline:
            yield {**row, "dropped": arguments}
            continue
        try:
            figure = measure()
        except Exception as error:  # Reported in the row; the other checks go on.
            row |= failure(error)
        else:
            row["figure"] = figure
            if not figure <= bound:
                row["error"] = f"is off by {figure:.2g}, more than {bound:.2g}"
        yield row


def relative_error(got: Any, expected: Sequence[np.ndarray]) -> float:
    errors = [
        np.max(np.abs(to_numpy(x) - y)) / (np.max(np.abs(y)) or 1)
        for x, y in zip(got, expected, strict=True)
    ]
    return float(max(errors, key=lambda error: np.inf if np.isnan(error) else error))


def scan_checks(name: str, quick: bool) -> Iterator[Check]:
    for spec in SCAN_ARGUMENTS[:: 4 if quick else 1]:
        bound = SINGLE if spec.dtype == "float32" else HALF
        arrays = spec.arrays()
        yield str(spec), bound, partial(scan_error, name, spec, arrays)
    for varying, planar in ((True, False), (False, True)):
        spec = ScanArguments((1,), 2048 if quick else 65536, 64, varying=varying, planar=planar)
        arrays = spec.arrays()
        slowest = slow_down(arrays, spec)
        # A rounding error of 2^-24 lasts for 1 / (1 - |a|) steps. The errors of that many steps add
        # up to a random walk. The bound is ten times its length; a tree of products reaches five.
        bound = 10 * 2.0**-24 * slowest**-0.5
        yield f"{spec}-slow", bound, partial(scan_error, name, spec, arrays)


def slow_down(arrays: dict[str, Any], spec: Any) -> float:
    """Replaces the decays by ones of magnitude up to 1 - 1e-5, and returns the smallest distance
    from one."""
    a = arrays["a"]
    distance = 10.0 ** -np.linspace(1, 5, spec.channels)
    away = 1 + np.random.default_rng(1).uniform(size=a.shape) if spec.varying else 1
    arrays["a"] = rounded(a / np.abs(a) * (1 - distance * away), spec.dtype)
    return float(np.min(1 - np.abs(arrays["a"])))


def scan_error(name: str, spec: Any, arrays: dict[str, Any]) -> float:
    """The error of the states, the last state and the gradients of a, b and h0."""
    options = {"reverse": spec.reverse, "reset": arrays["reset"]}
    wide = ("h0", "g_last") if spec.varying else ("a", "h0", "g_last")
    a, b, h0, g, g_last = (
        to_jax(arrays[key], "float32" if key in wide else spec.dtype)
        for key in ("a", "b", "h0", "g", "g_last")
    )

    @jax.jit
    def run(a, b, h0, g, g_last):
        reset = None if options["reset"] is None else jnp.asarray(options["reset"])
        scan = partial(linear_scan, reverse=spec.reverse, reset=reset, implementation=name)
        value, pull = jax.vjp(scan, a, b, h0)
        return *value, *pull((g, g_last))

    given = arrays["a"], arrays["b"], arrays["h0"]
    expected = reference.linear_scan(*given, **options)
    expected += reference.linear_scan_gradient(*given, arrays["g"], arrays["g_last"], **options)
    return relative_error(run(a, b, h0, g, g_last), expected)


def ssm_checks(name: str, quick: bool) -> Iterator[Check]:
    cases = ((1, False, False), (100, False, True), (700, True, True))
    for dtype, bound in (("float32", SINGLE), ("bfloat16", HALF)):
        for steps, reverse, ragged in cases:
            words = f"3x{steps}x24-{dtype}" + "-reverse" * reverse + "-reset-lengths" * ragged
            yield words, bound, partial(ssm_error, name, dtype, steps, reverse, ragged)


def ssm_error(name: str, dtype: str, steps: int, reverse: bool, ragged: bool) -> float:
    """The error of the output, the last state and all gradients, for planar states."""
    rows, idim, state, odim = 3, 24, 40, 16
    random = np.random.default_rng(0)

    def planar(*shape, dtype="float32"):
        return rounded(random.normal(size=shape) + 1j * random.normal(size=shape), dtype)

    u, g_y = (rounded(random.normal(size=(rows, steps, n)), dtype) for n in (idim, odim))
    b, c = planar(state, idim, dtype=dtype), planar(odim, state, dtype=dtype)
    h0, g_last, decay = planar(rows, state), planar(rows, state), planar(state)
    decay = rounded(decay / np.abs(decay) * random.uniform(0.5, 0.99, state), "float32")
    options: dict[str, Any] = {"reset": None, "lengths": None}
    if ragged:
        options = {
            "reset": random.random((rows, steps)) < 0.1,
            "lengths": random.integers(1, steps + 1, rows),
        }
    given = u, decay, b, c, h0

    @jax.jit
    def run(given, cotangents):
        on_device = {key: None if x is None else jnp.asarray(x) for key, x in options.items()}
        ssm = partial(diagonal_ssm, reverse=reverse, implementation=name, **on_device)
        value, pull = jax.vjp(ssm, *given)
        return *value, *pull(cotangents)

    arguments = tuple(
        tuple(to_jax(x, kind) for x, kind in zip(values, kinds, strict=True))
        for values, kinds in (
            (given, (dtype, "float32", dtype, dtype, "float32")),
            ((g_y, g_last), (dtype, "float32")),
        )
    )
    # By default a GPU does not compute float32 products in float32.
    with jax.default_matmul_precision("highest"):
        got = run(*arguments)
    expected = reference.diagonal_ssm(*given, reverse=reverse, **options)
    expected += reference.diagonal_ssm_gradient(*given, g_y, g_last, reverse=reverse, **options)
    return relative_error(got, expected)


def timed_cases(quick: bool) -> list[Any]:
    """Most important first."""
    time, channels = (64, 16) if quick else (4096, 1024)
    large, small = ((8,), time, channels), ((1,), time, channels)
    cases = [
        ScanArguments(*large),
        ScanArguments(*large, dtype="bfloat16"),
        ScanArguments(*large, planar=True),
        ScanArguments(*small),
        ScanArguments(*small, planar=True, varying=False),
        ScanArguments(*large, planar=True, varying=False),
        ScanArguments(*large, varying=False),
        ScanArguments((1,), 16 * time, channels // 4),
        ScanArguments(*large, dtype="bfloat16", planar=True),
    ]
    return cases[:2] if quick else cases


def time_cases(names: Sequence[str], quick: bool, rounds: int, deadline: float) -> Iterator[Row]:
    longest = 0.0
    for number, arguments in enumerate(timed_cases(quick)):
        chosen = [name for name in names if number == 0 or name not in LOOPS]
        for mode in MODES:
            begin = time.monotonic()
            if begin + longest > deadline:
                yield {"dropped": f"{mode} {arguments}"}
                continue
            try:
                rows = measure_call(arguments, mode, chosen, rounds=rounds, seconds=1.0)
                yield from with_ratios(rows)
            except Exception as error:  # Reported in the row; the other cases go on.
                yield {"name": "all", "arguments": f"{mode} {arguments}", **failure(error)}
            longest = max(longest, time.monotonic() - begin) if number else 0.0


def compile_kernels(device: str, quick: bool, deadline: float) -> Iterator[Row]:
    """Compiles the kernels of the timed cases for a device that is not here."""
    names = KERNELS["tpu" if target_devices(device)[0].platform == "tpu" else "cuda"]
    for arguments in timed_cases(quick):
        for mode in MODES:
            for name in names:
                row: Row = {"name": name, "mode": mode, "arguments": str(arguments)}
                if time.monotonic() > deadline:
                    yield {**row, "dropped": ""}
                    continue
                try:
                    row |= compile_scan(arguments, mode, name, device)
                except Exception as error:  # Reported in the row; the others go on.
                    row |= failure(error)
                yield row


def compile_scan(arguments: Any, mode: str, name: str, device: str) -> Row:
    def number(*shape: int, dtype: str = arguments.dtype) -> Any:
        plane: Any = jax.ShapeDtypeStruct(shape, dtype)
        return Planar(plane, plane) if arguments.planar else plane

    (batch,), time_, channels = arguments.batch, arguments.time, arguments.channels
    b, h0 = number(batch, time_, channels), number(batch, channels, dtype="float32")
    a = b if arguments.varying else number(1, 1, channels, dtype="float32")

    def forward(a, b, h0):
        return linear_scan(a, b, h0, implementation=name)

    def gradient(a, b, h0, g, g_last):
        results, pull = jax.vjp(forward, a, b, h0)
        return results, pull((g, g_last))

    start = time.perf_counter()
    if mode == "forward":
        program = compile_for(forward, a, b, h0, target=device)
    else:
        program = compile_for(gradient, a, b, h0, b, h0, target=device)
    return {
        "compile_s": time.perf_counter() - start,
        "temp_bytes": program.temporaries,
        "kernels": [dataclasses.asdict(kernel) for kernel in program.kernels],
        "vmem": max((call.vmem or 0 for call in program.calls), default=0) or None,
    }


PARTS = ("check", "time", "compile")
TIMES = columns(
    *("case", "name", "mode", "time_ms"),
    *("percent", "percent target", "speed_up", "speed_up target"),
)
COMPILED = columns(
    *("name", "mode", "arguments", "shared_memory", "vmem", "registers", "spills"),
    *("temp_bytes", "compile_s"),
)


def table(rows: Sequence[Row]) -> Group:
    """Failures, dropped cases, and a table for each kind of part."""
    lines = []
    for row in rows:
        words = [row[key] for key in ("part", "operation", "name", "arguments") if key in row]
        if "error" in row:
            lines.append(f"[bold red]FAILED[/] {escape(' '.join(words))}: {one_line(row['error'])}")
        if "dropped" in row:
            lines.append(f"dropped, the budget is used up: {' '.join(words)} {row['dropped']}")
    kinds = {kind: [row for row in rows if row["part"] == kind] for kind in PARTS}
    tables = []
    if kinds["check"]:
        tables.append(check_table(kinds["check"]))
    if kinds["time"]:
        tables.append(TIMES(with_targets(kinds["time"])))
    if kinds["compile"]:
        tables.append(COMPILED(with_kernels(kinds["compile"])))
    return Group(*lines, *tables)


def check_table(rows: Sequence[Row]) -> Table:
    table = Table(title="checks; errors are relative to the largest value", box=None)
    for column in ("operation", "implementation"):
        table.add_column(column)
    for column in ("passed", "failed", "left out", "error in float32", "error / bound"):
        table.add_column(column, justify="right")
    for operation, name in dict.fromkeys((row["operation"], row["name"]) for row in rows):
        chosen = [row for row in rows if (row["operation"], row["name"]) == (operation, name)]
        figures = [(row["figure"], row["bound"]) for row in chosen if "figure" in row]
        single = [figure for figure, bound in figures if bound == SINGLE]
        table.add_row(
            operation,
            name,
            str(sum("figure" in row and "error" not in row for row in chosen)),
            str(sum("error" in row for row in chosen)),
            str(sum("unsupported" in row or "dropped" in row for row in chosen)),
            f"{max(single):.1e}" if single else "",
            f"{max(figure / bound for figure, bound in figures):.2f}" if figures else "",
        )
    return table


def with_targets(rows: Sequence[Row]) -> list[Row]:
    """The times of the kernels, each with the percentage of the copy bandwidth in its own pass and
    with the targets. The backward pass takes the time of the gradient minus that of the forward
    pass."""
    kernels = [row for row in rows if "time_ms" in row and row["name"] not in BASELINES]
    forward = {(case_name(row), row["name"]): row for row in kernels if row["mode"] == "forward"}
    found = []
    for row in kernels:
        percent, aim = row["percent_of_copy"], BANDWIDTH["forward"]
        if row["mode"] == "gradient":
            first = forward.get((case_name(row), row["name"]))
            percent, aim = backward_percent(first, row), BANDWIDTH["backward"]
        found.append(
            {**row, "case": case_name(row), "percent": percent, "percent target": aim}
            | {"speed_up target": SPEED_UP[row["mode"]]}
        )
    return found


def backward_percent(forward: Row | None, gradient: Row) -> float | None:
    """Percent of the copy bandwidth in the backward pass alone, if it can be computed."""
    if forward is None:
        return None
    seconds = 1e-3 * (gradient["time_ms"] - forward["time_ms"])
    moved = gradient["minimal_bytes"] - forward["minimal_bytes"]
    return 100 * moved / seconds / gradient["copy_bytes_per_second"] if seconds > 0 else None


def with_kernels(rows: Sequence[Row]) -> list[Row]:
    """What was compiled, with the figures of each kernel."""
    return [
        row
        | {
            name: tuple(kernel[name] for kernel in row["kernels"])
            for name in ("shared_memory", "registers", "spills")
        }
        for row in rows
        if "compile_s" in row
    ]


BENCHMARK = Benchmark(run=run, table=table, add_options=add_options)


if __name__ == "__main__":
    run_part()
