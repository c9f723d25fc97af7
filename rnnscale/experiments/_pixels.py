"""Images read pixel by pixel, the task on which recurrent cells have been compared since 2015."""

from collections.abc import Mapping
from typing import Any, Literal

from rnnscale.experiments._experiment import Entry, Experiment, Figure
from rnnscale.experiments._train import ACCURACY, UNTIL_IT_STOPS

type Data = Literal["digits", "mnist5k"]
type Order = Literal["ordered", "permuted"]
type Options = Mapping[str, Any]

# The authors' first recipe; later versions of their code have the defaults of the cells.
LIPSCHITZ = {"epsilon": 0.01, "beta": 0.65, "init_std": 32.0}

# One layer, whose last state is read: the classical setting, a test of memory.
_CELL = {"dim": 128, "depth": 1, "weight_decay": 0.0, "learning_rate": 2e-3}
# Two blocks with dropout, whose mean over time is read.
_BLOCKS = {"dim": 64, "depth": 2, "state_dim": 64, "dropout": 0.1, "learning_rate": 4e-3}

_CHRONO = {**_CELL, "dim": 64, "learning_rate": 4e-3, "cell": {"t_max": 784}}
_ORTHOGONAL = {**_CELL, "recurrence_rate": 4e-4}
_ANTISYMMETRIC = {**_CELL, "cell": {"epsilon": 0.03, "gamma": 0.01}}
_DENSE: Mapping[str, Options] = {
    "elman": _CELL,
    "leaky-elman": {**_CELL, "cell": {"leak": 0.02}},
    "wilson-cowan": {**_CELL, "cell": {"rate": 0.02}},
    "lstm": _CHRONO,
    "gru": _CHRONO,
    "gru-cho": _CHRONO,
    "mgu": _CHRONO,
    "antisymmetric": _ANTISYMMETRIC,
    "antisymmetric-gated": _ANTISYMMETRIC,
    "clockwork": {**_CELL, "cell": {"periods": [1, 2, 4, 8, 16, 32, 64, 128]}},
    "lipschitz": _CELL,
    "lipschitz-gated": _CELL,
    "urnn": {**_CELL, "recurrence_rate": 1e-3},
    "cornn": {**_CELL, "learning_rate": 4e-3},
    "cornn-heterogeneous": {**_CELL, "learning_rate": 4e-3},
    "unicornn": {**_CELL, "depth": 3},
    "exprnn": {**_ORTHOGONAL, "cell": {"init": "cayley"}},
    "nnrnn": {**_ORTHOGONAL, "cell": {"init": "cayley"}},
    "ron": {**_CELL, "dim": 512, "learning_rate": 0.1},
}

_CELL_BLOCKS = {**_BLOCKS, "block": "half-glu"}
_CHRONO_BLOCKS = {**_CELL_BLOCKS, "cell": {"t_max": 784}}
_INDEPENDENT: Mapping[str, Options] = {
    "indrnn": {**_CELL_BLOCKS, "recurrence_rate": 1e-3},
    "paragru": _CHRONO_BLOCKS,
    "paralstm": _CHRONO_BLOCKS,
    "lrcssm": _CELL_BLOCKS,
    "mingru": _CHRONO_BLOCKS,
    "minlstm": _CHRONO_BLOCKS,
}

_LAYERS: Mapping[str, Options] = {
    **dict.fromkeys(
        (
            "s5", "s5-bidirectional", "s4d", "linoss", "d-linoss", "mamba", "mamba2", "rglru",
            "linear-attention", "deltanet", "gated-deltanet", "deltaproduct", "gla", "mlstm",
            "rwkv7", "attention", "griffin", "slstm", "mlstm-up-projected",
        ),
        _BLOCKS,
    ),
    "lru": {**_BLOCKS, "cell": {"r_min": 0.9, "r_max": 0.999}},
}  # fmt: skip

_ENTRIES: Mapping[str, Options] = {**_LAYERS, **_INDEPENDENT, **_DENSE}

_PERMUTED: Mapping[str, Options] = {
    "cornn": {"cell": {"dt": 0.076, "gamma": 0.4, "epsilon": 8.0}},
    "cornn-heterogeneous": {"cell": {"dt": 0.076, "gamma": [0.2, 0.6], "epsilon": [7.0, 9.0]}},
}

# An image of digits has a twelfth of the steps, so each may be up to twelve times as long.
_DIGITS: Mapping[str, Options] = {
    **{
        name: {"dim": 128 if name in _DENSE else 64, "cell": {"t_max": 64}}
        for name, options in _ENTRIES.items()
        if "t_max" in options.get("cell", {})
    },
    "leaky-elman": {"cell": {"leak": 0.1}},
    "wilson-cowan": {"cell": {"rate": 0.1}},
    "antisymmetric": {"cell": {"epsilon": 0.2, "gamma": 0.01}},
    "antisymmetric-gated": {"cell": {"epsilon": 0.2, "gamma": 0.01}},
    "clockwork": {"cell": {"periods": [1, 2, 4, 8, 16, 32]}, "dim": 126},
    "lipschitz": {"cell": {"epsilon": 0.2}},
    "lipschitz-gated": {"cell": {"epsilon": 0.2}},
    "cornn": {"cell": {"dt": 0.2}},
    "cornn-heterogeneous": {"cell": {"dt": 0.2}},
    "ron": {"cell": {"dt": 0.2}},
}

