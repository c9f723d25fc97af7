"""The implementations of the recurrence with blocks, in one table."""

from .._dispatch import Dispatch
from .._target import H100, TPU_V5E, Target
from ..linear_scan import (
    LONG,
    NARROW,
    MosaicGPU,
    MosaicTPU,
    ScanSpec,
    associative,
    by_kernels,
    chunked,
    sequential,
)

# `chunked` also multiplies varying blocks with one another, which pays for the narrowest steps
# only. Measured on two cores in float32 with two and three planes.
_NARROW_VARYING = 64


def _chunked_unsuited(target: Target, spec: ScanSpec) -> str | None:
    width = spec.batch * spec.channels * spec.planes
    if width > (_NARROW_VARYING if spec.varying else NARROW) or spec.time < LONG:
        return f"{spec.time} steps of {width} numbers run as fast one after another"
    return None


_ON_DEVICES = (
    (by_kernels("mosaic_gpu", MosaicGPU("block_scan")), H100),
    (by_kernels("mosaic_tpu", MosaicTPU("block_scan")), TPU_V5E),
)

DISPATCH = Dispatch(
    "block_scan",
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
        "cuda": ("mosaic_gpu", "associative"),
        "rocm": ("associative",),
        "tpu": ("mosaic_tpu", "associative"),
    },
)
