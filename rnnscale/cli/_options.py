"""Options that several commands have, how their values are read, and how JSON is written."""

import argparse
import dataclasses
import json
import os
from pathlib import Path
from typing import Any, TypeAliasType, get_args

from rnnscale._errors import UserError
from rnnscale.runs import MODELS, BlockOption, Dtype, ParallelOption, Rows, TrainConfig
from rnnscale.tasks import TASKS, Protocol
from rnnscale.training import Optimiser

DEFAULTS = (
    "The defaults shown are those of a layer such as s5; a task and a cell may have their own."
)


def choices(literal: TypeAliasType) -> tuple[str, ...]:
    """The values of a `type Name = Literal[...]`."""
    return get_args(literal.__value__)


def model_name(text: str) -> str:
    """The name of a model, for its own name or that of its class. Any other text stays as it is."""
    return next((name for name, entry in MODELS.items() if entry.class_name == text), text)


def _count_or_model(text: str) -> int | str:
    return int(text) if text.isdecimal() else model_name(text)


def task_name(text: str) -> str:
    """The name of a task. A path is refused, with the option that takes one."""
    if text not in TASKS and (Path(text).suffix or Path(text).exists()):
        raise argparse.ArgumentTypeError(
            f"{text} is not the name of a task; for your own data, write --data {text}"
        )
    return text


def class_name(text: str) -> str:
    """The name of a class, for its own name or that of its model. Any other text stays as it is,
    such as the second word of `s5 bilinear`."""
    name, *others = text.split(" ")
    return " ".join([MODELS[name].class_name if name in MODELS else name, *others])


# What the destinations of the flags for one's own data begin with, since names such as `split` have
# another meaning in some commands.
_OWN_DATA = "own_data_"


def add_step_options(parser: argparse.ArgumentParser) -> None:
    """The options of `train` and `plan` that define a train step."""
    parser.add_argument(
        "--model",
        type=model_name,
        choices=MODELS,
        metavar="MODEL",
        help=f"see `rnnscale models`; default: {TrainConfig.model}",
    )
    parser.add_argument(
        "--cell",
        type=named_values,
        metavar="NAME=VALUE,...",
        help="options of the cell or layer, such as dt=0.06,gamma=66 or conv_width=none,gate=true; "
        "default: its own",
    )
    parser.add_argument(
        "--every",
        nargs=2,
        type=_count_or_model,
        metavar=("N", "MODEL"),
        help="use another layer in every N-th block, as in --every 4 attention --depth 8; "
        "default: layers of one kind",
    )
    parser.add_argument(
        "--every-cell",
        type=named_values,
        metavar="NAME=VALUE,...",
        help="options of the layer of --every, such as window=256,kv_heads=1; default: its own",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        metavar="B",
        help=f"sequences per step; default: {TrainConfig.batch_size}",
    )
    parser.add_argument(
        "--accumulation",
        type=int,
        metavar="N",
        help=f"parts of a batch, computed one by one; default: {TrainConfig.accumulation}",
    )
    parser.add_argument(
        "--seq-len", type=int, metavar="L", help="time steps in a sequence; default: the task's"
    )
    add_data_options(parser)
    add_protocol_option(parser)
    add_own_data_options(parser, path_flag="--data")
    parser.add_argument(
        "--rows",
        choices=choices(Rows),
        help=f"rows of a batch; lanes carry the state over; default: {TrainConfig.rows}",
    )
    add_mesh_option(parser, "default: all devices on data")
    parser.add_argument(
        "--optimiser",
        choices=choices(Optimiser),
        help=f"the update rule; default: {TrainConfig.optimiser}",
    )
    parser.add_argument(
        "--average",
        type=float,
        metavar="D",
        help="decay of a moving average of the parameters, such as 0.999; default: 0, for none",
    )
    _add_model_options(parser.add_argument_group("model"))


def _add_model_options(model: argparse._ActionsContainer) -> None:
    model.add_argument("--dim", type=int, metavar="N", help=f"width; default: {TrainConfig.dim}")
    model.add_argument(
        "--depth", type=int, metavar="N", help=f"number of blocks; default: {TrainConfig.depth}"
    )
    model.add_argument(
        "--state-dim",
        type=int,
        metavar="N",
        help="states of a layer; of each channel for mamba, features of all keys for layers with "
        f"heads; default: {TrainConfig.state_dim}",
    )
    model.add_argument(
        "--block",
        choices=choices(BlockOption),
        help="what a block has in addition to its layer: a gate (half-glu), only a norm (plain), "
        "or a feed-forward network; default: depends on the layer",
    )
    model.add_argument(
        "--dropout",
        type=float,
        metavar="P",
        help=f"probability of dropping; default: {TrainConfig.dropout:g}",
    )
    model.add_argument(
        "--dtype",
        choices=choices(Dtype),
        help=f"dtype of the activations; default: {TrainConfig.dtype}",
    )
    model.add_argument(
        "--remat",
        action=argparse.BooleanOptionalAction,
        help="recompute the blocks in the backward pass, to save memory; default: --no-remat",
    )
    model.add_argument(
        "--chunk",
        type=int,
        metavar="N",
        help="time steps computed at once, to save memory; default: all",
    )
    add_parallel_option(model, f"default: {TrainConfig.parallel}")


