"""How well the exercises of one person are known from those of others: the task `watch`.

Each person in turn is left out, and an S5 classifier is trained on pieces of the others' series,
drawn anew each time. The curve is the accuracy on whole series of another person, for validation;
at the end come the series of the person who was left out, none of which chose anything.
"""

import argparse
import statistics
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from rich.console import Group
from rich.table import Table

from rnnscale.data import Record, Source, augment, evaluation_batches, repeat, shuffle, stream
from rnnscale.models import SequenceClassifier
from rnnscale.ssm import S5
from rnnscale.tasks import WATCH_PEOPLE, Task, watch
from rnnscale.training import (
    TrainState,
    cross_entropy,
    evaluate,
    make_eval_step,
    make_optimiser,
    make_train_step,
)

from ._benchmark import Benchmark, Figure, Row
from ._plots import legend, lines, styles

BATCH, PIECE, DIM, DEPTH = 16, 512, 64, 2
EVERY = 50


def piece(record: Record, random: np.random.Generator) -> Record:
    """Some seconds of a series."""
    start = random.integers(int(record["lengths"]) - PIECE + 1)
    inputs = record["inputs"][start : start + PIECE]
    return {**record, "inputs": inputs, "lengths": np.asarray(PIECE, np.int32)}


def train(task: Task, steps: int, seed: int) -> Row:
    def make_model(key):
        def make_layer(key):
            return S5(DIM, DIM, key=key)

        return SequenceClassifier(
            task.idim, task.classes or 0, make_layer=make_layer, dim=DIM, depth=DEPTH, dropout=0.2,
            key=key,
        )  # fmt: skip

    key = jax.random.key(seed)
    optimiser = make_optimiser(
        jax.eval_shape(make_model, key),
        learning_rate=4e-3,
        recurrence_rate=1e-3,
        weight_decay=0.05,
        warmup=steps // 10,
        steps=steps,
        clip=1.0,
    )
    train_step = make_train_step(cross_entropy, optimiser)
    eval_step = make_eval_step(cross_entropy)

    def accuracy(source: Source) -> float:
        with evaluation_batches(source, 14) as batches:
            figures = evaluate(eval_step, state.model, batches)
        assert figures is not None
        return round(figures["accuracy"], 4)

    state = TrainState.create(make_model(key), optimiser, key)
    rows = augment(repeat(shuffle(task.train, seed=seed)), piece, seed=seed)
    curve = []
    with stream(rows, BATCH) as batches:
        for step, batch in zip(range(1, steps + 1), batches, strict=False):
            state, metrics = train_step(state, batch)
            if step % min(EVERY, steps) == 0:
                row = {
                    "step": step,
                    "loss": round(float(metrics["loss"]), 4),
                    "validation_accuracy": accuracy(task.validation),
                }
                curve.append(row)
    return {"test_accuracy": accuracy(task.test), "curve": curve}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--people", type=int, nargs="+", choices=WATCH_PEOPLE, metavar="P",
        help="left out in turn; default: all, 1 to 10; with --quick 3",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, metavar="N", help="default: 300; with --quick 2")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")


def steps_of(options: argparse.Namespace) -> int:
    return (2 if options.quick else 300) if options.steps is None else options.steps


def run(options: argparse.Namespace) -> Iterator[Row]:
    for person in options.people or ((3,) if options.quick else WATCH_PEOPLE):
        task = watch([person], validation_person=person % 10 + 1)
        yield {"person": person, **train(task, steps_of(options), options.seed)}


def about(options: argparse.Namespace) -> Row:
    sizes = {"batch": BATCH, "piece": PIECE, "dim": DIM, "depth": DEPTH}
    return {"steps": steps_of(options), "seed": options.seed, **sizes}


def table(rows: Sequence[Row]) -> Group:
    accuracies = [row["test_accuracy"] for row in rows]
    found = Table("person", "test accuracy", box=None)
    for row in rows:
        found.add_row(str(row["person"]), f"{row['test_accuracy']:.3f}")
    return Group(found, f"mean {statistics.mean(accuracies):.3f}, smallest {min(accuracies):.3f}")


def plot(rows: Sequence[Row], figure: Figure) -> None:
    panel = figure.subplots()
    curves = [
        {"person": f"person {row['person']}", **point} for row in rows for point in row["curve"]
    ]
    chosen = styles(point["person"] for point in curves)
    lines(panel, curves, "step", "validation_accuracy", chosen, by="person")
    legend(figure)


BENCHMARK = Benchmark(
    run=run, table=table, plot=plot, add_options=add_options, about=about, rounds=None
)
