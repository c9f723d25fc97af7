"""The least time that a step can take."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rnnscale.plan._hardware import Hardware
from rnnscale.plan._memory import Memory
from rnnscale.plan._traffic import Exchange, crosses_hosts


@dataclass(frozen=True)
class Bound:
    """Seconds that a device is busy at least, with each of three things.

    - `compute`: its matrix products and recurrences at the datasheet's rate.
    - `memory`: the state, read and written, and the activations, written and read, at the
        datasheet's bandwidth; as if none of them stayed on the chip, which is so where they are
        many times its cache.
    - `interconnect`: what it sends. A ring sends least: for an all-reduce over n devices 2 (n - 1)
        / n of its bytes. Devices of one host send at the interconnect's rate, over axes that cross
        hosts at the network's.

    The three can overlap, so a step takes at least `step`, the longest of them. A real one takes
    longer: kernels do not reach the datasheet's rates and not everything overlaps.
    """

    compute: float
    memory: float
    interconnect: float

    @property
    def step(self) -> float:
        return max(self.compute, self.memory, self.interconnect)

    @property
    def by(self) -> str:
        """What takes longest."""
        times = {
            "compute": self.compute, "memory": self.memory, "interconnect": self.interconnect
        }  # fmt: skip
        return max(times, key=lambda name: times[name])


def lower_bound(
    flops: float,
    dtype: str,
    memory: Memory,
    exchanges: Iterable[Exchange],
    mesh: Any,
    hardware: Hardware,
) -> Bound:
    """The bound of a step, from what one device computes, holds and sends."""
    state = memory.parameters + memory.optimiser
    moved = 2 * state + 2 * memory.activations + memory.batch
    seconds = 0.0
    for each in exchanges:
        rate = hardware.interconnect
        if hardware.network is not None and crosses_hosts(each.axes, mesh, hardware):
            rate = hardware.network
        seconds += each.sent / rate
    return Bound(flops / hardware.flops[dtype], moved / hardware.memory_bandwidth, seconds)
