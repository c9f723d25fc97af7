"""Options that commands have in common: those that say what a train step is."""

import argparse


def add_step_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", help="a layer such as s5 or lru, or a cell such as lstm or cornn; default: s5"
    )
    parser.add_argument(
        "--cell",
        type=named_values,
        metavar="NAME=VALUE,...",
        help="options of the cell or layer, such as dt=0.06,gamma=66",
    )
    parser.add_argument("--batch-size", type=int, metavar="B", help="sequences in a step")
    parser.add_argument(
        "--accumulation", type=int, metavar="N", help="parts in which a step does its batch"
    )
    parser.add_argument("--seq-len", type=int, metavar="L", help="time steps in a sequence")
    parser.add_argument("--text", metavar="DIR", help="folder with the text for `bytes`")
    parser.add_argument(
        "--folder", metavar="DIR", help="folder with the data for lra-* and speech-commands"
    )
    parser.add_argument(
        "--rows", help="of a batch: records, packed or lanes, which carry the state on"
    )
    parser.add_argument(
        "--mesh", type=mesh_sizes, metavar="AXIS=N,...", help="such as data=2,seq=4; default: data"
    )
    model = parser.add_argument_group("model")
    model.add_argument("--dim", type=int, metavar="N", help="width")
    model.add_argument("--depth", type=int, metavar="N", help="number of blocks")
    model.add_argument("--state-dim", type=int, metavar="N", help="states in a block")
    model.add_argument("--dropout", type=float, metavar="P", help="probability to drop")
    model.add_argument("--dtype", help="of the activations: float32 or bfloat16")
    model.add_argument(
        "--remat",
        action=argparse.BooleanOptionalAction,
        help="recompute the blocks in the backward pass, to save memory",
    )
    model.add_argument(
        "--chunk", type=int, metavar="N", help="time steps to do at once, to save memory"
    )


def mesh_sizes(text: str) -> dict[str, int]:
    mesh = {}
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if not size.strip().isdecimal():
            raise argparse.ArgumentTypeError(
                f"{text!r} is no mesh; write axes and sizes like data=4,tensor=2"
            )
        if axis.strip() in mesh:
            raise argparse.ArgumentTypeError(f"{text!r} names the axis {axis.strip()} twice")
        mesh[axis.strip()] = int(size)
    return mesh


def named_values(text: str) -> dict[str, int | float | str]:
    options: dict[str, int | float | str] = {}
    for part in text.split(","):
        name, equals, value = (each.strip() for each in part.partition("="))
        if not (name and equals and value):
            raise argparse.ArgumentTypeError(
                f"{text!r} are no options; write names and values like dt=0.06,gamma=66"
            )
        try:
            options[name] = int(value) if value.lstrip("+-").isdecimal() else float(value)
        except ValueError:
            options[name] = value  # a word, such as init=henaff
    return options
