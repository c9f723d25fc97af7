"""Runs the benchmarks.

    python -m benchmarks                      lists them
    python -m benchmarks NAME --help          the options of one
    python -m benchmarks NAME [--quick] [--rounds N] [--json FILE] [--plot FILE] [its own options]
    python -m benchmarks all [--quick] [--json FOLDER]
    python -m benchmarks plot RESULT.json ... --out FILE
    python -m benchmarks collect ROWS.json ...  puts rows of experiments into `results/`
    python -m benchmarks readme               updates the tables of the pages from `results/`

A benchmark is a module of this folder, with a `BENCHMARK` (`_benchmark.py`). The first line of its
docstring is what the list shows.
"""

import argparse
import ast
import contextlib
import importlib
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ._benchmark import Benchmark, Row, Unavailable, positive

BENCHMARKS = (
    "layers",
    "train_step",
    "growth",
    "parallel_bounds",
    "parallel_time",
    "parallel_cells",
    "compile_time",
    "start_up",
    "latency",
    "large_batch",
    "matrix_states",
    "memory",
    "s4d",
    "mamba",
    "saves",
    "resume",
    "scaling",
    "one_machine",
    "data",
    "message_passing",
    "watch",
    "own_data",
    "archive",
    "reruns",
    "kernels",
    "gpu",
    "tune",
)
"""All benchmarks, in the order in which they are listed and run."""

FOLDER = Path(__file__).parent
FAILED, WRONG, UNAVAILABLE = 1, 2, 3
"""Exit codes: a contender failed; the options are wrong; it cannot run on this machine."""


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any):
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG, f"benchmarks: error: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else list(arguments)
    parser = _Parser(
        prog="python -m benchmarks",
        description="Lists the benchmarks, or runs one: NAME --help has its options.",
    )
    names = [*BENCHMARKS, *COMMANDS]
    parser.add_argument("name", nargs="?", choices=names, metavar="NAME", help=", ".join(names))
    options = parser.parse_args(given[:1])
    if options.name is None:
        show_list()
        return 0
    run = COMMANDS.get(options.name) or partial(run_one, options.name)
    return run(given[1:])


def description(name: str) -> str:
    """The benchmark's docstring. The module is not imported: a list needs no jax."""
    module = ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))
    return ast.get_docstring(module) or ""


def show_list() -> None:
    width = max(map(len, BENCHMARKS))
    for name in BENCHMARKS:
        print(f"{name:{width}}  {description(name).partition('\n')[0]}")


def load(name: str) -> Benchmark:
    return importlib.import_module(f"{__package__}.{name}").BENCHMARK


def run_one(name: str, given: Sequence[str]) -> int:
    from rnnscale._errors import UserError
    from rnnscale.cli._bench_plot import new_figure
    from rnnscale.cli._options import check_file

    benchmark = load(name)
    options, command = parse(name, benchmark, given)
    figure = None
    try:
        check_file("--json", options.json)
        if options.plot is not None:
            figure = new_figure("--plot", options.plot)
    except UserError as error:
        return report_wrong(str(error))
    rows: list[Row] = []
    try:
        # Anything else that is printed, by a training for example, is not part of the document.
        with contextlib.redirect_stdout(sys.stderr):
            for row in benchmark.run(options):
                rows.append(row)
                # Complete after every row: hours of measuring are not lost to what comes then.
                if options.json not in (None, "-"):
                    part = {"benchmark": name, "command": command, "incomplete": True}
                    replace_json(options.json, {**part, "rows": rows})
                if sys.stderr.isatty():
                    print(f"\r{name}: {len(rows)} rows ", end="", file=sys.stderr, flush=True)
    except Unavailable as reason:
        print(f"benchmarks: {name} cannot run here: {reason}", file=sys.stderr)
        return UNAVAILABLE
    except UserError as error:
        return report_wrong(str(error))
    document = make_document(name, command, benchmark, options, rows)
    if options.json == "-":
        print(json.dumps(document, indent=1))
    elif options.json is not None:
        replace_json(options.json, document)
    console = Console(stderr=options.json == "-", width=None if sys.stdout.isatty() else 150)
    console.print(benchmark.table(rows))
    if benchmark.plot is not None and figure is not None:
        benchmark.plot(rows_with_device(document), figure)
        figure.savefig(options.plot)
    return FAILED if any("error" in row for row in rows) else 0


