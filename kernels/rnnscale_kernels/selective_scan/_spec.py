"""What the choice of an implementation may depend on: the static properties of one call."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class SelectiveSpec:
    """The static properties of one call of `selective_scan`.

    `batch` counts all rows, `modes` the states of a channel, and `chunk` the steps from one state
    that is kept to the next.
    """

    batch: int
    time: int
    channels: int
    modes: int
    dtype: str
    state_dtype: str
    cut: bool
    chunk: int

    @classmethod
    def of(cls, primals, *, chunk: int, **_) -> "SelectiveSpec":
        """The properties of a call with these primals and static values of the operation."""
        u, _, _, b, _, h0, cut = primals
        *batch, time, channels = u.shape
        return cls(
            batch=math.prod(batch),
            time=time,
            channels=channels,
            modes=b.shape[-1],
            dtype=str(u.dtype),
            state_dtype=str(h0.dtype),
            cut=cut is not None,
            chunk=chunk,
        )
