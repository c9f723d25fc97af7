"""The adding and the copy problem, in which it is known what has to be remembered for how long."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from rnnscale.experiments._experiment import Entry, Experiment, Figure
from rnnscale.experiments._train import UNTIL_IT_STOPS, train

_ADDING_DIFFERS = (
    "coRNN: gamma=20, where the authors' script has 66; it learns shorter sequences first and "
    "starts from what it learned there, where the authors train on the full length from the "
    "beginning; the gradient is clipped. IndRNN: the rate is 1e-3, where the authors begin with "
    "2e-4. LSTM: 64 units; for 1000 and 5000 steps it learns 500 first, and before 5000 also 1500, "
    "each for a fixed number of batches. The parameters of all are averaged over the last batches. "
    "Numbers are drawn from [0, 1)."
)

# Before any training, a unit of coRNN forgets within `epsilon / (dt * gamma)` steps, about a dozen,
# and gets no gradient from the first half of a long sequence.
_SHORTER = {"schedule": "cosine", "average": 0.0, "evaluate_every": 500}
_TO_200 = (
    {**_SHORTER, "seq_len": 50, "steps": 3000, "learning_rate": 2e-2},
    {**_SHORTER, "seq_len": 200, "steps": 3000, "learning_rate": 2e-2},
)
_TO_1000 = (*_TO_200, {**_SHORTER, "seq_len": 1000, "steps": 1500, "learning_rate": 2e-3})

# An LSTM forgets a little in each step. Over 5000 steps this is little enough only if on shorter
# sequences the error has become a thousandth of that of the mean.
_LSTM_500 = {"seq_len": 500, "steps": 3000, "warmup": 100, "learning_rate": 4e-3}
_LSTM_LONGER = {"warmup": 20, "learning_rate": 4e-3, "steps": 800}


def _adding(
    seq_len: int,
    minutes: float,
    *,
    cornn: Mapping[str, Any],
    lstm: Sequence[Mapping[str, Any]],
) -> Experiment:
    """The adding problem over as many steps.

    - `cornn`: further options of coRNN.
    - `lstm`: the runs of the LSTM, of which the last one has the full length.
    """
    *lstm_before, lstm_last = lstm
    shared = {
        **UNTIL_IT_STOPS,
        "task": "adding",
        "seq_len": seq_len,
        "batch_size": 50,
        "dim": 128,
        "depth": 1,
        "weight_decay": 0.0,
        "average": 0.99,
        "evaluate_every": 100,
        "cpu_minutes": 50.0,  # and some for the shorter sequences
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
                    "cell": {"dt": 0.06, "gamma": 20.0, "epsilon": 15.0},
                    "clip": 0.1,
                    **cornn,
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
            Entry(
                "lstm",
                {
                    **shared,
                    "model": "lstm",
                    "cell": {"t_max": 500},
                    "dim": 64,
                    "average": 0.98,
                    "evaluate_every": 50,
                    "patience": 0,
                    "before": lstm_before,
                    **lstm_last,
                },
                Figure(None, "solved for 200 and 750 steps: Tallec and Ollivier 2018"),
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
            "depth": 1,
            "weight_decay": 0.0,
            "learning_rate": 1e-3,
            "recurrence_rate": recurrence_rate,
            "evaluate_every": 100,
            "cpu_minutes": 10.0,
        },
        Figure(None, f"solved for waits of {paper}"),
    )


MEMORY = (
    _adding(500, 60, cornn={"before": _TO_200, "learning_rate": 2e-3}, lstm=(_LSTM_500,)),
    _adding(
        1000,
        100,
        cornn={"before": _TO_200, "learning_rate": 2e-3},
        lstm=(_LSTM_500, {**_LSTM_LONGER, "seq_len": 1000}),
    ),
    _adding(
        5000,
        400,
        cornn={"before": _TO_1000, "learning_rate": 1e-3},
        lstm=(
            _LSTM_500,
            {**_LSTM_LONGER, "seq_len": 1500},
            {**_LSTM_LONGER, "seq_len": 5000, "steps": 1200, "learning_rate": 2e-3},
        ),
    ),
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
        minutes=5,
        solved=0.99,
    ),
)
