"""What the choice of an implementation may depend on: the static properties of one call."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax

from ._pointwise import Pointwise


@dataclass(frozen=True)
class PersistentSpec:
    """The static properties of one call of `persistent_rnn`.

    `batch` is the number of rows; `states`, `gates` and `extras` are numbers of arrays of a unit.
    `unsupported_step` says why a kernel cannot evaluate the step; it is `None` if it can.
    """

    batch: int
    time: int
    hdim: int
    states: int
    gates: int
    extras: int
    dtype: str
    state_dtype: str
    start: bool
    valid: bool
    reverse: bool
    unsupported_step: str | None

    @classmethod
    def of(cls, primals, *, step: Callable, reverse: bool, **_) -> "PersistentSpec":
        """The properties of a call with these primals of the operation."""
        _, drive, extras, h0, _, start, valid = primals
        *batch, time, gates, hdim = drive.shape
        states = len(jax.tree.leaves(h0))
        return cls(
            batch=math.prod(batch),
            time=time,
            hdim=hdim,
            states=states,
            gates=gates,
            extras=extras.shape[-2],
            dtype=str(drive.dtype),
            state_dtype=str(h0[0].dtype),
            start=start is not None,
            valid=valid is not None,
            reverse=reverse,
            unsupported_step=Pointwise(step, states, gates, extras.shape[-2]).unsupported(),
        )

    def __str__(self) -> str:
        flags = [name for name in ("start", "valid", "reverse") if getattr(self, name)]
        shape = f"{self.batch}x{self.time}x{self.hdim}"
        arrays = f"{self.gates} gates, {self.states} states"
        return ", ".join([shape, self.dtype, arrays, *flags])
