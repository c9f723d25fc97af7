"""The report of `rnnscale plan` on one mesh, as tables and as JSON."""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from rnnscale.plan._bound import Bound
from rnnscale.plan._collectives import crosses_hosts
from rnnscale.plan._device_cost import abstract_mesh
from rnnscale.plan._meshes import larger_mesh, smaller_mesh
from rnnscale.plan._planner import InfeasibleMesh, Plan, Planner, mesh_name
from rnnscale.plan._units import in_bytes, in_flops, in_seconds

_SHOWN = 12


@dataclass(frozen=True)
class Report:
    """The plans of one mesh and its neighbours.

    - `compiled`, `estimated`: the plan of the mesh by the compiler and by the analytic model.
    - `smaller`, `larger`: estimates for half and twice the devices; `smaller` is `None` if no axis
        can be halved.
    """

    planner: Planner
    compiled: Plan
    estimated: Plan
    smaller: Plan | InfeasibleMesh | None
    larger: Plan | InfeasibleMesh

    @classmethod
    def of(cls, planner: Planner, sizes: dict[str, int]) -> "Report":
        """Compile the step for the mesh, and estimate the mesh and its neighbours.

        **Raises:** `ValueError` as `Planner.compile` does.
        """
        half = smaller_mesh(sizes)
        return cls(
            planner,
            planner.compile(sizes),
            planner.estimate(sizes),
            None if half is None else planner.try_estimate(half),
            planner.try_estimate(larger_mesh(sizes)),
        )

    def as_json(self) -> dict[str, Any]:
        """All figures, per device, in bytes, seconds and floating-point operations."""
        config, topology = self.planner.config, self.planner.topology
        options = dataclasses.asdict(config)
        del options["out"], options["mesh"]
        return {
            "options": options,
            "iterations": self.planner.iterations,
            "target": topology.name,
            "devices": topology.count,
            "compiled_for": topology.compiled_for,
            "virtual": topology.virtual is not None,
            "hardware": dataclasses.asdict(topology.hardware) if topology.hardware else None,
            "compiled": plan_as_json(self.compiled),
            "estimated": plan_as_json(self.estimated),
            "smaller": plan_as_json(self.smaller),
            "larger": plan_as_json(self.larger),
        }

    def show(self, console: Console) -> None:
        """Print the report."""
        config, topology = self.planner.config, self.planner.topology
        devices = f"{topology.name}, {mesh_name(self.compiled.mesh)}"
        run = f"{self.planner.task.name}, {config.model_names} on {devices}"
        print_line(console, f"{run}; compiled for {topology.compiled_for}")
        console.print(self._figures())
        console.print(self._collectives())
        for line in self._notes():
            print_line(console, line)

    def _figures(self) -> Table:
        columns = [("compiled", self.compiled), ("estimated", self.estimated)]
        for name, plan in (("smaller", self.smaller), ("larger", self.larger)):
            if isinstance(plan, Plan):
                columns.append((f"{name}: {mesh_name(plan.mesh)}\nestimated", plan))
        table = Table(title="per device", title_justify="left")
        table.add_column("")
        for name, _ in columns:
            table.add_column(name, justify="right")
        for name, value in _ROWS:
            table.add_row(name, *(value(plan) for _, plan in columns))
        return table

    def _collectives(self) -> Table:
        collectives = sorted(self.compiled.collectives, key=lambda each: -each.sent)
        left_out = len(collectives) - _SHOWN
        caption = f"and {left_out} smaller ones (see --json)" if left_out > 0 else None
        table = Table(
            title="collectives of the compiled step", title_justify="left", caption=caption
        )
        for name in ("collective", "over"):
            table.add_column(name)
        for name in ("bytes", "times per step", "in a loop", "sent"):
            table.add_column(name, justify="right")
        for each in collectives[:_SHOWN]:
            table.add_row(
                each.kind,
                ",".join(each.axes),
                in_bytes(each.bytes),
                str(each.count),
                "yes" if each.in_loop else "no",
                in_bytes(each.sent),
            )
        return table

    def _notes(self) -> list[str]:
        hardware = self.planner.topology.hardware
        notes = [
            "Parameters, optimiser and batch are exact. The compiler reports only the sum of "
            "activations and temporaries; the activations are estimated."
        ]
        if self.planner.iterations is not None:
            notes.append(
                f"Newton's method takes {self.planner.iterations} iterations in this plan, and no "
                "row is finished step by step."
            )
        notes += undivided([self.compiled])
        for name, plan in (("smaller", self.smaller), ("larger", self.larger)):
            if isinstance(plan, InfeasibleMesh):
                notes.append(
                    f"The {name} mesh {mesh_name(plan.mesh)} is not possible: {plan.reason}."
                )
        if hardware is None:
            notes.append(
                "There is no datasheet for this target, so no bound and no verdict on memory."
            )
            return notes
        dtype = self.planner.config.dtype
        notes.append(
            f"Bounds use the datasheet of {hardware.name}: "
            f"{in_flops(hardware.flops[dtype])}/s in {dtype}, "
            f"{in_bytes(hardware.memory)} of memory at {in_bytes(hardware.memory_bandwidth)}/s, "
            f"{in_bytes(hardware.interconnect)}/s to other devices ({hardware.source})."
        )
        mesh = abstract_mesh(self.compiled.mesh)
        crossing = [axis for axis in mesh.shape if crosses_hosts((axis,), mesh, hardware)]
        if hardware.network is not None and crossing:
            notes.append(
                f"{', '.join(crossing)}: crosses hosts of {hardware.devices_per_host} devices, so "
                f"it counts at the rate of the network, {in_bytes(hardware.network)}/s."
            )
        return notes


