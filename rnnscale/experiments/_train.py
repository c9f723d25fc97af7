"""A training run, or several of which each starts from the one before, as the measurement of an
experiment."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rnnscale.experiments._experiment import Result
from rnnscale.runs import RunFolder, TrainConfig, run

_BASELINES = ("constant_mse", "memoryless_accuracy", "count_model_bits_per_byte")


def train(metric: str, options: Mapping[str, Any], seed: int, folder: Path) -> Result | None:
    """The metric on the test split, of a run with these options of `TrainConfig` in that folder;
    goes on with the run that is there. None where a signal stopped it.

    `before` among the options is for a curriculum; see `runs`. The seconds are those of all runs.
    """
    summaries = []
    for config in runs(options, seed, folder):
        summary = run(config, resume=RunFolder(config.out).is_run)
        if summary is None:
            return None
        summaries.append(summary)
    last = summaries[-1]
    return Result(
        figure=last[f"test_{metric}"],
        parameters=last["parameters"],
        seconds=sum(each["seconds"] for each in summaries),
        more={name: last[name] for name in ("test_loss", *_BASELINES) if name in last},
    )


def runs(options: Mapping[str, Any], seed: int, folder: Path) -> list[TrainConfig]:
    """The runs that the options ask for: one for each entry of `before`, which says what is other
    in it, then the one that counts. Each starts from the model of the run before."""
    common = dict(options)
    changes = [*common.pop("before", ()), {}]
    configs = []
    start_from = None
    for i, changed in enumerate(changes):
        out = folder if len(changes) == 1 else folder / f"run-{i + 1}"
        given = {**common, **changed, "seed": seed, "start_from": start_from, "out": str(out)}
        configs.append(TrainConfig.for_task(**given))
        start_from = str(out)
    return configs
