"""How well the exercises of one person are known from those of others: the task `watch`.

Each person in turn is left out, and an S5 classifier is trained on pieces of the others' series,
drawn anew each time, until the loss on the series of one more person stops falling. The series of
the person who was left out chose nothing. The classifiers of aeon stand beside it. They train on
all series of the others, those for validation too; shorter series are padded with zeros.
"""

import argparse
import statistics
from collections.abc import Iterator, Sequence

import numpy as np
from rich.table import Table

from rnnscale.data import Record, Source, augment, repeat, shuffle
from rnnscale.models import SequenceClassifier
from rnnscale.ssm import S5
from rnnscale.tasks import WATCH_PEOPLE, Task, watch

from ._benchmark import OURS, Benchmark, Figure, Row, positive
from ._plots import legend, lines, styles
from ._series import AVERAGE, PATIENCE, RATE, Trainer, rivals

BATCH, PIECE, DIM, DEPTH, DROPOUT = 16, 512, 64, 2, 0.2
EVERY = 50
# The largest shift in time of dynamic time warping, as a fraction of the longest series.
WINDOW = 0.1


def piece(record: Record, random: np.random.Generator) -> Record:
    """Some seconds of a series."""
    start = random.integers(int(record["lengths"]) - PIECE + 1)
    inputs = record["inputs"][start : start + PIECE]
    return {**record, "inputs": inputs, "lengths": np.asarray(PIECE, np.int32)}


def trainer(task: Task, most: int) -> Trainer:
    def make_model(key):
        def make_layer(key):
            return S5(DIM, DIM, key=key)

        return SequenceClassifier(
            task.idim, task.classes or 0, make_layer=make_layer, dim=DIM, depth=DEPTH,
            dropout=DROPOUT, key=key,
        )  # fmt: skip

    return Trainer(make_model, every=EVERY, most=most)


def arrays(*sources: Source) -> tuple[np.ndarray, np.ndarray]:
    """The series, of shape `(series, channels, time)`, and their labels."""
    records = [source[n] for source in sources for n in range(len(source))]
    series = np.stack([record["inputs"].T for record in records])
    return series.astype(np.float64), np.stack([record["labels"] for record in records])


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--people", type=int, nargs="+", choices=WATCH_PEOPLE, metavar="P",
        help="left out in turn; default: all, 1 to 10; with --quick 3",
    )  # fmt: skip
    parser.add_argument(
        "--steps", type=positive, metavar="N", help="at most; default: 2000; with --quick 2"
    )
    parser.add_argument("--seed", type=int, default=0, help="default: 0")


def steps_of(options: argparse.Namespace) -> int:
    return (2 if options.quick else 2000) if options.steps is None else options.steps


def run(options: argparse.Namespace) -> Iterator[Row]:
    ours = trainer(watch(), steps_of(options))
    for person in options.people or ((3,) if options.quick else WATCH_PEOPLE):
        task = watch([person], validation_person=person % 10 + 1)
        rows = augment(repeat(shuffle(task.train, seed=options.seed)), piece, seed=options.seed)
        row = ours.train(task, rows, batch=BATCH, seed=options.seed)
        yield {"person": person, "library": OURS, **row}
        given = *arrays(task.train, task.validation), *arrays(task.test)
        for row in rivals(*given, [options.seed], window=WINDOW, quick=options.quick):
            yield {"person": person, **row}


def about(options: argparse.Namespace) -> Row:
    sizes = {"batch": BATCH, "piece": PIECE, "dim": DIM, "depth": DEPTH, "dropout": DROPOUT}
    recipe = {"rate": RATE, "average": AVERAGE, "every": EVERY, "patience": PATIENCE}
    return {"most": steps_of(options), **sizes, **recipe, "window": WINDOW}


def table(rows: Sequence[Row]) -> Table:
    people = list(dict.fromkeys(row["person"] for row in rows))
    found = Table("person", *map(str, people), "mean", "processor seconds", box=None)
    for library in dict.fromkeys(row["library"] for row in rows):
        each = [row for row in rows if row["library"] == library]
        accuracies = [row["accuracy"] for row in each]
        figures = [f"{x:.3f}" for x in [*accuracies, statistics.mean(accuracies)]]
        found.add_row(library, *figures, f"{sum(row['processor_seconds'] for row in each):.0f}")
    return found


def plot(rows: Sequence[Row], figure: Figure) -> None:
    panel = figure.subplots()
    curves = [
        {"person": f"person {row['person']}", **point}
        for row in rows
        for point in row.get("curve", ())
    ]
    chosen = styles(point["person"] for point in curves)
    lines(panel, curves, "step", "validation_loss", chosen, by="person")
    legend(figure)


BENCHMARK = Benchmark(
    run=run, table=table, plot=plot, add_options=add_options, about=about, rounds=None
)