def plan_as_json(plan: Plan | InfeasibleMesh | None) -> dict[str, Any] | None:
    """Every figure of a plan, with the derived ones."""
    if plan is None:
        return None
    figures = dataclasses.asdict(plan)
    if isinstance(plan, Plan):
        figures["memory"]["total"] = plan.memory.total
        for each, collective in zip(figures["collectives"], plan.collectives, strict=True):
            each["sent"] = collective.sent
        if plan.bound is not None:
            figures["bound"] |= {"step": plan.bound.step, "bottleneck": plan.bound.bottleneck}
    return figures


def undivided(plans: Iterable[Plan]) -> list[str]:
    """A note for each number of devices along `tensor` for which the plans do not count what a
    device does."""
    counted = {plan.mesh["tensor"]: plan.counted_parameters for plan in plans}
    return [
        f"Over tensor={tensor} the plan traces a model with {times:.2f} times the parameters of a "
        "device, since it does not know all that tensor divides in this model. Its arithmetic, "
        f"activations and times are too {'large' if times > 1 else 'small'}, and the estimate may "
        "lack some of what is sent over tensor."
        for tensor, times in sorted(counted.items())
        if abs(times - 1) > 0.05
    ]


def print_line(console: Console, line: str) -> None:
    """Print a line without wrapping it at the width of the terminal."""
    console.print(line, highlight=False, soft_wrap=True)


def verdict(plan: Plan) -> str:
    """`"yes"` or `"NO"`: whether the memory suffices. `"?"` without a datasheet."""
    return "?" if plan.fits is None else "yes" if plan.fits else "NO"


def _time(seconds: Callable[[Bound], float]) -> Callable[[Plan], str]:
    return lambda plan: "?" if plan.bound is None else in_seconds(seconds(plan.bound))


_ROWS = (
    ("fits", verdict),
    ("parameters", lambda plan: in_bytes(plan.memory.parameters)),
    ("optimiser", lambda plan: in_bytes(plan.memory.optimiser)),
    ("batch", lambda plan: in_bytes(plan.memory.batch)),
    ("activations", lambda plan: in_bytes(plan.memory.activations)),
    ("temporaries", lambda plan: in_bytes(plan.memory.temporaries)),
    ("total memory", lambda plan: in_bytes(plan.memory.total)),
    ("arithmetic", lambda plan: in_flops(plan.flops)),
    ("compute time", _time(lambda bound: bound.compute)),
    ("memory time", _time(lambda bound: bound.memory)),
    ("interconnect time", _time(lambda bound: bound.interconnect)),
    ("launch time", _time(lambda bound: bound.launch)),
    ("least time of a step", _time(lambda bound: bound.step)),
)
