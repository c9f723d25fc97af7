"""The device that a program is compiled for, which need not be here."""

import re
from dataclasses import dataclass
from typing import Any

import jax

# Compute capabilities, by words in the kind of a device: of an absent device only that is known.
_CAPABILITIES = {
    "V100": (7, 0), "T4": (7, 5),
    "A100": (8, 0), "A30": (8, 0), "A10": (8, 6), "A10G": (8, 6), "A40": (8, 6),
    "L4": (8, 9), "L40": (8, 9), "L40S": (8, 9),
    "H20": (9, 0), "H100": (9, 0), "H200": (9, 0), "H800": (9, 0), "GH200": (9, 0),
    "B200": (10, 0), "GB200": (10, 0), "B300": (10, 3), "GB300": (10, 3),
}  # fmt: skip


@dataclass(frozen=True)
class Target:
    """The device that a program is compiled for.

    - `platform`: "cpu", "cuda", "rocm" or "tpu".
    - `device_kind`: such as "NVIDIA H100 80GB HBM3"; `None` if it is not known.
    - `capability`: the compute capability of an NVIDIA GPU, such as (9, 0).
    - `cores`: the number of its multiprocessors.
    - `interpret`: whether its kernels run on a CPU, in the interpreter of their toolchain.
    """

    platform: str
    device_kind: str | None = None
    capability: tuple[int, int] | None = None
    cores: int | None = None
    interpret: bool = False

    @classmethod
    def of(cls, platform: str) -> "Target":
        """The device that code lowered for `platform` will run on.

        It is the device of the ambient mesh if that is of the platform, otherwise the local one.
        """
        local = _local_device(platform)
        device = jax.sharding.get_abstract_mesh().abstract_device
        of_gpus = {"gpu": ("cuda", "rocm")}
        if device is not None and platform in of_gpus.get(device.platform, (device.platform,)):
            kind = device.device_kind
            if local is None or local.device_kind != kind:
                return cls(platform, kind, known_capability(kind), device.num_cores)
        if local is None:
            return cls(platform)
        capability = getattr(local, "compute_capability", None)
        return cls(
            platform,
            local.device_kind,
            _parsed(capability) if platform == "cuda" and capability else None,
            getattr(local, "core_count", None),
        )

    @property
    def multiprocessors(self) -> int:
        """The number of multiprocessors of a GPU: that of an H100 if it is not known."""
        return self.cores or 132

    def __str__(self) -> str:
        kind = self.device_kind or "an unknown device"
        return self.platform if self.platform == "cpu" else f"{self.platform} ({kind})"


def local_platform() -> str:
    """The platform of the local device, as lowering rules name it: "cuda" where jax says "gpu"."""
    device = jax.devices()[0]
    if device.platform != "gpu":
        return device.platform
    return "cuda" if "cuda" in device.client.platform_version else "rocm"


def needs_hopper(target: Target) -> str | None:
    """Why a kernel with Hopper's products of a warpgroup cannot run on the target, or `None`."""
    if target.platform != "cuda":
        return "it is for NVIDIA GPUs"
    if target.capability is None:
        return "the GPU's compute capability is not known"
    if target.capability[0] != 9:
        return "its products (wgmma) need compute capability 9.0, this is {}.{}".format(
            *target.capability
        )
    return None


H100 = Target("cuda", "NVIDIA H100 80GB HBM3", (9, 0), 132)
TPU_V5E = Target("tpu", "TPU v5 lite", cores=1)


def _local_device(platform: str) -> Any:
    try:
        return jax.local_devices(backend=platform)[0]
    except RuntimeError:  # this machine has none
        return None


def known_capability(kind: str) -> tuple[int, int] | None:
    """The compute capability of a kind of GPU; `None` if it is not in the list."""
    return next((_CAPABILITIES[w] for w in re.split(r"[\s-]+", kind) if w in _CAPABILITIES), None)


def _parsed(capability: str) -> tuple[int, int]:
    major, minor = capability.split(".")
    return int(major), int(minor)
