"""The implementations of the selective scan, in one table."""

from .._dispatch import Dispatch, Implementation
from . import _chunked, _sequential
from ._spec import SelectiveSpec

DISPATCH = Dispatch(
    "selective_scan",
    SelectiveSpec.of,
    (
        Implementation("sequential", _sequential.forward, _sequential.transpose),
        Implementation("chunked", _chunked.forward, _chunked.transpose),
    ),
    order={
        "cpu": ("sequential",),
        "cuda": ("chunked",),
        "rocm": ("chunked",),
        "tpu": ("chunked",),
    },
)
