"""From the options of a run to the parts that its steps need. No part holds an array yet, so this
also serves `rnnscale plan`, which has no devices."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from operator import attrgetter
from typing import Any

import grain
import jax
import numpy as np
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jaxtyping import Array, PRNGKeyArray, PyTree

from rnnscale._base import SequenceModel, State, TakesIntervals
from rnnscale._errors import UserError, as_user_error
from rnnscale.data import evaluation_batches
from rnnscale.distributed import StopSignals, Watchdog
from rnnscale.runs._build import constrain, make_loss, make_model
from rnnscale.runs._config import TrainConfig
from rnnscale.runs._models import MODELS
from rnnscale.runs._rows import Split, evaluation_rows, training_rows
from rnnscale.sharding import AXES, batch_sharding, make_mesh, shardings
from rnnscale.tasks import (
    Preprocessing,
    Task,
    TaskSpec,
    check_records,
    load_task,
    pad_time,
    task_from,
)
from rnnscale.training import (
    Carry,
    MovingAverage,
    Totals,
    TrainState,
    evaluate,
    make_eval_step,
    make_optimiser,
    make_train_step,
)


@dataclass(frozen=True)
class Setup:
    """The parts of a run on a mesh; see `set_up`.

    The mesh may be one of devices that are not here: `train_step` can then be compiled with
    `abstract_state()` and `abstract_batch()`.

    **Attributes:**

    - `config`: the options of the run, with the values used.
    - `mesh`: the mesh, with all of the axes `rnnscale.sharding.AXES`.
    - `task`: the task, with its sequences padded to a multiple of the mesh axis `seq`.
    - `rows`: the rows of the training batches, for `rnnscale.data.stream`.
    - `init`: makes the state before the first step, from a key.
    - `loss`, `optimiser`: see `make_train_step`.
    - `train_step`, `eval_step`: the functions returned by `make_train_step` and `make_eval_step`.
    """

    config: TrainConfig
    mesh: Mesh
    task: Task
    rows: grain.MapDataset
    init: Callable[[PRNGKeyArray], TrainState]
    loss: Callable[..., tuple[State, Totals]]
    optimiser: optax.GradientTransformation
    train_step: Callable[[TrainState, Any], tuple[TrainState, dict[str, Array]]]
    eval_step: Callable[..., tuple[Carry | None, Totals]]

    def on(self, mesh: Mesh | AbstractMesh) -> "Setup":
        """The same parts on another mesh, without tracing anything again. The mesh axis `seq` must
        be 1 in this one."""
        task, rows = _data_on(mesh, self.config, self.task)
        config = replace(self.config, mesh=_sizes(mesh))
        return replace(self, config=config, mesh=mesh, task=task, rows=rows)

    def layout(self, name: str, shape: tuple[int, ...]) -> NamedSharding:
        """The sharding of an array of a batch."""
        return batch_layout(self.mesh, self.task.spec, name, shape)

    def evaluate(
        self,
        model: SequenceModel,
        split: Split,
        *,
        stop: StopSignals | None = None,
        watchdog: Watchdog | None = None,
    ) -> dict[str, float] | None:
        """The figures of a model on a split; None if a signal stopped the evaluation. To be called
        with the mesh set."""
        rows = evaluation_rows(self.config, self.task, split)
        with evaluation_batches(rows, self.config.batch_size, shardings=self.layout) as batches:
            return evaluate(
                self.eval_step,
                model,
                batches if watchdog is None else watchdog.watched("evaluating", batches),
                carry=self._carry(model),
                metric=self.task.metric,
                stop=stop,
            )

    def _carry(self, model: SequenceModel) -> Carry | None:
        """The recurrent state before the first batch, laid out over the mesh; None if batches do
        not carry one."""
        if self.config.rows != "lanes":
            return None

        def zeros(model: SequenceModel) -> Carry:
            return Carry.zeros(model, self.config.batch_size, self.config.dtype)

        placed = shardings(jax.eval_shape(zeros, model), self.mesh)
        return jax.jit(zeros, out_shardings=placed)(model)

    def compile(self) -> None:
        """Compiles the train step without running it, so that its first call starts at once. To be
        called with the mesh set."""
        jitted: Any = self.train_step
        jitted.lower(self.abstract_state(), self.abstract_batch()).compile()

    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and layout of the state.

        **Raises:** `ValueError` if a mesh axis does not divide the size of a parameter.
        """
        state = jax.eval_shape(lambda: self.init(jax.random.key(0)))
        return jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            state,
            layout_of(state, self.mesh),
        )

    def abstract_batch(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Shapes, dtypes and layout of a training batch."""
        first: Any = self.rows[0]
        batch = {}
        for name, x in first.items():
            record = np.asarray(x)
            shape = (self.config.batch_size, *record.shape)
            dtype = jax.dtypes.canonicalize_dtype(record.dtype)
            batch[name] = jax.ShapeDtypeStruct(shape, dtype, sharding=self.layout(name, shape))
        return batch


def set_up(config: TrainConfig, task: Task, mesh: Mesh) -> Setup:
    """The parts of the run that the options describe.

    **Raises:** `ValueError` if the options do not fit the task or the mesh.
    """
    check_fits(config, task, mesh)
    config = _with_values_used(config, task, mesh)
    spec = task.spec
    task, rows = _data_on(mesh, config, task)
    with jax.set_mesh(mesh):
        model = jax.eval_shape(lambda: make_model(config, spec, jax.random.key(0)))
        optimiser = constrain(config, spec, _make_optimiser(config, model))
    loss = make_loss(config, spec)

    def init(key: PRNGKeyArray) -> TrainState:
        model_key, state_key = jax.random.split(key)
        model = make_model(config, spec, model_key)
        carry = None
        if config.rows == "lanes":
            with as_user_error():
                carry = Carry.zeros(model, config.batch_size, config.dtype)
        average = MovingAverage.start(model, config.average) if config.average else None
        return TrainState.create(model, optimiser, state_key, carry=carry, average=average)

    train_step = make_train_step(loss, optimiser, accumulation=config.accumulation)
    eval_step = make_eval_step(loss)
    setup = Setup(config, mesh, task, rows, init, loss, optimiser, train_step, eval_step)
    if mesh.shape["seq"] > 1 or config.chunk is not None or config.parallel != "none":
        # A model whose time can't be split, or whose steps can't be computed at once, says so when
        # it is traced. Here that is early.
        with jax.set_mesh(mesh), as_user_error():
            jax.eval_shape(loss, model, setup.abstract_batch(), None)
    return setup


def load_task_of(config: TrainConfig, given: Task | None = None) -> Task:
    """The given task, or else the one that the options name.

    **Raises:** `UserError` if no task is given or named, if the given task has another name than
    the options say, or if its records do not match its description.
    """
    if given is not None:
        check_records(given)
        task = given
        if config.task not in (None, task.name):
            raise UserError(
                f"the options name the task {config.task!r}, and the given one is {task.name!r}: "
                "leave one of them out"
            )
    elif config.data is not None:
        task = task_from(**asdict(config.data), seq_len=config.seq_len)
    elif config.task is not None:
        task = load_task(
            config.task,
            seq_len=config.seq_len,
            text=config.text,
            folder=config.folder,
            protocol=config.protocol,
            split_seed=None if config.protocol in (None, "archive") else config.seed,
        )
    else:
        raise UserError(
            "the options name neither a task nor data: the task was, or must be, given in Python. "
            "Pass it as run(config, task=...) or load_run(path, task=...)"
        )
    if config.seq_len not in (None, task.seq_len):
        raise UserError(
            f"the sequences of {task.name!r} have {task.seq_len} steps; got "
            f"seq_len={config.seq_len}"
        )
    return task


def check_same_data(task: Task, fitted: Preprocessing | None, hint: str) -> None:
    """Checks that one's own data are those of a training, by what was fitted to them there.

    **Raises:** `UserError`, with the hint at its end, if values, columns or classes are others.
    """
    if task.preprocessing is None or fitted is None:
        return
    if (name := task.preprocessing.difference(fitted)) is not None:
        old, new = map(attrgetter(name), (fitted, task.preprocessing))
        raise UserError(
            f"the data of {task.name!r} are not those of the training: {name} was {old} and is "
            f"{new}; {hint}"
        )


def make_run_mesh(sizes: Mapping[str, int] | None) -> Mesh:
    """The mesh with these sizes; by default, all devices on `data`.

    **Raises:** `UserError` if there are not as many devices.
    """
    sizes = sizes or {"data": jax.device_count()}
    with as_user_error():
        return make_mesh(*(sizes.get(axis, 1) for axis in AXES))


def batch_layout(mesh: Mesh, spec: TaskSpec, name: str, shape: tuple[int, ...]) -> NamedSharding:
    """The sharding of an array of a batch of a task."""
    with_time = {"inputs", "reset", "intervals"}
    if spec.labels == "step":
        with_time |= {"labels", "scored", "weight"}
    in_time = name in with_time and len(shape) > 1
    return batch_sharding(mesh, len(shape), time_axis=1 if in_time else None)


def layout_of(tree: PyTree, mesh: Mesh) -> PyTree[NamedSharding]:
    """The layout of a model or a state over the mesh.

    **Raises:** `UserError` if the size of a parameter does not divide its mesh axis.
    """
    with as_user_error():
        return shardings(tree, mesh)


def check_fits(config: TrainConfig, task: Task, mesh: Mesh | AbstractMesh) -> None:
    """Checks that batch and sequences can be split over the mesh.

    **Raises:** `ValueError` if they can't.
    """
    if set(mesh.axis_names) != set(AXES):
        raise UserError(
            f"the mesh has the axes {', '.join(mesh.axis_names)}, and a run needs "
            f"{', '.join(AXES)}: use rnnscale.sharding.make_mesh"
        )
    data, fsdp, seq = (mesh.shape[axis] for axis in ("data", "fsdp", "seq"))
    if config.batch_size % (config.accumulation * data * fsdp):
        raise UserError(
            f"batch_size={config.batch_size} can't be split into accumulation="
            f"{config.accumulation} parts over the devices of data={data}, fsdp={fsdp}; make it a "
            f"multiple of {config.accumulation * data * fsdp}"
        )
    if "intervals" in task.train[0]:
        able = _taking_intervals()
        for model in config.models:
            if model not in able:
                raise UserError(
                    f"the steps of {task.name} are not evenly spaced in time: use one of the "
                    f"models {', '.join(able)}; got model={model}"
                )
    if task.seq_len < seq:
        raise UserError(
            f"seq_len={task.seq_len} can't be split over the devices of seq={seq}; make it at "
            "least that, or seq smaller"
        )
    if config.rows != "records" and task.seq_len % seq:
        raise UserError(
            f"rows={config.rows} have seq_len={task.seq_len} steps, which the devices of seq={seq} "
            "must share evenly; make seq_len a multiple of that"
        )


def _taking_intervals() -> list[str]:
    """The names of the models that take the time between two steps."""
    return [name for name, entry in MODELS.items() if issubclass(entry.load(), TakesIntervals)]


def _data_on(
    mesh: Mesh | AbstractMesh, config: TrainConfig, task: Task
) -> tuple[Task, grain.MapDataset]:
    """The task with sequences that the mesh can split, and the rows of its training batches."""
    if config.rows == "records":
        task = pad_time(task, mesh.shape["seq"])
    return task, training_rows(config, task)


def _with_values_used(config: TrainConfig, task: Task, mesh: Mesh | AbstractMesh) -> TrainConfig:
    """The options with a value for each one that has no fixed default."""
    batches = math.ceil(len(evaluation_rows(config, task, "validation")) / config.batch_size)
    # An evaluation step takes about a third of a train step.
    every = min(max(math.ceil(config.steps / 10), 4 * batches), config.steps) if batches else 0
    values = {
        "seq_len": task.seq_len,
        "recurrence_rate": config.learning_rate / 4,
        "warmup": config.steps // 10,
        "evaluate_every": every,
    }
    missing = {name: x for name, x in values.items() if getattr(config, name) is None}
    return replace(config, mesh=_sizes(mesh), **missing)


def _sizes(mesh: Mesh | AbstractMesh) -> dict[str, int]:
    """The axes of a mesh as one gives them: those with more than one device, or else `data`."""
    return {axis: size for axis, size in mesh.shape.items() if size > 1} or {"data": 1}


def _make_optimiser(config: TrainConfig, model: Any) -> optax.GradientTransformation:
    assert config.recurrence_rate is not None and config.warmup is not None  # see set_up
    with as_user_error():
        return make_optimiser(
            model,
            learning_rate=config.learning_rate,
            recurrence_rate=config.recurrence_rate,
            weight_decay=config.weight_decay,
            warmup=config.warmup,
            steps=config.steps,
            clip=config.clip,
            optimiser=config.optimiser,
            schedule=config.schedule,
        )