_RUSCH = "Rusch and Mishra 2021, the authors' README"
_LI = "Li et al. 2018, table of the paper"
_CHANG = "Chang et al. 2019, as quoted by others"
_ERICHSON = "Erichson et al. 2021, as quoted by others"

# Published figures, for all 60,000 images.
_PAPERS: Mapping[tuple[str, Order], Figure] = {
    ("lstm", "ordered"): Figure(0.982, _LI),
    ("lstm", "permuted"): Figure(0.880, _LI),
    ("urnn", "ordered"): Figure(0.951, _LI),
    ("urnn", "permuted"): Figure(0.914, _LI),
    ("indrnn", "ordered"): Figure(0.990, _LI),
    ("indrnn", "permuted"): Figure(0.960, _LI),
    ("antisymmetric", "permuted"): Figure(0.958, _CHANG),
    ("antisymmetric-gated", "ordered"): Figure(0.988, _CHANG),
    ("antisymmetric-gated", "permuted"): Figure(0.931, _CHANG),
    ("cornn", "ordered"): Figure(0.994, _RUSCH),
    ("cornn", "permuted"): Figure(0.9734, _RUSCH),
    ("lipschitz", "ordered"): Figure(0.994, _ERICHSON),
    ("lipschitz", "permuted"): Figure(0.963, _ERICHSON),
    ("s5", "ordered"): Figure(0.9965, "Smith et al. 2023, as quoted by others"),
    ("unicornn", "permuted"): Figure(0.984, "Rusch and Mishra 2021, the authors' README"),
}


_DIGITS_SHARED = {**UNTIL_IT_STOPS, "batch_size": 64, "evaluate_every": 40, "cpu_minutes": 1.0}
_MNIST_SHARED = {**UNTIL_IT_STOPS, "batch_size": 50, "evaluate_every": 70}
# Processor minutes of a run on MNIST: most learn fast, or not at all.
_MINUTES = 5.0
_MORE_MINUTES: Mapping[str, float] = dict.fromkeys(
    ("s5", "lru", "lstm", "gru", "cornn", "urnn", "exprnn"), 20.0
)


def _options(model: str, data: Data, order: Order) -> Options:
    options = {**_ENTRIES[model], **(_PERMUTED.get(model, {}) if order == "permuted" else {})}
    if data == "digits":
        return {**_DIGITS_SHARED, **options, **_DIGITS.get(model, {})}
    return {**_MNIST_SHARED, "cpu_minutes": _MORE_MINUTES.get(model, _MINUTES), **options}


def _experiment(
    data: Data,
    order: Order,
    description: str,
    differs: str,
    minutes: float,
    **others: Any,
) -> Experiment:
    task = data if order == "ordered" else f"{data}-permuted"
    return Experiment(
        name=task,
        description=description,
        entries=[
            Entry(
                model,
                {"task": task, "model": model, **_options(model, data, order)},
                _PAPERS.get((model, order)) if data == "mnist5k" else None,
            )
            for model in _ENTRIES
        ],
        **ACCURACY,
        differs=differs,
        minutes=minutes,
        **others,
    )


_MODELS_DIFFER = (
    "Dense cells are one layer whose last state is read; cells with independent units and layers "
    "stand in two blocks with dropout, of which the mean over time is read. Gated cells start with "
    "memories of up to an image (chrono). AdamW at a constant rate, tested with a moving average "
    "of the parameters. Rates and steps of time are those of the papers or were chosen on the "
    "validation split."
)
_DIGITS_DIFFER = f"no paper has these images of 8 x 8 pixels. {_MODELS_DIFFER}"
_MNIST_DIFFERS = (
    "3500 images for training where the papers have 50,000 to 60,000, and 64 or 128 units where "
    f"they have 128 to 512. {_MODELS_DIFFER}"
)

PIXELS = (
    _experiment("digits", "ordered", "digits of 8 x 8 pixels, row by row", _DIGITS_DIFFER, 90),
    _experiment(
        "digits", "permuted", "digits of 8 x 8 pixels, in a fixed random order", _DIGITS_DIFFER, 90,
    ),
    _experiment(
        "mnist5k", "ordered", "5000 images of MNIST, row by row", _MNIST_DIFFERS, 240, seeds=(0,),
    ),
    _experiment(
        "mnist5k", "permuted", "5000 images of MNIST, in a fixed random order", _MNIST_DIFFERS, 240,
        seeds=(0,),
    ),
)  # fmt: skip
