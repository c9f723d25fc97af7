"""The adding and the copy problem, in which it is known what has to be remembered for how long."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from rnnscale.experiments._experiment import Entry, Experiment, Figure
from rnnscale.experiments._train import QUIET, train

_QUIET = {**QUIET, "log_every": 100}

_ADDING_DIFFERS = (
    "coRNN: gamma=20, where the authors' script has 66; it learns shorter sequences first and "
    "starts from what it learned there, where the authors train on the full length from the "
    "beginning; the gradient is clipped and the rate follows a cosine. IndRNN: Adam's rate is 1e-3 "
    "with a cosine where the authors have 2e-4 until the error stops falling. Both read numbers in "
    "[0, 1)."
)

# A network that remembers ten steps gets hardly any gradient from full sequences.
_TO_200 = (
    {"seq_len": 50, "steps": 3000, "learning_rate": 2e-2},
    {"seq_len": 200, "steps": 3000, "learning_rate": 2e-2},
)
_TO_500 = (*_TO_200, {"seq_len": 500, "steps": 1500, "learning_rate": 2e-3})
_TO_1000 = (*_TO_200, {"seq_len": 1000, "steps": 1500, "learning_rate": 2e-3})
_TO_5000 = (*_TO_1000, {"seq_len": 5000, "steps": 1000, "learning_rate": 5e-4})


def _adding(
    curriculum: Sequence[Mapping[str, Any]], indrnn_steps: int, minutes: float
) -> Experiment:
    """The adding problem over as many steps as the last run of the curriculum of coRNN has."""
    *before, last = curriculum
    seq_len = last["seq_len"]
    shared = {"task": "adding", "seq_len": seq_len, "batch_size": 50, "dim": 128, **_QUIET}
    return Experiment(
        name=f"adding-{seq_len}",
        description=f"the adding problem over {seq_len:,} steps",
        entries=(
            Entry(
                "cornn",
                {
                    **shared,
                    "before": before,
                    **last,
                    "model": "cornn",
                    "warmup": 100,
                    "clip": 0.1,
                    "cell": {"dt": 0.06, "gamma": 20.0, "epsilon": 15.0},
                },
                Figure(None, "solved for 500, 2000 and 5000 steps: Rusch and Mishra 2021"),
            ),
            Entry(
                "indrnn",
                {
                    **shared,
                    "model": "indrnn",
                    "depth": 2,
                    "steps": indrnn_steps,
                    "learning_rate": 1e-3,
                    "recurrence_rate": 1e-3,
                    "clip": 10.0,
                },
                Figure(None, "solved for 100 to 5000 steps: Li et al. 2018"),
            ),
        ),
        measure=partial(train, "mse"),
        metric="test mean squared error",
        better="lower",
        differs=_ADDING_DIFFERS,
        minutes=minutes,
        # A hundredth of the error of a constant prediction of the mean.
        solved=1 / 600,
    )


def _copy_entry(
    model: str, cell: dict[str, str] | None, recurrence_rate: float, paper: str
) -> Entry:
    return Entry(
        model,
        {
            "task": "copy",
            "seq_len": 120,
            "batch_size": 20,
            "model": model,
            "cell": cell,
            "dim": 128,
            "steps": 1500,
            "learning_rate": 1e-3,
            "recurrence_rate": recurrence_rate,
            **_QUIET,
        },
        Figure(None, f"solved for waits of {paper}"),
    )


MEMORY = (
    _adding(_TO_500, 2000, 20),
    _adding(_TO_1000, 2500, 40),
    _adding(_TO_5000, 3000, 300),
    Experiment(
        name="copy",
        description="the copy problem with a wait of 100 steps",
        entries=(
            _copy_entry("urnn", None, 1e-3, "100 to 500 steps: Arjovsky et al. 2016"),
            _copy_entry(
                "exprnn",
                {"init": "henaff"},
                1e-4,
                "1000 and 2000 steps: Lezcano-Casado and Martínez-Rubio 2019",
            ),
        ),
        measure=partial(train, "accuracy"),
        metric="test accuracy of the recalled symbols",
        better="higher",
        differs=(
            "AdamW with a cosine where the papers have RMSprop with a constant rate; expRNN has "
            "128 units, not 190, and its paper waits 1000 and 2000 steps."
        ),
        minutes=6,
        solved=0.99,
    ),
)
