"""Rows of the committed experiments, trained again and compared.

Each row is run as by its own command, with all of its seeds, in a fresh folder. By default these
are the rows that took less than ten minutes of processor time. --row takes those that it names, and
--draw some at random, of any length. Rows that their budget cut short are left out, since their
figure depends on the speed of the machine, and so are those whose data the user has to provide.

On the same machine, with the same versions, a training gives exactly the same figure, on one core
or on several, which the column `same` shows. A reservoir is fitted by linear algebra in threads,
which agrees to about seven digits. Another kind of processor rounds differently, which in the end
gives another draw of the same distribution. So a row is off if the mean over its seeds has moved by
more than

- with several seeds: three standard errors of the difference of two means, and at least the
  resolution of the figure. The standard error is that of the spread of the committed figures, or of
  the median of those of all rows of the experiment if that is larger: three figures are sometimes
  near each other by chance;
- with one seed: three times the resolution.

The resolution of an accuracy is 0.01, about its binomial standard deviation on a test set of 500
records; that of any other figure is a hundredth of it. In an experiment whose tasks count as solved
from some figure on, a row is right too if as many seeds solve its task as before.

In the table, `off` is the difference of the two means, and `allowed` the largest that is not off.
`cut` says that this time the budget was too short, since the machine is slower or busy.
"""

import argparse
import json
import math
import random
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import jax

from rnnscale._errors import UserError
from rnnscale.experiments import EXPERIMENTS, Experiment
from rnnscale.runs import kept_programs

from ._benchmark import Benchmark, Row, columns, positive
from ._experiments import ending
from ._markdown import RESULTS, load

LONGEST = 10.0
START_MINUTES = 0.5


class Committed(NamedTuple):
    """A row of the committed results."""

    experiment: Experiment
    row: Row

    @property
    def minutes(self) -> float:
        """Processor time of the training, with all seeds."""
        return sum(self.row["seconds"]) / 60

    @property
    def cost(self) -> float:
        """Minutes that it takes, with those for loading and compiling."""
        return self.minutes + START_MINUTES * len(self.row["seeds"])

    @property
    def command(self) -> str:
        seeds = " ".join(map(str, self.row["seeds"]))
        return (
            f"rnnscale experiment {self.experiment.name} --row {self.row['entry']} --seeds {seeds}"
        )


def committed() -> list[Committed]:
    """All rows that can be compared."""
    names = sorted(file.stem for file in (RESULTS / "experiments").glob("*.json"))
    return [
        Committed(EXPERIMENTS[name], row)
        for name in names
        for row in load(f"experiments/{name}")["rows"]
        if ending(row) != "budget" and not EXPERIMENTS[name].folder
    ]


def chosen(options: argparse.Namespace) -> list[Committed]:
    """The rows to run, the shortest first."""
    rows = sorted(committed(), key=lambda each: each.minutes)
    if options.experiment:
        rows = [each for each in rows if each.experiment.name in options.experiment]
    if options.row:
        known = {each.row["entry"] for each in rows}
        if unknown := sorted(set(options.row) - known):
            raise UserError(
                f"the results have no row {', '.join(unknown)} that can be compared (a training "
                f"that its budget cut short cannot); they have {', '.join(sorted(known))}"
            )
        rows = [each for each in rows if each.row["entry"] in options.row]
    if options.quick:
        return rows[:1]
    longest = options.longest
    if longest is None:
        longest = math.inf if options.draw or options.row else LONGEST
    rows = [each for each in rows if each.minutes < longest]
    if options.draw:
        rows = random.Random(options.seed).sample(rows, min(options.draw, len(rows)))
    return shard(rows, *options.shard)


def shard(rows: Sequence[Committed], index: int, count: int) -> list[Committed]:
    """The part `index`, from 1 on, of `count` parts that take about the same time."""
    parts: list[list[Committed]] = [[] for _ in range(count)]
    for each in sorted(rows, key=lambda each: each.cost, reverse=True):
        min(parts, key=lambda part: sum(x.cost for x in part)).append(each)
    return parts[index - 1][::-1]


