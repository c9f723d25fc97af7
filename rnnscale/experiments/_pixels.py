"""Images read pixel by pixel, the task on which recurrent cells have been compared since 2015."""

from collections.abc import Mapping
from typing import Any, Literal

from rnnscale.experiments._experiment import Entry, Experiment, Figure
from rnnscale.experiments._train import ACCURACY, UNTIL_IT_STOPS

type Data = Literal["digits", "mnist5k"]
type Order = Literal["ordered", "permuted"]
type Options = Mapping[str, Any]

# Cells of which the last state is read: the classical setting, a test of memory.
_CELL = {"dim": 128, "depth": 1, "weight_decay": 0.0, "learning_rate": 2e-3}
# Cells whose outputs start small need larger weights of the readout.
_SMALL = {**_CELL, "learning_rate": 1e-2}
_CHRONO = {
    **_CELL,
    "dropout": 0.3,
    "weight_decay": 0.1,
    "learning_rate": 4e-3,
    "cell": {"t_max": 784},
}
_ORTHOGONAL = {
    **_CELL,
    "learning_rate": 1e-3,
    "recurrence_rate": 1e-4,
    "cell": {"init": "cayley"},
}
# With these, a linear readout of the untrained reservoir already tells digits of the validation
# split apart; so it does with the steps of time of other equations below.
_RANGES = {"dt": 0.05, "gamma": [0.1, 4.0], "epsilon": [0.01, 0.5]}

_LAST_STATE: Mapping[str, Options] = {
    "elman": _CELL,
    "leaky-elman": {**_SMALL, "cell": {"leak": 0.02}},
    "wilson-cowan": {**_SMALL, "cell": {"rate": 0.02}},
    "lstm": {**_CHRONO, "learning_rate": 5e-3},
    "gru": _CHRONO,
    "gru-cho": _CHRONO,
    "mgu": _CHRONO,
    "antisymmetric": {**_CELL, "cell": {"epsilon": 0.01, "gamma": 0.01}},
    "antisymmetric-gated": {**_CELL, "cell": {"epsilon": 0.01, "gamma": 0.01}},
    "clockwork": {**_SMALL, "cell": {"periods": [1, 2, 4, 8, 16, 32, 64, 128]}},
    "lipschitz": {**_SMALL, "cell": {"epsilon": 0.01, "beta": 1.0, "init_std": 11.0}},
    "lipschitz-gated": {**_SMALL, "cell": {"epsilon": 0.01, "beta": 1.0, "init_std": 11.0}},
    "urnn": {**_CELL, "recurrence_rate": 1e-3},
    # The authors' values for images in order are the defaults; less damped, this rate diverges. For
    # permuted images they learn faster than the authors' 0.076, 0.4 and 8.0.
    "cornn": _SMALL,
    "cornn-heterogeneous": {**_CELL, "learning_rate": 4e-3, "cell": _RANGES},
    "unicornn": {**_SMALL, "dim": 64, "depth": 2, "cell": {"dt": 0.5, "alpha": 8.0}},
    "exprnn": {**_ORTHOGONAL, "dim": 256},
    "nnrnn": _ORTHOGONAL,
    "ron": {**_CELL, "dim": 256, "learning_rate": 3e-2, "cell": _RANGES},
}

# Two blocks with dropout, whose mean over time is read.
_BLOCKS = {"dim": 32, "depth": 2, "state_dim": 32, "dropout": 0.1, "learning_rate": 4e-3}
_WIDE_BLOCKS = {**_BLOCKS, "dim": 64, "state_dim": 64}
_RING = {"r_min": 0.9, "r_max": 0.999}
_CELL_BLOCKS = {**_BLOCKS, "block": "half-glu", "weight_decay": 0.0, "learning_rate": 1e-2}

_MATRIX_STATES = (
    "linear-attention", "deltanet", "gated-deltanet", "deltaproduct", "gla", "mlstm", "rwkv7",
    "mlstm-up-projected",
)  # fmt: skip

