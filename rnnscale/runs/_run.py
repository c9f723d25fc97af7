"""What `rnnscale train` does: a run from its options to its summary."""

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import Any, NamedTuple

import equinox as eqx
import jax

from rnnscale._base import SequenceModel
from rnnscale._errors import UserError
from rnnscale._fields import parameters
from rnnscale.data import stream
from rnnscale.distributed import (
    StopSignals,
    Watchdog,
    barrier,
    check_same,
    on_process_0,
    process_count,
    use_cpu_devices,
)
from rnnscale.runs._config import Ended, TrainConfig
from rnnscale.runs._folder import RunFolder
from rnnscale.runs._load import restore_model
from rnnscale.runs._programs import kept_programs
from rnnscale.runs._sample import Writer
from rnnscale.runs._setup import Setup, check_same_data, load_task_of, make_run_mesh, set_up
from rnnscale.sharding import sharded_init
from rnnscale.tasks import Task
from rnnscale.training import (
    Best,
    Callback,
    Certificates,
    Checkpointer,
    Checkpoints,
    Clock,
    CpuBudget,
    EarlyStopping,
    Evaluation,
    Heartbeat,
    Log,
    ProgressBar,
    SkippedSteps,
    StopOnSignal,
    TensorBoard,
    TextSample,
    TrainState,
    WandB,
    fit,
    saved_steps,
)

_log = logging.getLogger(__name__)


class _Trained(NamedTuple):
    """What a training left; time and best evaluation are those of all sessions of the run."""

    state: TrainState
    clock: Clock
    best: Best
    ended: Ended


def run(
    config: TrainConfig, *, task: Task | None = None, resume: bool = False
) -> dict[str, Any] | None:
    """Trains a model on a task, from the options to the summary: what `rnnscale train` does.

    Where the program runs in several processes (see `connect`), all of them call this with the same
    arguments, and process 0 writes the files.

    **Arguments:**

    - `config`: the options.
    - `task`: a task of your own, in place of one that the options name. To resume such a run, pass
        the task again.
    - `resume`: continue from the newest checkpoint in `config.out`, if there is one.

    **Returns:** the content of `summary.json`; or None if SIGINT or SIGTERM stopped the run, which
    then left a checkpoint to resume from.

    **Raises:**

    - `ValueError` if an option does not fit the task, the devices, or what is in the folder; if
        another run writes into the folder; or if the processes were started with different options
        or versions, or see different folders. It is raised before the first step.
    - `OSError` if a file can't be written, such as on a full disk. The message names the newest
        checkpoint that is whole.
    - `FloatingPointError` if the training diverges; see `SkippedSteps`.
    - `TimeoutError` if a process does not come to the start or the end of the run.
    """
    if config.cpu_devices is not None:
        use_cpu_devices(config.cpu_devices)
    with StopSignals() as stop, Watchdog(config.stuck_minutes) as watchdog:
        check_same({**asdict(config), "resume": resume})
        folder = RunFolder(config.out)
        on_process_0(lambda: folder.check(resume=resume, steps=config.steps))
        folder.check_shared()
        setup = set_up(config, load_task_of(config, task), make_run_mesh(config.mesh))
        like = setup.abstract_state()
        with (
            folder.locked(resume=resume),
            kept_programs(folder.programs),
            jax.set_mesh(setup.mesh),
        ):
            trained = _train(setup, like, folder, resume, stop, watchdog)
            if stop.reached():
                return None
            best, model = trained.best, trained.state.averaged
            if config.keep_best and best.step not in (None, int(trained.state.step)):
                _log.info("testing the model of step %d, the best by %s", best.step, best.figure)
                model, step = restore_model(config.out, like.model, setup.mesh)
                if step != best.step:
                    raise _best_is_gone(config, best)
            figures = setup.evaluate(model, "test", stop=stop, watchdog=watchdog)
            if figures is None:
                return None
            summary = _summary(setup, trained, figures)
            watchdog.busy("waiting for the other processes at the end")
            barrier(minutes=config.stuck_minutes)

            def write() -> None:
                folder.write_summary(summary)
                folder.plot()

            on_process_0(write)
        return summary


