"""The implementations of the recurrence, in one table."""

import math
from dataclasses import dataclass
from functools import partial

from .._dispatch import Dispatch, Implementation
from .._planar import Planar
from . import _xla
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

    @classmethod
    def of(cls, primals, *, reverse: bool) -> "ScanSpec":
        a, b, _, cut = primals
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
        )


# `chunked` wins on CPUs where one step is narrower than this and there are more steps than that;
# measured on two CPU cores in single precision.
NARROW = 256
_LONG = 64


def _chunked_unsuited(platform: str, spec: ScanSpec) -> str | None:
    width = spec.batch * spec.channels * (1 + spec.planar)
    if spec.varying:
        return "the products of a time-varying decay cost as much again"
    if width > NARROW or spec.time < _LONG:
        return f"{spec.time} steps of {width} numbers run as fast one after another"
    return None


def _implementation(name, scan, transpose, **reasons) -> Implementation:
    def forward(primals, *, reverse):
        return scan(*primals, reverse=reverse), ()

    def backward(primals, outputs, cotangents, *, reverse):
        a, _, h0, cut = primals
        (h, _), _ = outputs
        return *transpose(a, h, h0, cut, *cotangents, reverse=reverse), None

    return Implementation(name, forward, backward, **reasons)


DISPATCH = Dispatch(
    "linear_scan",
    (
        _implementation("sequential", _xla.sequential, _xla.sequential_transpose),
        _implementation(
            "chunked",
            _xla.chunked,
            partial(transpose_by_scan, _xla.chunked),
            unsuited=_chunked_unsuited,
        ),
        _implementation(
            "associative", _xla.associative, partial(transpose_by_scan, _xla.associative)
        ),
    ),
    order={
        "cpu": ("chunked", "sequential"),
        "cuda": ("associative",),
        "rocm": ("associative",),
        "tpu": ("associative",),
    },
)
