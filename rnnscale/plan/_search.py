"""The search for the best mesh: all are ranked by the analytic model, and the best are compiled."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from rnnscale._errors import UserError
from rnnscale.plan._meshes import all_meshes
from rnnscale.plan._planner import InfeasibleMesh, Plan, Planner, mesh_name
from rnnscale.plan._report import plan_as_json, print_line, undivided, verdict
from rnnscale.plan._units import in_bytes, in_seconds

_COMPILED = 3
_SHOWN = 12


@dataclass(frozen=True)
class Search:
    """All meshes over the devices of a topology, ranked.

    - `estimated`: the plans by the analytic model of all feasible meshes, the best first.
    - `infeasible`: the other meshes, with reasons.
    - `compiled`: `Report.as_json` of the best three, or why they do not compile.
    """

    planner: Planner
    estimated: list[Plan]
    infeasible: list[InfeasibleMesh]
    compiled: list[dict[str, Any] | InfeasibleMesh]

    @classmethod
    def of(
        cls, planner: Planner, compile_apart: Callable[[dict[str, int]], dict[str, Any]]
    ) -> "Search":
        """Rank the meshes, and compile the best three.

        **Arguments:**

        - `planner`: the run and its topology.
        - `compile_apart`: maps the sizes of a mesh to `Report.as_json`, computed in a process of
            its own so that its memory is freed; it raises `ValueError` if the step does not
            compile.

        **Raises:** `ValueError` if the run can't be split over any mesh of the topology.
        """
        estimated, infeasible = rank_meshes(planner)
        if not estimated:
            raise UserError(
                f"the run can't be split over any mesh of {planner.topology.count} devices; for "
                f"example {mesh_name(infeasible[0].mesh)}: {infeasible[0].reason}"
            )
        compiled: list[dict[str, Any] | InfeasibleMesh] = []
        for plan in estimated[:_COMPILED]:
            try:
                compiled.append(compile_apart(plan.mesh))
            except ValueError as error:
                compiled.append(InfeasibleMesh(plan.mesh, str(error)))
        return cls(planner, estimated, infeasible, compiled)

    def as_json(self) -> dict[str, Any]:
        """The ranking, and `Report.as_json` of the compiled meshes."""
        return {
            "target": self.planner.topology.name,
            "devices": self.planner.topology.count,
            "estimated": [plan_as_json(plan) for plan in self.estimated],
            "infeasible": [plan_as_json(each) for each in self.infeasible],
            "compiled": [
                plan_as_json(each) if isinstance(each, InfeasibleMesh) else each
                for each in self.compiled
            ],
        }

    def show(self, console: Console) -> None:
        """Print the ranking, and the compiled figures relative to the estimates."""
        config, topology = self.planner.config, self.planner.topology
        name = self.planner.task.name
        print_line(console, f"{name}, {config.model_names} on {topology.name}")
        console.print(self._ranked())
        for note in undivided(self.estimated[:_SHOWN]):
            print_line(console, note)
        console.print(self._compared())
        for each in self.compiled:
            if isinstance(each, InfeasibleMesh):
                print_line(console, f"{mesh_name(each.mesh)} does not compile: {each.reason}")

    def _ranked(self) -> Table:
        left_out = len(self.estimated) - _SHOWN
        table = Table(
            title=f"{len(self.estimated)} meshes by estimate, best first; figures per device",
            title_justify="left",
            caption=f"and {left_out} more (see --json)" if left_out > 0 else None,
        )
        table.add_column("mesh")
        for name in ("fits", "memory", "least step time", "sent"):
            table.add_column(name, justify="right")
        for plan in self.estimated[:_SHOWN]:
            step = in_seconds(plan.bound.step) if plan.bound else "?"
            table.add_row(
                mesh_name(plan.mesh),
                verdict(plan),
                in_bytes(plan.memory.total),
                step,
                in_bytes(plan.sent),
            )
        return table

    def _compared(self) -> Table:
        table = Table(title="compiled, relative to the estimate", title_justify="left")
        table.add_column("mesh")
        for name in ("memory", "least step time", "sent"):
            table.add_column(name, justify="right")
        for plan, report in zip(self.estimated, self.compiled, strict=False):
            if isinstance(report, InfeasibleMesh):
                continue
            found = report["compiled"]
            bounds = (found["bound"]["step"], plan.bound.step) if plan.bound else (None, None)
            table.add_row(
                mesh_name(plan.mesh),
                _ratio(found["memory"]["total"], plan.memory.total),
                _ratio(*bounds),
                _ratio(sum(each["sent"] for each in found["collectives"]), plan.sent),
            )
        return table


def rank_meshes(planner: Planner) -> tuple[list[Plan], list[InfeasibleMesh]]:
    """The estimated plans of all feasible meshes, the best first, and the infeasible meshes.

    Plans that fit the memory come first. They are then ordered by the bound on the time of a step,
    by the sum of its three times, and by memory.
    """
    found = [planner.try_estimate(sizes) for sizes in all_meshes(planner.topology.count)]
    plans = sorted((each for each in found if isinstance(each, Plan)), key=_rank)
    return plans, [each for each in found if isinstance(each, InfeasibleMesh)]


def _rank(plan: Plan) -> tuple:
    bound = plan.bound
    times = (bound.step, bound.compute + bound.memory + bound.interconnect) if bound else ()
    return plan.fits is False, *times, plan.memory.total


def _ratio(compiled: float | None, estimated: float | None) -> str:
    return f"{compiled / estimated:.2f}" if compiled is not None and estimated else "?"
