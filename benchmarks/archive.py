"""State-space layers of one size and one recipe on eight data sets of the UCR and UEA archives.

The test splits are those of the archives. A tenth of the training series of each class is held out:
a model trains until the loss on these stops falling, and the best one is tested. Models have two
blocks of width 32, and layers have `state_dim=32`, which is 32 states for all features together,
but for S4D 32 for each feature. A row is one seed. The table has the classifiers of `own_data`
beside these, which need no seed or the same ones.
"""

import argparse
import importlib.util
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.table import Table

from rnnscale import tasks
from rnnscale.data import repeat, shuffle
from rnnscale.models import GLU, SequenceClassifier
from rnnscale.ssm import LRU, S4D, S5, DampedLinOSS, LinOSS

from ._benchmark import Benchmark, Row, Unavailable
from ._series import AVERAGE, PATIENCE, RATE, SETS, Trainer, add_seeds

LAYERS: dict[str, Callable[..., Any]] = {
    "LinOSS-IM": partial(LinOSS, discretisation="im"),
    "LinOSS-IMEX": partial(LinOSS, discretisation="imex"),
    "D-LinOSS": DampedLinOSS,
    "S4D": S4D,
    "S5": S5,
    "LRU": LRU,
}
DIM, STATE_DIM, DEPTH, DROPOUT, BATCH = 32, 32, 2, 0.3, 16
EVERY, MOST = 20, 2000


def trainer(task: tasks.Task, layer: str, *, most: int) -> Trainer:
    def make_model(key: Any) -> SequenceClassifier:
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

    return Trainer(make_model, every=EVERY, most=most)


def add_options(parser: argparse.ArgumentParser) -> None:
    add_seeds(parser)
    parser.add_argument(
        "--sets", nargs="+", choices=SETS, default=SETS, metavar="SET", help="default: all eight"
    )
    parser.add_argument(
        "--layers", nargs="+", choices=LAYERS, default=LAYERS, metavar="LAYER",
        help="default: all six",
    )  # fmt: skip


def run(options: argparse.Namespace) -> Iterator[Row]:
    aeon = importlib.util.find_spec("aeon")
    if aeon is None or aeon.origin is None:
        raise Unavailable("needs the files in aeon: pip install 'rnnscale[datasets]'")
    place = Path(aeon.origin).parent / "datasets" / "data"
    for name in SETS[:1] if options.quick else options.sets:
        task = tasks.task_from(place / name)
        for layer in list(LAYERS)[-1:] if options.quick else options.layers:
            train = trainer(task, layer, most=3 if options.quick else MOST).train
            for seed in options.seeds:
                rows = repeat(shuffle(task.train, seed=seed))
                row = train(task, rows, batch=BATCH, seed=seed)
                del row["curve"]  # thousands of points of all rows together, which nothing draws
                yield {"name": name, "layer": layer, **row}


def about(options: argparse.Namespace) -> Row:
    sizes = {"dim": DIM, "state_dim": STATE_DIM, "depth": DEPTH, "dropout": DROPOUT}
    recipe = {"batch": BATCH, "rate": RATE, "average": AVERAGE}
    ends = {"every": EVERY, "patience": PATIENCE, "most": MOST}
    return {"aeon": version("aeon"), **sizes, **recipe, **ends}


def table(rows: Sequence[Row]) -> Table:
    found = Table("", "", "accuracy", "steps", "processor seconds", box=None)
    for name, layer in dict.fromkeys((row["name"], row["layer"]) for row in rows):
        each = [row for row in rows if (row["name"], row["layer"]) == (name, layer)]
        seconds = statistics.median(row["processor_seconds"] for row in each)
        accuracies = ", ".join(f"{row['accuracy']:.3f}" for row in each)
        steps = ", ".join(str(row["steps"]) for row in each)
        found.add_row(name, layer, accuracies, steps, f"{seconds:.0f}")
    return found


BENCHMARK = Benchmark(run=run, table=table, about=about, add_options=add_options, rounds=None)
