import dataclasses
import difflib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, get_args

from rnnscale._errors import UserError
from rnnscale.sharding import AXES

_log = logging.getLogger(__name__)

type Layer = Literal["s5", "s5-bidirectional", "lru", "rglru", "linear-attention"]
type CellName = Literal[
    "elman",
    "leaky-elman",
    "wilson-cowan",
    "indrnn",
    "lstm",
    "gru",
    "gru-cho",
    "antisymmetric",
    "antisymmetric-gated",
    "clockwork",
    "lipschitz",
    "lipschitz-gated",
    "urnn",
    "cornn",
    "exprnn",
    "nnrnn",
    "mingru",
    "minlstm",
    "ron",
]
type Model = Layer | CellName
type Dtype = Literal["float32", "bfloat16"]
type Rows = Literal["records", "packed", "lanes"]

_CELLS: tuple[CellName, ...] = get_args(CellName.__value__)
MODELS: tuple[Model, ...] = (*get_args(Layer.__value__), *_CELLS)

_DIGITS = {"steps": 600, "batch_size": 64, "dim": 64, "depth": 2, "state_dim": 64}
_MNIST = {"steps": 900, "batch_size": 50, "dim": 64, "depth": 4, "dropout": 0.1}

# What a task needs other than the defaults of `TrainConfig`.
TASK_DEFAULTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "digits": _DIGITS,
        "digits-permuted": _DIGITS,
        "mnist5k": _MNIST,
        "mnist5k-permuted": _MNIST,
        "bytes": {
            "steps": 300,
            "batch_size": 16,
            "seq_len": 1024,
            "dim": 192,
            "depth": 4,
            "state_dim": 128,
            "learning_rate": 8e-3,
        },
        "japanese-vowels": {"steps": 300, "dropout": 0.2},
        "adding": {"model": "cornn", "batch_size": 50},
        "copy": {"model": "exprnn", "batch_size": 20},
    }
)

# What cells need other than that.
_CELL_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {"dim": 128, "depth": 1, "learning_rate": 1e-3, "weight_decay": 0.0}
)

# What a cell needs on a task, again other than that.
_RECIPES: Mapping[tuple[str, str], Mapping[str, Any]] = MappingProxyType(
    {
        ("adding", "cornn"): {
            "steps": 8000,
            "batch_size": 100,
            "dim": 64,
            "warmup": 0,
            "learning_rate": 2e-2,
            "clip": 0.1,
            "cell": {"dt": 0.012, "gamma": 94.5, "epsilon": 9.5},
        },
        ("adding", "indrnn"): {
            "steps": 4000,
            "depth": 2,
            "learning_rate": 1e-3,
            "recurrence_rate": 1e-3,
            "clip": 10.0,
        },
        ("copy", "urnn"): {"steps": 1500, "recurrence_rate": 1e-3},
        ("copy", "exprnn"): {
            "steps": 1500,
            "recurrence_rate": 1e-4,
            "cell": {"init": "henaff"},
        },
    }
)

# Whether these differ is nobody's business but the machine's and the reader's.
_NOT_THE_RUN = {
    "mesh",
    "cpu_devices",
    "steps",
    "out",
    "remat",
    "chunk",
    "log_every",
    "save_every",
    "save_minutes",
    "evaluate_every",
    "stuck_minutes",
}


def default_model(task: str) -> Model:
    """What a task is learned by unless another model is named."""
    return TASK_DEFAULTS.get(task, {}).get("model", "s5")


