"""The constructor of a device mesh."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from rnnscale._checks import Size, check_arguments
from rnnscale.sharding._axes import AXES


@check_arguments
def make_mesh(
    data: Size = 1,
    fsdp: Size = 1,
    tensor: Size = 1,
    seq: Size = 1,
    *,
    devices: Sequence[Any] | np.ndarray | None = None,
) -> Mesh:
    """A mesh with the axes `data`, `fsdp`, `tensor` and `seq`, for `jax.set_mesh`.

    **Arguments:** the number of devices along each axis, 1 by default.

    - `data`: splits the batch.
    - `fsdp`: splits the batch too, and parameters and optimiser state.
    - `tensor`: splits the states of state-space layers, the heads of attention layers and the inner
        width of `FFN`.
    - `seq`: splits time, for layers that are linear in their state and cells with `parallel`.
    - `devices`: the devices of the mesh; all devices by default.

    **Returns:** a `jax.sharding.Mesh` whose axes are all of type `Auto`.

    **Raises:** `ValueError` if a size is below 1, or if the product of the sizes is not the number
    of devices.
    """
    sizes = dict(zip(AXES, (data, fsdp, tensor, seq), strict=True))
    devices = jax.devices() if devices is None else list(devices)
    if math.prod(sizes.values()) != len(devices):
        sizes_in_words = (
            " * ".join(f"{name}={size}" for name, size in sizes.items() if size > 1) or "1"
        )
        raise ValueError(
            f"the mesh needs {math.prod(sizes.values())} devices ({sizes_in_words}), but "
            f"there are {len(devices)}: make the product of its axes {len(devices)}"
        )
    return jax.make_mesh(
        tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices
    )
