"""The implementations of the selective scan, in one table."""

from .._dispatch import Dispatch, Implementation
from . import _xla
from ._spec import SelectiveSpec

DISPATCH = Dispatch(
    "selective_scan",
    SelectiveSpec.of,
    (Implementation("chunked", _xla.chunked, _xla.chunked_transpose),),
    order={platform: ("chunked",) for platform in ("cpu", "cuda", "rocm", "tpu")},
)
