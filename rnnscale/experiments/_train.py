"""A training run, or a curriculum of runs, as the measurement of an experiment."""

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rnnscale import runs
from rnnscale.experiments._experiment import Result, check_same_options
from rnnscale.runs import TrainConfig

# Options that name folders, which may have moved.
_MOVED = {"out", "start_from"}
# Options that get a value in a run if they have none.
_VALUES_USED = {"mesh", "seq_len", "recurrence_rate", "warmup", "evaluate_every"}

_BASELINES = ("constant_mse", "memoryless_accuracy", "count_model_bits_per_byte")


def train(metric: str, options: Mapping[str, Any], seed: int, folder: Path) -> Result | None:
    """Trains with these options of `TrainConfig`, or a curriculum, see `configs`, and returns the
    metric on the test split. Continues a run that is in the folder, if its options are the same,
    or, unless it is of a curriculum, its budget of processor time is longer. `None` if a signal
    stopped it.

    The seconds are those of all runs together. What ended the training is that of the last run,
    unless the budget cut an earlier one short.
    """
    summaries = []
    planned = configs(options, seed, folder)
    for config in planned:
        out = runs.RunFolder(config.out)
        if out.is_run:
            given, stored = config.as_json(), out.config()
            for name in _MOVED | (_VALUES_USED - given.keys()):
                given.pop(name, None)
                stored.pop(name, None)
            # In a curriculum, the next run has started from the model at the end of the budget.
            check_same_options(out.path, stored, given, may_go_on=len(planned) == 1)
        summary = runs.run(config, resume=out.is_run)
        if summary is None:
            return None
        summaries.append(summary)
    last = summaries[-1]
    cut = any(each["ended"] == "budget" for each in summaries)
    return Result(
        figure=last[f"test_{metric}"],
        parameters=last["parameters"],
        seconds=sum(each["cpu_seconds"] for each in summaries),
        more={name: last[name] for name in ("test_loss", *_BASELINES) if name in last},
        ended="budget" if cut else last["ended"],
    )


def configs(options: Mapping[str, Any], seed: int, folder: Path) -> list[TrainConfig]:
    """One run for each entry of the option `before`, with the changes that it lists, and then the
    run itself. Each starts from the model of the run before it. One that is shorter than its
    warm-up, such as a trial with `--steps`, warms up for a tenth of its steps."""
    common = dict(options)
    changes = [*common.pop("before", ()), {}]
    configs = []
    start_from = None
    for changed, out in zip(changes, _folders(options, folder), strict=True):
        given = {**common, **changed, "seed": seed, "start_from": start_from, "out": str(out)}
        if given.get("warmup", 0) >= given.get("steps", math.inf):
            given["warmup"] = None
        configs.append(TrainConfig.for_task(**given))
        start_from = str(out)
    return configs


def last_run(options: Mapping[str, Any], folder: Path) -> Path:
    """The folder of the run that is tested, which is the last one of a curriculum."""
    return _folders(options, folder)[-1]


def _folders(options: Mapping[str, Any], folder: Path) -> list[Path]:
    count = 1 + len(options.get("before", ()))
    return [folder] if count == 1 else [folder / f"run-{i + 1}" for i in range(count)]


# How often a run logs and saves: rarely, because an experiment has many runs.
QUIET: Mapping[str, Any] = MappingProxyType(
    {"log_every": 50, "save_every": 10_000, "save_minutes": 2.0}
)

# Training until the validation figure stops improving, and a test of the best checkpoint. A rate
# that falls would need to know the last step: the average over the last steps replaces it. An entry
# gives the rate, and how often its model is evaluated.
UNTIL_IT_STOPS: Mapping[str, Any] = MappingProxyType(
    {
        "schedule": "constant",
        "warmup": 100,
        "average": 0.995,
        # A small validation split takes few different values: the loss still falls long after the
        # accuracy has settled.
        "patience": 20,
        "ties": "last",
        "keep_best": True,
        "steps": 1_000_000,  # never reached
        **QUIET,
    }
)

# The fields of an experiment whose figure is the accuracy of a training run.
ACCURACY: Mapping[str, Any] = MappingProxyType(
    {"measure": partial(train, "accuracy"), "metric": "test accuracy", "better": "higher"}
)
