"""The collectives of a step: read from the compiled program, or estimated from the layout."""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jax.sharding import AbstractMesh, Mesh

from rnnscale.cells import Newton
from rnnscale.plan._device_cost import DeviceCost
from rnnscale.plan._hardware import Hardware
from rnnscale.plan._memory import gathered_bytes, gradient_bytes
from rnnscale.runs import Setup
from rnnscale_kernels.testing import Collective

# The name scope of the loop by steps for rows that did not pass Newton's method: the first branch
# of a conditional.
_BY_STEPS = f"{Newton.scope}/cond/branch_0_fun"


@dataclass(frozen=True)
class CollectiveCost:
    """Identical collectives of a step, counted together.

    - `kind`: such as `"all-gather"`; see `rnnscale_kernels.testing.Collective`.
    - `axes`: the mesh axes that it runs over.
    - `devices`: the number of devices that take part in one collective.
    - `bytes`: the size of its result on one device.
    - `count`: how often it runs in a step.
    - `in_loop`: whether it stands inside a loop.
    """

    kind: str
    axes: tuple[str, ...]
    devices: int
    bytes: int
    count: int
    in_loop: bool

    @property
    def sent(self) -> float:
        """The least number of bytes that each device sends in a step, as in a ring algorithm."""
        others = (self.devices - 1) / self.devices
        factor = {
            "all-gather": others,
            "all-reduce": 2 * others,
            "reduce-scatter": self.devices - 1.0,
            "all-to-all": others,
            "collective-permute": 1.0,
        }[self.kind]
        return factor * self.bytes * self.count


def compiled_collectives(collectives: Iterable[Collective]) -> list[CollectiveCost]:
    """The collectives of a compiled program; those of equal kind, axes and size are merged. Those
    of the loop by steps after a failure of Newton's method are left out.

    **Raises:** `ValueError` if the program does not say how often one of them runs.
    """
    counts = defaultdict[tuple, float](float)
    for each in collectives:
        if _BY_STEPS in each.source:
            continue
        counts[each.kind, each.axes, each.devices, each.bytes, bool(each.loops)] += each.turns
    if any(map(math.isnan, counts.values())):
        raise ValueError("the program does not say how often its collectives run: give iterations")
    return [
        CollectiveCost(kind, axes, devices, size, int(count), in_loop)
        for (kind, axes, devices, size, in_loop), count in counts.items()
    ]


def estimated_collectives(setup: Setup, cost: DeviceCost) -> list[CollectiveCost]:
    """The collectives that the layout requires.

    - Gradients are summed once over `data`, `fsdp` and `seq`.
    - Parameters that `fsdp` splits are gathered for the forward pass and again for the backward
        pass; with gradient accumulation, once for both.
    - Over `tensor`, `diagonal_ssm` sums its outputs, and in the backward pass the gradients of its
        inputs. So do layers with `linear_attention` or `selective_scan`, after their output map
        and before their input maps.
    - Over `seq`, a recurrence gathers the last state of every device, and in the backward pass its
        cotangent. If its decay varies in time, it also gathers the products of the decays. An
        iteration of Newton's method is one such recurrence.
    """
    sizes = setup.mesh.shape
    parts = setup.config.accumulation
    found = []

    def add(kind: str, axes: tuple[str, ...], size: int, count: int, in_loop: bool) -> None:
        used = tuple(axis for axis in axes if sizes[axis] > 1)
        devices = int(np.prod([sizes[axis] for axis in used]))
        if used and size:
            found.append(CollectiveCost(kind, used, devices, size, count, in_loop))

    add("all-reduce", ("data", "fsdp", "seq"), gradient_bytes(setup), 1, False)
    add("all-gather", ("fsdp",), gathered_bytes(setup), 1 if parts > 1 else 2, False)
    for each in cost.kernel_calls:
        turns = parts * each.turns
        features = 0
        if each.operation == "diagonal_ssm":
            features = each.idim if each.backward else each.odim
        elif each.operation in ("linear_attention", "selective_scan"):
            features = setup.config.dim
        add("all-reduce", ("tensor",), 4 * each.tokens * features, turns, turns > 1)
        add("all-gather", ("seq",), 4 * sizes["seq"] * each.rows * each.total, turns, turns > 1)
    return found


def crosses_hosts(axes: tuple[str, ...], mesh: Mesh | AbstractMesh, hardware: Hardware) -> bool:
    """Whether devices that differ along these axes only can be on different hosts."""
    if hardware.devices_per_host is None or not axes:
        return False
    shape = tuple(mesh.shape.values())
    hosts = np.arange(np.prod(shape)).reshape(shape) // hardware.devices_per_host
    along = tuple(list(mesh.shape).index(axis) for axis in axes)
    return bool(np.any(hosts.max(axis=along) != hosts.min(axis=along)))
