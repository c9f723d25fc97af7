"""The devices that a step is planned for."""

import math
from dataclasses import dataclass
from typing import Any

import jax

from rnnscale.distributed import use_cpu_devices
from rnnscale.plan._hardware import HARDWARE, Hardware
from rnnscale_kernels.testing import missing, target_devices, target_shape


@dataclass(frozen=True)
class Target:
    """Devices to plan for.

    - `name`: such as `"h100:8"`.
    - `count`: how many devices.
    - `hardware`: what one of them is, or None for the CPU's.
    - `virtual`: why a step is compiled for virtual devices of the CPU in their place, or None.
    """

    name: str
    count: int
    hardware: Hardware | None
    virtual: str | None

    @classmethod
    def of(cls, name: str) -> "Target":
        """The target of a name.

        **Raises:** `ValueError` for one that there is not.
        """
        kind, shape = target_shape(name)
        hardware = HARDWARE.get(kind)
        reason = "they are asked for" if hardware is None else missing(name)
        return cls(name, math.prod(shape), hardware, reason)

    def devices(self) -> list[Any]:
        """The devices to compile for.

        **Raises:** `ValueError` where jax has started with fewer devices of the CPU than it needs.
        """
        if self.virtual is None:
            return target_devices(self.name)
        if jax.config.jax_num_cpu_devices < self.count:  # pyright: ignore[reportAttributeAccessIssue]
            use_cpu_devices(self.count)
        return jax.devices("cpu")[: self.count]

    @property
    def compiled_for(self) -> str:
        if self.virtual is None:
            return self.name
        return f"{self.count} virtual devices of the CPU ({self.virtual})"
