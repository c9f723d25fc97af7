"""The implementations of the elementwise recurrence, in one table."""

from .._dispatch import Dispatch, Implementation
from . import _xla
from ._spec import ElementwiseSpec

DISPATCH = Dispatch(
    "elementwise_scan",
    ElementwiseSpec.of,
    (Implementation("sequential", _xla.forward, _xla.transpose),),
    order={
        "cpu": ("sequential",),
        "cuda": ("sequential",),
        "rocm": ("sequential",),
        "tpu": ("sequential",),
    },
)
