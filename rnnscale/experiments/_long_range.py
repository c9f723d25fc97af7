"""Long Range Arena and Speech Commands with S5, for users with the data and the devices."""

from collections.abc import Mapping
from typing import Any

from rnnscale.experiments._experiment import Entry, Experiment, Figure
from rnnscale.experiments._train import ACCURACY

_AGGREGATED = "Smith et al. 2023, as quoted by others"
_DIFFERS = (
    "sizes, rates, batch and epochs are those of the authors' scripts (lindermanlab/S5, "
    "bin/run_experiments); layer norm in place of batch norm, one rate for all of the recurrence's "
    "parameters, and a step size for each "
    "state where two of the scripts have one for all (dt_global)."
)


def _experiment(
    task: str,
    description: str,
    paper: float,
    *,
    records: int,
    epochs: int,
    batch_size: int,
    blocks: int,
    cell: Mapping[str, Any] | None = None,
    warmup_epochs: int = 1,
    **options: Any,
) -> Experiment:
    """The bidirectional S5 on a task with this number of records."""
    per_epoch = records // batch_size
    options |= {
        "task": task,
        "model": "s5-bidirectional",
        "cell": {"blocks": blocks, **(cell or {})},
        "steps": epochs * per_epoch,
        "warmup": warmup_epochs * per_epoch,
        "batch_size": batch_size,
        "save_every": 1000,
        "log_every": 100,
        "evaluate_every": per_epoch,
    }
    return Experiment(
        name=task,
        description=description,
        entries=(Entry("s5-bidirectional", options, Figure(paper, _AGGREGATED)),),
        differs=_DIFFERS,
        minutes=float("inf"),
        seeds=(0,),
        folder=True,
        **ACCURACY,
    )


LONG_RANGE = (
    _experiment(
        "lra-listops", "Long Range Arena: nested operations, 2000 steps", 0.6215,
        records=96_000, epochs=40, batch_size=50, dim=128, depth=8, state_dim=16, blocks=8,
        learning_rate=3e-3, recurrence_rate=1e-3, weight_decay=0.04, dropout=0.0,
    ),
    _experiment(
        "lra-text", "Long Range Arena: film reviews, 4096 steps", 0.8931,
        records=25_000, epochs=35, batch_size=50, dim=256, depth=6, state_dim=192, blocks=12,
        learning_rate=4e-3, recurrence_rate=1e-3, weight_decay=0.07, dropout=0.1, warmup_epochs=0,
    ),
    _experiment(
        "lra-retrieval", "Long Range Arena: pairs of papers, 8001 steps", 0.9140,
        records=147_086, epochs=20, batch_size=32, dim=128, depth=6, state_dim=256, blocks=16,
        learning_rate=2e-3, recurrence_rate=1e-3, weight_decay=0.05, dropout=0.0,
    ),
    _experiment(
        "lra-image", "Long Range Arena: CIFAR-10 in grey, 1024 steps", 0.8800,
        records=45_000, epochs=250, batch_size=50, dim=512, depth=6, state_dim=384, blocks=3,
        learning_rate=4.5e-3, recurrence_rate=1e-3, weight_decay=0.07, dropout=0.1,
    ),
    _experiment(
        "lra-pathfinder", "Long Range Arena: two dots on a path or not, 1024 steps", 0.9533,
        records=160_000, epochs=200, batch_size=64, dim=192, depth=6, state_dim=256, blocks=8,
        learning_rate=4.5e-3, recurrence_rate=9e-4, weight_decay=0.03, dropout=0.05,
    ),
    _experiment(
        "lra-pathx", "Long Range Arena: two dots on a path or not, 16384 steps", 0.9858,
        records=160_000, epochs=75, batch_size=32, dim=128, depth=6, state_dim=256, blocks=16,
        learning_rate=1.8e-3, recurrence_rate=6e-4, weight_decay=0.06, dropout=0.0,
        cell={"dt_min": 1e-4, "c_init": "complex_normal"},
    ),
    _experiment(
        "speech-commands", "35 spoken words as waves, 16000 steps", 0.9652,
        records=84_843, epochs=40, batch_size=16, dim=96, depth=6, state_dim=128, blocks=16,
        learning_rate=8e-3, recurrence_rate=2e-3, weight_decay=0.04, dropout=0.1,
    ),
)  # fmt: skip