def _train(
    setup: Setup,
    like: TrainState,
    folder: RunFolder,
    resume: bool,
    stop: StopSignals,
    watchdog: Watchdog,
) -> _Trained:
    """Trains to the last step, or until it is stopped."""
    config = setup.config
    options = config.as_json()

    def begin() -> None:
        if not folder.is_run:
            folder.open(options)

    def proceed() -> None:
        if restored is not None:
            check_same_data(
                setup.task, folder.preprocessing(), "train on these in another folder (--out)"
            )
        folder.open(options)
        folder.write_task(setup.task)
        folder.metrics.truncate(step)
        folder.remove_summary()

    on_process_0(begin)
    with Checkpointer(
        folder.checkpoints, every=config.save_every, minutes=config.save_minutes
    ) as checkpointer:
        restored = _restored(checkpointer, like) if resume else None
        if restored is None and resume:
            _log.warning("nothing to resume in %s: starting at step 0", folder.path)
        state, meta = restored or (_first_state(setup, like), {})
        clock = Clock(**meta.get("clock", {}))
        figure = {"figure": f"validation_{setup.task.metric}", "ties": config.ties}
        best = Best(**{**meta.get("best", {}), **figure})
        step = int(state.step)
        if config.keep_best and best.step not in (None, *saved_steps(folder.checkpoints)):
            raise _best_is_gone(config, best)
        # Only now: the folder of a run that can't be resumed with these options stays as it was.
        on_process_0(proceed)
        _log.info("%s", _opening(setup, state))
        callbacks = _callbacks(setup, folder, checkpointer, clock, best, stop, watchdog)
        certificates = _certificates(config)
        with stream(
            setup.rows, config.batch_size, start_step=step, shardings=setup.layout
        ) as batches:
            for each in certificates:
                batches = each.watched(batches)
            state = fit(
                state,
                setup.train_step,
                batches,
                steps=config.steps,
                callbacks=[*certificates, *callbacks],
            )
    ended: Ended = "steps"
    if int(state.step) < config.steps:
        # Both may be true after an evaluation, and then the training was not cut short.
        patient = not config.patience or best.failures < config.patience
        ended = "budget" if patient else "patience"
    return _Trained(state, clock, best, ended)


def _best_is_gone(config: TrainConfig, best: Best) -> UserError:
    return UserError(
        f"{config.out} has no checkpoint of step {best.step}, the best by {best.figure}; to go on "
        "and test the last model, resume without keep_best"
    )


def _callbacks(
    setup: Setup,
    folder: RunFolder,
    checkpointer: Checkpointer,
    clock: Clock,
    best: Best,
    stop: StopSignals,
    watchdog: Watchdog,
) -> list[Callback]:
    """Everything that happens around the steps of a run."""
    config, task, bar = setup.config, setup.task, ProgressBar()

    def validate(state: TrainState) -> dict[str, float] | None:
        # A signal waits for the end: a resumed run would go on with the next step, and the figures
        # of this one, which may be the best, would be missing.
        return setup.evaluate(state.averaged, "validation", watchdog=watchdog)

    boards: list[TensorBoard | WandB] = []
    if config.tensorboard:
        boards.append(TensorBoard(folder.tensorboard, config=config.as_json()))
    if config.wandb:
        boards.append(WandB(config.wandb, folder=folder.path, config=config.as_json()))
    evaluation: list[Callback] = []
    ends: list[Callback] = []
    if config.evaluate_every:
        evaluation.append(Evaluation(validate, every=config.evaluate_every))
        if config.sample_bytes and task.metric == "bits_per_byte":
            writer = Writer(setup.mesh, config.sample_bytes, config.seed)
            texts = [folder.write_sample, *(board.write_text for board in boards)]
            sample = TextSample(
                lambda state: writer(state.averaged), *texts, every=config.evaluate_every
            )
            evaluation.append(sample)
    if config.patience:
        ends.append(EarlyStopping(best, patience=config.patience))
    if config.cpu_minutes is not None:
        ends.append(CpuBudget(clock, minutes=config.cpu_minutes))
    return [
        StopOnSignal(stop),
        Heartbeat(watchdog),
        SkippedSteps(),
        bar,
        *boards,
        Log(
            folder.metrics,
            bar.show,
            *(board.write for board in boards),
            every=config.log_every,
            tokens_per_step=config.batch_size * task.seq_len,
            clock=clock,
            metric=task.metric,
        ),
        *evaluation,
        *ends,
        Checkpoints(
            checkpointer,
            meta=lambda: {"clock": asdict(clock), "best": asdict(best)},
            best=best if config.keep_best else None,
            watchdog=watchdog,
        ),
        _Compilation(setup, watchdog),
    ]


