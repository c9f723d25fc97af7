"""The implementations of the recurrence, in one table."""

from functools import partial

from .._dispatch import Dispatch, Implementation
from .._target import H100, TPU_V5E, Target
from . import _xla
from ._backward import transpose_by_scan
from ._mosaic_gpu import MosaicGPU
from ._mosaic_tpu import MosaicTPU
from ._spec import ScanSpec
from ._split_time import by_kernels
from ._triton import Triton

# `chunked` is faster on CPUs if one step has at most this many numbers and there are at least that
# many steps, measured on two cores in single precision.
NARROW = 256
_LONG = 64


def _chunked_unsuited(target: Target, spec: ScanSpec) -> str | None:
    width = spec.batch * spec.channels * (1 + spec.planar)
    if spec.varying:
        return "the products of a time-varying decay cost as much again"
    if width > NARROW or spec.time < _LONG:
        return f"{spec.time} steps of {width} numbers run as fast one after another"
    return None


def _in_xla(name, scan, transpose, **reasons) -> Implementation:
    def forward(primals, *, reverse, target):
        return scan(*primals, reverse=reverse), ()

    def backward(primals, outputs, cotangents, *, reverse, target):
        a, _, h0, cut = primals
        (h, _), _ = outputs
        return *transpose(a, h, h0, cut, *cotangents, reverse=reverse), None

    return Implementation(name, forward, backward, **reasons)


_ON_DEVICES = (
    (by_kernels("mosaic_gpu", MosaicGPU()), H100),
    (by_kernels("triton", Triton()), H100),
    (by_kernels("mosaic_tpu", MosaicTPU()), TPU_V5E),
)

DISPATCH = Dispatch(
    "linear_scan",
    ScanSpec.of,
    (
        _in_xla("sequential", _xla.sequential, _xla.sequential_transpose),
        _in_xla(
            "chunked",
            _xla.chunked,
            partial(transpose_by_scan, _xla.chunked),
            unsuited=_chunked_unsuited,
        ),
        _in_xla("associative", _xla.associative, partial(transpose_by_scan, _xla.associative)),
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
