"""The options of a run, and which of them may change when it is resumed."""

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from types import MappingProxyType, NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeAliasType, get_args, get_origin

from rnnscale import tasks
from rnnscale._errors import UserError, check_name
from rnnscale.runs._defaults import default_model, default_options
from rnnscale.runs._models import DEFAULT_HEADS, MODELS, BlockOption, LayerEntry
from rnnscale.sharding import AXES
from rnnscale.tasks import DataOptions, Protocol
from rnnscale.training import Optimiser, Schedule, Ties

if TYPE_CHECKING:
    from rnnscale.tasks import Task

_log = logging.getLogger(__name__)

type Dtype = Literal["float32", "bfloat16"]
type Rows = Literal["records", "packed", "lanes"]
# What ended a training: its last step, evaluations without improvement, or its `cpu_minutes`.
type Ended = Literal["steps", "patience", "budget"]
type ParallelOption = Literal["none", "auto", "dense", "block", "diagonal"]

# The entry of `config.json` that is no option.
VERSIONS = "versions"

_WORDS: Mapping[type, str] = MappingProxyType(
    {
        int: "an integer",
        float: "a number",
        bool: "a boolean",
        str: "a string",
        dict: "a mapping",
        list: "a list",
    }
)

# How models divide over `tensor`: S5 has blocks of states; the heads of some layers share the
# features of the input, all of them or those of the values.
_BLOCKS_OF_STATES = {"s5", "s5-bidirectional"}
_WIDER_WITH_FEWER_HEADS = {"attention", "slstm", "mlstm-up-projected"}
_VALUES_OF_FEATURES = {"gla", "mlstm"}

# Options that do not change the results, so that a run remains the same run with others.
_WITHOUT_EFFECT = {
    "mesh",
    "cpu_devices",
    "steps",
    "cpu_minutes",
    "out",
    "remat",
    "chunk",
    "parallel",
    "log_every",
    "save_every",
    "save_minutes",
    "evaluate_every",
    "sample_bytes",
    "tensorboard",
    "wandb",
    "stuck_minutes",
}