def parse(name: str, benchmark: Benchmark, given: Sequence[str]) -> tuple[argparse.Namespace, str]:
    """The options, and the command that measures the same without writing files."""
    prog = f"python -m benchmarks {name}"
    outputs = _Parser(prog=prog, add_help=False)
    outputs.set_defaults(plot=None)
    outputs.add_argument("--json", metavar="FILE", help="write the rows; - is the standard output")
    if benchmark.plot is not None:
        outputs.add_argument("--plot", metavar="FILE", help="draw them, such as in rows.svg")
    parser = _Parser(
        prog=prog,
        description=description(name).replace("%", "%%"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[outputs],
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds")
    rounds, quick_rounds = benchmark.rounds, benchmark.quick_rounds
    if rounds is not None:
        parser.add_argument(
            "--rounds", type=positive, metavar="N",
            help=f"turns of each contender; default: {rounds}, {quick_rounds} with --quick",
        )  # fmt: skip
    benchmark.add_options(parser)
    options = parser.parse_args(given)
    if rounds is not None and options.rounds is None:
        options.rounds = quick_rounds if options.quick else rounds
    _, command = outputs.parse_known_args(given)
    return options, shlex.join([*prog.split(), *command])


def make_document(
    name: str, command: str, benchmark: Benchmark, options: argparse.Namespace, rows: list[Row]
) -> dict[str, Any]:
    """The file's content. The device is asked for last: some benchmarks leave it to other
    processes."""
    from rnnscale_kernels.testing import environment

    here = environment() if benchmark.environment is None else benchmark.environment(options)
    about = benchmark.about(options)
    return {"benchmark": name, "command": command, **here, **about, "rows": rows}


def replace_json(file: str, document: dict[str, Any]) -> None:
    """Writes the file so that it is complete at any time."""
    beside = Path(f"{file}.part")
    beside.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    beside.replace(file)


def rows_with_device(document: dict[str, Any]) -> list[Row]:
    """The rows, each with its device: a picture can show several."""
    return [{"device": document["device"], **row} for row in document["rows"]]


def plot_results(given: Sequence[str]) -> int:
    from rnnscale.cli._bench_plot import new_figure

    parser = _Parser(
        prog="python -m benchmarks plot",
        description="Draws what a benchmark wrote with --json, on one device or on several, or "
        "what `rnnscale experiment NAME --curves FILE` wrote.",
    )
    parser.add_argument("results", nargs="+", metavar="RESULT.json")
    parser.add_argument("--out", required=True, metavar="FILE", help="such as rows.png or rows.svg")
    options = parser.parse_args(given)
    try:
        documents = [read(file) for file in options.results]
        figure = new_figure("--out", options.out)
    except ValueError as error:
        return report_wrong(str(error))
    names = sorted({document.get("benchmark") or document["experiment"] for document in documents})
    if len(names) > 1:
        return report_wrong(f"a picture is of one benchmark, the files are of {', '.join(names)}")
    if "experiment" in documents[0]:
        if len(documents) > 1:
            return report_wrong("the curves of an experiment are in one file")
        from ._curves import draw as draw_curves

        draw_curves(documents[0], figure)
    elif (draw := load(names[0]).plot) is not None:
        draw([row for document in documents for row in rows_with_device(document)], figure)
    else:
        return report_wrong(f"{names[0]} has no picture")
    figure.savefig(options.out)
    return 0


def collect_rows(given: Sequence[str]) -> int:
    from ._collect import collect

    parser = _Parser(
        prog="python -m benchmarks collect",
        description="Puts rows into results/experiments, each in place of the earlier one of its "
        "entry: what `rnnscale experiment NAME --row ROW` wrote with --json or with --curves.",
    )
    parser.add_argument("files", nargs="+", metavar="ROWS.json")
    try:
        written = collect(parser.parse_args(given).files)
    except ValueError as error:
        return report_wrong(str(error))
    for file in written:
        print(f"wrote {file}")
    return 0


def update_pages(given: Sequence[str]) -> int:
    from ._curves import FOLDER as CURVES, write_picture
    from ._tables import pages, updated

    parser = _Parser(
        prog="python -m benchmarks readme",
        description="Updates the tables of the README and the guides from the files in results/, "
        "and draws the curves there.",
    )
    parser.parse_args(given)
    for data in sorted(CURVES.glob("*.json")):
        write_picture(data)
    for page in pages():
        page.write_text(updated(page.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


def read(file: str) -> dict[str, Any]:
    try:
        document = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {file}: {error}") from None
    rows = document.get("rows") if isinstance(document, dict) else None
    if rows == []:
        raise ValueError(f"{file} has no rows to draw")
    if isinstance(document, dict) and document.get("incomplete"):
        raise ValueError(f"{file} is of a benchmark that was interrupted: run it again")
    if rows and (document.get("benchmark") in BENCHMARKS or "values" in rows[0]):
        return document
    raise ValueError(
        f"{file} was not written by python -m benchmarks NAME --json FILE, nor by rnnscale "
        "experiment NAME --curves FILE"
    )


def run_all(given: Sequence[str]) -> int:
    """One after another, each in a process of its own: neither memory nor caches are shared."""
    parser = _Parser(
        prog="python -m benchmarks all",
        description="Runs every benchmark that this machine can run, each in a fresh process.",
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds")
    parser.add_argument("--json", metavar="FOLDER", help="write NAME.json for each")
    options = parser.parse_args(given)
    if options.json is not None and not Path(options.json).is_dir():
        return report_wrong(f"--json {options.json}: there is no such folder")
    outcomes = Table("benchmark", "seconds", "outcome", box=None)
    worst = 0
    for name in BENCHMARKS:
        command = [sys.executable, "-m", __package__ or "benchmarks", name]
        command += ["--quick"] if options.quick else []
        command += ["--json", str(Path(options.json, f"{name}.json"))] if options.json else []
        print(f"\n{name}", flush=True)
        start = time.perf_counter()
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        seconds = time.perf_counter() - start
        print(done.stderr, end="", file=sys.stderr, flush=True)
        outcome = "passed"
        if done.returncode == UNAVAILABLE:
            outcome = f"skipped: {done.stderr.strip().splitlines()[-1].partition(': ')[2]}"
        elif done.returncode:
            outcome = f"failed, exit code {done.returncode}"
            worst = FAILED
        outcomes.add_row(name, f"{seconds:.0f}", escape(outcome))
    Console(width=None if sys.stdout.isatty() else 150).print(outcomes)
    return worst


def report_wrong(message: str) -> int:
    print(f"benchmarks: error: {message}", file=sys.stderr)
    return WRONG


COMMANDS = {
    "all": run_all,
    "plot": plot_results,
    "collect": collect_rows,
    "readme": update_pages,
}
"""The commands that are not benchmarks."""


if __name__ == "__main__":
    sys.exit(main())
