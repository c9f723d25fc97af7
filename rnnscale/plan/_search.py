"""The best mesh for a run: ranked by the analytic model, the best ones compiled."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from rnnscale._errors import UserError
from rnnscale.plan._meshes import meshes
from rnnscale.plan._plan import Plan, Planner, Unfit, mesh_name
from rnnscale.plan._report import in_bytes, in_seconds, plan_as_json, say, verdict

_COMPILED = 3
_SHOWN = 12


@dataclass(frozen=True)
class Search:
    """All meshes of a target that a run can be split over, the best first.

    - `estimated`: their plans by the analytic model.
    - `unfit`: the other meshes, and why.
    - `compiled`: what `Report.as_json` says of the first ones, or why they do not compile.
    """

    planner: Planner
    estimated: list[Plan]
    unfit: list[Unfit]
    compiled: list[dict[str, Any] | Unfit]

    @classmethod
    def of(
        cls, planner: Planner, compile_apart: Callable[[dict[str, int]], dict[str, Any]]
    ) -> "Search":
        """Ranks the meshes, and compiles the best three.

        **Arguments:**

        - `compile_apart`: gives `Report.as_json` of a mesh, from a process of its own, which can
            start with as many devices as it needs and gives its memory back; raises `ValueError`
            where the step does not compile.

        **Raises:** `ValueError` where the run can be split over no mesh of the target.
        """
        estimated, unfit = ranking(planner)
        if not estimated:
            raise UserError(
                f"the run can be split over no mesh of {planner.target.count} devices, such as "
                f"{mesh_name(unfit[0].mesh)}: {unfit[0].reason}"
            )
        compiled: list[dict[str, Any] | Unfit] = []
        for plan in estimated[:_COMPILED]:
            try:
                compiled.append(compile_apart(plan.mesh))
            except ValueError as error:
                compiled.append(Unfit(plan.mesh, str(error)))
        return cls(planner, estimated, unfit, compiled)

    def as_json(self) -> dict[str, Any]:
        """The ranking, and the compiled ones as `Report.as_json` has them."""
        return {
            "target": self.planner.target.name,
            "devices": self.planner.target.count,
            "estimated": [plan_as_json(plan) for plan in self.estimated],
            "unfit": [plan_as_json(each) for each in self.unfit],
            "compiled": [
                plan_as_json(each) if isinstance(each, Unfit) else each for each in self.compiled
            ],
        }

    def show(self, console: Console) -> None:
        """Prints the ranking, and how far the compiled steps are from it."""
        config, target = self.planner.config, self.planner.target
        say(console, f"{config.task}, {config.model} on {target.name}")
        console.print(self._ranked())
        console.print(self._compared())
        for each in self.compiled:
            if isinstance(each, Unfit):
                say(console, f"{mesh_name(each.mesh)} does not compile: {each.reason}")

    def _ranked(self) -> Table:
        left_out = len(self.estimated) - _SHOWN
        table = Table(
            title=f"{len(self.estimated)} meshes by estimate, the best first; of one device",
            title_justify="left",
            caption=f"and {left_out} more, which the JSON has" if left_out > 0 else None,
        )
        table.add_column("mesh")
        for name in ("fits", "memory", "step at least", "sent"):
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
        table = Table(title="compiled, in multiples of the estimate", title_justify="left")
        table.add_column("mesh")
        for name in ("memory", "step at least", "sent"):
            table.add_column(name, justify="right")
        for plan, report in zip(self.estimated, self.compiled, strict=False):
            if isinstance(report, Unfit):
                continue
            found = report["compiled"]
            bounds = (found["bound"]["step"], plan.bound.step) if plan.bound else (None, None)
            table.add_row(
                mesh_name(plan.mesh),
                _ratio(found["memory"]["total"], plan.memory.total),
                _ratio(*bounds),
                _ratio(sum(each["sent"] for each in found["exchanges"]), plan.sent),
            )
        return table


def ranking(planner: Planner) -> tuple[list[Plan], list[Unfit]]:
    """The estimated plans of all meshes of the target, and the meshes that have none.

    Those whose memory is enough come first, then those whose least time is shortest. Of equal ones
    the first has least to do in all, then the least memory.
    """
    found = [planner.try_estimate(sizes) for sizes in meshes(planner.target.count)]
    plans = sorted((each for each in found if isinstance(each, Plan)), key=_rank)
    return plans, [each for each in found if isinstance(each, Unfit)]


def _rank(plan: Plan) -> tuple:
    bound = plan.bound
    times = (bound.step, bound.compute + bound.memory + bound.interconnect) if bound else ()
    return plan.fits is False, *times, plan.memory.total


def _ratio(compiled: float | None, estimated: float | None) -> str:
    return f"{compiled / estimated:.2f}" if compiled is not None and estimated else "?"
