"""`rnnscale train`: a run, from its options to the line with its results."""

import argparse
import logging
from collections.abc import Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from rnnscale import distributed, runs
from rnnscale._errors import UserError
from rnnscale.cli._options import DEFAULTS, add_step_options, choices, own_data, task_name
from rnnscale.runs import TrainConfig
from rnnscale.tasks import TASKS
from rnnscale.training import Schedule, Ties


def add_to(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "train",
        help="train a model on a task",
        description=f"Trains a model on a task. {DEFAULTS} With --resume, options default to those "
        "with which the run was started.",
        examples=(
            "rnnscale train digits --model lru --out runs/digits",
            "rnnscale train bytes --mesh data=2,seq=4 --seq-len 4096 --batch-size 8",
            "rnnscale train --data ward.csv --group patient --label outcome --out runs/wards",
            "rnnscale train --resume --out runs/digits --steps 2000",
        ),
        argument_default=argparse.SUPPRESS,  # the namespace holds only the options given
    )
    parser.set_defaults(command=_train)
    parser.add_argument(
        "task",
        nargs="?",
        type=task_name,
        choices=TASKS,
        metavar="TASK",
        help="see `rnnscale tasks`; not needed with --data, --config or --resume",
    )
    parser.add_argument(
        "--out", metavar="DIR", help="folder of the run; default: a new one in runs/"
    )
    parser.add_argument(
        "--resume", action="store_true", default=False, help="continue the run in --out"
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="start with the options of a config.json; those on the command line override them; "
        "default: none",
    )
    parser.add_argument(
        "--start-from",
        metavar="DIR",
        help="folder of a run whose trained model to start with; default: new parameters",
    )
    parser.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help=f"number of training steps; default: {TrainConfig.steps}",
    )
    parser.add_argument(
        "--seed",
        type=int,
        metavar="S",
        help=f"seed of parameters, dropout and data order; default: {TrainConfig.seed}",
    )
    add_step_options(parser)
    _add_devices(parser)
    _add_optimiser(parser)
    _add_log(parser)


def _add_devices(parser: argparse.ArgumentParser) -> None:
    devices = parser.add_argument_group("devices")
    devices.add_argument(
        "--cpu-devices",
        type=int,
        metavar="N",
        help="use N virtual CPU devices in each process; default: the devices of this machine",
    )
    processes = parser.add_argument_group(
        "processes",
        "For a run of several processes. They are not needed under SLURM, Open MPI or on TPU pods, "
        "or if JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID are set.",
    )
    processes.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="address of process 0; default: from the environment",
    )
    processes.add_argument(
        "--processes",
        type=int,
        metavar="N",
        help="number of processes, 1 for this one alone; default: from the environment",
    )
    processes.add_argument(
        "--process",
        type=int,
        metavar="I",
        help="number of this process, from 0; default: from the environment",
    )
    processes.add_argument(
        "--connect-minutes", type=float, metavar="X", help="largest wait for the others; default: 5"
    )


def _add_optimiser(parser: argparse.ArgumentParser) -> None:
    optimiser = parser.add_argument_group("optimiser")
    optimiser.add_argument(
        "--schedule",
        choices=choices(Schedule),
        help=f"rates after the warm-up; default: {TrainConfig.schedule}",
    )
    optimiser.add_argument(
        "--learning-rate",
        type=float,
        metavar="X",
        help=f"rate of the weights; default: {TrainConfig.learning_rate}",
    )
    optimiser.add_argument(
        "--recurrence-rate",
        type=float,
        metavar="X",
        help="rate of the recurrence; default: a quarter of that of the weights",
    )
    optimiser.add_argument(
        "--weight-decay",
        type=float,
        metavar="X",
        help=f"decay of the weights; default: {TrainConfig.weight_decay}",
    )
    optimiser.add_argument(
        "--warmup", type=int, metavar="N", help="warm-up steps; default: a tenth of the steps"
    )
    optimiser.add_argument(
        "--clip",
        type=float,
        metavar="X",
        help=f"largest norm of the gradient; default: {TrainConfig.clip}",
    )


