"""Tasks with variable lengths or irregular times that need no download: spoken vowels, ListOps and
the pendulum."""

from functools import partial

from rnnscale.experiments._experiment import Entry, Experiment, Figure
from rnnscale.experiments._train import ACCURACY, UNTIL_IT_STOPS, train

_VOWELS = {
    **UNTIL_IT_STOPS,
    "task": "japanese-vowels",
    "batch_size": 32,
    "average": 0.98,
    "evaluate_every": 20,
    "cpu_minutes": 5.0,
}
_CELL = {"dim": 64, "depth": 1, "dropout": 0.2, "weight_decay": 0.0, "learning_rate": 4e-3}
_BLOCKS = {"dim": 64, "depth": 2, "state_dim": 64, "dropout": 0.2}
_VOWEL_MODELS = {"s5": _BLOCKS, "lru": _BLOCKS, "gru": _CELL, "lstm": _CELL}

# Sizes and rates of the authors, from the branch of lindermanlab/S5 with this task.
_PENDULUM = {
    **UNTIL_IT_STOPS,
    "task": "pendulum",
    "model": "s5",
    "cell": {"blocks": 8, "dt_min": 0.01, "dt_max": 0.1},
    "dim": 30,
    "depth": 4,
    "state_dim": 16,
    "batch_size": 32,
    "learning_rate": 1.2e-2,
    "recurrence_rate": 3e-3,
    "weight_decay": 0.0,
    "evaluate_every": 124,
    "cpu_minutes": 20.0,
}

SEQUENCES = (
    Experiment(
        name="japanese-vowels",
        description="which of nine speakers says two vowels: 7 to 29 steps of 12 numbers",
        entries=[
            Entry(model, {**_VOWELS, "model": model, **options})
            for model, options in _VOWEL_MODELS.items()
        ],
        **ACCURACY,
        differs="the archive's own split of 270 and 370 series; no paper of these layers has it.",
        minutes=2,
    ),
    Experiment(
        name="listops",
        description="ListOps, generated, of 64 to 256 tokens",
        entries=[
            Entry(
                "s5-bidirectional",
                {
                    **UNTIL_IT_STOPS,
                    "task": "listops",
                    "seq_len": 256,
                    "model": "s5-bidirectional",
                    "cell": {"blocks": 2},
                    "dim": 64,
                    "depth": 4,
                    "state_dim": 16,
                    "batch_size": 32,
                    "learning_rate": 3e-3,
                    "recurrence_rate": 1e-3,
                    "weight_decay": 0.04,
                    "evaluate_every": 500,
                    "cpu_minutes": 60.0,
                },
                Figure(
                    0.6215,
                    "for Long Range Arena's 500 to 2000 tokens: Smith et al. 2023, as quoted by "
                    "others",
                ),
            )
        ],
        **ACCURACY,
        differs=(
            "at most 256 tokens, where Long Range Arena has 500 to 2000, which is another task; "
            "four blocks of width 64 where the paper has eight of 128 with batch norm; batches of "
            "32 at a constant rate."
        ),
        minutes=60,
        seeds=(0,),
    ),
    Experiment(
        name="pendulum",
        description="where a pendulum points, from 50 noisy images at irregular times",
        entries=[
            Entry("s5", _PENDULUM, Figure(0.00341, "Smith et al. 2023, not checked in the paper")),
        ],
        measure=partial(train, "mse"),
        metric="test mean squared error",
        better="lower",
        differs=(
            "the images are generated anew, with the constants of the authors, see the task; "
            "a linear map reads an image, where the authors have two convolutions; it fits the "
            "noise of the 2000 records, and dropout or weight decay raise the training error "
            "without lowering the validation error; the rate is constant, where they have a cosine "
            "over 100 epochs."
        ),
        minutes=50,
    ),
)
