"""`rnnscale eval`: the figures of a trained model on a split, at any length."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rnnscale.cli._options import (
    add_data_options,
    add_mesh_option,
    add_moved_data_option,
    add_parallel_option,
    check_file,
    given_options,
    own_data,
    write_json,
)
from rnnscale.runs import RunFolder

if TYPE_CHECKING:
    from rnnscale.runs import SavedRun


def add_to(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "eval",
        help="evaluate the trained model of a run",
        description="Evaluates the trained model of a run, from its newest or best checkpoint, "
        "also at sequence lengths beyond that of its training. Options default to those of the "
        "run.",
        examples=(
            "rnnscale eval runs/digits --split validation",
            "rnnscale eval runs/text --seq-len 1024 4096 --json figures.json",
        ),
    )
    parser.set_defaults(command=_eval)
    parser.add_argument("run", metavar="RUN", help="folder of the run")
    parser.add_argument(
        "--split", choices=["test", "validation"], default="test", help="default: test"
    )
    parser.add_argument(
        "--seq-len",
        type=int,
        nargs="+",
        metavar="L",
        help="time steps in a sequence; several lengths are evaluated one by one; default: as "
        "trained",
    )
    parser.add_argument(
        "--batch-size", type=int, metavar="B", help="sequences at once; default: as trained"
    )
    parser.add_argument(
        "--rows",
        choices=["records", "lanes"],
        help="records: each sequence starts from a zero state; lanes: the state is carried through "
        "full sequences; default: as trained",
    )
    parser.add_argument(
        "--chunk",
        type=int,
        metavar="N",
        help="time steps computed at once, to save memory; 0 for all; default: as trained",
    )
    add_data_options(parser)
    add_parallel_option(parser, "default: as trained")
    add_moved_data_option(parser)
    parser.add_argument(
        "--json",
        metavar="FILE",
        help="write the figures; - for the standard output; default: no file",
    )
    devices = parser.add_argument_group("devices")
    add_mesh_option(devices, "default: that of the run if it fits, or else data")
    devices.add_argument(
        "--cpu-devices",
        type=int,
        metavar="N",
        help="use N virtual devices of the CPU; default: the devices of this machine",
    )


def _eval(arguments: argparse.Namespace) -> int:
    file = arguments.json
    check_file("--json", file)
    RunFolder.existing(arguments.run)
    from rnnscale.cli._console import Console
    from rnnscale.distributed import use_cpu_devices
    from rnnscale.runs import load_run

    if arguments.cpu_devices is not None:
        use_cpu_devices(arguments.cpu_devices)
    given = given_options(arguments, "batch_size", "rows", "chunk", "parallel", "text", "folder")
    given |= own_data(arguments)
    if arguments.chunk == 0:
        given["chunk"] = None
    saved = load_run(arguments.run, arguments.mesh, **given)
    console = Console(width=100, stderr=file == "-")
    rows = []
    for seq_len in arguments.seq_len or [saved.spec.seq_len]:
        with console.status(f"{seq_len} steps"):
            figures = saved.evaluate(arguments.split, seq_len=seq_len)
        rows.append({"seq_len": seq_len, **figures})
    console.print(_table(saved, arguments.split, rows))
    document = {
        "run": arguments.run,
        "task": saved.spec.name,
        "model": saved.config.model_names,
        "step": saved.step,
        "trained_seq_len": saved.spec.seq_len,
        "split": arguments.split,
        "rows": "lanes" if saved.config.rows == "lanes" else "records",
        "mesh": dict(saved.mesh.shape),
        "figures": rows,
    }
    write_json(file, document)
    return 0


def _table(saved: "SavedRun", split: str, rows: Sequence[dict[str, Any]]) -> Any:
    from rich.table import Table

    start = "state carried over" if saved.config.rows == "lanes" else "each from a zero state"
    title = (
        f"{saved.spec.name}, {saved.config.model_names}, step {saved.step}, {split} split, {start}"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("steps", justify="right")
    names = [name for name in rows[0] if name != "seq_len"]
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        trained = ", as trained" if row["seq_len"] == saved.spec.seq_len else ""
        table.add_row(f"{row['seq_len']}{trained}", *(f"{row[name]:.5g}" for name in names))
    return table