@dataclass(frozen=True)
class TrainConfig:
    """The options of a training run.

    `TrainConfig.for_task` fills in what suits a task. An option that is None is off, or gets its
    value when the run starts. The `config.json` of the run holds the values used, without the
    options that are off; see `as_json`.

    **Attributes:**

    - `task`: one of `rnnscale.tasks.TASKS`; None for data of your own, or a task that is passed to
        `run`.
    - `data`: your own data, in place of a task's name, and how to read them.
    - `out`: the folder of the run.
    - `model`: the layer or the cell, one of `MODELS`.
    - `cell`: options of the cell or layer, under the names of its constructor: `{"dt": 0.06}`. None
        for its defaults.
    - `every`: for a stack of different layers, `[n, model]`: every `n`-th layer is this one, also
        one of `MODELS`. `n` is at least 2 and at most `depth`. None for layers of one kind.
    - `every_cell`: options of that cell or layer, as `cell`.
    - `steps`: number of training steps, at least 1.
    - `batch_size`: sequences in a step, over all devices and accumulated parts, at least 1.
    - `seq_len`: time steps in a sequence, at least 1; the task's default if None.
    - `text`: a folder with text files, for the task `bytes`.
    - `folder`: the folder with the data, for tasks that come without them.
    - `protocol`: for `uea`, `"archive"`, `"linoss"` or `"linoss-time"`, see `rnnscale.tasks.uea`;
        the seed of the last two is `seed`. None for the first.
    - `rows`: what a row of a training batch is. `"records"`: one sequence, in random order;
        `"packed"`: as many sequences as fit, see `rnnscale.data.pack`; `"lanes"`: the next piece of
        a contiguous stream through all sequences, with the state carried from batch to batch (also
        in evaluations), see `rnnscale.data.lanes`. The last two are for tasks whose `sequences`
        have labels at each step.
    - `mesh`: mesh axes and their sizes; all devices on `data` if None.
    - `cpu_devices`: run on this many virtual CPU devices in each process; None for the devices
        that the machine has.
    - `start_from`: the folder of a run whose trained model this one starts with. It must have the
        same kind and sizes. None for new parameters. Steps and optimiser start anew.
    - `seed`: seed of the parameters, the dropout and the order of the data, 0 to 2**32 - 1.
    - `dim`, `depth`: width of the model and number of its blocks, at least 1.
    - `state_dim`: states of a layer in each block, at least 1. For Mamba, states of a channel; for
        the layers of `rnnscale.attention`, features of the keys, summed over the heads. Layers
        whose state has another size, such as `attention` and `slstm`, do not use it.
    - `block`: what a block has in addition to its layer: `"half-glu"`, a layer norm before and a
        gate after it, as in S5; `"plain"`, an RMS norm, as in Mamba; `"swiglu"` or `"geglu"`, an
        RMS norm and a gated feed-forward network, as in xLSTM and in Griffin; `"relu2"`, a layer
        norm and a feed-forward network, as in RWKV. None for the default of the layer; cells that
        read features then follow one another without blocks. In a stack of different layers, all
        blocks are those of `model`.
    - `dropout`: the probability to drop, 0 <= p < 1, what a block adds; or, of cells without
        blocks, what the next cell and the readout read.
    - `learning_rate`: rate of the weights, positive.
    - `recurrence_rate`: rate of the parameters of the recurrence, positive; a quarter of
        `learning_rate` if None.
    - `weight_decay`: decay of the weights, at least 0.
    - `warmup`: number of steps until the full learning rate, at least 0; a tenth of the steps if
        None.
    - `clip`: largest global norm of the gradient, positive.
    - `optimiser`: `"adamw"`, `"lion"`, `"muon"`, `"nadamw"` or `"sgd"`; see `make_optimiser`.
    - `schedule`: of the rates after the warm-up, `"cosine"`, `"constant"`, `"linear"` or `"wsd"`;
        see `make_schedule`.
    - `average`: decay of a moving average of the parameters, which is evaluated in their place,
        such as 0.999, below 1; 0 for none. See `MovingAverage`.
    - `accumulation`: number of parts in which a step does its batch, at least 1.
    - `dtype`: the dtype of activations, `"float32"` or `"bfloat16"`.
    - `remat`: recompute the activations of the blocks in the backward pass.
    - `chunk`: number of time steps to run at once, at least 1; each chunk is recomputed in the
        backward pass. None for all steps at once. See `in_chunks`.
    - `parallel`: how the steps of a cell are computed. `"none"`: one after another; `"auto"`: all
      at once by Newton's method, with the Jacobian that suits the cell, or one after another if
      none does; `"dense"`, `"block"`, `"diagonal"`: all at once, with this Jacobian. With a
      `chunk`, all steps of a chunk. See `rnnscale.cells.Newton`.
    - `log_every`, `save_every`: steps between two rows of metrics and two checkpoints, at least 1.
    - `evaluate_every`: steps between two evaluations on the validation split; 0 for none. If None,
        there are ten in a run, or fewer where they would take more than about a tenth of the time.
    - `patience`: end the training after this many evaluations in a row that did not improve the
        metric of the task on the validation split; 0 to go on to the last step.
    - `cpu_minutes`: end the training when it has used this many minutes of processor time, summed
        over the threads of a process and the sessions of the run, positive; None for no limit.
    - `keep_best`: keep the checkpoint that is best on the validation split, and judge that one at
        the end; `load_run` takes it as well.
    - `ties`: if several evaluations are equally the best, whether `keep_best` keeps the `"first"`
        or the `"last"` one.
    - `sample_bytes`: length of the text that a model of bytes writes after each evaluation, into
        `samples/`; 0 for none.
    - `tensorboard`: log for TensorBoard, into `tensorboard/`. Needs the extra `tensorboard`.
    - `wandb`: log to this project of Weights & Biases; see `WandB`. Needs the extra `wandb`. None
        for no log there.
    - `save_minutes`: save as well when this many minutes have passed since the last save, positive;
        None to save by steps only.
    - `stuck_minutes`: end a process in which a step takes longer than this, positive. See
        `Watchdog`.

    **Raises:** `ValueError` if a value is out of range or of another type.
    """

    task: str | None = None
    _: KW_ONLY
    data: DataOptions | None = None
    out: str
    model: str = "s5"
    cell: dict[str, Any] | None = None
    every: list[Any] | None = None
    every_cell: dict[str, Any] | None = None
    steps: int = 300
    batch_size: int = 32
    seq_len: int | None = None
    text: str | None = None
    folder: str | None = None
    protocol: Protocol | None = None
    rows: Rows = "records"
    mesh: dict[str, int] | None = None
    cpu_devices: int | None = None
    start_from: str | None = None
    seed: int = 0
    dim: int = 64
    depth: int = 2
    state_dim: int = 64
    block: BlockOption | None = None
    dropout: float = 0.0
    learning_rate: float = 4e-3
    recurrence_rate: float | None = None
    weight_decay: float = 0.05
    warmup: int | None = None
    clip: float = 1.0
    optimiser: Optimiser = "adamw"
    schedule: Schedule = "cosine"
    average: float = 0.0
    accumulation: int = 1
    dtype: Dtype = "float32"
    remat: bool = False
    chunk: int | None = None
    parallel: ParallelOption = "none"
    log_every: int = 10
    save_every: int = 20
    save_minutes: float | None = None
    evaluate_every: int | None = None
    patience: int = 0
    cpu_minutes: float | None = None
    keep_best: bool = False
    ties: Ties = "first"
    sample_bytes: int = 100
    tensorboard: bool = False
    wandb: str | None = None
    stuck_minutes: float = 10.0

    def __post_init__(self):
        self._check_types()
        if self.task is not None and self.data is not None:
            raise UserError(
                f"give a task or your own data, not both; got {self.task!r} and {self.data.path!r}"
            )
        for name in ("text", "folder", "protocol"):
            if self.data is not None and getattr(self, name) is not None:
                raise UserError(
                    f"{name} is for some tasks, and the data are your own; leave it out"
                )
        check_name(self.model, MODELS, "model")
        MODELS[self.model].check_options(self.cell or {})
        self._check_numbers()
        self._check_every()
        if self.parallel != "none" and all(
            isinstance(MODELS[model], LayerEntry) for model in self.models
        ):
            raise UserError(
                f"parallel={self.parallel!r} is for cells, whose steps otherwise run one after "
                f"another, and model={self.model!r} is a layer: leave parallel out. The steps of "
                "layers run in parallel already, except those of slstm, which takes parallel in "
                "Python only"
            )
        for axis, size in (self.mesh or {}).items():
            check_name(axis, AXES, "mesh axis")
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise UserError(
                    f"mesh axis {axis!r} must have a whole number of devices, at least 1, got "
                    f"{size!r}"
                )

    @property
    def models(self) -> list[str]:
        """The layer of each place of the pattern that is repeated over the blocks."""
        if self.every is None:
            return [self.model]
        count, other = self.every
        return [self.model] * (count - 1) + [other]

    @property
    def model_names(self) -> str:
        """The names of the different layers, for a message."""
        return " and ".join(dict.fromkeys(self.models))

    def _check_every(self) -> None:
        if self.every is None:
            if self.every_cell is not None:
                raise UserError(
                    "every_cell sets options of the layer that every names: give every as well"
                )
            return
        match self.every:
            case [int(count), str(other)] if 2 <= count <= self.depth:
                check_name(other, MODELS, "model")
                MODELS[other].check_options(self.every_cell or {})
            case _:
                raise UserError(
                    f"every must be a number from 2 to depth={self.depth} and a model, such as 2 "
                    f"and attention, for each second layer; got {self.every}"
                )

    def _check_types(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not _is_of(field.type, value):
                raise UserError(f"{field.name} must be {_in_words(field.type)}; got {value!r}")

    def _check_numbers(self) -> None:
        for name in ("steps", "batch_size", "seq_len", "cpu_devices", "dim", "depth", "state_dim"):
            self._check_at_least(1, name)
        for name in ("accumulation", "chunk", "log_every", "save_every"):
            self._check_at_least(1, name)
        for name in (
            "evaluate_every",
            "patience",
            "sample_bytes",
            "warmup",
            "weight_decay",
            "seed",
        ):
            self._check_at_least(0, name)
        if self.seed >= 2**32:
            raise UserError(f"seed must be below 2**32, got {self.seed}")
        for name in (
            "learning_rate",
            "recurrence_rate",
            "clip",
            "cpu_minutes",
            "save_minutes",
            "stuck_minutes",
        ):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"{name} must be positive, got {value}")
        for name in ("dropout", "average"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise UserError(f"{name} must be at least 0 and less than 1, got {value}")
        if (self.patience or self.keep_best) and self.evaluate_every == 0:
            raise UserError(
                "patience and keep_best go by evaluations: leave evaluate_every out, or set it to "
                "the steps between two of them"
            )

    def _check_at_least(self, least: int, name: str) -> None:
        value = getattr(self, name)
        if value is not None and not value >= least:
            raise UserError(f"{name} must be at least {least}, got {value}")

    @classmethod
    def for_task(cls, task: "str | Task", **given: Any) -> "TrainConfig":
        """The given options, and for all others what suits the task and the model.

        **Arguments:**

        - `task`: one of `rnnscale.tasks.TASKS`; or a task of your own, to be passed to `run` too.
        - `given`: options, with `out` among them.
        """
        model = given.get("model", default_model(task))
        defaults = default_options(task, model)
        if given.get("cell") and "cell" in defaults:
            given = {**given, "cell": {**defaults["cell"], **given["cell"]}}
        name = task if isinstance(task, str) else None
        return cls(name, **{**defaults, "model": model, **given})

    @classmethod
    def resumed(cls, stored: Mapping[str, Any], **given: Any) -> "TrainConfig":
        """The options to continue a run with: those stored in its folder, except for the given
        ones. Warns of each given option that changes the results."""
        options = overridden(stored, given)
        unimportant = set(_WITHOUT_EFFECT)
        if options.get("patience") or options.get("keep_best"):  # they go by the evaluations
            unimportant.remove("evaluate_every")
        if options.get("dropout"):  # each chunk draws its own
            unimportant.remove("chunk")
        for name in given:
            if name not in unimportant and options[name] != stored.get(name):
                _log.warning(
                    "%s was %s and is now %s: no longer the same run",
                    name,
                    stored.get(name),
                    options[name],
                )
        return cls.from_json(options)

    def with_part_of_states(self, parts: int) -> "TrainConfig":
        """The options with as many states, or heads if the layers have heads, as each of `parts`
        devices of the mesh axis `tensor` holds. The options as they are if no layer has them, so
        that too much is counted, not too little."""
        entry, options = MODELS[self.model], dict(self.cell or {})
        if not isinstance(entry, LayerEntry) or "heads" not in entry.options:
            if self.model in _BLOCKS_OF_STATES and "blocks" in options:
                options["blocks"] = 1  # only the initial values depend on it
            cell = options or None
            return dataclasses.replace(self, state_dim=max(1, self.state_dim // parts), cell=cell)
        heads = options.get("heads", DEFAULT_HEADS)
        if heads % parts or self.model in _WIDER_WITH_FEWER_HEADS:
            return self
        if self.model in _VALUES_OF_FEATURES:
            options.setdefault("value_dim", self.dim // heads)
        return dataclasses.replace(
            self, state_dim=self.state_dim // parts, cell={**options, "heads": heads // parts}
        )

    def as_json(self) -> dict[str, Any]:
        """The options as JSON can hold them, without those that are None. An option of the cell may
        be None and keeps its value, since its default can be another one."""
        options = _without_none(dataclasses.asdict(self))
        if self.data is not None:
            options["data"] = _without_none(options["data"])
        return options

    @classmethod
    def from_json(cls, options: Mapping[str, Any]) -> "TrainConfig":
        """The options of which `as_json` is the JSON."""
        data = options.get("data")
        return cls(**{**options, "data": None if data is None else data_options(data)})


def config_and_task(options: Mapping[str, Any]) -> tuple[TrainConfig, "Task | None"]:
    """The options of a new run with all that suits its task, and the task if they name data of
    one's own: what suits these depends on their kind and size.

    **Arguments:**

    - `options`: as JSON holds them; see `TrainConfig.as_json`.

    **Raises:** `ValueError` if they name neither a task nor data, or a value can't be used.
    """
    # Refuses a wrong option before data are read; but those of the cell are not known before the
    # model is, which suits the task if none is named.
    config = TrainConfig.from_json(options if "model" in options else {**options, "cell": None})
    if config.task is None and config.data is None:
        raise UserError(
            "the task is missing: name one that `rnnscale tasks` lists, or give your own data as "
            "--data"
        )
    given = {**options, "data": config.data}
    given.pop("task", None)
    if config.data is None:
        return TrainConfig.for_task(str(config.task), **given), None
    task = tasks.task_from(**dataclasses.asdict(config.data), seq_len=config.seq_len)
    return TrainConfig.for_task(task, **given), task


def data_options(options: Mapping[str, Any]) -> DataOptions:
    """The options of reading one's own data.

    **Raises:** `ValueError` if one is unknown, or the path is missing.
    """
    for name in options:
        check_name(
            name, [field.name for field in dataclasses.fields(DataOptions)], "option of data"
        )
    if not options.get("path"):
        raise UserError("options of your own data need its path: give it as --data")
    return DataOptions(**options)


def overridden(stored: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The stored options, except for the given ones; both as JSON holds them. Each option of
    `data` counts for itself. A given task replaces stored data, and the other way round."""
    options = {**stored, **given}
    if "data" in given:
        options["data"] = {**(stored.get("data") or {}), **given["data"]}
    for name, other in (("task", "data"), ("data", "task")):
        if name in given and other not in given:
            options.pop(other, None)
    return options


def options_from(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a `config.json` holds, for `TrainConfig.from_json`.

    If a run wrote it, a mesh of `data` alone is left out, with its virtual devices (`cpu_devices`)
    if it had any. It was all devices of that run, and is now all of these.

    **Raises:** `ValueError` if an option is unknown.
    """
    options = {name: value for name, value in stored.items() if name != VERSIONS}
    unknown = sorted(options.keys() - {field.name for field in dataclasses.fields(TrainConfig)})
    if unknown:
        version = stored.get(VERSIONS, {}).get("rnnscale")
        wrote = "the version of rnnscale" if version is None else f"rnnscale {version}"
        raise UserError(
            f"config.json has options that are unknown here: {', '.join(unknown)}; use {wrote} "
            "that wrote it"
        )
    if not isinstance(options.get("data") or {}, dict):
        raise UserError(f"data must be a mapping of options such as path; got {options['data']!r}")
    mesh = options.get("mesh") or {}
    if VERSIONS in stored and isinstance(mesh, dict) and mesh.keys() <= {"data"}:
        for name in ("mesh", "cpu_devices"):
            options.pop(name, None)
    return options


def _without_none(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _is_of(annotation: Any, value: Any) -> bool:
    """Whether a value is of the type of a field, or one of its choices."""
    if isinstance(annotation, TypeAliasType):
        return value in get_args(annotation.__value__)
    if isinstance(annotation, UnionType):
        return any(_is_of(each, value) for each in get_args(annotation))
    kind = get_origin(annotation) or annotation
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _in_words(annotation: Any) -> str:
    """The type of a field as an error names it, without None."""
    if isinstance(annotation, TypeAliasType):
        return f"one of {', '.join(map(repr, get_args(annotation.__value__)))}"
    if isinstance(annotation, UnionType):
        kinds = (each for each in get_args(annotation) if each is not NoneType)
        return " or ".join(map(_in_words, kinds))
    return _WORDS.get(get_origin(annotation) or annotation, str(annotation))
