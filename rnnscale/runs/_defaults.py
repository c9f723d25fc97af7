"""The options that suit a task and a model. A task needs an entry here only where the defaults of
`TrainConfig` do not suit it. Data of one's own have entries by the kind and size of the problem."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from rnnscale.runs._models import MODELS, CellEntry

if TYPE_CHECKING:
    from rnnscale.tasks import Task

_DEFAULT_MODEL = "s5"

type _Kind = Literal["classification", "regression", "forecast", "next_token"]

# All cells differ from the defaults of `TrainConfig`, which suit layers such as S5, in these.
_CELLS: Mapping[str, Any] = MappingProxyType(
    {"dim": 128, "depth": 1, "learning_rate": 1e-3, "weight_decay": 0.0}
)


@dataclass(frozen=True)
class _Recipe:
    """Options for one task.

    - `options`: for all models.
    - `model`: the model where none is named.
    - `cells`: further options by the name of a cell.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    model: str = _DEFAULT_MODEL
    cells: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


_DIGITS = _Recipe({"steps": 600, "batch_size": 64, "dim": 64, "depth": 2, "state_dim": 64})
_MNIST = _Recipe({"steps": 900, "batch_size": 50, "dim": 64, "depth": 4, "dropout": 0.1})
# A recurrence that is linear and diagonal can't track the states of these tasks.
_TRACKING = _Recipe({"steps": 1000, "batch_size": 128}, model="lstm")
_RECIPES: Mapping[str, _Recipe] = MappingProxyType(
    {
        "digits": _DIGITS,
        "digits-permuted": _DIGITS,
        "mnist5k": _MNIST,
        "mnist5k-permuted": _MNIST,
        "bytes": _Recipe(
            {
                "steps": 300,
                "batch_size": 16,
                "seq_len": 1024,
                "dim": 192,
                "depth": 4,
                "state_dim": 128,
                "learning_rate": 8e-3,
            }
        ),
        **dict.fromkeys(
            (
                "parity",
                "modular-arithmetic",
                "modular-arithmetic-brackets",
                "word-s3",
                "word-a5",
                "word-s5",
                "k-hop",
            ),
            _TRACKING,
        ),
        "japanese-vowels": _Recipe({"steps": 300, "dropout": 0.2}),
        "adding": _Recipe(
            {"batch_size": 50},
            model="cornn",
            cells={
                "cornn": {
                    "steps": 8000,
                    "batch_size": 100,
                    "dim": 64,
                    "warmup": 0,
                    "learning_rate": 2e-2,
                    "clip": 0.1,
                    "cell": {"dt": 0.012, "gamma": 94.5, "epsilon": 9.5},
                },
                "indrnn": {
                    "steps": 4000,
                    "depth": 2,
                    "learning_rate": 1e-3,
                    "recurrence_rate": 1e-3,
                    "clip": 10.0,
                },
            },
        ),
        "copy": _Recipe(
            {"batch_size": 20},
            model="exprnn",
            cells={
                "urnn": {"steps": 1500, "recurrence_rate": 1e-3},
                "exprnn": {"steps": 1500, "recurrence_rate": 1e-4, "cell": {"init": "henaff"}},
            },
        ),
    }
)


# A training split with fewer records is small: a model can learn it by heart.
_SMALL = 2000

# Small splits are regularised. A small validation split says little about single checkpoints, so it
# ends a run that no longer improves, and does not select one. One setting for eight data sets:
# `python -m benchmarks own_data`.
_REGULARISED = _Recipe({"steps": 400, "dropout": 0.3, "average": 0.98, "patience": 5})

# For data of one's own: the recipes of small and of large training splits, by what is predicted.
_OWN_DATA: Mapping[_Kind, tuple[_Recipe, _Recipe]] = MappingProxyType(
    {
        "classification": (_REGULARISED, _Recipe()),
        "regression": (_REGULARISED, _Recipe()),
        "forecast": (_Recipe(), _Recipe()),
        "next_token": (_Recipe(), _Recipe()),
    }
)


def default_model(task: "str | Task") -> str:
    """The model of a run on this task unless another one is named."""
    return _recipe(task).model


def default_options(task: "str | Task", model: str) -> dict[str, Any]:
    """The options that suit a task and a model, where they differ from those of `TrainConfig`."""
    recipe = _recipe(task)
    if not isinstance(MODELS.get(model), CellEntry):
        return dict(recipe.options)
    return {**recipe.options, **_CELLS, **recipe.cells.get(model, {})}


def _recipe(task: "str | Task") -> _Recipe:
    if isinstance(task, str):
        return _RECIPES.get(task, _Recipe())
    small, large = _OWN_DATA[_kind(task)]
    return small if len(task.train) < _SMALL else large


def _kind(task: "Task") -> _Kind:
    """What is predicted: values or a class at each step, or one for each sequence."""
    if task.labels == "step":
        return "forecast" if task.classes is None else "next_token"
    return "regression" if task.classes is None else "classification"
