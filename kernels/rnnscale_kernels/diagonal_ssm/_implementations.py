"""The implementations of the state-space layer's linear part, in one table."""

from collections.abc import Callable
from types import ModuleType

from .._dispatch import Dispatch, Implementation
from .._target import H100, TPU_V5E, Target
from ..linear_scan import DISPATCH as SCAN_DISPATCH, ScanSpec
from . import _mosaic_gpu, _mosaic_gpu_wide, _mosaic_tpu, _unfused, _xla
from ._spec import SSMSpec


def _unfused_unsuited(target: Target, spec: SSMSpec) -> str | None:
    dtype = _unfused.sequence_dtype(spec.dtype, spec.state_dtype)
    recurrence = ScanSpec(
        batch=spec.batch,
        time=spec.time,
        channels=spec.state,
        dtype=dtype,
        planes=1 + spec.planar,
        varying=False,
        cut=spec.cut,
        reverse=False,
        decay_dtype=spec.state_dtype,
        state_dtype=spec.state_dtype,
    )
    if not SCAN_DISPATCH.has_kernel(target, recurrence):
        return "there is no kernel for the recurrence, and chunks need less memory"
    return None


def _fused(name: str, passes: ModuleType, unavailable: Callable) -> Implementation:
    """The implementation by the passes of a module."""
    return Implementation(
        name,
        passes.forward,
        passes.transpose,
        passes.totals,
        passes.transpose_totals,
        unavailable=unavailable,
        unsupported=passes.unsupported,
        unsuited=passes.unsuited,
    )


_GPU = _fused("mosaic_gpu", _mosaic_gpu, _mosaic_gpu.unavailable)
_GPU_WIDE = _fused("mosaic_gpu_wide", _mosaic_gpu_wide, _mosaic_gpu.unavailable)
_TPU = _fused("mosaic_tpu", _mosaic_tpu, _mosaic_tpu.unavailable)

DISPATCH = Dispatch(
    "diagonal_ssm",
    SSMSpec.of,
    (
        Implementation("chunked", _xla.chunked, _xla.chunked_transpose),
        Implementation(
            "unfused",
            _unfused.forward,
            _unfused.transpose,
            _unfused.totals,
            _unfused.transpose_totals,
            unsuited=_unfused_unsuited,
        ),
        _GPU,
        _GPU.interpreted(H100),
        _GPU_WIDE,
        # Two programs of a cluster with two warpgroups each, and what waits for them.
        _GPU_WIDE.interpreted(H100, threads=5),
        _TPU,
        _TPU.interpreted(TPU_V5E),
    ),
    order={
        "cpu": ("chunked",),
        "cuda": ("mosaic_gpu", "mosaic_gpu_wide", "unfused", "chunked"),
        "rocm": ("unfused", "chunked"),
        "tpu": ("mosaic_tpu", "unfused", "chunked"),
    },
)
