"""What devices exchange with one another in a step."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from rnnscale.plan._hardware import Hardware
from rnnscale.plan._memory import gathered_bytes, gradient_bytes
from rnnscale.plan._share import Share
from rnnscale.plan._walk import Recurrence
from rnnscale.runs import Setup
from rnnscale_kernels.testing import Collective


@dataclass(frozen=True)
class Exchange:
    """Equal collectives.

    - `kind`: as in `rnnscale_kernels.testing.Collective`.
    - `axes`: the mesh axes that it runs over.
    - `devices`: how many take part.
    - `bytes`: of its result on one device, every time that it runs.
    - `count`: how often it runs in a step, or None where the program does not say.
    - `in_loop`: whether it stands inside a loop.
    """

    kind: str
    axes: tuple[str, ...]
    devices: int
    bytes: int
    count: int | None
    in_loop: bool

    @property
    def sent(self) -> float:
        """Bytes that each device has to send in a step, at least."""
        others = (self.devices - 1) / self.devices
        factor = {
            "all-gather": others,
            "all-reduce": 2 * others,
            "reduce-scatter": self.devices - 1,
            "all-to-all": others,
            "collective-permute": 1,
        }[self.kind]
        return factor * self.bytes * (self.count or 1)


def compiled_exchanges(collectives: Iterable[Collective]) -> list[Exchange]:
    """The collectives of a program, those with the same kind, axes and size as one."""
    counts: dict[tuple, float] = defaultdict(float)
    for each in collectives:
        key = each.kind, each.axes, each.devices, each.bytes, bool(each.loops)
        counts[key] += each.turns
    return [
        Exchange(kind, axes, devices, size, int(count) if count == count else None, in_loop)
        for (kind, axes, devices, size, in_loop), count in counts.items()
    ]


def estimated_exchanges(setup: Setup, share: Share) -> list[Exchange]:
    """What the layout makes necessary.

    - Gradients are added up over `data`, `fsdp` and `seq`, once.
    - Parameters that `fsdp` splits are gathered for the forward and for the backward pass, with
        accumulation for both at once.
    - The outputs of a `diagonal_ssm` are added up over `tensor`, backward the gradients of its
        inputs.
    - A recurrence over `seq` gathers the last states of all devices, backward their cotangents.
        With a decay that varies it gathers the products of the decays too.
    """
    sizes = setup.mesh.shape
    parts = setup.config.accumulation
    found = []

    def add(kind: str, axes: tuple[str, ...], size: int, count: float, in_loop: bool) -> None:
        used = tuple(axis for axis in axes if sizes[axis] > 1)
        devices = int(np.prod([sizes[axis] for axis in used]))
        if used and size:
            found.append(Exchange(kind, used, devices, size, int(count), in_loop))

    add("all-reduce", ("data", "fsdp", "seq"), gradient_bytes(setup), 1, False)
    add("all-gather", ("fsdp",), gathered_bytes(setup), 1 if parts > 1 else 2, False)
    for each in share.recurrences:
        turns = parts * each.turns
        if each.operation == "diagonal_ssm":
            features = each.idim if each.backward else each.odim
            add("all-reduce", ("tensor",), 4 * each.tokens * features, turns, turns > 1)
        add("all-gather", ("seq",), sizes["seq"] * _ends(each), turns, turns > 1)
    return found


def _ends(recurrence: Recurrence) -> int:
    """Bytes of what a device says about its part of a sequence."""
    arrays = 2 if recurrence.operation == "linear_scan" else 1
    return 4 * arrays * recurrence.planes * recurrence.rows * recurrence.states


def crosses_hosts(axes: tuple[str, ...], mesh: Any, hardware: Hardware) -> bool:
    """Whether devices that differ along the axes only are on several hosts."""
    if hardware.devices_per_host is None or not axes:
        return False
    shape = tuple(mesh.shape.values())
    hosts = np.arange(np.prod(shape)).reshape(shape) // hardware.devices_per_host
    along = tuple(list(mesh.shape).index(axis) for axis in axes)
    return bool(np.any(hosts.max(axis=along) != hosts.min(axis=along)))