def run(options: argparse.Namespace) -> Iterator[Row]:
    for given in chosen(options):
        case = {
            "experiment": given.experiment.name,
            "entry": given.row["entry"],
            "seeds": len(given.row["seeds"]),
            "command": given.command,
            "committed": given.row["mean"],
        }
        try:
            yield {**case, **compared(given, run_again(given))}
        except (UserError, FloatingPointError) as error:
            yield {**case, "error": str(error)}
        jax.clear_caches()  # hundreds of programs otherwise


def run_again(given: Committed) -> Row:
    """The row, trained in a fresh folder.

    **Raises:** `ValueError` if the options are no longer those of the committed row, and
    `KeyboardInterrupt` if a signal stopped it.
    """
    experiment, row = given
    entry = next((each for each in experiment.entries if each.name == row["entry"]), None)
    if entry is None:
        raise UserError("the experiment has no such row any more: leave it out of the results")
    if json.loads(json.dumps(entry.options)) != row["options"]:
        raise UserError("the options of the experiment have changed since: measure the row again")
    with TemporaryDirectory() as folder, kept_programs(Path(folder, "programs")):
        again = list(experiment.run(Path(folder), seeds=row["seeds"], rows=[entry.name]))
    if again[-1] is None:
        raise KeyboardInterrupt
    return again[-1]


def compared(given: Committed, again: Row) -> Row:
    """How far the figures are apart, with an `error` if that is too much."""
    experiment, row = given
    off, allowed = abs(again["mean"] - row["mean"]), allowance(given)
    result = {
        "again": again["mean"],
        "off": off,
        "allowed": allowed,
        "same": again["figures"] == row["figures"],
        "cut": ending(again) == "budget",
        "minutes": sum(again["seconds"]) / 60,
    }
    before, now = (sum(map(experiment.solves, each["figures"])) for each in (row, again))
    if off <= allowed or before == now > 0:
        return result
    if result["cut"]:
        return {**result, "error": "the budget, which was enough before, cut the training short"}
    return {**result, "error": f"{again['mean']:.4g} is off by {off:.2g}, more than {allowed:.2g}"}


def allowance(given: Committed) -> float:
    """How far the mean over the seeds may move."""
    experiment, row = given
    resolution = 0.01 if "accuracy" in experiment.metric else 0.01 * abs(row["mean"])
    if row["spread"] is None:
        return 3 * resolution
    rows = load(f"experiments/{experiment.name}")["rows"]
    typical = statistics.median(each["spread"] for each in rows if each["spread"] is not None)
    spread = max(row["spread"], typical)
    return max(3 * spread * math.sqrt(2 / len(row["seeds"])), resolution)


def part(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise argparse.ArgumentTypeError(f"must be such as 2/6, the second of six, got {text}")
    return int(index), int(count)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--experiment",
        nargs="+",
        choices=EXPERIMENTS,
        metavar="NAME",
        help="default: all experiments",
    )
    parser.add_argument("--row", nargs="+", metavar="ROW", help="default: all rows")
    parser.add_argument(
        "--longest", type=float, metavar="MINUTES",
        help=f"only rows that took less; default: {LONGEST:g}, and no limit with --row or --draw",
    )  # fmt: skip
    parser.add_argument("--draw", type=positive, metavar="N", help="N rows at random; default: all")
    parser.add_argument("--seed", type=int, default=0, help="which rows are drawn; default: 0")
    parser.add_argument(
        "--shard", type=part, default=(1, 1), metavar="I/N",
        help="part I of N that take about the same time; default: 1/1",
    )  # fmt: skip


BENCHMARK = Benchmark(
    run=run,
    table=columns(
        *("experiment", "entry", "seeds", "committed", "again", "off", "allowed"),
        *("same", "cut", "minutes"),
    ),
    add_options=add_options,
    rounds=None,
)
