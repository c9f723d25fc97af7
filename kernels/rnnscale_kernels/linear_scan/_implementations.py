"""The implementations of the recurrence, in one table."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax

from .._dispatch import Dispatch, Implementation
from .._planar import Planar
from .._target import H100, TPU_V5E, Target
from . import _kernels, _mosaic_gpu, _mosaic_tpu, _triton, _xla
from ._backward import transpose_by_scan


@dataclass(frozen=True)
class ScanSpec:
    """What the choice may depend on: the static properties of one call."""

    batch: int
    time: int
    channels: int
    dtype: str
    planar: bool
    varying: bool
    cut: bool
    reverse: bool
    decay_dtype: str
    state_dtype: str

    @classmethod
    def of(cls, primals, *, reverse: bool) -> "ScanSpec":
        a, b, h0, cut = primals
        *batch, time, channels = b.shape
        return cls(
            batch=math.prod(batch),
            time=time,
            channels=channels,
            dtype=str(b.dtype),
            planar=isinstance(b, Planar),
            varying=a.shape[-2] > 1,
            cut=cut is not None,
            reverse=reverse,
            decay_dtype=str(a.dtype),
            state_dtype=str(h0.dtype),
        )


# `chunked` wins on CPUs where one step is narrower than this and there are more steps than that;
# measured on two CPU cores in single precision.
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


def _by_hand(name: str, kernels: _kernels.Kernels) -> Implementation:
    def adapted(run: Callable[..., Any]) -> Callable[..., Any]:
        def adapt(primals, *others, reverse, target):
            spec = ScanSpec.of(primals, reverse=reverse)
            with jax.enable_x64(False):  # indices are of 32 bits
                return run(kernels, primals, *others, reverse=reverse, target=target, spec=spec)

        return adapt

    return Implementation(
        name,
        adapted(_kernels.forward),
        adapted(_kernels.transpose),
        adapted(_kernels.totals),
        adapted(_kernels.transpose_totals),
        unavailable=kernels.unavailable,
        unsupported=partial(_kernels.unsupported, kernels),
        unsuited=kernels.unsuited,
    )


_ON_DEVICES = (
    (_by_hand("mosaic_gpu", _mosaic_gpu), H100),
    (_by_hand("triton", _triton), H100),
    (_by_hand("mosaic_tpu", _mosaic_tpu), TPU_V5E),
)

DISPATCH = Dispatch(
    "linear_scan",
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
