"""The implementations of the elementwise recurrence, in one table."""

from .._dispatch import Dispatch, Implementation
from .._target import H100, TPU_V5E
from ..linear_scan import MosaicGPU, MosaicTPU
from . import _xla
from ._by_sweep import by_sweep
from ._spec import ElementwiseSpec

_ON_DEVICES = (
    (by_sweep("mosaic_gpu", MosaicGPU("elementwise_scan")), H100),
    (by_sweep("mosaic_tpu", MosaicTPU("elementwise_scan")), TPU_V5E),
)

DISPATCH = Dispatch(
    "elementwise_scan",
    ElementwiseSpec.of,
    (
        Implementation("sequential", _xla.forward, _xla.transpose),
        *(kernels for kernels, _ in _ON_DEVICES),
        *(kernels.interpreted(target) for kernels, target in _ON_DEVICES),
    ),
    order={
        "cpu": ("sequential",),
        "cuda": ("mosaic_gpu", "sequential"),
        "rocm": ("sequential",),
        "tpu": ("mosaic_tpu", "sequential"),
    },
)
