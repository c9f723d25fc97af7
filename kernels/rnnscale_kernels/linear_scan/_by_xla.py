"""The forms in plain XLA as implementations, for every kind of coefficients."""

from collections.abc import Callable
from functools import partial

from .._dispatch import Implementation
from . import _xla
from ._backward import transpose_by_scan


def sequential(*, fused: bool = True, **reasons) -> Implementation:
    """One step after another.

    If `fused`, the backward pass is one loop, which also sums the gradient of a time-invariant
    coefficient. Otherwise the loop has only the cotangents of the states, and the gradient of the
    coefficients follows after it.
    """
    scan = _xla.sequential
    transpose = _xla.sequential_transpose if fused else partial(transpose_by_scan, scan)
    return _implementation("sequential", scan, transpose, **reasons)


def chunked(**reasons) -> Implementation:
    """All chunks of time at once, with the steps of each one after another."""
    scan = _xla.chunked
    return _implementation("chunked", scan, partial(transpose_by_scan, scan), **reasons)


def associative(**reasons) -> Implementation:
    """A binary tree over time."""
    scan = _xla.associative
    return _implementation("associative", scan, partial(transpose_by_scan, scan), **reasons)


def _implementation(name: str, scan: Callable, transpose: Callable, **reasons) -> Implementation:
    def forward(primals, *, reverse, target):
        return scan(*primals, reverse=reverse), ()

    def backward(primals, outputs, cotangents, *, reverse, target):
        a, _, h0, cut = primals
        (h, _), _ = outputs
        return *transpose(a, h, h0, cut, *cotangents, reverse=reverse), None

    return Implementation(name, forward, backward, **reasons)
