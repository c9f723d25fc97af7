"""The plan of a train step on one mesh, estimated or compiled."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import jax
from jax.sharding import AbstractMesh, Mesh, use_abstract_mesh

from rnnscale._errors import UserError, as_user_error
from rnnscale.plan._bound import Bound
from rnnscale.plan._collectives import (
    CollectiveCost,
    compiled_collectives,
    crosses_hosts,
    estimated_collectives,
)
from rnnscale.plan._device_cost import CostModel, DeviceCost, abstract_mesh
from rnnscale.plan._hardware import Hardware
from rnnscale.plan._memory import Memory, compiled_memory, estimated_memory
from rnnscale.plan._topology import Topology
from rnnscale.runs import Setup, TrainConfig, check_fits, set_up
from rnnscale.sharding import AXES, make_mesh
from rnnscale.tasks import Task
from rnnscale_kernels.testing import Program, compile_on


@dataclass(frozen=True)
class Plan:
    """What a train step needs on one mesh. All figures are per device.

    - `mesh`: the axes and their sizes.
    - `source`: whether memory and collectives are read from the compiled program or estimated.
    - `fits`: whether the memory suffices; `None` without a datasheet.
    - `memory`, `collectives`: see `Memory` and `CollectiveCost`.
    - `flops`: operations of matrix products and recurrences, counted in the traced step.
    - `bound`: a lower bound on the time of a step; `None` without a datasheet.
    - `counted_parameters`: the parameters of the traced model, as a multiple of those that a
        device holds. Not 1 if the plan does not know all that `tensor` divides in this model:
        above 1, `flops`, activations and `bound` are too large, at most by the size of `tensor`;
        below 1 they are too small. Estimated `collectives` may lack some over `tensor`.
    """

    mesh: dict[str, int]
    source: Literal["compiled", "estimated"]
    fits: bool | None
    memory: Memory
    collectives: list[CollectiveCost]
    flops: int
    bound: Bound | None
    counted_parameters: float

    @property
    def sent(self) -> float:
        """The least number of bytes that a device sends in a step."""
        return sum((each.sent for each in self.collectives), 0.0)


@dataclass(frozen=True)
class InfeasibleMesh:
    """A mesh that the run can't be split over, or can't be compiled for, and the reason."""

    mesh: dict[str, int]
    reason: str


def mesh_name(sizes: Mapping[str, int]) -> str:
    """The mesh as one writes it after `--mesh`."""
    return ",".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1) or "data=1"


class Planner:
    """Plans the steps of one run on the devices of one topology.

    **Arguments:**

    - `config`: the options of the run; its `mesh` is ignored.
    - `task`: the task of the run.
    - `topology`: from `Topology.named`.
    - `iterations`: the iterations of one solve by Newton's method, needed if the run uses it
        (`TrainConfig.parallel`). A step has three solves: for the states, for the growth of
        rounding errors, and for the backward pass. `rnnscale.analysis.parallelisable` measures the
        number. All rows are taken to pass with it, so that none is computed step by step.

    **Raises:** `ValueError` if `iterations` is below 1, or given for a run without `parallel`.
    """

    def __init__(
        self, config: TrainConfig, task: Task, topology: Topology, iterations: int | None = None
    ):
        if iterations is not None and iterations < 1:
            raise UserError(f"iterations must be at least 1, got {iterations}")
        if iterations is not None and config.parallel == "none":
            raise UserError(
                "iterations are those of Newton's method, which this run does not use: leave them "
                "out, or give parallel"
            )
        self.config, self.task, self.topology = config, task, topology
        self.iterations = iterations
        self._cost_model = CostModel(config, task, iterations)
        self._sizes_that_split_time: set[int] = set()

    def estimate(self, sizes: dict[str, int]) -> Plan:
        """The plan by the analytic model. The mesh may have any number of devices.

        **Raises:** `ValueError` if the run can't be split over the mesh, or needs `iterations`.
        """
        self._check(sizes)
        mesh = abstract_mesh(sizes)
        setup, cost = self._cost_model.setup(mesh), self._cost_model.device_cost(mesh)
        memory, collectives = estimated_memory(setup, cost), estimated_collectives(setup, cost)
        return self._plan(setup, cost, "estimated", memory, collectives)

    def try_estimate(self, sizes: dict[str, int]) -> Plan | InfeasibleMesh:
        """As `estimate`, with an `InfeasibleMesh` in place of the error."""
        try:
            return self.estimate(sizes)
        except ValueError as error:
            return InfeasibleMesh(sizes, str(error))

    def compile(self, sizes: dict[str, int]) -> Plan:
        """The plan of the compiled step.

        **Raises:** `ValueError` if the mesh and the topology differ in their number of devices, or
        if the run can't be split over the mesh or needs `iterations`.
        """
        with as_user_error():
            mesh = make_mesh(**sizes, devices=self.topology.devices())
        setup = set_up(self.config, self.task, mesh)
        state, batch = setup.abstract_state(), setup.abstract_batch()
        cost = self._cost_model.device_cost(mesh.abstract_mesh)
        compiled = compile_on(mesh, setup.train_step, state, batch)
        memory = compiled_memory(setup, cost, compiled)
        program = Program(compiled, mesh, iterations=self.iterations or math.nan)
        collectives = compiled_collectives(program.collectives)
        return self._plan(setup, cost, "compiled", memory, collectives)

    def _check(self, sizes: dict[str, int]) -> None:
        """Raises `ValueError` if the run can't be split over a mesh of these sizes."""
        mesh = abstract_mesh(sizes)
        check_fits(self.config, self.task, mesh)
        self._cost_model.setup(mesh).abstract_state()
        devices = mesh.shape["seq"]
        if devices == 1 or devices in self._sizes_that_split_time:
            return
        # Tracing the loss raises if its model can't split time.
        mesh = abstract_mesh({"seq": devices})
        setup = self._cost_model.setup(mesh)
        model, batch = setup.abstract_state().model, setup.abstract_batch()
        with use_abstract_mesh(mesh):
            jax.eval_shape(lambda model, batch: setup.loss(model, batch, None), model, batch)
        self._sizes_that_split_time.add(devices)

    def _plan(
        self,
        setup: Setup,
        cost: DeviceCost,
        source: Literal["compiled", "estimated"],
        memory: Memory,
        collectives: list[CollectiveCost],
    ) -> Plan:
        hardware, mesh = self.topology.hardware, setup.mesh
        parts = self.config.accumulation
        fits = bound = None
        if hardware is not None:
            fits = memory.total <= hardware.memory
            dtype = self.config.dtype
            bound = _lower_bound(cost, parts, dtype, memory, collectives, mesh, hardware)
        sizes = {axis: mesh.shape[axis] for axis in AXES}
        counted = self._cost_model.counted_parameters(mesh.shape["tensor"])
        return Plan(sizes, source, fits, memory, collectives, parts * cost.flops, bound, counted)


def _lower_bound(
    cost: DeviceCost,
    parts: int,
    dtype: str,
    memory: Memory,
    collectives: Iterable[CollectiveCost],
    mesh: Mesh | AbstractMesh,
    hardware: Hardware,
) -> Bound:
    """The bound for a step of `parts` micro-batches with this cost, memory and communication."""
    state = memory.parameters + memory.optimiser
    moved = 2 * state + memory.batch + parts * (2 * memory.activations + cost.iterated_bytes)
    seconds = 0.0
    for each in collectives:
        rate = hardware.interconnect
        if hardware.network is not None and crosses_hosts(each.axes, mesh, hardware):
            rate = hardware.network
        seconds += each.sent / rate
    return Bound(
        parts * cost.flops / hardware.flops[dtype],
        moved / hardware.memory_bandwidth,
        seconds,
        parts * cost.chain * hardware.launch,
    )
