"""The plan of a step on one mesh: estimated, or compiled."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import jax
from jax.sharding import AbstractMesh, AxisType, use_abstract_mesh

from rnnscale._errors import as_user_error
from rnnscale.plan._bound import Bound, lower_bound
from rnnscale.plan._memory import Memory, compiled_memory, estimated_memory
from rnnscale.plan._share import Share, Shares
from rnnscale.plan._target import Target
from rnnscale.plan._traffic import Exchange, compiled_exchanges, estimated_exchanges
from rnnscale.runs import Setup, TrainConfig, check_fits, set_up
from rnnscale.sharding import AXES, make_mesh
from rnnscale.tasks import Task
from rnnscale_kernels.testing import Program, compile_on


@dataclass(frozen=True)
class Plan:
    """What a step needs on one mesh. Figures are of one device.

    - `mesh`: its axes and their sizes.
    - `source`: whether memory and exchanges are those of the compiled program.
    - `fits`: whether the memory is enough, or None where it is nobody's datasheet's.
    - `flops`: of matrix products and recurrences in a step, counted in the traced step.
    - `bound`: the least time of a step, or None for devices without a datasheet.
    """

    mesh: dict[str, int]
    source: Literal["compiled", "estimated"]
    fits: bool | None
    memory: Memory
    exchanges: list[Exchange]
    flops: float
    bound: Bound | None

    @property
    def sent(self) -> float:
        """Bytes that a device sends in a step, at least."""
        return sum(each.sent for each in self.exchanges)


@dataclass(frozen=True)
class Unfit:
    """A mesh that the run cannot be split over, and why."""

    mesh: dict[str, int]
    reason: str


def mesh_name(sizes: Mapping[str, int]) -> str:
    """As it is written after `--mesh`."""
    return ",".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1) or "data=1"


class Planner:
    """Plans the steps of one run for one target.

    **Arguments:**

    - `config`: the options of the run; its `mesh` is not used.
    - `task`: what it learns.
    - `target`: see `Target.of`.
    """

    def __init__(self, config: TrainConfig, task: Task, target: Target):
        self.config, self.task, self.target = config, task, target
        self._shares = Shares(config, task)
        self._splits_time: set[int] = set()

    def estimate(self, sizes: dict[str, int]) -> Plan:
        """The plan by the analytic model. Its mesh may have any number of devices.

        **Raises:** `ValueError` where the run cannot be split over the mesh.
        """
        self._check(sizes)
        mesh = self.mesh(sizes)
        setup = self._shares.setup(mesh)
        share = self._shares.of(mesh)
        exchanges = estimated_exchanges(setup, share)
        return self._plan(setup, share, "estimated", estimated_memory(setup, share), exchanges)

    def try_estimate(self, sizes: dict[str, int]) -> Plan | Unfit:
        """The plan by the analytic model, or why the run cannot be split over the mesh."""
        try:
            return self.estimate(sizes)
        except ValueError as error:
            return Unfit(sizes, str(error))

    def compile(self, sizes: dict[str, int]) -> Plan:
        """The plan of the compiled step.

        **Raises:** `ValueError` where the mesh has not as many devices as the target, or the run
        cannot be split over it.
        """
        with as_user_error():
            mesh = make_mesh(**sizes, devices=self.target.devices())
        setup = set_up(self.config, self.task, mesh)
        state, batch = setup.abstract_state(), setup.abstract_batch()
        compiled = compile_on(mesh, setup.train_step, state, batch)
        share = self._shares.of(mesh.abstract_mesh)
        memory = compiled_memory(setup, share, compiled)
        exchanges = compiled_exchanges(Program(compiled, mesh).collectives)
        return self._plan(setup, share, "compiled", memory, exchanges)

    def mesh(self, sizes: dict[str, int]) -> AbstractMesh:
        """The mesh of these sizes, without devices."""
        return AbstractMesh(
            tuple(sizes.get(axis, 1) for axis in AXES),
            AXES,
            axis_types=(AxisType.Auto,) * len(AXES),
        )

    def _check(self, sizes: dict[str, int]) -> None:
        """Raises `ValueError` where the run cannot be split over a mesh of these sizes."""
        mesh = self.mesh(sizes)
        check_fits(self.config, self.task, mesh)
        self._shares.setup(mesh).abstract_state()
        self._check_time(mesh.shape["seq"])

    def _check_time(self, devices: int) -> None:
        """A model whose time cannot be split over devices says so when it is traced."""
        if devices == 1 or devices in self._splits_time:
            return
        mesh = self.mesh({"seq": devices})
        setup = self._shares.setup(mesh)
        model, batch = setup.abstract_state().model, setup.abstract_batch()
        with use_abstract_mesh(mesh):
            jax.eval_shape(lambda model, batch: setup.loss(model, batch, None), model, batch)
        self._splits_time.add(devices)

    def _plan(
        self,
        setup: Setup,
        share: Share,
        source: Literal["compiled", "estimated"],
        memory: Memory,
        exchanges: list[Exchange],
    ) -> Plan:
        hardware = self.target.hardware
        mesh = setup.mesh
        flops = self.config.accumulation * share.flops
        fits = bound = None
        if hardware is not None:
            fits = memory.total <= hardware.memory
            bound = lower_bound(flops, self.config.dtype, memory, exchanges, mesh, hardware)
        sizes = {axis: mesh.shape[axis] for axis in AXES}
        return Plan(sizes, source, fits, memory, exchanges, flops, bound)
