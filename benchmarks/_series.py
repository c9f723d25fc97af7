"""Classifiers of series: ours, trained until the loss of the validation split stops falling, and
those of aeon. The benchmarks `archive`, `own_data` and `watch` compare them."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from time import process_time
from typing import Any

import jax
import numpy as np

from rnnscale.data import Source, evaluation_batches, stream
from rnnscale.models import SequenceClassifier
from rnnscale.tasks import Task
from rnnscale.training import (
    Best,
    Callback,
    EarlyStopping,
    Evaluation,
    FinishedStep,
    MovingAverage,
    TrainState,
    cross_entropy,
    evaluate,
    fit,
    make_eval_step,
    make_optimiser,
    make_train_step,
)

from ._benchmark import Row

# The sets of the UCR and UEA archives whose files the package aeon has, shortest series first.
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


def add_seeds(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="S", help="default: 0 1 2"
    )


# The recipe of all classifiers: a constant rate, a moving average of the parameters, and an end
# after this many evaluations in a row that do not improve.
RATE, WEIGHT_DECAY, WARMUP, AVERAGE, PATIENCE = 4e-3, 0.05, 50, 0.98, 10


class Trainer:
    """Trains classifiers that differ in seed and data only, so that they share their programs.

    - `make_model`: makes a new model from a key.
    - `every`, `most`: steps between two evaluations, and the largest number of steps.
    """

    def __init__(
        self, make_model: Callable[[jax.Array], SequenceClassifier], *, every: int, most: int
    ):
        self.make_model = jax.jit(make_model)
        self.model = jax.eval_shape(make_model, jax.random.key(0))
        self.every, self.most = min(every, most), most
        self.optimiser = make_optimiser(
            self.model,
            learning_rate=RATE,
            recurrence_rate=RATE / 4,
            weight_decay=WEIGHT_DECAY,
            schedule="constant",
            warmup=min(WARMUP, most // 10),
            steps=most,
            clip=1.0,
        )
        self.train_step = make_train_step(cross_entropy, self.optimiser)
        self.eval_step = make_eval_step(cross_entropy)

    def train(self, task: Task, rows: Any, *, batch: int, seed: int) -> Row:
        """The accuracy on the test split of the model that is best on the validation split.

        **Arguments:**

        - `rows`: the rows of the training batches, without end.
        """
        start = process_time()
        model_key, key = jax.random.split(jax.random.key(seed))
        model = self.make_model(model_key)
        average = MovingAverage.start(model, AVERAGE)
        best, curve = Best(), _Curve()
        kept = _Kept(best)

        def validate(state: TrainState) -> dict[str, float]:
            return self._figures(state.averaged, task.validation, batch)

        with stream(rows, batch) as batches:
            state = fit(
                TrainState.create(model, self.optimiser, key, average=average),
                self.train_step,
                batches,
                steps=self.most,
                callbacks=[
                    Evaluation(validate, every=self.every),
                    EarlyStopping(best, patience=PATIENCE),
                    kept,
                    curve,
                ],
            )
        return {
            "seed": seed,
            "accuracy": self._figures(kept.model, task.test, batch)["accuracy"],
            "steps": int(state.step),
            "best_step": best.step,
            "ended": "patience" if best.failures >= PATIENCE else "budget",
            "parameters": sum(x.size for x in jax.tree.leaves(self.model)),
            "processor_seconds": round(process_time() - start, 1),
            "curve": curve.points,
        }

    def _figures(self, model: Any, source: Source, batch: int) -> dict[str, float]:
        with evaluation_batches(source, batch) as batches:
            figures = evaluate(self.eval_step, model, batches)
        assert figures is not None
        return figures


class _Kept(Callback):
    """Keeps the averaged model of the best evaluation on the host."""

    def __init__(self, best: Best):
        self._best = best
        self.model: Any = None

    def needs_state(self, step: int) -> bool:
        return self._best.step == step

    def on_state(self, finished: FinishedStep, state: TrainState) -> None:
        self.model = jax.device_get(state.averaged)


class _Curve(Callback):
    """The figures of each evaluation."""

    def __init__(self):
        self.points: list[Row] = []

    def on_step(self, finished: FinishedStep) -> None:
        if finished.figures:
            figures = {name: round(x, 4) for name, x in finished.figures.items()}
            self.points.append({"step": finished.step, **figures})


def rivals(
    series: np.ndarray,
    labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    seeds: Sequence[int],
    *,
    window: float | None = None,
    quick: bool = False,
) -> Iterator[Row]:
    """The accuracies of classifiers of aeon: 1-nearest-neighbour by the Euclidean distance and by
    dynamic time warping, and ROCKET, a linear classifier on 10,000 random convolutions.

    **Arguments:**

    - `series`, `test`: shape `(series, channels, time)`.
    - `seeds`: those of ROCKET, which has a row for each.
    - `window`: the largest shift in time of dynamic time warping, as a fraction of all steps; None
        for no limit.
    - `quick`: the first classifier only.
    """
    from aeon.classification.convolution_based import RocketClassifier
    from aeon.classification.distance_based import KNeighborsTimeSeriesClassifier

    def nearest(distance: str, **options: float | None) -> Any:
        return KNeighborsTimeSeriesClassifier(
            n_neighbors=1, distance=distance, distance_params=options or None
        )

    classifiers: list[tuple[str, int | None, Any]] = [
        ("1-NN, Euclidean", None, nearest("euclidean")),
        ("1-NN, DTW", None, nearest("dtw", window=window)),
        *(("ROCKET", seed, RocketClassifier(random_state=seed)) for seed in seeds),
    ]
    for library, seed, classifier in classifiers[:1] if quick else classifiers:
        start = process_time()
        predicted = classifier.fit(series, labels).predict(test)
        yield {
            "library": library,
            "seed": seed,
            "accuracy": float(np.mean(predicted == test_labels)),
            "processor_seconds": round(process_time() - start, 1),
        }
