"""A plan as a table and as JSON."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from rnnscale.plan._meshes import larger, smaller
from rnnscale.plan._plan import Plan, Planner, Unfit, mesh_name
from rnnscale.plan._traffic import crosses_hosts

_SHOWN = 12


@dataclass(frozen=True)
class Report:
    """All that `rnnscale plan` says of a mesh.

    - `compiled`, `estimated`: the mesh itself, by the compiler and by the analytic model.
    - `smaller`, `larger`: the next meshes, estimated.
    """

    planner: Planner
    compiled: Plan
    estimated: Plan
    smaller: Plan | Unfit | None
    larger: Plan | Unfit

    @classmethod
    def of(cls, planner: Planner, sizes: dict[str, int]) -> "Report":
        """Compiles the step for the mesh, and estimates it and its neighbours."""
        half = smaller(sizes)
        return cls(
            planner,
            planner.compile(sizes),
            planner.estimate(sizes),
            None if half is None else planner.try_estimate(half),
            planner.try_estimate(larger(sizes)),
        )

    def as_json(self) -> dict[str, Any]:
        """In bytes, seconds and floating-point operations, of one device."""
        config, target = self.planner.config, self.planner.target
        options = dataclasses.asdict(config)
        del options["out"], options["mesh"]
        return {
            "options": options,
            "target": target.name,
            "devices": target.count,
            "compiled_for": target.compiled_for,
            "virtual": target.virtual is not None,
            "hardware": dataclasses.asdict(target.hardware) if target.hardware else None,
            "compiled": plan_as_json(self.compiled),
            "estimated": plan_as_json(self.estimated),
            "smaller": plan_as_json(self.smaller),
            "larger": plan_as_json(self.larger),
        }

    def show(self, console: Console) -> None:
        """Prints it."""
        config, target = self.planner.config, self.planner.target
        where = f"{target.name}, {mesh_name(self.compiled.mesh)}"
        what = f"{config.task}, {config.model} on {where}"
        say(console, f"{what}; compiled for {target.compiled_for}")
        console.print(self._figures())
        console.print(self._collectives())
        for line in self._notes():
            say(console, line)

    def _figures(self) -> Table:
        columns: list[tuple[str, Plan]] = [
            ("compiled", self.compiled),
            ("estimated", self.estimated),
        ]
        for name, plan in (("smaller", self.smaller), ("larger", self.larger)):
            if isinstance(plan, Plan):
                columns.append((f"{name}: {mesh_name(plan.mesh)}\nestimated", plan))
        table = Table(title="one device", title_justify="left")
        table.add_column("")
        for name, _ in columns:
            table.add_column(name, justify="right")
        for name, value in _ROWS:
            table.add_row(name, *(value(plan) for _, plan in columns))
        return table

    def _collectives(self) -> Table:
        exchanges = sorted(self.compiled.exchanges, key=lambda each: -each.sent)
        left_out = len(exchanges) - _SHOWN
        caption = f"and {left_out} smaller ones, which the JSON has" if left_out > 0 else None
        table = Table(
            title="collectives of the compiled step", title_justify="left", caption=caption
        )
        for name in ("collective", "over"):
            table.add_column(name)
        for name in ("bytes", "times a step", "in a loop", "sent"):
            table.add_column(name, justify="right")
        for each in exchanges[:_SHOWN]:
            table.add_row(
                each.kind,
                ",".join(each.axes),
                in_bytes(each.bytes),
                "?" if each.count is None else str(each.count),
                "yes" if each.in_loop else "no",
                in_bytes(each.sent),
            )
        return table

    def _notes(self) -> list[str]:
        hardware = self.planner.target.hardware
        notes = [
            "Parameters, optimiser and batch are exact. Activations are estimated; the compiler "
            "says what they and the temporaries are together."
        ]
        for name, plan in (("smaller", self.smaller), ("larger", self.larger)):
            if isinstance(plan, Unfit):
                notes.append(f"No {name} mesh, {mesh_name(plan.mesh)}: {plan.reason}.")
        if hardware is None:
            notes.append("There is no datasheet for this target: no bound, and nothing to fit.")
            return notes
        dtype = self.planner.config.dtype
        notes.append(
            f"Bounds are of {hardware.name}: {in_flops(hardware.flops[dtype])}/s in {dtype}, "
            f"{in_bytes(hardware.memory)} at {in_bytes(hardware.memory_bandwidth)}/s, "
            f"{in_bytes(hardware.interconnect)}/s to other devices ({hardware.source})."
        )
        mesh = self.planner.mesh(self.compiled.mesh)
        crossing = [axis for axis in mesh.shape if crosses_hosts((axis,), mesh, hardware)]
        if hardware.network is not None and crossing:
            notes.append(
                f"{', '.join(crossing)}: over hosts of {hardware.devices_per_host} devices each, "
                f"counted at {in_bytes(hardware.network)}/s, the network's rate."
            )
        return notes


def plan_as_json(plan: Plan | Unfit | None) -> dict[str, Any] | None:
    """Every figure of a plan."""
    if plan is None:
        return None
    found = dataclasses.asdict(plan)
    if isinstance(plan, Plan):
        found["memory"]["total"] = plan.memory.total
        for each, exchange in zip(found["exchanges"], plan.exchanges, strict=True):
            each["sent"] = exchange.sent
        if plan.bound is not None:
            found["bound"] |= {"step": plan.bound.step, "by": plan.bound.by}
    return found


def say(console: Console, line: str) -> None:
    """Prints a line as it is, however wide the terminal is."""
    console.print(line, highlight=False, soft_wrap=True)


def verdict(plan: Plan) -> str:
    """Whether it fits, in a word."""
    return "?" if plan.fits is None else "yes" if plan.fits else "NO"


def in_bytes(count: float) -> str:
    """Such as "12.3 MB"."""
    return _scaled(count, 1000, ("B", "kB", "MB", "GB", "TB", "PB"))


def in_seconds(count: float) -> str:
    """Such as "12.3 ms"."""
    return _scaled(count * 1e9, 1000, ("ns", "us", "ms", "s"))


def in_flops(count: float) -> str:
    """Such as "12.3 TFLOP"."""
    return _scaled(count, 1000, tuple(f"{each}FLOP" for each in ("", "k", "M", "G", "T", "P")))


def _scaled(count: float, step: int, units: Sequence[str]) -> str:
    power = 0
    while count >= step and power < len(units) - 1:
        count, power = count / step, power + 1
    return f"{count:.3g} {units[power]}" if count < 999.5 else f"{count:.0f} {units[power]}"


_ROWS = (
    ("fits", lambda plan: verdict(plan)),
    ("parameters", lambda plan: in_bytes(plan.memory.parameters)),
    ("optimiser", lambda plan: in_bytes(plan.memory.optimiser)),
    ("batch", lambda plan: in_bytes(plan.memory.batch)),
    ("activations", lambda plan: in_bytes(plan.memory.activations)),
    ("temporaries", lambda plan: in_bytes(plan.memory.temporaries)),
    ("memory in all", lambda plan: in_bytes(plan.memory.total)),
    ("arithmetic", lambda plan: in_flops(plan.flops)),
    ("time to compute", lambda plan: _time(plan, "compute")),
    ("time of memory", lambda plan: _time(plan, "memory")),
    ("time to send", lambda plan: _time(plan, "interconnect")),
    ("a step takes at least", lambda plan: _time(plan, "step")),
)


def _time(plan: Plan, what: str) -> str:
    return "?" if plan.bound is None else in_seconds(getattr(plan.bound, what))
