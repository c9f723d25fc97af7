"""The implementations of the recurrence with a resident matrix, in one table."""

from .._dispatch import Dispatch, Implementation
from .._target import H100, needs_hopper
from . import _mosaic_gpu, _xla
from ._spec import PersistentSpec

_MOSAIC_GPU = Implementation(
    "mosaic_gpu",
    _mosaic_gpu.forward,
    _mosaic_gpu.transpose,
    unavailable=needs_hopper,
    unsupported=_mosaic_gpu.unsupported,
)

DISPATCH = Dispatch(
    "persistent_rnn",
    PersistentSpec.of,
    (
        Implementation("sequential", _xla.forward, _xla.transpose),
        _MOSAIC_GPU,
        _MOSAIC_GPU.interpreted(H100),
    ),
    order={
        "cpu": ("sequential",),
        "cuda": ("mosaic_gpu", "sequential"),
        "rocm": ("sequential",),
        "tpu": ("sequential",),
    },
)
