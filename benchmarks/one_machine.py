"""What meshes of eight virtual devices, remat and chunks of time cost and save, on one machine.

The same train step of a language model is compiled for one device, and for eight virtual devices
that share this machine's cores. Memory and collectives are read from the program. The processor
time, over all threads, is the least of all rounds, which the forms of a model take in turns: it
says what partitioning and recomputing cost in work, and nothing of how fast eight devices are.

What the step needs on H100s is what `rnnscale plan` says: read from a program compiled for them,
with lower bounds on the time from their datasheet. Nothing was run there.
"""

import argparse
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from time import process_time
from typing import Any

import jax
import numpy as np
from rich.table import Table

from rnnscale.distributed import use_cpu_devices
from rnnscale.plan import CollectiveCost, Planner, Topology
from rnnscale.runs import Setup, TrainConfig, set_up
from rnnscale.sharding import make_mesh, sharded_init
from rnnscale.tasks import Task, load_task
from rnnscale_kernels.testing import Collective, Program, Thunk, compile_on

from ._benchmark import Benchmark, Figure, Row
from ._harness import target
from ._plots import legend, styles

DEVICES = 8
CHUNK = 128
WORK = {"batch_size": 16, "seq_len": 1024, "dim": 128, "state_dim": 128, "depth": 4}
QUICK = {"batch_size": 8, "seq_len": 256, "dim": 16, "state_dim": 16, "depth": 1}
MODELS = ("s5", "lstm")

type Name = tuple[str, str]
"""A model and a form."""


@dataclasses.dataclass(frozen=True)
class Form:
    """How a step is done: the axes of the mesh above one, and what is recomputed."""

    mesh: Mapping[str, int] = dataclasses.field(default_factory=dict)
    remat: bool = False
    chunk: int | None = None

    def __str__(self) -> str:
        axes = [f"{axis}={size}" for axis, size in self.mesh.items()]
        chunk = [] if self.chunk is None else [f"chunk={self.chunk}"]
        return " ".join([*axes, *(["remat"] if self.remat else []), *chunk]) or "one device"


FORMS = (
    Form(),
    Form(remat=True),
    Form(chunk=CHUNK),
    Form(remat=True, chunk=CHUNK),
    Form({"data": 8}),
    Form({"fsdp": 8}),
    Form({"seq": 8}),
    Form({"data": 2, "tensor": 4}),
    Form({"data": 2, "seq": 4}),
    Form({"fsdp": 8}, remat=True),
    Form({"seq": 8}, remat=True),
    Form({"fsdp": 8}, remat=True, chunk=CHUNK),
)
# The loop over a nonlinear cell cannot be split over `seq`.
WITHOUT_TIME = tuple(form for form in FORMS if "seq" not in form.mesh)


def cases(options: argparse.Namespace) -> Iterator[tuple[str, tuple[Form, ...]]]:
    """The forms of each model."""
    for model in options.models or (("s5",) if options.quick else MODELS):
        forms = WITHOUT_TIME if model == "lstm" else FORMS
        yield model, (forms[0], FORMS[4], FORMS[-1]) if options.quick else forms


def config_of(model: str, form: Form, options: argparse.Namespace) -> TrainConfig:
    work = QUICK if options.quick else WORK
    return TrainConfig.for_task(
        "bytes",
        out="",
        model=model,
        mesh=dict(form.mesh),
        remat=form.remat,
        chunk=form.chunk,
        **work,
    )


def run(options: argparse.Namespace) -> Iterator[Row]:
    use_cpu_devices(DEVICES)
    task = load_task("bytes", seq_len=(QUICK if options.quick else WORK)["seq_len"])
    models = dict(cases(options))
    figures, steps = {}, {}
    for model, forms in models.items():
        for form in forms:
            name = model, str(form)
            figures[name], steps[name] = compiled(config_of(model, form, options), task)
    taken = processor_seconds(steps, options.rounds)
    for model, forms in models.items():
        for form in forms:
            name, config = (model, str(form)), config_of(model, form, options)
            yield {
                "model": model,
                "form": str(form),
                "mesh": dict(form.mesh),
                "remat": form.remat,
                "chunk": form.chunk,
                **figures[name],
                "processor_ms": 1e3 * taken[name],
                "ratio": taken[name] / taken[model, str(forms[0])],
                "planned": planned(config, task, f"{options.target}:{count_of(config)}"),
            }


def count_of(config: TrainConfig) -> int:
    return DEVICES if config.mesh else 1


