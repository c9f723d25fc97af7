"""Small tasks with variable lengths that need no download: spoken vowels and ListOps."""

from rnnscale.experiments._experiment import Entry, Experiment, Figure
from rnnscale.experiments._train import ACCURACY, QUIET

_VOWELS = {"task": "japanese-vowels", "steps": 300, "batch_size": 32, **QUIET}
_CELL = {"dim": 64, "depth": 1, "weight_decay": 0.0, "learning_rate": 4e-3}
_BLOCKS = {"dim": 64, "depth": 2, "state_dim": 64, "dropout": 0.2}
_VOWEL_MODELS = {"s5": _BLOCKS, "lru": _BLOCKS, "gru": _CELL, "lstm": _CELL}

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
        minutes=6,
    ),
    Experiment(
        name="listops",
        description="ListOps, generated, of 32 to 128 tokens",
        entries=[
            Entry(
                "s5-bidirectional",
                {
                    "task": "listops",
                    "seq_len": 128,
                    "model": "s5-bidirectional",
                    "steps": 1000,
                    "batch_size": 50,
                    "dim": 64,
                    "depth": 4,
                    "state_dim": 16,
                    "learning_rate": 3e-3,
                    "recurrence_rate": 1e-3,
                    "weight_decay": 0.04,
                    "cell": {"blocks": 2},
                    **QUIET,
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
            "at most 128 tokens, where Long Range Arena has 500 to 2000, which is another task; "
            "four blocks of width 64 where the paper has eight of 128 with batch norm; 1000 steps "
            "of 50."
        ),
        minutes=25,
        seeds=(0,),
    ),
)
