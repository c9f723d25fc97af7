"""The named set of devices that a step is planned for."""

import math
from dataclasses import dataclass
from typing import Any

import jax

from rnnscale._errors import as_user_error
from rnnscale.distributed import use_cpu_devices
from rnnscale.plan._hardware import HARDWARE, Hardware
from rnnscale_kernels.testing import missing, target_devices, target_shape


@dataclass(frozen=True)
class Topology:
    """Devices to plan for.

    - `name`: such as `"h100:8"`.
    - `count`: the number of devices.
    - `hardware`: the datasheet of one device, or `None` for CPUs.
    - `virtual`: why the step is compiled for virtual CPU devices instead, or `None` if it is
        compiled for the named devices.
    """

    name: str
    count: int
    hardware: Hardware | None
    virtual: str | None

    @classmethod
    def named(cls, name: str) -> "Topology":
        """The topology with this name, such as `"h100:8"`, `"v5e:16x16"` or `"cpu:8"`.

        **Raises:** `ValueError` if there is no such topology.
        """
        with as_user_error():
            kind, shape = target_shape(name)
        hardware = HARDWARE.get(kind)
        reason = "as requested" if hardware is None else missing(name)
        return cls(name, math.prod(shape), hardware, reason)

    def devices(self) -> list[Any]:
        """The devices to compile for.

        **Raises:** `ValueError` if JAX has already started with fewer CPU devices than needed.
        """
        if self.virtual is None:
            return target_devices(self.name)
        if jax.config.jax_num_cpu_devices < self.count:  # pyright: ignore[reportAttributeAccessIssue]
            use_cpu_devices(self.count)
        return jax.devices("cpu")[: self.count]

    @property
    def compiled_for(self) -> str:
        """The devices that the step is compiled for, in words."""
        if self.virtual is None:
            return self.name
        return f"{self.count} virtual CPU devices ({self.virtual})"
