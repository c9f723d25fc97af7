"""From the options of a run to everything that its steps are made of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import grain
import jax
import numpy as np
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jaxtyping import Array, PRNGKeyArray

from rnnscale._base import State
from rnnscale._errors import UserError
from rnnscale.data import Batches, evaluation_batches
from rnnscale.runs._config import TrainConfig
from rnnscale.runs._models import constrain, make_loss, make_model
from rnnscale.runs._rows import Split, evaluation_rows, training_rows
from rnnscale.sharding import AXES, batch_sharding, shardings
from rnnscale.tasks import Task, pad_time
from rnnscale.training import Carry, Totals, TrainState, make_optimiser, make_train_step


@dataclass(frozen=True)
class Setup:
    """The parts of a run on a mesh, none of which holds an array yet.

    It needs no device: the mesh may be one of devices that are not here, and `abstract_state` and
    `abstract_batch` are then what `train_step` can be compiled with.

    - `task`: as the mesh needs it: with sequences padded to a multiple of `seq`.
    - `init`: the state before the first step, from a key.
    - `rows`: of the training batches; see `rnnscale.data.stream`.
    - `loss`, `optimiser`: see `make_train_step`.
    - `train_step`: `(state, batch)` to `(state, metrics)`.
    """

    config: TrainConfig
    mesh: Mesh
    task: Task
    rows: grain.MapDataset
    init: Callable[[PRNGKeyArray], TrainState]
    loss: Callable[..., tuple[State, Totals]]
    optimiser: optax.GradientTransformation
    train_step: Callable[[TrainState, Any], tuple[TrainState, dict[str, Array]]]

    def on(self, mesh: Mesh | AbstractMesh) -> "Setup":
        """The same on another mesh, without tracing it anew; from one whose `seq` is 1."""
        task, rows = _fed(self.config, self.task, mesh)
        return replace(self, mesh=mesh, task=task, rows=rows)

    def layout(self, name: str, shape: tuple[int, ...]) -> NamedSharding:
        """How an array of a batch lies on the mesh."""
        with_time = {"inputs", "reset", "intervals"}
        if self.task.labels == "step":
            with_time |= {"labels", "scored", "weight"}
        in_time = name in with_time and len(shape) > 1
        return batch_sharding(self.mesh, len(shape), time_axis=1 if in_time else None)

    def evaluation(self, split: Split) -> Batches:
        """The batches of a split, each label once."""
        rows = evaluation_rows(self.config, self.task, split)
        return evaluation_batches(rows, self.config.batch_size, shardings=self.layout)

    def carry(self, model: eqx.Module) -> Carry | None:
        """The state before the first batch, laid out over the mesh; None where batches do not hand
        it on."""
        if self.config.rows != "lanes":
            return None

        def zeros(model: eqx.Module) -> Carry:
            return Carry.zeros(model, self.config.batch_size, self.config.dtype)

        placed = shardings(jax.eval_shape(zeros, model), self.mesh)
        return jax.jit(zeros, out_shardings=placed)(model)

    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and layout of the state."""
        state = jax.eval_shape(lambda: self.init(jax.random.key(0)))
        return jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            state,
            shardings(state, self.mesh),
        )

    def abstract_batch(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Shapes, dtypes and layout of a batch for training."""
        first: Any = self.rows[0]
        record = {name: np.asarray(x) for name, x in first.items()}
        shapes = {name: (self.config.batch_size, *x.shape) for name, x in record.items()}
        return {
            name: jax.ShapeDtypeStruct(
                shapes[name],
                jax.dtypes.canonicalize_dtype(x.dtype),
                sharding=self.layout(name, shapes[name]),
            )
            for name, x in record.items()
        }


def set_up(config: TrainConfig, task: Task, mesh: Mesh) -> Setup:
    """The parts of the run that the options describe.

    **Raises:** `ValueError` where the options do not fit the task or the mesh.
    """
    check_fits(config, task, mesh)
    task, rows = _fed(config, task, mesh)
    with jax.set_mesh(mesh):
        model = jax.eval_shape(lambda: make_model(config, task, jax.random.key(0)))
        optimiser = constrain(config, task, _make_optimiser(config, model))
    loss = make_loss(config, task)

    def init(key: PRNGKeyArray) -> TrainState:
        model_key, state_key = jax.random.split(key)
        model = make_model(config, task, model_key)
        carry = None
        if config.rows == "lanes":
            carry = Carry.zeros(model, config.batch_size, config.dtype)
        return TrainState.create(model, optimiser, state_key, carry=carry)

    train_step = make_train_step(loss, optimiser, accumulation=config.accumulation)
    setup = Setup(config, mesh, task, rows, init, loss, optimiser, train_step)
    if mesh.shape["seq"] > 1:
        # A model that can't be split over time says so when it is traced, which is early here.
        with jax.set_mesh(mesh):
            jax.eval_shape(loss, model, setup.abstract_batch(), None)
    return setup


def _fed(
    config: TrainConfig, task: Task, mesh: Mesh | AbstractMesh
) -> tuple[Task, grain.MapDataset]:
    """The task as the mesh needs it, and the rows of its batches."""
    if config.rows == "records":
        task = pad_time(task, mesh.shape["seq"])
    return task, training_rows(config, task)


def _make_optimiser(config: TrainConfig, model: Any) -> optax.GradientTransformation:
    rate = config.learning_rate
    return make_optimiser(
        model,
        learning_rate=rate,
        recurrence_rate=rate / 4 if config.recurrence_rate is None else config.recurrence_rate,
        weight_decay=config.weight_decay,
        warmup=config.steps // 10 if config.warmup is None else config.warmup,
        steps=config.steps,
        clip=config.clip,
    )


def check_fits(config: TrainConfig, task: Task, mesh: Mesh | AbstractMesh) -> None:
    """**Raises:** `ValueError` where batch or sequences can't be split over the mesh."""
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
    if "intervals" in task.train[0] and config.model != "s5":
        raise UserError(
            f"the steps of {task.name} are not evenly spaced in time, which of the models only s5 "
            f"takes; got model={config.model}"
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