def compiled(config: TrainConfig, task: Task) -> tuple[Row, Thunk]:
    """The figures of the program on one device, and a function that does one train step, each on
    the state that the one before left."""
    mesh = make_mesh(**(config.mesh or {}), devices=jax.devices()[: count_of(config)])
    setup = set_up(config, task, mesh)
    state, batch = setup.abstract_state(), setup.abstract_batch()
    program = Program(compile_on(mesh, setup.train_step, state, batch), mesh)
    sizes: Any = program.compiled.memory_analysis()
    figures = {
        "memory": sizes.argument_size_in_bytes
        + sizes.output_size_in_bytes
        + sizes.temp_size_in_bytes
        - sizes.alias_size_in_bytes,
        "sent": sum(map(sent, program.collectives)),
    }
    return figures, stepper(setup, program)


def sent(each: Collective) -> float:
    """The least bytes that a device sends for a collective, in all its turns."""
    cost = CollectiveCost(
        each.kind, each.axes, each.devices, each.bytes, int(each.turns), bool(each.loops)
    )
    return cost.sent


def stepper(setup: Setup, program: Program) -> Thunk:
    record = setup.task.train[0]
    batch = {
        name: jax.device_put(
            np.broadcast_to(np.asarray(record[name]), each.shape).astype(each.dtype), each.sharding
        )
        for name, each in setup.abstract_batch().items()
    }
    with jax.set_mesh(setup.mesh):
        state = sharded_init(setup.init, jax.random.key(0), setup.mesh)

    def step() -> Any:
        nonlocal state
        state, metrics = program.compiled(state, batch)
        return state.step, metrics

    return step


def processor_seconds(steps: Mapping[Name, Thunk], rounds: int) -> dict[Name, float]:
    """The least processor time of a step, after one to warm up."""
    taken: dict[Name, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name in list(steps)[:: 1 if turn % 2 else -1]:
            start = process_time()
            jax.block_until_ready(steps[name]())
            taken[name].append(process_time() - start)
    return {name: min(seconds[1:]) for name, seconds in taken.items()}


def planned(config: TrainConfig, task: Task, devices: str) -> Row:
    """What the step needs on each of these devices, by the program compiled for them."""
    topology = Topology.named(devices)
    plan = Planner(config, task, topology).compile(config.mesh or {})
    assert plan.bound is not None
    return {
        "compiled_for": topology.compiled_for,
        "memory": plan.memory.total,
        "sent": plan.sent,
        "flops": plan.flops,
        "bound_ms": {name: 1e3 * x for name, x in dataclasses.asdict(plan.bound).items()},
        "bottleneck": plan.bound.bottleneck,
    }


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", nargs="+", choices=MODELS, help="default: all")
    parser.add_argument(
        "--target", type=target, default="h100", help="what to plan for; default: h100"
    )


def about(options: argparse.Namespace) -> Row:
    return {"target": options.target, "devices": DEVICES, **(QUICK if options.quick else WORK)}


def table(rows: Sequence[Row]) -> Table:
    found = Table("model", "form", box=None)
    for name in ("MB a device", "kB sent", "processor ms", "ratio"):
        found.add_column(name, justify="right")
    for name in ("GFLOP in all", "MB planned", "kB planned", "bound, ms"):
        found.add_column(name, justify="right")
    for row in rows:
        plan = row["planned"]
        found.add_row(
            row["model"],
            row["form"],
            f"{row['memory'] / 1e6:,.1f}",
            f"{row['sent'] / 1e3:,.0f}",
            f"{row['processor_ms']:,.0f}",
            f"{row['ratio']:.2f}",
            f"{(DEVICES if row['mesh'] else 1) * plan['flops'] / 1e9:,.2f}",
            f"{plan['memory'] / 1e6:,.1f}",
            f"{plan['sent'] / 1e3:,.0f}",
            f"{plan['bound_ms'][plan['bottleneck']]:.3f}",
        )
    return found


def plot(rows: Sequence[Row], figure: Figure) -> None:
    """What a form saves, to the left, and what it costs, to the top: a panel for each model."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    chosen = styles(row["form"] for row in rows)
    figure.set_size_inches(3.4 * len(models) + 2.6, 3.8)
    panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for panel, model in zip(panels, models, strict=True):
        for row in rows:
            if row["model"] == model:
                style = {**chosen[row["form"]], "linestyle": "none", "markersize": 8}
                memory = row["memory"] / 1e6
                panel.plot([memory], [row["ratio"]], label=row["form"], **style)
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter(lambda size, _: f"{size:g}")
        panel.set_title(model)
        panel.set_xlabel("MB of a device, planned")
        panel.grid(color="0.9", linewidth=0.6)
    panels[0].set_ylabel("processor time, over one device")
    legend(figure)


BENCHMARK = Benchmark(
    run=run, table=table, plot=plot, add_options=add_options, about=about, rounds=5
)
