"""The implementations of the recurrence, in one table."""

from .._dispatch import Dispatch
from .._target import H100, TPU_V5E, Target
from ._by_xla import associative, chunked, sequential
from ._mosaic_gpu import MosaicGPU
from ._mosaic_tpu import MosaicTPU
from ._spec import ScanSpec
from ._split_time import by_kernels
from ._triton import Triton

# `chunked` is faster on CPUs if one step has at most this many numbers and there are at least that
# many steps, measured on two cores in single precision.
NARROW = 256
LONG = 64


def _chunked_unsuited(target: Target, spec: ScanSpec) -> str | None:
    width = spec.batch * spec.channels * spec.planes
    if spec.varying:
        return "the products of a time-varying decay cost as much again"
    if width > NARROW or spec.time < LONG:
        return f"{spec.time} steps of {width} numbers run as fast one after another"
    return None


_KERNELS = {
    "mosaic_gpu": (MosaicGPU("linear_scan"), H100),
    "triton": (Triton(), H100),
    "mosaic_tpu": (MosaicTPU("linear_scan"), TPU_V5E),
}
_ON_DEVICES = [(by_kernels(name, kernels), target) for name, (kernels, target) in _KERNELS.items()]

DISPATCH = Dispatch(
    "linear_scan",
    ScanSpec.of,
    (
        sequential(),
        chunked(unsuited=_chunked_unsuited),
        associative(),
        *(kernels for kernels, _ in _ON_DEVICES),
        *(kernels.interpreted(target) for kernels, target in _ON_DEVICES),
    ),
    order={
        "cpu": ("chunked", "sequential"),
        "cuda": ("mosaic_gpu", "triton", "associative"),
        "rocm": ("associative",),
        "tpu": ("mosaic_tpu", "associative"),
    },
)


def takes_side_by_side(target: Target, spec: ScanSpec) -> bool:
    """Whether the fastest implementation for these arguments takes sequences as `SideBySide`."""
    name = DISPATCH.choose(target, spec, None).name
    return name in _KERNELS and _KERNELS[name][0].takes_side_by_side(spec)
