"""The forms in plain XLA as implementations, for every kind of coefficients."""

from collections.abc import Callable
from functools import partial

from .._dispatch import Implementation
from . import _xla
from ._backward import transpose_by_scan


def sequential(transpose: Callable = _xla.sequential_transpose, **reasons) -> Implementation:
    """One step after another."""
    return _implementation("sequential", _xla.sequential, transpose, **reasons)


def chunked(**reasons) -> Implementation:
    """Chunks of time at once."""
    return _by_scan("chunked", _xla.chunked, **reasons)


def associative(**reasons) -> Implementation:
    """A tree over time."""
    return _by_scan("associative", _xla.associative, **reasons)


def _by_scan(name: str, scan: Callable, **reasons) -> Implementation:
    return _implementation(name, scan, partial(transpose_by_scan, scan), **reasons)


def _implementation(name: str, scan: Callable, transpose: Callable, **reasons) -> Implementation:
    def forward(primals, *, reverse, target):
        return scan(*primals, reverse=reverse), ()

    def backward(primals, outputs, cotangents, *, reverse, target):
        a, _, h0, cut = primals
        (h, _), _ = outputs
        return *transpose(a, h, h0, cut, *cotangents, reverse=reverse), None

    return Implementation(name, forward, backward, **reasons)
