"""The public function, with its checks and the canonical form of its arguments."""

from typing import Any

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from .._checks import check_real, check_reset, check_reverse, checked_lengths
from ..linear_scan import cuts
from . import _xla


def linear_attention(
    query: Float[Array, "*batch time #heads key"],
    key: Float[Array, "*batch time #heads key"],
    value: Float[Array, "*batch time heads value"],
    log_decay: Float[Array, "*batch time heads"]
    | Float[Array, "*batch time heads key"]
    | None = None,
    erase: Float[Array, "*batch time #heads key"] | None = None,
    h0: Float[Array, "*batch heads key value"] | None = None,
    *,
    reverse: bool = False,
    reset: Bool[Array, "*batch time"] | None = None,
    lengths: Int[Array, "*batch"] | None = None,
    implementation: str | None = None,
) -> tuple[Float[Array, "*batch time heads value"], Float[Array, "*batch heads key value"]]:
    """Linear attention with decay and erasure, a recurrence with a matrix state in every head:

        H_t = (I - k_t e_t^T) diag(exp(g_t)) H_{t-1} + k_t v_t^T,    y_t = H_t^T q_t

    Without `log_decay` (g) and `erase` (e) this is linear attention; with a decay, gated linear
    attention, RetNet or Mamba-2; with `erase = beta * key`, and values multiplied by beta, the
    delta rule.

    **Arguments:**

    - `query`, `key`: q and k. Their number of heads divides that of `value`: with G heads here and
        H there, head i here serves heads i H/G to (i + 1) H/G - 1 there.
    - `value`: v, with any number of leading batch axes.
    - `log_decay`: the logarithm of the decay, at most 0, one for each head or one for each channel
        of the keys; `-inf` is a decay of zero. No decay if absent.
    - `erase`: e, what is erased from the decayed state along k. Its heads are those of `query`, or
        of `value`. Nothing is erased if absent.
    - `h0`: the state before the first step in processing order. Zero if absent.
    - `reverse`: run from the last step to the first.
    - `reset`: true at t marks t as the first step of a segment in time order, in either direction:
        no state crosses from one segment into another. A reset restores zero, not `h0`, and stops
        infinities and NaN, in the gradient too.
    - `lengths`: the number of valid steps of each row, from 0 to `time`. Beyond them `y` is zero,
        and what the arguments hold there, even NaN, has no effect on results or gradients.

    **Returns:**

    The pair `(y, h_last)`: the output in the dtype of `value`, and the state after each row's own
    last step in processing order, in at least float32.

    **Raises:** `TypeError` or `ValueError` if dtypes or shapes do not fit together.
    """
    del implementation
    check_reverse(reverse)
    given = {"query": query, "key": key, "value": value}
    given |= {
        n: x for n, x in (("log_decay", log_decay), ("erase", erase), ("h0", h0)) if x is not None
    }
    check_real(**given)
    *batch, time, heads, width = value.shape
    check_reset(reset, (*batch, time))
    dtype = jnp.promote_types(value.dtype, jnp.float32)
    if h0 is None:
        h0 = jnp.zeros((*batch, heads, key.shape[-1], width), dtype)

    def prepare(x: Any) -> Any:
        if x is None:
            return None
        x = jnp.repeat(x, heads // x.shape[len(batch) + 1], axis=len(batch) + 1)
        if valid is not None:
            x = jnp.where(valid.reshape(*valid.shape, *(1,) * (x.ndim - valid.ndim)), x, 0)
        return x.astype(dtype)

    valid = None
    if lengths is not None:
        lengths = checked_lengths(lengths, tuple(batch), time)
        valid = jnp.arange(time) < lengths[..., None]
        reset = None if reset is None else reset & valid
    arrays = tuple(prepare(x) for x in (query, key, value, log_decay, erase))
    y, h_last = _xla.sequential(
        *arrays, h0.astype(dtype), cuts(reset, reverse=reverse), reverse=reverse
    )
    if valid is not None:
        y = jnp.where(valid[..., None, None], y, 0)
    return y.astype(value.dtype), h_last
