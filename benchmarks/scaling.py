"""How a train step scales over each axis of the mesh, and with the length.

    python benchmarks/scaling.py [--target h100:8] [--axes data seq] [--quick] [--json FILE.json]

Strong scaling gives more devices the same work, weak scaling as much work a device: more rows over
`data` and `fsdp`, longer sequences over `seq`, more states over `tensor`. Then the length grows
from 1k to 1M with `seq` over all devices.

Every row has what the devices exchange in a step, read from the compiled program. Times and
efficiencies are those of devices that are really there: virtual devices of a CPU share its cores,
and those of a target (see `rnnscale_kernels.testing.target_devices`) are only compiled for.
"""

import argparse
import dataclasses
import json
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from rnnscale.data import load_task
from rnnscale.sharding import AXES, make_mesh, sharded_init
from rnnscale.training import Setup, TrainConfig, set_up
from rnnscale_kernels.testing import Program, compile_for, environment, target_devices

STEPS = 10


@dataclasses.dataclass(frozen=True)
class Work:
    """One train step of an S5 model on the copy problem, whose records can have any length."""

    batch: int = 8
    length: int = 8192
    states: int = 256
    dim: int = 128
    depth: int = 2

    def over(self, axis: str, devices: int) -> "Work":
        """So many times the work, in the direction that the axis splits."""
        name = {"seq": "length", "tensor": "states"}.get(axis, "batch")
        return dataclasses.replace(self, **{name: getattr(self, name) * devices})

    def set_up(self, axes: dict[str, int], devices: Sequence[Any]) -> Setup:
        config = TrainConfig.for_task(
            "copy",
            out="",
            model="s5",
            batch_size=self.batch,
            seq_len=self.length,
            dim=self.dim,
            state_dim=self.states,
            depth=self.depth,
        )
        task = load_task("copy", seq_len=self.length)
        return set_up(config, task, make_mesh(**axes, devices=devices))


def cases(axes: Sequence[str], count: int, *, quick: bool) -> Iterator[tuple[str, str, int, Work]]:
    """(experiment, axis, devices, work)."""
    base = Work(length=1024, states=16, dim=16, depth=1) if quick else Work()
    counts = [n for n in (1, 2, 4, 8, 16, 32, 64, 128, 256) if n <= count]
    counts = [1, counts[-1]] if quick else counts
    # Enough rows, steps and states for all devices of the largest mesh.
    whole = dataclasses.replace(base, batch=max(base.batch, count), states=max(base.states, count))
    for axis in axes:
        for n in counts:
            yield "strong", axis, n, whole
        for n in counts:
            yield "weak", axis, n, base.over(axis, n)
    if "seq" not in axes:
        return
    for length in [2**10, 2**12] if quick else [2**10, 2**12, 2**14, 2**16, 2**18, 2**20]:
        yield "length", "seq", count, dataclasses.replace(base, batch=1, length=length)


def measure(axis: str, work: Work, devices: Sequence[Any], *, absent: bool) -> dict[str, Any]:
    """What a step takes on these devices."""
    setup = work.set_up({axis: len(devices)}, devices)
    arguments = setup.abstract_state(), setup.abstract_batch()
    with jax.set_mesh(setup.mesh):
        if absent:
            program = compile_for(setup.train_step, *arguments, target=setup.mesh)
        else:
            program = Program(setup.train_step.lower(*arguments).compile(), setup.mesh)
    row: dict[str, Any] = {
        "collectives": collectives(program),
        "temporaries": program.temporaries,
        "seconds": None,
    }
    if not absent and devices[0].platform != "cpu":
        row["seconds"] = seconds(setup, program)
        row["tokens_per_second"] = work.batch * work.length / row["seconds"]
    return row


def collectives(program: Program) -> list[dict[str, Any]]:
    """How often each kind runs over which axes, and the bytes of all of them on one device."""
    count, size = Counter(), Counter()
    for each in program.collectives:
        if each.axes:
            turns = int(each.turns)
            count[each.kind, each.axes] += turns
            size[each.kind, each.axes] += turns * each.bytes
    return [
        {"kind": kind, "axes": axes, "count": n, "bytes": size[kind, axes]}
        for (kind, axes), n in sorted(count.items())
    ]


def seconds(setup: Setup, program: Program) -> float:
    """The median time of a step, after two to warm up."""
    record = setup.task.train[0]
    batch = {
        name: jax.device_put(
            np.broadcast_to(np.asarray(record[name]), each.shape).astype(each.dtype), each.sharding
        )
        for name, each in setup.abstract_batch().items()
    }
    times = []
    with jax.set_mesh(setup.mesh):
        state = sharded_init(setup.init, jax.random.key(0), setup.mesh)
        for _ in range(STEPS + 2):
            start = perf_counter()
            state, metrics = program.compiled(state, batch)
            jax.block_until_ready((state, metrics))
            times.append(perf_counter() - start)
    return statistics.median(times[2:])


def with_efficiency(rows: list[dict[str, Any]]) -> None:
    """Adds to every row that has a time what one device would need for it over what it took."""
    alone = {
        (row["experiment"], row["axis"]): row["seconds"] for row in rows if row["devices"] == 1
    }
    for row in rows:
        first = alone.get((row["experiment"], row["axis"]))
        if row["seconds"] is None or first is None:
            continue
        share = row["devices"] if row["experiment"] == "strong" else 1
        row["efficiency"] = first / (share * row["seconds"])


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(
        "experiment", "axis", "devices", "batch", "length", "states", "exchanged in a step"
    )
    for name in ("bytes", "step ms", "efficiency"):
        table.add_column(name, justify="right")
    for row in rows:
        exchanged = ", ".join(
            f"{each['count']} {each['kind']} over {'+'.join(each['axes'])}"
            for each in row["collectives"]
        )
        table.add_row(
            row["experiment"],
            row["axis"],
            str(row["devices"]),
            str(row["work"]["batch"]),
            f"{row['work']['length']:,}",
            str(row["work"]["states"]),
            exchanged or "nothing",
            f"{sum(each['bytes'] for each in row['collectives']):,}",
            "-" if row["seconds"] is None else f"{1000 * row['seconds']:.2f}",
            f"{row['efficiency']:.2f}" if "efficiency" in row else "-",
        )
    Console(width=150).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description="Scaling of a train step.")
    parser.add_argument("--target", help="compile for devices that are not here, such as h100:8")
    parser.add_argument("--axes", nargs="+", choices=AXES, default=AXES, help="default: all")
    parser.add_argument("--quick", action="store_true", help="small models, one and all devices")
    parser.add_argument("--json", type=Path, help="file for the rows")
    arguments = parser.parse_args()
    absent = arguments.target is not None
    devices = target_devices(arguments.target) if absent else jax.devices()
    rows = []
    for experiment, axis, count, work in cases(arguments.axes, len(devices), quick=arguments.quick):
        row = {"experiment": experiment, "axis": axis, "devices": count}
        row["work"] = dataclasses.asdict(work)
        rows.append(row | measure(axis, work, devices[:count], absent=absent))
    with_efficiency(rows)
    show(rows)
    if arguments.json is not None:
        about = environment() | {"target": arguments.target or devices[0].device_kind}
        arguments.json.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
