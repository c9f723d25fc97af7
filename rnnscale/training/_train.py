import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import optax
from jax.sharding import Mesh, NamedSharding
from jaxtyping import PRNGKeyArray

from rnnscale._fields import parameters
from rnnscale.data import Source, Task, batches, evaluation_batches, load_task
from rnnscale.sharding import AXES, batch_sharding, make_mesh, sharded_init, shardings
from rnnscale.training._checkpoint import Checkpointer
from rnnscale.training._config import TrainConfig
from rnnscale.training._devices import use_cpu_devices
from rnnscale.training._loop import Clock, evaluate, fit
from rnnscale.training._models import constrain, make_loss, make_model
from rnnscale.training._optimiser import make_optimiser
from rnnscale.training._run import RunFolder
from rnnscale.training._state import TrainState
from rnnscale.training._step import make_eval_step, make_train_step
from rnnscale.training._stop import StopSignals

_log = logging.getLogger(__name__)


def run(config: TrainConfig, *, resume: bool = False) -> dict[str, Any] | None:
    """Trains a model on a task, from the options to the summary: what `rnnscale train` does.

    **Arguments:**

    - `config`: the options.
    - `resume`: go on from the newest checkpoint in `config.out`, if there is one.

    **Returns:**

    What stands in `summary.json`; or None where SIGINT or SIGTERM stopped the run, which then left
    a checkpoint to resume from.

    **Raises:**

    - `ValueError`: an option doesn't fit the task, the devices, or what is in the folder. Raised
        before the first step.
    - `FloatingPointError`: see `fit`.
    """
    with StopSignals() as stop:
        return _run(config, resume, stop)


def _run(config: TrainConfig, resume: bool, stop: StopSignals) -> dict[str, Any] | None:
    folder = RunFolder(config.out)
    folder.check(resume=resume)
    if config.cpu_devices is not None:
        use_cpu_devices(config.cpu_devices)
    sizes = config.mesh or {"data": jax.device_count()}
    mesh = make_mesh(*(sizes.get(axis, 1) for axis in AXES))
    task = load_task(config.task, seq_len=config.seq_len, text=config.text)
    layout = _batch_layout(config, mesh, task)
    loss = make_loss(config, task)
    eval_step = make_eval_step(loss)

    def evaluated(model: eqx.Module, source: Source) -> dict[str, float] | None:
        with evaluation_batches(source, config.batch_size, shardings=layout) as held_out:
            return evaluate(eval_step, model, held_out, metric=task.metric, stop=stop)

    with jax.set_mesh(mesh):
        key = jax.random.key(config.seed)
        abstract = jax.eval_shape(lambda key: make_model(config, task, key), key)
        optimiser = constrain(config, task, _make_optimiser(config, abstract))

        def init(key: PRNGKeyArray) -> TrainState:
            model_key, state_key = jax.random.split(key)
            return TrainState.create(make_model(config, task, model_key), optimiser, state_key)

        like = jax.eval_shape(init, key)
        placed = shardings(like, mesh)
        if not folder.is_run:
            folder.open(dataclasses.asdict(config))
        with Checkpointer(folder.checkpoints, every=config.save_every) as checkpoints:
            restored = checkpoints.restore(like, placed) if resume else None
            if restored is not None:
                state, clock = restored[0], Clock(**restored[1]["clock"])
                _log.info("resuming after step %d", int(state.step))
            else:
                if resume:
                    _log.warning("nothing to resume in %s: starting at step 0", folder.path)
                state, clock = sharded_init(init, key, mesh), Clock()
            # Only now: the folder of a run that can't be resumed like this stays as it was.
            folder.open(dataclasses.asdict(config))
            folder.truncate(int(state.step))
            with batches(
                task.train,
                config.batch_size,
                seed=config.seed,
                start_step=int(state.step),
                shardings=layout,
            ) as stream:
                state = fit(
                    state,
                    make_train_step(loss, optimiser, accumulation=config.accumulation),
                    stream,
                    steps=config.steps,
                    folder=folder,
                    checkpoints=checkpoints,
                    tokens_per_step=config.batch_size * task.seq_len,
                    metric=task.metric,
                    log_every=config.log_every,
                    evaluate=lambda model: evaluated(model, task.validation),
                    evaluate_every=config.evaluate_every,
                    clock=clock,
                    stop=stop,
                )
        figures = None if stop.requested else evaluated(state.model, task.test)
    if figures is None:
        return None
    summary = {
        "task": task.name,
        "model": config.model,
        "parameters": sum(each.value.size for each in parameters(state.model)),
        "mesh": dict(mesh.shape),
        "devices": mesh.size,
        "device_kind": mesh.devices.flat[0].device_kind,
        "steps": int(state.step),
        "seconds": round(clock.elapsed, 3),
        "tokens_per_second": round(clock.tokens_per_second, 1),
        **{f"test_{name}": value for name, value in figures.items()},
        **task.notes,
        **(task.baseline() if task.baseline is not None else {}),
    }
    folder.write_summary(summary)
    folder.plot()
    return summary


def _make_optimiser(config: TrainConfig, model: eqx.Module) -> optax.GradientTransformation:
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


def _batch_layout(
    config: TrainConfig, mesh: Mesh, task: Task
) -> Callable[[str, tuple[int, ...]], NamedSharding]:
    data, fsdp = mesh.shape["data"], mesh.shape["fsdp"]
    if config.batch_size % (config.accumulation * data * fsdp):
        raise ValueError(
            f"batch_size={config.batch_size} can't be split into accumulation="
            f"{config.accumulation} parts over the devices of data={data}, fsdp={fsdp}; make it a "
            f"multiple of {config.accumulation * data * fsdp}"
        )
    with_time = {"inputs"} | ({"labels", "scored"} if task.labels == "step" else set())

    def layout(name: str, shape: tuple[int, ...]) -> NamedSharding:
        time_axis = 1 if name in with_time else None
        return batch_sharding(mesh, len(shape), time_axis=time_axis)

    return layout
