"""The implementations of the recurrence with blocks, in one table."""

from .._dispatch import Dispatch
from .._target import Target
from ..linear_scan import LONG, NARROW, ScanSpec, associative, chunked, sequential

# `chunked` also multiplies varying blocks with one another, which pays for the narrowest steps
# only. Measured on two cores in float32 with two and three planes.
_NARROW_VARYING = 64


def _chunked_unsuited(target: Target, spec: ScanSpec) -> str | None:
    width = spec.batch * spec.channels * spec.planes
    if width > (_NARROW_VARYING if spec.varying else NARROW) or spec.time < LONG:
        return f"{spec.time} steps of {width} numbers run as fast one after another"
    return None


DISPATCH = Dispatch(
    "block_scan",
    ScanSpec.of,
    (sequential(), chunked(unsuited=_chunked_unsuited), associative()),
    order={
        "cpu": ("chunked", "sequential"),
        "cuda": ("associative",),
        "rocm": ("associative",),
        "tpu": ("associative",),
    },
)
