"""`rnnscale experiment`: runs the entries of an experiment and prints a table of them."""

import argparse
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rnnscale._errors import DivergedError, UserError
from rnnscale.cli._options import (
    add_data_options,
    check_file,
    given_options,
    write_json,
    write_text,
)
from rnnscale.experiments import EXPERIMENTS, Experiment, curves

if TYPE_CHECKING:
    from rich.table import Table


def add_to(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "experiment",
        help="run an experiment of a paper and compare the figures",
        description="Runs an experiment of a paper and prints a table: our figure, its spread over "
        "seeds, and the published figure. Finished runs are kept and not repeated; a run that "
        "was stopped continues. Without a name, lists the experiments.",
        examples=(
            "rnnscale experiment",
            "rnnscale experiment digits-permuted --row lstm s5 --seeds 0 1 --json rows.json",
            "rnnscale experiment state-tracking --row 'parity-*' word-s3-lstm",
            "rnnscale experiment mnist5k --row mamba --cpu-minutes 60",
        ),
    )
    parser.set_defaults(command=_experiment)
    parser.add_argument(
        "name",
        nargs="?",
        choices=EXPERIMENTS,
        metavar="EXPERIMENT",
        help="without it, experiments are listed",
    )
    parser.add_argument(
        "--row",
        nargs="+",
        metavar="ROW",
        help="run only these, by name or pattern such as 'parity-*'; default: all",
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", metavar="S", help="default: those of the experiment"
    )
    parser.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="training steps, of the last run of a curriculum; default: those of each entry",
    )
    parser.add_argument(
        "--cpu-minutes",
        type=float,
        metavar="X",
        help="stop each run when X minutes of processor time are used up; one that fewer minutes "
        "had stopped goes on; default: that of each entry",
    )
    add_data_options(parser)
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="default: a folder in runs/experiments"
    )
    parser.add_argument(
        "--json",
        metavar="FILE",
        help="write the rows at the end; - for the standard output; default: no file",
    )
    parser.add_argument(
        "--curves",
        metavar="FILE",
        help="write the validation figures over the steps and the processor time of each run; - "
        "for the standard output; default: no file",
    )


def _experiment(arguments: argparse.Namespace) -> int:
    from rnnscale.cli._console import Console

    console = Console(width=100, stderr="-" in (arguments.json, arguments.curves))
    if arguments.name is None:
        options = ("row", "seeds", "steps", "cpu_minutes", "folder", "text")
        if given_options(arguments, *options, "out", "json", "curves"):
            raise UserError(
                "name the experiment first, as in: rnnscale experiment digits --row lstm"
            )
        console.print(_list(list(EXPERIMENTS.values())))
        return 0
    experiment = EXPERIMENTS[arguments.name]
    if experiment.folder and arguments.folder is None:
        raise UserError(f"{experiment.name} reads its data from a folder: give it as --folder")
    check_file("--json", arguments.json)
    check_file("--curves", arguments.curves)
    given = given_options(arguments, "steps", "cpu_minutes", "folder", "text")
    out = arguments.out or Path("runs", "experiments", experiment.name)
    from rnnscale.runs import kept_programs
    from rnnscale_kernels.testing import environment

    rows: list[dict[str, Any] | None] = []
    failed = None
    with kept_programs(out / "programs"):  # which the seeds of an entry share
        try:
            rows.extend(experiment.run(out, seeds=arguments.seeds, rows=arguments.row, **given))
        except DivergedError as error:  # the other rows are there
            failed = error
    stopped = None in rows
    done = [row for row in rows if row is not None]
    console.print(_table(experiment, done))
    if experiment.columns:
        console.print(_further_figures(experiment, done))
    console.print(f"Differs from the papers: {experiment.differs}", highlight=False)
    # In both cases the file is left alone: it may hold all rows of an earlier call.
    if failed is not None:
        raise failed
    if stopped:
        console.print("stopped; repeat the command to continue")
    else:
        about = {
            "experiment": experiment.name,
            "command": _command(arguments),
            "metric": experiment.metric,
            "differs": experiment.differs,
            **({} if experiment.solved is None else {"solved": experiment.solved}),
            **environment(),
        }
        write_json(arguments.json, {**about, "rows": done}, indent=1)
        if arguments.curves is not None:
            write_text(arguments.curves, row_by_row({**about, **curves(out, done)}))
    return 0


def _command(arguments: argparse.Namespace) -> str:
    """The command that gives these figures, without the options that say where they are kept."""
    words = ["rnnscale", "experiment", arguments.name]
    given = given_options(arguments, "row", "seeds", "steps", "cpu_minutes", "folder", "text")
    for name, value in given.items():
        values = value if isinstance(value, list) else [value]
        words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return shlex.join(words)


def row_by_row(document: Mapping[str, Any]) -> str:
    """The document as JSON, with each row in one line, since a curve is a long list."""
    head = json.dumps({**document, "rows": []}, indent=1)
    rows = ",\n  ".join(map(json.dumps, document["rows"]))
    return f"{head.removesuffix('[]\n}')}[\n  {rows}\n ]\n}}"


def _list(experiments: Sequence[Experiment]) -> "Table":
    from rich.table import Table

    table = Table("experiment", "what it is", "entries", "seeds", "processor minutes")
    for each in experiments:
        minutes = "with accelerators" if each.folder else f"{each.minutes:g}"
        table.add_row(
            each.name, each.description, str(len(each.entries)), str(len(each.seeds)), minutes
        )
    return table


def _table(experiment: Experiment, rows: Sequence[dict[str, Any]]) -> "Table":
    from rich.table import Table

    table = Table(title=f"{experiment.name}: {experiment.metric}", title_justify="left")
    table.add_column("entry")
    for column in ("parameters", "ours", "seeds", "CPU seconds each"):
        table.add_column(column, justify="right")
    table.add_column("ended by")
    table.add_column("published", justify="right")
    table.add_column("where", ratio=1)
    for row in rows:
        spread = "" if row["spread"] is None else f" ± {row['spread']:.2g}"
        if experiment.solved is not None:
            spread += f" ({sum(map(experiment.solves, row['figures']))} solved)"
        paper = row["paper"] or {"value": None, "source": ""}
        table.add_row(
            row["entry"],
            f"{row['parameters']:,}" if row["parameters"] else "",
            f"{row['mean']:.4g}{spread}",
            str(len(row["seeds"])),
            f"{sum(row['seconds']) / len(row['seconds']):.0f}",
            ", ".join(sorted({each for each in row["ended"] if each is not None})),
            "" if paper["value"] is None else f"{paper['value']:.4g}",
            paper["source"],
        )
    return table


def _further_figures(experiment: Experiment, rows: Sequence[dict[str, Any]]) -> "Table":
    from rich.table import Table

    table = Table("entry", *experiment.columns, title="further figures", title_justify="left")
    for row in rows:
        figures = (f"{row['more'][name]:.4g}" for name in experiment.columns)
        table.add_row(row["entry"], *figures)
    return table