def _add_log(parser: argparse.ArgumentParser) -> None:
    log = parser.add_argument_group("log")
    log.add_argument(
        "--log-every",
        type=int,
        metavar="N",
        help=f"steps between lines of the log; default: {TrainConfig.log_every}",
    )
    log.add_argument(
        "--save-every",
        type=int,
        metavar="N",
        help=f"steps between checkpoints; default: {TrainConfig.save_every}",
    )
    log.add_argument(
        "--save-minutes",
        type=float,
        metavar="X",
        help="largest time between checkpoints; default: no limit",
    )
    log.add_argument(
        "--evaluate-every",
        type=int,
        metavar="N",
        help="steps between evaluations on the validation split; 0 for none; default: ten in a "
        "run, or fewer if they take long",
    )
    log.add_argument(
        "--patience",
        type=int,
        metavar="N",
        help="stop after N evaluations without improvement; default: 0, for never",
    )
    log.add_argument(
        "--cpu-minutes",
        type=float,
        metavar="X",
        help="stop when X minutes of processor time are used up; default: no limit",
    )
    log.add_argument(
        "--keep-best",
        action=argparse.BooleanOptionalAction,
        help="keep the checkpoint that is best on the validation split, and test that one; "
        "default: no",
    )
    log.add_argument(
        "--ties",
        choices=choices(Ties),
        help=f"which of equally good checkpoints is the best; default: {TrainConfig.ties}",
    )
    log.add_argument(
        "--sample-bytes",
        type=int,
        metavar="N",
        help="length of the text that a model of bytes writes after each evaluation; "
        f"default: {TrainConfig.sample_bytes}",
    )
    log.add_argument(
        "--tensorboard",
        action=argparse.BooleanOptionalAction,
        help="log for TensorBoard too; default: no",
    )
    log.add_argument(
        "--wandb",
        metavar="PROJECT",
        help="log to this project of Weights & Biases too; default: none",
    )
    log.add_argument(
        "--stuck-minutes",
        type=float,
        metavar="X",
        help=f"end the process if a step takes longer; default: {TrainConfig.stuck_minutes:g}",
    )


def _train(arguments: argparse.Namespace) -> int:
    given = {**own_data(arguments), **vars(arguments)}
    del given["command"]
    resume = given.pop("resume")
    address = [given.pop(name, None) for name in ("coordinator", "processes", "process")]
    minutes = given.pop("connect_minutes", 5.0)
    file = given.pop("config", None)
    if resume and file is not None:
        raise UserError("--resume takes the options of the run: leave out --config")
    if resume and "out" not in given:
        raise UserError("--resume needs --out, the folder of the run to continue")
    has_folder = "out" in given
    if file is not None:
        given = runs.read_options(Path(file), given)
    given = {"out": "", **given}
    # Before jax, which is slow to start: this raises if an option is wrong.
    new = None if resume else runs.config_and_task(given)
    if new is not None and new[0].start_from is not None:
        runs.RunFolder.existing(new[0].start_from)
    distributed.connect(*address, minutes=minutes)
    if distributed.process_index() != 0:
        logging.getLogger("rnnscale").setLevel(logging.WARNING)
    distributed.check_same({**given, "resume": resume})
    # The options depend on the contents of the folder, which one process may create before another
    # looks; so process 0 decides for all.
    stored = distributed.on_process_0(lambda: _stored(given)) if resume else None
    if stored is not None:
        config, task = TrainConfig.from_json(stored), None
    else:
        config, task = new or runs.config_and_task(given)
    if not has_folder:
        model = "-".join(dict.fromkeys(config.models))
        name = f"{config.task if task is None else task.name}-{model}"
        config = replace(config, out=distributed.on_process_0(lambda: str(_new_folder(name))))
    summary = runs.run(config, task=task, resume=resume)
    if distributed.process_index() != 0:
        return 0
    if summary is None:
        print(f"stopped and saved; continue with: rnnscale train --resume --out {config.out}")
    else:
        print(_results(summary))
        print(f"all files are in {config.out}")
    return 0


def _stored(given: Mapping[str, Any]) -> dict[str, Any] | None:
    """The options to resume a run with; None if there is no run yet, and the task for one."""
    folder = runs.RunFolder(given["out"])
    if folder.is_run:
        return TrainConfig.resumed(folder.config(), **given).as_json()
    if "task" not in given and "data" not in given:
        raise UserError(
            f"out={given['out']} holds no run to resume; name the folder of one, or a task to start"
        )
    return None


def _results(summary: Mapping[str, Any]) -> str:
    tested = [
        f"test {name.removeprefix('test_').replace('_', ' ')} {value:.4g}"
        for name, value in summary.items()
        if name.startswith("test_") and name != "test_loss"
    ]
    text = f"{summary['task']}, {summary['model']}, {summary['parameters']:,} parameters: "
    text += ", ".join(tested)
    baselines = {
        "count_model_bits_per_byte": "an order-4 count model has",
        "constant_mse": "always predicting the mean has",
        "constant_nrmse": "always predicting the mean has",
        "memoryless_accuracy": "without memory",
        "most_frequent_accuracy": "always answering the most frequent class has",
        "persistence_nrmse": "repeating the last value has",
        "seasonal_naive_nrmse": "repeating the last season has",
    }
    for name, words in baselines.items():
        if name in summary:
            text += f" ({words} {summary[name]:.4g})"
    return text + f", {summary['steps']} steps in {summary['seconds']:.0f} s"


def _new_folder(name: str) -> Path:
    return next(p for n in count(1) if not (p := Path("runs", f"{name}-{n}")).exists())
