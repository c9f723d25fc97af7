"""How well the exercises of one person are known from those of others: the task `watch`.

    python benchmarks/watch.py [--people 1 2 ...] [--steps N] [--json FILE.json]

Each person in turn is left out, and an S5 classifier is trained on pieces of the others' series,
drawn anew each time. The curve is the accuracy on whole series of another person, for validation;
at the end come the series of the person who was left out, none of which chose anything.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rnnscale.data import (
    WATCH_PEOPLE,
    Record,
    Source,
    Task,
    augment,
    evaluation_batches,
    repeat,
    shuffle,
    stream,
    watch,
)
from rnnscale.models import SequenceClassifier
from rnnscale.ssm import S5
from rnnscale.training import (
    TrainState,
    cross_entropy,
    evaluate,
    make_eval_step,
    make_optimiser,
    make_train_step,
)
from rnnscale_kernels.testing import environment

BATCH, PIECE, DIM, DEPTH = 16, 512, 64, 2
EVERY = 50


def piece(record: Record, random: np.random.Generator) -> Record:
    """Some seconds of a series."""
    start = random.integers(int(record["lengths"]) - PIECE + 1)
    inputs = record["inputs"][start : start + PIECE]
    return {**record, "inputs": inputs, "lengths": np.asarray(PIECE, np.int32)}


def train(task: Task, steps: int, seed: int) -> dict[str, Any]:
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
            if step % EVERY == 0:
                row = {
                    "step": step,
                    "loss": round(float(metrics["loss"]), 4),
                    "validation_accuracy": accuracy(task.validation),
                }
                curve.append(row)
    return {"test_accuracy": accuracy(task.test), "curve": curve}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--people", type=int, nargs="+", default=list(WATCH_PEOPLE))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    for person in arguments.people:
        task = watch([person], validation_person=person % 10 + 1)
        rows.append({"person": person, **train(task, arguments.steps, arguments.seed)})
        print(f"person {person}: test accuracy {rows[-1]['test_accuracy']:.3f}", flush=True)
    accuracies = [row["test_accuracy"] for row in rows]
    print(f"mean {np.mean(accuracies):.3f}, smallest {min(accuracies):.3f}")
    if arguments.json is not None:
        options = {"steps": arguments.steps, "seed": arguments.seed, "batch": BATCH, "piece": PIECE}
        result = {**environment(), **options, "dim": DIM, "depth": DEPTH, "rows": rows}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
