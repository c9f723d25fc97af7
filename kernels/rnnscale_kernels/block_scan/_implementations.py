"""The implementations of the recurrence with blocks, in one table."""

from .._dispatch import Dispatch
from ..linear_scan import ScanSpec, associative, chunked, sequential

DISPATCH = Dispatch(
    "block_scan",
    ScanSpec.of,
    (sequential(), chunked(), associative()),
    order={
        "cpu": ("sequential",),
        "cuda": ("associative",),
        "rocm": ("associative",),
        "tpu": ("associative",),
    },
)
