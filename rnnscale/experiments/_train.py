"""A training run as the measurement of an experiment."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rnnscale.experiments._experiment import Result
from rnnscale.training import RunFolder, TrainConfig, run

_BASELINES = ("constant_mse", "memoryless_accuracy", "count_model_bits_per_byte")


def train(metric: str, options: Mapping[str, Any], seed: int, folder: Path) -> Result | None:
    """The metric on the test split, of a run with these options of `TrainConfig` in that folder;
    goes on with the run that is there. None where a signal stopped it."""
    config = TrainConfig.for_task(**options, seed=seed, out=str(folder))
    summary = run(config, resume=RunFolder(folder).is_run)
    if summary is None:
        return None
    return Result(
        figure=summary[f"test_{metric}"],
        parameters=summary["parameters"],
        seconds=summary["seconds"],
        more={name: summary[name] for name in ("test_loss", *_BASELINES) if name in summary},
    )
