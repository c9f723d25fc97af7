import dataclasses
import logging
from typing import Any

import equinox as eqx
import jax

from rnnscale._fields import parameters
from rnnscale.data import stream
from rnnscale.distributed import (
    StopSignals,
    Watchdog,
    agree,
    decide,
    on_first,
    process_count,
    use_cpu_devices,
)
from rnnscale.runs._config import TrainConfig
from rnnscale.runs._folder import RunFolder
from rnnscale.runs._load import restore_model
from rnnscale.runs._rows import Split
from rnnscale.runs._setup import Setup, set_up
from rnnscale.sharding import AXES, make_mesh, sharded_init
from rnnscale.tasks import load_task
from rnnscale.training import Checkpointer, Clock, TrainState, evaluate, fit, make_eval_step

_log = logging.getLogger(__name__)


def run(config: TrainConfig, *, resume: bool = False) -> dict[str, Any] | None:
    """Trains a model on a task, from the options to the summary: what `rnnscale train` does.

    Where the program runs in several processes (see `connect`), all of them call this alike, and
    the first one writes the files.

    **Arguments:**

    - `config`: the options.
    - `resume`: go on from the newest checkpoint in `config.out`, if there is one.

    **Returns:**

    What stands in `summary.json`; or None where SIGINT or SIGTERM stopped the run, which then left
    a checkpoint to resume from.

    **Raises:**

    - `ValueError`: an option doesn't fit the task, the devices, or what is in the folder; or the
        processes were started with different options or versions, or see different folders. Raised
        before the first step.
    - `FloatingPointError`: see `fit`.
    - `TimeoutError`: a process did not come to the start or the end of the run.
    """
    if config.cpu_devices is not None:
        use_cpu_devices(config.cpu_devices)
    with StopSignals() as stop, Watchdog(config.stuck_minutes) as watchdog:
        return _run(config, resume, stop, watchdog)


def _run(
    config: TrainConfig, resume: bool, stop: StopSignals, watchdog: Watchdog
) -> dict[str, Any] | None:
    options = dataclasses.asdict(config)
    agree({**options, "resume": resume})
    folder = RunFolder(config.out)
    on_first(lambda: folder.check(resume=resume))
    folder.check_shared()
    sizes = config.mesh or {"data": jax.device_count()}
    mesh = make_mesh(*(sizes.get(axis, 1) for axis in AXES))
    task = load_task(config.task, seq_len=config.seq_len, text=config.text, folder=config.folder)
    parts = set_up(config, task, mesh)
    task = parts.task
    eval_step = make_eval_step(parts.loss)

    def evaluated(model: eqx.Module, split: Split) -> dict[str, float] | None:
        with parts.evaluation(split) as held_out:
            return evaluate(
                eval_step,
                model,
                watchdog.watched("evaluating", held_out),
                carry=parts.carry(model),
                metric=task.metric,
                stop=stop,
            )

    def begin() -> None:
        if not folder.is_run:
            folder.open(options)

    def go_on(step: int) -> None:
        folder.open(options)
        folder.truncate(step)

    def written(summary: dict[str, Any]) -> dict[str, Any]:
        folder.write_summary(summary)
        folder.plot()
        return summary

    with jax.set_mesh(mesh):
        like = parts.abstract_state()
        placed = jax.tree.map(lambda x: x.sharding, like)
        on_first(begin)
        with Checkpointer(
            folder.checkpoints, every=config.save_every, minutes=config.save_minutes
        ) as checkpoints:
            restored = checkpoints.restore(like, placed) if resume else None
            if restored is not None:
                state, clock = restored[0], Clock(**restored[1]["clock"])
                _log.info("resuming after step %d", int(state.step))
            else:
                if resume:
                    _log.warning("nothing to resume in %s: starting at step 0", folder.path)
                state, clock = _first_state(parts, like, placed), Clock()
            step = int(state.step)
            # Only now: the folder of a run that can't be resumed like this stays as it was.
            on_first(lambda: go_on(step))
            with stream(
                parts.rows, config.batch_size, start_step=step, shardings=parts.layout
            ) as batches:
                state = fit(
                    state,
                    parts.train_step,
                    batches,
                    steps=config.steps,
                    folder=folder,
                    checkpoints=checkpoints,
                    tokens_per_step=config.batch_size * task.seq_len,
                    metric=task.metric,
                    log_every=config.log_every,
                    evaluate=lambda model: evaluated(model, "validation"),
                    evaluate_every=config.evaluate_every,
                    clock=clock,
                    stop=stop,
                    watchdog=watchdog,
                )
        figures = None if stop.reached() else evaluated(state.model, "test")
    if figures is None:
        return None
    summary = {
        "task": task.name,
        "model": config.model,
        "parameters": sum(each.value.size for each in parameters(state.model)),
        "mesh": dict(mesh.shape),
        "devices": mesh.size,
        "device_kind": mesh.devices.flat[0].device_kind,
        "processes": process_count(),
        "steps": int(state.step),
        "seconds": round(clock.elapsed, 3),
        "tokens_per_second": round(clock.tokens_per_second, 1),
        "input_stall": round(clock.input_stall, 5),
        **{f"test_{name}": value for name, value in figures.items()},
        **task.notes,
        **(task.baseline() if task.baseline is not None else {}),
    }
    watchdog.busy("waiting for the other processes at the end")
    return decide(None, lambda _: written(summary), minutes=config.stuck_minutes)


def _first_state(parts: Setup, like: TrainState, placed: TrainState) -> TrainState:
    """New, or with the model of another run; with the shapes of `like`, laid out as in `placed`."""
    config = parts.config
    state = sharded_init(parts.init, jax.random.key(config.seed), parts.mesh)
    if config.start_from is None:
        return state
    model, step = restore_model(config.start_from, like.model, placed.model)
    _log.info("starting from %s after step %d", config.start_from, step)
    return eqx.tree_at(lambda state: state.model, state, model)
