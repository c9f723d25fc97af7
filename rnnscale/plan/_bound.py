"""A lower bound on the time of a step, from the rates in the datasheet of a device."""

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class Bound:
    """The least time in seconds that a device needs for each of four resources.

    - `compute`: matrix products and recurrences, at the datasheet's rate.
    - `memory`: one read and one write of the training state and of the activations, and what the
        iterations of Newton's method read and write, at the datasheet's bandwidth. This assumes
        that they are many times larger than the on-chip caches.
    - `interconnect`: the bytes that the device sends, at the rate of the interconnect, or of the
        network for mesh axes that cross hosts.
    - `launch`: the launches of the longest chain of kernels in which each needs a result of the
        one before. A loop over time has a few launches for each step.

    The four can overlap, so a step takes at least `step`, the largest of them. A real step takes
    longer: kernels do not reach the datasheet's rates, and not everything overlaps.
    """

    compute: float
    memory: float
    interconnect: float
    launch: float

    @property
    def step(self) -> float:
        """The least time of a step in seconds."""
        return max(self.compute, self.memory, self.interconnect, self.launch)

    @property
    def bottleneck(self) -> str:
        """The resource that needs the most time."""
        times = dataclasses.asdict(self)
        return max(times, key=lambda name: times[name])
