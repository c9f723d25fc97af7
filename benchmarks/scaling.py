"""How a train step scales over each axis of the mesh, and with the length.

Strong scaling gives more devices the same work, weak scaling as much work a device: more rows over
`data` and `fsdp`, longer sequences over `seq`, more states over `tensor`. Then the length grows
from 1k to 1M with `seq` over all devices.

Every row has what the devices exchange in a step, read from the compiled program. Times and
efficiencies are those of devices that are really there: virtual devices of a CPU share its cores,
and those of a target (see `rnnscale_kernels.testing.target_devices`) are only compiled for.
"""

import argparse
import dataclasses
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import Any

import jax
import numpy as np
from rich.table import Table

from rnnscale.runs import Setup, TrainConfig, set_up
from rnnscale.sharding import AXES, make_mesh, sharded_init
from rnnscale.tasks import load_task
from rnnscale_kernels.testing import Program, compile_for, target_devices

from ._benchmark import Benchmark, Figure, Row
from ._harness import require, target
from ._plots import legend, lines, styles


@dataclasses.dataclass(frozen=True)
class Work:
    """One train step of an S5 model on the copy problem, whose records can have any length."""

    batch: int = 8
    length: int = 8192
    states: int = 256
    dim: int = 128
    depth: int = 2

    def over(self, axis: str, devices: int) -> "Work":
        """The work multiplied by the number of devices, in the dimension that the axis splits."""
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
    """(experiment, axis, devices, work). Weak scaling is left out of the quick ones."""
    base = Work(length=1024, states=16, dim=16, depth=1) if quick else Work()
    counts = [n for n in (1, 2, 4, 8, 16, 32, 64, 128, 256) if n <= count]
    if quick:
        counts = list(dict.fromkeys((1, counts[-1])))
    # Enough rows, steps and states for all devices of the largest mesh.
    whole = dataclasses.replace(base, batch=max(base.batch, count), states=max(base.states, count))
    for axis in axes:
        for n in counts:
            yield "strong", axis, n, whole
        for n in () if quick else counts:
            yield "weak", axis, n, base.over(axis, n)
    if "seq" not in axes:
        return
    for length in [2**10, 2**12] if quick else [2**10, 2**12, 2**14, 2**16, 2**18, 2**20]:
        yield "length", "seq", count, dataclasses.replace(base, batch=1, length=length)


def measured(
    axis: str, work: Work, devices: Sequence[Any], *, absent: bool, rounds: int
) -> dict[str, Any]:
    """The collectives, the memory and, on real devices, the time of a step."""
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
        row["seconds"] = seconds(setup, program, rounds)
        row["tokens_per_second"] = work.batch * work.length / row["seconds"]
    return row


def collectives(program: Program) -> list[dict[str, Any]]:
    """The number and the bytes, on one device, of each kind of collective over each set of axes."""
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


def seconds(setup: Setup, program: Program, rounds: int) -> float:
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
        for _ in range(rounds + 2):
            start = perf_counter()
            state, metrics = program.compiled(state, batch)
            jax.block_until_ready((state, metrics))
            times.append(perf_counter() - start)
    return statistics.median(times[2:])


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--target", type=target, help="compile for devices that are not here, such as h100:8"
    )
    parser.add_argument("--axes", nargs="+", choices=AXES, help="default: all; with --quick seq")


def run(options: argparse.Namespace) -> Iterator[Row]:
    absent = options.target is not None
    if absent:
        require(options.target)
    devices = target_devices(options.target) if absent else jax.devices()
    alone: dict[tuple[str, str], float | None] = {}
    axes = options.axes or (("seq",) if options.quick else AXES)
    for experiment, axis, count, work in cases(axes, len(devices), quick=options.quick):
        row = {"experiment": experiment, "axis": axis, "devices": count}
        row["work"] = dataclasses.asdict(work)
        row |= measured(axis, work, devices[:count], absent=absent, rounds=options.rounds)
        if count == 1:
            alone[experiment, axis] = row["seconds"]
        # What one device would need for it over what it took.
        if row["seconds"] is not None and (first := alone.get((experiment, axis))) is not None:
            share = count if experiment == "strong" else 1
            row["efficiency"] = first / (share * row["seconds"])
        yield row


def about(options: argparse.Namespace) -> Row:
    return {"target": options.target or jax.devices()[0].device_kind}


def table(rows: Sequence[Row]) -> Table:
    found = Table(
        "experiment", "axis", "devices", "batch", "length", "states", "exchanged in a step",
        box=None,
    )  # fmt: skip
    for name in ("bytes", "step ms", "efficiency"):
        found.add_column(name, justify="right")
    for row in rows:
        exchanged = ", ".join(
            f"{each['count']} {each['kind']} over {'+'.join(each['axes'])}"
            for each in row["collectives"]
        )
        found.add_row(
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
    return found


def plot(rows: Sequence[Row], figure: Figure) -> None:
    """Bytes exchanged in a step, over the devices and over the length."""
    named = [
        {
            **row,
            "kind": f"{row['experiment']}, {row['axis']}",
            "length": row["work"]["length"],
            "kB": sum(each["bytes"] for each in row["collectives"]) / 1e3,
        }
        for row in rows
    ]
    chosen = styles(row["kind"] for row in named)
    figure.set_size_inches(11, 4)
    panels = figure.subplots(1, 2, sharey=True)
    for panel, x in zip(panels, ("devices", "length"), strict=True):
        of_panel = [row for row in named if (row["experiment"] == "length") == (x == "length")]
        lines(panel, of_panel, x, "kB", chosen, by="kind")
        panel.set_yscale("symlog", linthresh=1)
        panel.set_ylabel("kB exchanged by a device in a step")
    legend(figure)


BENCHMARK = Benchmark(run=run, table=table, plot=plot, add_options=add_options, about=about)
