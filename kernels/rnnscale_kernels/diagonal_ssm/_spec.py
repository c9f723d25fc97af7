"""What the choice of an implementation may depend on: the static properties of one call."""

import math
from dataclasses import dataclass

from .._algebra import Planar


@dataclass(frozen=True)
class SSMSpec:
    """The static properties of one call of `diagonal_ssm`.

    `batch` counts all rows, `chunk` the steps from one state that is kept to the next.
    """

    batch: int
    time: int
    idim: int
    state: int
    odim: int
    dtype: str
    state_dtype: str
    planar: bool
    cut: bool
    lengths: bool
    chunk: int

    @classmethod
    def of(cls, primals, *, chunk: int, **_) -> "SSMSpec":
        """The properties of a call with these primals and static values of the operation."""
        u, decay, _, c, h0, cut, lengths = primals
        *batch, time, idim = u.shape
        return cls(
            batch=math.prod(batch),
            time=time,
            idim=idim,
            state=decay.shape[0],
            odim=c.shape[0],
            dtype=str(u.dtype),
            state_dtype=str(h0.dtype),
            planar=isinstance(decay, Planar),
            cut=cut is not None,
            lengths=lengths is not None,
            chunk=chunk,
        )
