"""The implementations of the recurrence with matrices, in one table."""

from .._dispatch import Dispatch
from ..linear_scan import ScanSpec, associative, chunked, sequential

DISPATCH = Dispatch(
    "matrix_scan",
    ScanSpec.of,
    (sequential(fused=False), chunked(), associative()),
    order={
        "cpu": ("sequential",),
        "cuda": ("associative",),
        "rocm": ("associative",),
        "tpu": ("associative",),
    },
)
