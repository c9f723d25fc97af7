"""A lower bound on the time of a step, from the rates in the datasheet of a device."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

from jax.sharding import AbstractMesh, Mesh

from rnnscale.plan._collectives import CollectiveCost, crosses_hosts
from rnnscale.plan._hardware import Hardware
from rnnscale.plan._memory import Memory


@dataclass(frozen=True)
class Bound:
    """The least time in seconds that a device needs for each of three resources.

    - `compute`: matrix products and recurrences, at the datasheet's rate.
    - `memory`: one read and one write of the training state and of the activations, at the
        datasheet's bandwidth. This assumes that they are many times larger than the on-chip caches.
    - `interconnect`: the bytes that the device sends, at the rate of the interconnect, or of the
        network for mesh axes that cross hosts.

    The three can overlap, so a step takes at least `step`, the largest of them. A real step takes
    longer: kernels do not reach the datasheet's rates, and not everything overlaps.
    """

    compute: float
    memory: float
    interconnect: float

    @property
    def step(self) -> float:
        """The least time of a step in seconds."""
        return max(self.compute, self.memory, self.interconnect)

    @property
    def bottleneck(self) -> str:
        """The resource that needs the most time."""
        times = dataclasses.asdict(self)
        return max(times, key=lambda name: times[name])


def lower_bound(
    flops: int,
    dtype: str,
    memory: Memory,
    collectives: Iterable[CollectiveCost],
    mesh: Mesh | AbstractMesh,
    hardware: Hardware,
) -> Bound:
    """The bound for a device with this work, memory and communication."""
    state = memory.parameters + memory.optimiser
    moved = 2 * state + 2 * memory.activations + memory.batch
    seconds = 0.0
    for each in collectives:
        rate = hardware.interconnect
        if hardware.network is not None and crosses_hosts(each.axes, mesh, hardware):
            rate = hardware.network
        seconds += each.sent / rate
    return Bound(flops / hardware.flops[dtype], moved / hardware.memory_bandwidth, seconds)
