"""The device mesh and its axes."""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

AXES = ("data", "fsdp", "tensor", "seq")


def make_mesh(
    data: int = 1,
    fsdp: int = 1,
    tensor: int = 1,
    seq: int = 1,
    *,
    devices: Sequence[Any] | None = None,
) -> Mesh:
    """A mesh with the axes that this package knows, for `jax.set_mesh`.

    **Arguments:**

    - `data`: the batch is split over it.
    - `fsdp`: the batch is split over it too, and so are parameters and optimiser state.
    - `tensor`: the states of state-space layers and the inner width of `FFN` are split over it.
    - `seq`: time is split over it, for layers that are linear in their state.
    - `devices`: all devices by default.

    **Returns:** a `jax.sharding.Mesh` whose axes are all of type `Auto`.

    **Raises:** `ValueError` where an axis is below 1 or their product isn't the device count.
    """
    sizes = dict(zip(AXES, (data, fsdp, tensor, seq), strict=True))
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"mesh axis {name} must be at least 1, got {size}")
    devices = jax.devices() if devices is None else devices
    if math.prod(sizes.values()) != len(devices):
        given = " * ".join(f"{name}={size}" for name, size in sizes.items() if size > 1) or "1"
        raise ValueError(
            f"the mesh needs {math.prod(sizes.values())} devices ({given}), but there are "
            f"{len(devices)}: make the product of its axes {len(devices)}"
        )
    return jax.make_mesh(
        tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices
    )
