"""State-space layers of one size and budget on eight data sets of the UCR and UEA archives.

The splits are those of the archives. There is no validation split, since nothing is selected: a
model trains on all training series for a number of steps that depends only on the length of the
series, with the same rates for all layers, and the last model is tested. Models have two blocks
of width 32, and layers have `state_dim=32`, which is 32 states for all features together, but for
S4D 32 for each feature. A row is one seed.
"""

import argparse
import importlib.util
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from time import process_time
from typing import Any

import jax
import numpy as np
from rich.table import Table

from rnnscale import tasks
from rnnscale.models import GLU, SequenceClassifier
from rnnscale.ssm import LRU, S4D, S5, DampedLinOSS, LinOSS
from rnnscale.training import (
    TrainState,
    cross_entropy,
    make_eval_step,
    make_optimiser,
    make_train_step,
)

from ._benchmark import Benchmark, Row, Unavailable

# By the length of their series.
SETS = (
    "ItalyPowerDemand",
    "JapaneseVowels",
    "BasicMotions",
    "GunPoint",
    "ArrowHead",
    "PickupGestureWiimoteZ",
    "OSULeaf",
    "ACSF1",
)
LAYERS: dict[str, Callable[..., Any]] = {
    "LinOSS-IM": partial(LinOSS, discretisation="im"),
    "LinOSS-IMEX": partial(LinOSS, discretisation="imex"),
    "D-LinOSS": DampedLinOSS,
    "S4D": S4D,
    "S5": S5,
    "LRU": LRU,
}
DIM, STATE_DIM, DEPTH, DROPOUT, BATCH, RATE = 32, 32, 2, 0.1, 16, 4e-3
# Steps of training, by the steps of a series: about as many values for all sets.
VALUES, FEWEST, MOST = 30_000, 50, 300


def stacked(*sources: Any) -> dict[str, np.ndarray]:
    """All records of the sources; without lengths, if all have the same."""
    records = [source[n] for source in sources for n in range(len(source))]
    arrays = {name: np.stack([each[name] for each in records]) for name in records[0]}
    if (arrays["lengths"] == arrays["inputs"].shape[1]).all():
        del arrays["lengths"]
    return arrays


def batches(count: int, steps: int, seed: int) -> Iterator[np.ndarray]:
    """The rows of each batch, from one random order of all rows after another."""
    random = np.random.default_rng(seed)
    epochs = -(-steps * BATCH // count)
    order = np.concatenate([random.permutation(count) for _ in range(epochs)])
    return iter(order[: steps * BATCH].reshape(steps, BATCH))


def rows_of(
    task: tasks.Task, name: str, layer: str, seeds: Sequence[int], steps: int
) -> Iterator[Row]:
    """One row for each seed. The seeds share their programs."""
    train, test = stacked(task.train, task.validation), stacked(task.test)

    @jax.jit
    def make_model(key: jax.Array) -> SequenceClassifier:
        return SequenceClassifier(
            task.idim,
            task.spec.outputs,
            make_layer=lambda key: LAYERS[layer](DIM, STATE_DIM, key=key),
            dim=DIM,
            depth=DEPTH,
            make_mixer=GLU,
            dropout=DROPOUT,
            key=key,
        )

    model = jax.eval_shape(make_model, jax.random.key(0))
    optimiser = make_optimiser(
        model,
        learning_rate=RATE,
        recurrence_rate=RATE / 4,
        weight_decay=0.05,
        warmup=steps // 10,
        steps=steps,
        clip=1.0,
    )
    train_step, eval_step = make_train_step(cross_entropy, optimiser), make_eval_step(cross_entropy)
    for seed in seeds:
        start = process_time()
        model_key, key = jax.random.split(jax.random.key(seed))
        state = TrainState.create(make_model(model_key), optimiser, key)
        for rows in batches(len(train["labels"]), steps, seed):
            state, _ = train_step(state, {name: x[rows] for name, x in train.items()})
        _, totals = eval_step(state.model, test)
        yield {
            "name": name,
            "layer": layer,
            "seed": seed,
            "accuracy": float(totals["correct"] / totals["count"]),
            "parameters": sum(x.size for x in jax.tree.leaves(model)),
            "steps": steps,
            "processor_seconds": round(process_time() - start, 1),
        }


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sets", nargs="+", choices=SETS, default=SETS, metavar="SET", help="default: all eight"
    )


def run(options: argparse.Namespace) -> Iterator[Row]:
    aeon = importlib.util.find_spec("aeon")
    if aeon is None or aeon.origin is None:
        raise Unavailable("needs the files in aeon: pip install 'rnnscale[datasets]'")
    place = Path(aeon.origin).parent / "datasets" / "data"
    for name in ("ItalyPowerDemand",) if options.quick else options.sets:
        task = tasks.task_from(place / name)
        steps = 3 if options.quick else min(max(VALUES // task.seq_len, FEWEST), MOST)
        for layer in list(LAYERS)[-1:] if options.quick else LAYERS:
            yield from rows_of(task, name, layer, range(options.rounds), steps)


def about(options: argparse.Namespace) -> Row:
    return {"aeon": version("aeon"), "dim": DIM, "state_dim": STATE_DIM, "depth": DEPTH}


def table(rows: Sequence[Row]) -> Table:
    found = Table("", "", "accuracy", "processor seconds", box=None)
    for name, layer in dict.fromkeys((row["name"], row["layer"]) for row in rows):
        each = [row for row in rows if (row["name"], row["layer"]) == (name, layer)]
        seconds = statistics.median(row["processor_seconds"] for row in each)
        accuracies = ", ".join(f"{row['accuracy']:.3f}" for row in each)
        found.add_row(name, layer, accuracies, f"{seconds:.0f}")
    return found


BENCHMARK = Benchmark(run=run, table=table, about=about, add_options=add_options, rounds=3)
