"""What the choice of an implementation may depend on: the static properties of one call."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class AttentionSpec:
    """The static properties of one call of `linear_attention`.

    - `batch`: the number of rows, each with `heads` states of `key` by `value` numbers.
    - `groups`: the number of heads of queries and keys.
    - `decay`: "none", "head" or "channel".
    """

    batch: int
    time: int
    groups: int
    heads: int
    key: int
    value: int
    dtype: str
    state_dtype: str
    decay: str
    erase: bool
    cut: bool
    chunk: int

    @classmethod
    def of(cls, primals, *, chunk: int) -> "AttentionSpec":
        """The properties of a call with these primals of the operation."""
        query, _, value, log_decay, erase, h0, cut = primals
        *batch, time, groups, key = query.shape
        kinds = {value.ndim - 1: "head", value.ndim: "channel"}
        return cls(
            batch=math.prod(batch),
            time=time,
            groups=groups,
            heads=value.shape[-2],
            key=key,
            value=value.shape[-1],
            dtype=str(value.dtype),
            state_dtype=str(h0.dtype),
            decay="none" if log_decay is None else kinds[log_decay.ndim],
            erase=erase is not None,
            cut=cut is not None,
            chunk=chunk,
        )