@dataclass(frozen=True)
class TrainConfig:
    """The options of a training run, as they stand in its `config.json`.

    `TrainConfig.for_task` fills in what suits a task.

    **Attributes:**

    - `task`: one of `rnnscale.tasks.TASKS`.
    - `out`: the folder of the run.
    - `model`: the layer or the cell, one of `MODELS`.
    - `cell`: options of the cell or layer, by the names of its class: `{"dt": 0.06}`. None for its
        own.
    - `steps`: number of training steps, at least 1.
    - `batch_size`: sequences in a step, over all devices and accumulated parts, at least 1.
    - `seq_len`: time steps in a sequence, at least 1; None for the task's own.
    - `text`: a folder with text files, for tasks that read text.
    - `folder`: the folder with the data, for tasks that come without them.
    - `rows`: what the rows of a training batch are. `"records"`: sequences in a random order;
        `"packed"`: as many sequences as fit, see `rnnscale.data.pack`; `"lanes"`: parallel streams
        through all sequences, with the state carried from batch to batch, see
        `rnnscale.data.lanes`, in the evaluations too. The last two are for tasks whose `sequences`
        have labels at each step.
    - `mesh`: mesh axes and their sizes; None for all devices on `data`.
    - `cpu_devices`: run on this many virtual CPU devices, in each process; None for the devices
        there are.
    - `start_from`: the folder of a run whose trained model this one starts with, of the same kind
        and sizes; None for new parameters. Steps and optimiser start anew.
    - `seed`: of the parameters, the dropout and the order of the data, 0 to 2**32 - 1.
    - `dim`, `depth`, `state_dim`: width, number of blocks, states of S5 and LRU in each; for linear
        attention, features of the keys of all its heads.
    - `dropout`: the probability to drop, 0 <= p < 1.
    - `learning_rate`: of the weights, positive; `recurrence_rate` that of the recurrence's
        parameters, a quarter of it by default.
    - `weight_decay`: of the weights, at least 0.
    - `warmup`: number of steps until the full learning rate, at least 0; a tenth of the steps by
        default.
    - `clip`: the gradient's global norm is clipped to this, positive.
    - `accumulation`: in how many parts a step does its batch, at least 1.
    - `dtype`: what activations are computed in, `"float32"` or `"bfloat16"`.
    - `remat`: recompute the blocks' activations in the backward pass.
    - `chunk`: run the model on so many time steps after so many, and in the backward pass compute
        each chunk again, at least 1; None for all at once. See `in_chunks`.
    - `log_every`, `save_every`: in steps, at least 1; `evaluate_every`, 0 for at the end only.
    - `save_minutes`: save as well when so many minutes have passed since the last time, positive;
        None for by steps only.
    - `stuck_minutes`: a step that takes longer than so many minutes is stuck, and its process is
        ended; positive. See `Watchdog`.

    **Raises:** `ValueError` for a value out of range.
    """

    task: str
    out: str
    model: Model = "s5"
    cell: dict[str, Any] | None = None
    steps: int = 300
    batch_size: int = 32
    seq_len: int | None = None
    text: str | None = None
    folder: str | None = None
    rows: Rows = "records"
    mesh: dict[str, int] | None = None
    cpu_devices: int | None = None
    start_from: str | None = None
    seed: int = 0
    dim: int = 64
    depth: int = 2
    state_dim: int = 64
    dropout: float = 0.0
    learning_rate: float = 4e-3
    recurrence_rate: float | None = None
    weight_decay: float = 0.05
    warmup: int | None = None
    clip: float = 1.0
    accumulation: int = 1
    dtype: Dtype = "float32"
    remat: bool = False
    chunk: int | None = None
    log_every: int = 10
    save_every: int = 20
    save_minutes: float | None = None
    evaluate_every: int = 0
    stuck_minutes: float = 10.0

    def __post_init__(self):
        if self.model not in MODELS:
            nearest = difflib.get_close_matches(self.model, MODELS, n=1, cutoff=0.0)[0]
            raise UserError(
                f"unknown model {self.model!r}; did you mean {nearest!r}? "
                f"Models: {', '.join(MODELS)}"
            )
        for name in ("steps", "batch_size", "seq_len", "cpu_devices", "dim", "depth", "state_dim"):
            self._at_least(name, 1)
        for name in ("accumulation", "chunk", "log_every", "save_every"):
            self._at_least(name, 1)
        for name in ("evaluate_every", "warmup", "weight_decay", "seed"):
            self._at_least(name, 0)
        if self.seed >= 2**32:
            raise UserError(f"seed must be below 2**32, got {self.seed}")
        for name in ("learning_rate", "recurrence_rate", "clip", "save_minutes", "stuck_minutes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"{name} must be positive, got {value}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout must be at least 0 and less than 1, got {self.dropout}")
        if self.dtype not in get_args(Dtype.__value__):
            raise UserError(f"dtype must be 'float32' or 'bfloat16', got {self.dtype!r}")
        if self.rows not in get_args(Rows.__value__):
            raise UserError(
                f"rows must be one of {', '.join(get_args(Rows.__value__))}; got {self.rows!r}"
            )
        for axis, size in (self.mesh or {}).items():
            if axis not in AXES:
                nearest = difflib.get_close_matches(axis, AXES, n=1, cutoff=0.0)[0]
                raise UserError(
                    f"unknown mesh axis {axis!r}; did you mean {nearest!r}? Axes: {', '.join(AXES)}"
                )
            if size < 1:
                raise UserError(f"mesh axis {axis!r} must have at least 1 device, got {size}")

    def _at_least(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if value is not None and not value >= least:
            raise UserError(f"{name} must be at least {least}, got {value}")

    @classmethod
    def for_task(cls, task: str, **given: Any) -> "TrainConfig":
        """The given options, and for all others what suits the task and the model."""
        defaults = TASK_DEFAULTS.get(task, {})
        model = given.get("model", default_model(task))
        if model in _CELLS:
            defaults = {**defaults, **_CELL_DEFAULTS, **_RECIPES.get((task, model), {})}
            if given.get("cell") and "cell" in defaults:
                given = {**given, "cell": {**defaults["cell"], **given["cell"]}}
        return cls(**{**defaults, "model": model, **given, "task": task})

    @classmethod
    def resumed(cls, stored: Mapping[str, Any], **given: Any) -> "TrainConfig":
        """The options to continue a run with: as stored in its folder, but for those given. Warns
        of a given option that makes it another run.

        **Raises:** `ValueError` for a stored option that there is not.
        """
        unknown = sorted(stored.keys() - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise UserError(
                f"config.json of the run has options that are unknown here: {', '.join(unknown)}; "
                "resume with the version of rnnscale that started it"
            )
        for name, value in given.items():
            if name not in _NOT_THE_RUN and value != stored.get(name):
                _log.warning(
                    "%s was %s and is now %s: no longer the same run",
                    name,
                    stored.get(name),
                    value,
                )
        return cls(**{**stored, **given})
