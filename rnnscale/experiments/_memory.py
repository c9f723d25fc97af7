"""The adding and the copy problem, in which it is known what has to be remembered for how long."""

from collections.abc import Mapping
from functools import partial

from rnnscale.experiments._experiment import Entry, Experiment, Figure
from rnnscale.experiments._train import UNTIL_IT_STOPS, train

_ADDING_DIFFERS = (
    "coRNN: gamma=0.5, where the authors' script has 66, so that units remember for hundreds of "
    "steps before any training, and for 5000 steps a third of its dt; the gradient is clipped. "
    "IndRNN: Adam's rate is 1e-3 where the authors have 2e-4 until the error stops falling. Both "
    "are averaged over the last steps, and read numbers in [0, 1)."
)


def _adding(seq_len: int, dt: float, minutes: float) -> Experiment:
    """The adding problem over as many steps, with this `dt` of coRNN.

    An undriven unit forgets within about `epsilon / (dt * gamma)` steps. Where that is much less
    than a sequence, its first half has no gradient, and nothing is learned from full sequences.
    """
    shared = {
        **UNTIL_IT_STOPS,
        "task": "adding",
        "seq_len": seq_len,
        "batch_size": 50,
        "dim": 128,
        "evaluate_every": 100,
        "cpu_minutes": 60.0,
    }
    return Experiment(
        name=f"adding-{seq_len}",
        description=f"the adding problem over {seq_len:,} steps",
        entries=(
            Entry(
                "cornn",
                {
                    **shared,
                    "model": "cornn",
                    "cell": {"dt": dt, "gamma": 0.5, "epsilon": 15.0},
                    "learning_rate": 1e-2,
                    "clip": 0.1,
                },
                Figure(None, "solved for 500, 2000 and 5000 steps: Rusch and Mishra 2021"),
            ),
            Entry(
                "indrnn",
                {
                    **shared,
                    "model": "indrnn",
                    "depth": 2,
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
    model: str, cell: Mapping[str, str] | None, recurrence_rate: float, paper: str
) -> Entry:
    return Entry(
        model,
        {
            **UNTIL_IT_STOPS,
            "task": "copy",
            "seq_len": 120,
            "batch_size": 20,
            "model": model,
            "cell": cell,
            "dim": 128,
            "learning_rate": 1e-3,
            "recurrence_rate": recurrence_rate,
            "evaluate_every": 100,
            "cpu_minutes": 10.0,
        },
        Figure(None, f"solved for waits of {paper}"),
    )


MEMORY = (
    _adding(500, 0.06, 20),
    _adding(1000, 0.06, 40),
    _adding(5000, 0.02, 300),
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
            "AdamW at a constant rate, and averaged parameters, where the papers have RMSprop; "
            "expRNN has 128 units, not 190, and its paper waits 1000 and 2000 steps."
        ),
        minutes=6,
        solved=0.99,
    ),
)