_MEAN_OF_BLOCKS: Mapping[str, Options] = {
    **dict.fromkeys(
        (
            "s5-bidirectional", "s4d", "linoss", "d-linoss", "mamba", "mamba2", "attention",
            "griffin", "slstm", *_MATRIX_STATES,
        ),
        _BLOCKS,
    ),
    "s5": _WIDE_BLOCKS,
    "rglru": {**_BLOCKS, "depth": 4, "learning_rate": 1e-2},
    "lru": {**_WIDE_BLOCKS, "cell": {**_RING, "max_phase": 0.314}},
    "indrnn": {**_CELL_BLOCKS, "recurrence_rate": 1e-3},
    "lrcssm": _CELL_BLOCKS,
    **dict.fromkeys(
        ("mingru", "minlstm", "paragru", "paralstm"),
        {**_CELL_BLOCKS, "cell": {"t_max": 784}},
    ),
}  # fmt: skip

_ENTRIES: Mapping[str, Options] = {**_MEAN_OF_BLOCKS, **_LAST_STATE}

# It is at chance for a dozen evaluations or more before it learns.
_SLOW_START: Options = {"patience": 60}

_PERMUTED: Mapping[str, Options] = {
    "lrcssm": _SLOW_START,
    "lru": {"cell": _RING},  # all frequencies: such an image is not smooth over time
    "cornn-heterogeneous": {"cell": {"dt": 0.1, "gamma": [0.1, 40.0], "epsilon": [0.01, 0.2]}},
    "ron": {"cell": {**_RANGES, "dt": 0.1}},
    "urnn": {"dim": 256},
}

# An image of digits has a twelfth of the steps, so each may be up to twelve times as long.
_DIGITS: Mapping[str, Options] = {
    **dict.fromkeys(
        (*_MATRIX_STATES, "mamba", "mamba2", "slstm", "rglru", "griffin", "lrcssm", "attention"),
        {"cpu_minutes": 5.0},
    ),
    "s4d": {"cpu_minutes": 3.0},
    "s5-bidirectional": {"cpu_minutes": 2.0},
    **dict.fromkeys(("gru", "gru-cho", "mgu"), {"cell": {"t_max": 64}, "dim": 64}),
    "lstm": {"cell": {"t_max": 64}, "dim": 64, "learning_rate": 1e-2},
    **dict.fromkeys(
        ("mingru", "minlstm", "paragru", "paralstm"), {"cell": {"t_max": 64}, "cpu_minutes": 2.0}
    ),
    "indrnn": {
        "dim": 64,
        "dropout": 0.2,
        "weight_decay": 0.05,
        "learning_rate": 4e-3,
        "recurrence_rate": 4e-4,
        "cpu_minutes": 3.0,
    },
    "s5": {"dim": 32, "state_dim": 32},
    "lru": {"dim": 32, "state_dim": 32, "cell": _RING},
    "exprnn": {"dim": 128, "learning_rate": 2e-3, "recurrence_rate": 4e-4},
    "nnrnn": {"learning_rate": 2e-3, "recurrence_rate": 4e-4},
    "leaky-elman": {"cell": {"leak": 0.3}},
    "wilson-cowan": {"cell": {"rate": 0.3}},
    "antisymmetric": {"cell": {"epsilon": 0.1, "gamma": 0.01}},
    "antisymmetric-gated": {
        "cell": {"epsilon": 0.2, "gamma": 0.01},
        "weight_decay": 0.1,
        "learning_rate": 5e-3,
        "cpu_minutes": 2.0,
    },
    "clockwork": {"cell": {"periods": [1, 2, 4, 8, 16, 32]}, "dim": 126},
    "lipschitz": {"cell": {"epsilon": 0.1, "beta": 1.0, "init_std": 11.0}},
    "lipschitz-gated": {"cell": {"epsilon": 0.1, "beta": 1.0, "init_std": 11.0}},
    "cornn": {"cell": {"dt": 0.2}, "learning_rate": 4e-3},
    "cornn-heterogeneous": {"cell": {"dt": 0.2}},
    "ron": {"cell": {"dt": 0.5, "gamma": [0.5, 4.0], "epsilon": [0.1, 1.0]}},
}