def _certificates(config: TrainConfig) -> list[Certificates]:
    if config.parallel == "none":
        return []
    return [
        Certificates(
            every=config.evaluate_every or config.log_every,
            dtype=config.dtype,
            chunk=config.chunk,
            accumulation=config.accumulation,
        )
    ]


class _Compilation(Callback):
    """Compiles the train step before the first step, in all processes, for as long as it takes.

    Otherwise the first process to have compiled it would start the step, and its collectives with
    the others would reach their time limit before the last process has done so too.
    """

    def __init__(self, setup: Setup, watchdog: Watchdog):
        self._setup = setup
        self._watchdog = watchdog

    def on_start(self, step: int, steps: int, state: TrainState) -> None:
        if step < steps:
            self._watchdog.unlimited("compiling the step")
            self._setup.compile()
            barrier(minutes=math.inf)
            self._watchdog.busy("starting the first step")


def _restored(
    checkpointer: Checkpointer, like: TrainState
) -> tuple[TrainState, dict[str, Any]] | None:
    """What the newest undamaged checkpoint holds; None if there is no checkpoint."""
    restored = checkpointer.restore(like, jax.tree.map(lambda x: x.sharding, like))
    if restored is None:
        return None
    _log.info("resuming after step %d", int(restored[0].step))
    return restored


def _first_state(setup: Setup, like: TrainState) -> TrainState:
    """The state before the first step, with the shapes and the layout of `like`. Its model is new,
    or that of another run."""
    key, start_from = jax.random.key(setup.config.seed), setup.config.start_from
    if start_from is None:
        return sharded_init(setup.init, key, setup.mesh)
    model, step = restore_model(start_from, like.model, setup.mesh)
    _log.info("starting from %s after step %d", start_from, step)
    state = sharded_init(setup.init, key, setup.mesh)
    return eqx.tree_at(lambda state: state.model, state, model)


def _opening(setup: Setup, state: TrainState) -> str:
    """What is about to be trained, and on what."""
    mesh = setup.mesh
    axes = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1)
    return (
        f"{setup.config.model_names} on {setup.task.name}: {_size(state.model):,} parameters, "
        f"{mesh.size} x {mesh.devices.flat[0].device_kind}{f', mesh {axes}' if axes else ''}, "
        f"rnnscale {version('rnnscale')}, jax {jax.__version__}"
    )


def _size(model: SequenceModel) -> int:
    """The number of parameters."""
    return sum(each.value.size for each in parameters(model))


def _summary(setup: Setup, trained: _Trained, figures: Mapping[str, float]) -> dict[str, Any]:
    state, clock, best, ended = trained
    mesh, task = setup.mesh, setup.task
    kept = {"best_step": best.step, f"best_{best.figure}": best.value} if best.step else {}
    return {
        **task.notes,
        "task": task.name,
        "model": setup.config.model_names,
        "parameters": _size(state.model),
        "mesh": dict(mesh.shape),
        "devices": mesh.size,
        "device_kind": mesh.devices.flat[0].device_kind,
        "processes": process_count(),
        "steps": int(state.step),
        "ended": ended,
        "seconds": round(clock.elapsed, 3),
        "cpu_seconds": round(clock.cpu_seconds, 3),
        "tokens_per_second": round(clock.tokens_per_second, 1),
        "input_stall": round(clock.input_stall, 5),
        **kept,
        **{f"test_{name}": value for name, value in figures.items()},
        **(task.baseline() if task.baseline is not None else {}),
    }
