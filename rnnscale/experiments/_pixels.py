"""Images read pixel by pixel, the task on which recurrent cells have been compared since 2015."""

from collections.abc import Mapping
from typing import Any, Literal

from rnnscale.experiments._experiment import Entry, Experiment, Figure
from rnnscale.experiments._train import ACCURACY, QUIET

type Order = Literal["ordered", "permuted"]

_CELL = {"dim": 64, "depth": 1, "weight_decay": 0.0, "learning_rate": 1e-2}
_SLOW = {**_CELL, "learning_rate": 4e-3}
# The authors' first recipe; later versions of their code have the defaults of the cells.
LIPSCHITZ = {"epsilon": 0.01, "beta": 0.65, "init_std": 32.0}
_BLOCKS = {"dim": 32, "depth": 2, "state_dim": 32, "learning_rate": 4e-3}

# Options from the papers, if they have this task; the rates suit the few steps here.
_ENTRIES: Mapping[str, Mapping[str, Any]] = {
    "elman": _SLOW,
    "leaky-elman": {**_CELL, "cell": {"leak": 0.1}},
    "wilson-cowan": _SLOW,
    "indrnn": {**_SLOW, "depth": 2, "recurrence_rate": 1e-3, "cell": {"input_std": 0.1}},
    "lstm": _CELL,
    "gru": _CELL,
    "gru-cho": _CELL,
    "antisymmetric": {**_CELL, "cell": {"epsilon": 0.1, "gamma": 0.01}},
    "antisymmetric-gated": {**_CELL, "cell": {"epsilon": 0.1, "gamma": 0.01}},
    "clockwork": {**_CELL, "cell": {"periods": [1, 2, 4, 8, 16, 32, 64, 128]}},
    "lipschitz": {**_CELL, "cell": LIPSCHITZ},
    "lipschitz-gated": {**_CELL, "cell": LIPSCHITZ},
    "urnn": {**_SLOW, "recurrence_rate": 1e-3},
    "cornn": _CELL,
    "exprnn": {**_SLOW, "recurrence_rate": 4e-4, "cell": {"init": "cayley"}},
    "nnrnn": {**_SLOW, "recurrence_rate": 4e-4, "cell": {"init": "cayley"}},
    "mingru": {**_CELL, "depth": 2},
    "minlstm": {**_CELL, "depth": 2},
    "ron": _CELL,
    "rglru": _BLOCKS,
    "linear-attention": _BLOCKS,
    "lru": {**_BLOCKS, "cell": {"r_min": 0.9, "r_max": 0.999}},
    "s5": _BLOCKS,
}

_PERMUTED_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "cornn": {"cell": {"dt": 0.076, "gamma": 0.4, "epsilon": 8.0}, "learning_rate": 5.4e-3},
    "lipschitz": {"cell": {**LIPSCHITZ, "beta": 0.8}},
    "lipschitz-gated": {"cell": {**LIPSCHITZ, "beta": 0.8}},
}

# An image of digits has a twelfth of the steps, so each may be up to twelve times as long.
_DIGITS_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "cornn": {"cell": {"dt": 0.2, "gamma": 2.7, "epsilon": 4.7}},
    "lipschitz": {"cell": {**LIPSCHITZ, "epsilon": 0.12}},
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
}


def _experiment(
    task: str,
    description: str,
    order: Order,
    shared: Mapping[str, Any],
    papers: Mapping[tuple[str, Order], Figure],
    differs: str,
    minutes: float,
) -> Experiment:
    entries = []
    for model, options in _ENTRIES.items():
        if task.startswith("digits"):
            options = {**options, **_DIGITS_OPTIONS.get(model, {})}
        elif order == "permuted":
            options = {**options, **_PERMUTED_OPTIONS.get(model, {})}
        options = {"task": task, "model": model, **shared, **options}
        entries.append(Entry(model, options, papers.get((model, order))))
    return Experiment(
        name=task,
        description=description,
        entries=entries,
        **ACCURACY,
        differs=differs,
        minutes=minutes,
    )


_DIGITS = {"batch_size": 64, "steps": 600, **QUIET}
_MNIST = {"batch_size": 50, "steps": 400, **QUIET}

_DIGITS_DIFFER = (
    "no paper has these images of 8 x 8 pixels. One layer of 64 units; two for IndRNN, minGRU and "
    "minLSTM; two blocks of width 32 for the last four. 600 steps of 64 images, AdamW, cosine."
)
_MNIST_DIFFERS = (
    "4000 images for training where the papers have 60,000, and 400 steps (5 epochs) where they "
    "have tens of epochs, so only the cells can be compared with each other. One layer of 64 units "
    "(two for IndRNN, minGRU and minLSTM) where the papers have one of 128 to 512, and six with "
    "batch norm for IndRNN; two blocks of width 32 for the last four. AdamW with cosine decay."
)

PIXELS = (
    _experiment(
        "digits", "digits of 8 x 8 pixels, row by row", "ordered",
        _DIGITS, {}, _DIGITS_DIFFER, 20,
    ),
    _experiment(
        "digits-permuted", "digits of 8 x 8 pixels, in a fixed random order", "permuted",
        _DIGITS, {}, _DIGITS_DIFFER, 20,
    ),
    _experiment(
        "mnist5k", "5000 images of MNIST, row by row", "ordered",
        _MNIST, _PAPERS, _MNIST_DIFFERS, 60,
    ),
    _experiment(
        "mnist5k-permuted", "5000 images of MNIST, in a fixed random order", "permuted",
        _MNIST, _PAPERS, _MNIST_DIFFERS, 60,
    ),
)  # fmt: skip
