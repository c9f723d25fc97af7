import argparse
import difflib
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rnnscale._errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from rnnscale.experiments import Experiment


def add_to(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "experiment",
        help="run an experiment of the papers, and put their figures beside ours",
        description="Runs an experiment of the papers and prints a table: our figure, its spread "
        "over seeds, and the published one. What has run before is not run again, and what was "
        "stopped goes on. Without a name, lists the experiments.",
        allow_abbrev=False,
    )
    parser.set_defaults(command=_experiment)
    parser.add_argument("name", nargs="?", metavar="NAME", help="left out: lists the experiments")
    parser.add_argument("--only", nargs="+", metavar="ENTRY", help="these lines of the table only")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="S", help="instead of the preset's")
    parser.add_argument("--steps", type=int, metavar="N", help="training steps, not the preset's")
    parser.add_argument("--folder", metavar="DIR", help="folder with the data, where it needs one")
    parser.add_argument("--text", metavar="DIR", help="folder with the text for `bytes`")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: runs/experiments/NAME")
    parser.add_argument(
        "--json", metavar="FILE", help="write the rows when all are there; - is the standard output"
    )


def _experiment(arguments: argparse.Namespace) -> int:
    import jax
    from rich.console import Console

    from rnnscale.experiments import EXPERIMENTS
    from rnnscale_kernels.testing import environment

    console = Console(width=100, stderr=arguments.json == "-")
    if arguments.name is None:
        console.print(_list(list(EXPERIMENTS.values())))
        return 0
    if arguments.name not in EXPERIMENTS:
        nearest = difflib.get_close_matches(arguments.name, EXPERIMENTS, n=1, cutoff=0.0)[0]
        raise UserError(
            f"unknown experiment {arguments.name!r}; did you mean {nearest!r}? "
            f"Experiments: {', '.join(EXPERIMENTS)}"
        )
    experiment = EXPERIMENTS[arguments.name]
    if experiment.folder and arguments.folder is None:
        raise UserError(f"{experiment.name} reads its data from a folder: give it as --folder")
    if arguments.json not in (None, "-") and not Path(arguments.json).resolve().parent.is_dir():
        raise UserError(f"--json={arguments.json}: there is no such folder to write to")
    given = {
        name: value
        for name in ("steps", "folder", "text")
        if (value := getattr(arguments, name)) is not None
    }
    out = arguments.out or Path("runs", "experiments", experiment.name)
    # The seeds of an entry have the same programs.
    jax.config.update("jax_compilation_cache_dir", str((out / "programs").resolve()))
    rows = list(experiment.run(out, seeds=arguments.seeds, only=arguments.only, **given))
    stopped = None in rows
    done = [row for row in rows if row is not None]
    console.print(_table(experiment, done))
    console.print(f"Differs from the papers: {experiment.differs}", highlight=False)
    if stopped:
        # No file either: one that is there may be whole.
        console.print("stopped; the same command goes on")
    elif arguments.json is not None:
        document = {
            "experiment": experiment.name,
            "command": _command(arguments),
            "metric": experiment.metric,
            "differs": experiment.differs,
            **environment(),
            "rows": done,
        }
        text = json.dumps(document, indent=1)
        if arguments.json == "-":
            print(text)
        else:
            Path(arguments.json).write_text(text + "\n")
    return 0


def _command(arguments: argparse.Namespace) -> str:
    """What gives the figures, wherever they are written to."""
    words = ["rnnscale", "experiment", arguments.name]
    for name in ("only", "seeds", "steps", "folder", "text"):
        value = getattr(arguments, name)
        if value is not None:
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return shlex.join(words)


def _list(experiments: Sequence["Experiment"]) -> "Table":
    from rich.table import Table

    table = Table("experiment", "what it is", "entries", "seeds", "minutes on two cores")
    for each in experiments:
        minutes = "with accelerators" if each.folder else f"{each.minutes:g}"
        table.add_row(
            each.name, each.description, str(len(each.entries)), str(len(each.seeds)), minutes
        )
    return table


def _table(experiment: "Experiment", rows: Sequence[dict[str, Any]]) -> "Table":
    from rich.table import Table

    table = Table(title=f"{experiment.name}: {experiment.metric}", title_justify="left")
    table.add_column("entry")
    for column in ("parameters", "ours", "seeds", "seconds each"):
        table.add_column(column, justify="right")
    table.add_column("published", justify="right")
    table.add_column("where", ratio=1)
    for row in rows:
        spread = "" if row["spread"] is None else f" ± {row['spread']:.2g}"
        if experiment.solved is not None:
            lower = experiment.better == "lower"
            met = [
                each <= experiment.solved if lower else each >= experiment.solved
                for each in row["figures"]
            ]
            spread += f" ({sum(met)} solved)"
        paper = row["paper"] or {"value": None, "source": ""}
        table.add_row(
            row["entry"],
            f"{row['parameters']:,}",
            f"{row['mean']:.4g}{spread}",
            str(len(row["seeds"])),
            f"{sum(row['seconds']) / len(row['seconds']):.0f}",
            "" if paper["value"] is None else f"{paper['value']:.4g}",
            paper["source"],
        )
    return table