_PERMUTED_DIGITS: Mapping[str, Options] = {"lrcssm": _SLOW_START}

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


# Processor minutes of a run on MNIST. GRU needs seven to leave its plateau.
_MINUTES = 5.0
_MORE_MINUTES: Mapping[Order, Mapping[str, float]] = {
    "ordered": {
        "cornn": 15.0,
        **dict.fromkeys(("s5", "urnn", "exprnn", "leaky-elman", "gru-cho", "mgu"), 25.0),
        **dict.fromkeys(("s4d", "s5-bidirectional", "linoss", "d-linoss"), 25.0),
        **dict.fromkeys(("mingru", "minlstm", "paragru"), 25.0),
        "lru": 40.0,
        **dict.fromkeys(("lstm", "gru"), 60.0),
    },
    "permuted": {
        "cornn": 15.0,
        **dict.fromkeys(("s5", "exprnn", "leaky-elman", "gru-cho", "mgu", "lstm", "gru"), 25.0),
        **dict.fromkeys(("s4d", "s5-bidirectional"), 25.0),
        "lru": 40.0,
        "urnn": 60.0,
    },
}


def _options(model: str, data: Data, order: Order) -> Options:
    """The options of an entry, without its task."""
    # A loop over single steps costs the same for more images, blocks do not.
    if data == "digits":
        batch_size = 64 if model in _LAST_STATE else 32
        given: dict[str, Any] = {"cpu_minutes": 1.0, **_DIGITS.get(model, {})}
        if order == "permuted":  # such images take longer to learn
            given["cpu_minutes"] = min(3 * given["cpu_minutes"], 5.0)
            given.update(_PERMUTED_DIGITS.get(model, {}))
        return {
            **UNTIL_IT_STOPS,
            "average": 0.99,
            "batch_size": batch_size,
            "evaluate_every": 2500 // batch_size,
            **_ENTRIES[model],
            **given,
        }
    batch_size = 50 if model in _LAST_STATE else 20
    return {
        **UNTIL_IT_STOPS,
        "average": 0.998,
        "dropout": 0.1,
        "batch_size": batch_size,
        "evaluate_every": 3500 // batch_size,
        "cpu_minutes": _MORE_MINUTES[order].get(model, _MINUTES),
        **_ENTRIES[model],
        **(_PERMUTED.get(model, {}) if order == "permuted" else {}),
    }


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
    "IndRNN, LrcSSM, minGRU, minLSTM, ParaGRU, ParaLSTM, RG-LRU and all layers stand in two blocks "
    "(RG-LRU: four) with dropout, and the mean over time is read. All other cells are one layer "
    "(UnICORNN: two), whose last state is read. Gated cells start with memories of up to an image "
    "(chrono). AdamW at a constant rate, tested with a moving average of the parameters at the "
    "best evaluation. Steps of time were chosen by the accuracy of a linear readout of the "
    "untrained cell on the validation split, and those of coRNN on MNIST among the authors'. Few "
    "rates, and for some models few values of dropout, weight decay and depth, were compared, by "
    "the validation accuracy of one seed."
)
_DIGITS_DIFFER = f"no paper has these images of 8 x 8 pixels. {_MODELS_DIFFER}"
_MNIST_DIFFERS = (
    "3500 images for training where the papers have 50,000 to 60,000, and 32 to 256 units where "
    "they have 128 to 512. A tenth of what the readout of a cell reads is dropped (gated cells: "
    f"three tenths). {_MODELS_DIFFER}"
)

PIXELS = (
    _experiment("digits", "ordered", "digits of 8 x 8 pixels, row by row", _DIGITS_DIFFER, 200),
    _experiment(
        "digits", "permuted", "digits of 8 x 8 pixels, in a fixed random order",
        _DIGITS_DIFFER, 245,
    ),
    _experiment(
        "mnist5k", "ordered", "5000 images of MNIST, row by row",
        _MNIST_DIFFERS, 495, seeds=(0,),
    ),
    _experiment(
        "mnist5k", "permuted", "5000 images of MNIST, in a fixed random order",
        _MNIST_DIFFERS, 415, seeds=(0,),
    ),
)  # fmt: skip
