"""What the choice of an implementation may depend on: the static properties of one call."""

import math
from dataclasses import dataclass

import jax


@dataclass(frozen=True)
class ScanSpec:
    """The static properties of one call of a scan.

    `batch` counts all rows, `planes` the arrays that a state consists of: one, or two if complex.
    """

    batch: int
    time: int
    channels: int
    dtype: str
    planes: int
    varying: bool
    cut: bool
    reverse: bool
    decay_dtype: str
    state_dtype: str

    @classmethod
    def of(cls, primals, *, reverse: bool) -> "ScanSpec":
        """The properties of a call with these primals of the operation."""
        a, b, h0, cut = primals
        *batch, time, channels = b.shape
        return cls(
            batch=math.prod(batch),
            time=time,
            channels=channels,
            dtype=str(b.dtype),
            planes=len(jax.tree.leaves(h0)),
            varying=a.shape[-2] > 1,
            cut=cut is not None,
            reverse=reverse,
            decay_dtype=str(a.dtype),
            state_dtype=str(h0.dtype),
        )