def add_parallel_option(parser: argparse._ActionsContainer, default: str) -> None:
    parser.add_argument(
        "--parallel",
        choices=choices(ParallelOption),
        help="compute all steps of a nonlinear cell at once, by Newton's method with this "
        f"Jacobian; {default}",
    )


def add_data_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--text",
        metavar="DIR",
        help="folder with the text files for `bytes`; default: Python's standard library",
    )
    parser.add_argument(
        "--folder",
        metavar="DIR",
        help="folder with the data for uea, lra-* and speech-commands; default: none",
    )


def add_protocol_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--protocol",
        choices=choices(Protocol),
        help="split of the task uea; linoss: that of the LinOSS paper, by --seed; default: archive",
    )


def add_own_data_options(parser: argparse.ArgumentParser, *, path_flag: str | None) -> None:
    """The flags of `DataOptions`; that of its `path` is left out if `path_flag` is None.

    `own_data` makes the options of the parsed values.
    """
    from rnnscale.tasks import DataOptions

    group = parser.add_argument_group("own data")
    for field in dataclasses.fields(DataOptions):
        flag = path_flag if field.name == "path" else f"--{field.name}"
        if flag is not None:
            dest = _OWN_DATA + field.name
            group.add_argument(flag, dest=dest, default=argparse.SUPPRESS, **field.metadata)


def add_moved_data_option(parser: argparse.ArgumentParser) -> None:
    """The flag for the path alone, of commands that read the data of a run."""
    parser.add_argument(
        "--data",
        dest=f"{_OWN_DATA}path",
        default=argparse.SUPPRESS,
        metavar="PATH",
        help="where your own data of the run are now; default: where they were",
    )


def own_data(arguments: argparse.Namespace) -> dict[str, Any]:
    """The option `data` of a run, from the flags of `add_own_data_options`, which are removed from
    `arguments`; empty if no such flag was given."""
    values = vars(arguments)
    names = [name for name in values if name.startswith(_OWN_DATA)]
    data = {name.removeprefix(_OWN_DATA): values.pop(name) for name in names}
    return {"data": data} if data else {}


def add_mesh_option(parser: argparse._ActionsContainer, default: str) -> None:
    parser.add_argument(
        "--mesh",
        type=mesh_sizes,
        metavar="AXIS=N,...",
        help=f"mesh axes and sizes, such as data=2,seq=4; {default}",
    )


def mesh_sizes(text: str) -> dict[str, int]:
    mesh = {}
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if not size.strip().isdecimal():
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a mesh; write axes and sizes like data=4,tensor=2"
            )
        if axis.strip() in mesh:
            raise argparse.ArgumentTypeError(f"{text!r} names the axis {axis.strip()} twice")
        mesh[axis.strip()] = int(size)
    return mesh


def named_values(text: str) -> dict[str, int | float | bool | str | None]:
    constants = {"none": None, "true": True, "false": False}
    options: dict[str, int | float | bool | str | None] = {}
    for part in text.split(","):
        name, equals, value = (each.strip() for each in part.partition("="))
        if not (name and equals and value):
            raise argparse.ArgumentTypeError(
                f"{text!r} has no names and values; write them like dt=0.06,gamma=66"
            )
        try:
            options[name] = int(value) if value.lstrip("+-").isdecimal() else float(value)
        except ValueError:
            options[name] = constants.get(value, value)  # or a word, such as init=henaff
    return options


def given_options(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The named options that are not `None`."""
    options = vars(arguments)
    return {name: options[name] for name in names if options[name] is not None}


def check_file(option: str, file: str | None) -> None:
    """Raises `UserError` if a file can't be written, before an hour is spent on its content."""
    if file in (None, "-"):
        return
    path = Path(file)
    if not path.absolute().parent.is_dir():
        raise UserError(f"{option} {file}: there is no folder {path.parent}")
    if path.is_dir():
        raise UserError(f"{option} {file} is a folder; name a file")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise UserError(f"{option} {file}: cannot be written")


def write_json(file: str | None, value: Any, *, indent: int = 2) -> None:
    """Write to a file, to the standard output for `-`, or nowhere for `None`."""
    write_text(file, json.dumps(value, indent=indent))


def write_text(file: str | None, text: str) -> None:
    """As `write_json`, for text without its last line break."""
    if file == "-":
        print(text)
    elif file is not None:
        Path(file).write_text(text + "\n")
