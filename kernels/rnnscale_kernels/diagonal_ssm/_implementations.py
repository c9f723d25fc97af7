"""The implementations of the state-space layer's linear part, in one table."""

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


_FUSED = Implementation(
    "mosaic_gpu",
    _mosaic_gpu.forward,
    _mosaic_gpu.transpose,
    _mosaic_gpu.totals,
    _mosaic_gpu.transpose_totals,
    unavailable=_mosaic_gpu.unavailable,
    unsupported=_mosaic_gpu.unsupported,
    unsuited=_mosaic_gpu.unsuited,
)

_FUSED_TPU = Implementation(
    "mosaic_tpu",
    _mosaic_tpu.forward,
    _mosaic_tpu.transpose,
    _mosaic_tpu.totals,
    _mosaic_tpu.transpose_totals,
    unavailable=_mosaic_tpu.unavailable,
    unsupported=_mosaic_tpu.unsupported,
    unsuited=_mosaic_tpu.unsuited,
)

_WIDE = Implementation(
    "mosaic_gpu_wide",
    _mosaic_gpu_wide.forward,
    _mosaic_gpu_wide.transpose,
    _mosaic_gpu_wide.totals,
    _mosaic_gpu_wide.transpose_totals,
    unavailable=_mosaic_gpu.unavailable,
    unsupported=_mosaic_gpu_wide.unsupported,
    unsuited=_mosaic_gpu_wide.unsuited,
)

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
        _FUSED,
        _FUSED.interpreted(H100),
        _WIDE,
        # Two programs of a cluster with two warpgroups each, and what waits for them.
        _WIDE.interpreted(H100, threads=5),
        _FUSED_TPU,
        _FUSED_TPU.interpreted(TPU_V5E),
    ),
    order={
        "cpu": ("chunked",),
        "cuda": ("mosaic_gpu", "mosaic_gpu_wide", "unfused", "chunked"),
        "rocm": ("unfused", "chunked"),
        "tpu": ("mosaic_tpu", "unfused", "chunked"),
    },
)
