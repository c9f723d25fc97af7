"""The public function, with its checks and the canonical form of its arguments; and `ATTENTION`."""

import functools
from typing import Any

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from .._checks import (
    check_implementation,
    check_real,
    check_reset,
    check_reverse,
    checked_lengths,
)
from .._operation import vary_alike
from .._recurrent_op import CanonicalOp, OpArguments
from .._sizes import round_up
from ..linear_scan import cuts
from ._chunks import chunk_count
from ._implementations import DISPATCH
from ._operation import operation

# Steps in a chunk at most, and a number of which all longer chunks are multiples.
_CHUNK, _TILE = 64, 16

# Logarithms whose exponentials are zero, by the bytes of a number. Sums of them are finite.
_LEAST = {4: -110.0, 8: -800.0}


def linear_attention(
    query: Float[Array, "*batch time query_heads key"],
    key: Float[Array, "*batch time key_heads key"],
    value: Float[Array, "*batch time heads value"],
    log_decay: Float[Array, "*batch time heads"]
    | Float[Array, "*batch time heads key"]
    | None = None,
    erase: Float[Array, "*batch time erase_heads key"] | None = None,
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

    It can be differentiated to any order in forward and reverse mode, and works under `jax.jit`,
    `jax.vmap` (which folds into the batch), `jax.checkpoint` and `jax.shard_map`. From the forward
    to the backward pass it keeps its arguments, and one state for each chunk of time.

    **Arguments:**

    - `query`, `key`: q and k. Their numbers of heads divide that of `value`: with G heads here and
        H there, head i here serves heads i H/G to (i + 1) H/G - 1 there.
    - `value`: v, with any number of leading batch axes.
    - `log_decay`: the logarithm of the decay, at most 0, one for each head or one for each channel
        of the keys; `-inf` is a decay of zero. Values are not checked. No decay if absent.
    - `erase`: e, what is erased from the decayed state along k. Its number of heads divides that of
        `value` too. Nothing is erased if absent.
    - `h0`: the state before the first step in processing order. Zero if absent.
    - `reverse`: run from the last step to the first.
    - `reset`: true at t marks t as the first step of a segment in time order, in either direction:
        no state crosses from one segment into another. A reset restores zero, not `h0`, and stops
        infinities and NaN, in the gradient too.
    - `lengths`: the number of valid steps of each row, from 0 to `time`; traced ones cannot be
        checked and are clipped. Beyond them `y` is zero, and what the arguments hold there, even
        NaN, has no effect on results or gradients.
    - `implementation`: `None` takes the fastest for the device compiled for. A name takes that one
        or raises an error: `"chunked"`, products of matrices for chunks of up to 64 steps, or
        `"sequential"`, one step after another. Both are plain XLA, for every platform and dtype.

    **Returns:**

    The pair `(y, h_last)`: the output in the dtype of `value`, and the state after each row's own
    last step in processing order, in at least float32. Everything is computed in the dtype of the
    state.

    **Raises:** `TypeError` or `ValueError` if dtypes or shapes do not fit together.
    """
    arguments = _check(
        query, key, value, log_decay, erase, h0,
        reverse=reverse, reset=reset, lengths=lengths, implementation=implementation,
    )  # fmt: skip
    primals, finish = _canonical(vary_alike(arguments), reverse=reverse)
    primals = vary_alike(primals)
    static = _static(primals, reverse=reverse, implementation=implementation)
    outputs, _ = operation.forward(primals, **static)
    return finish(outputs)


def _check(
    query, key, value, log_decay=None, erase=None, h0=None,
    *, reverse=False, reset=None, lengths=None, implementation=None,
) -> OpArguments:  # fmt: skip
    check_implementation(implementation, DISPATCH.names)
    check_reverse(reverse)
    arrays = {"query": query, "key": key, "value": value}
    optional = {"log_decay": log_decay, "erase": erase, "h0": h0}
    given = arrays | {name: x for name, x in optional.items() if x is not None}
    check_real(**given)
    _check_shapes(given)
    *batch, time, heads, width = value.shape
    check_reset(reset, (*batch, time))
    if lengths is not None:
        lengths = checked_lengths(lengths, tuple(batch), time)
    dtypes = (x.dtype for x in given.values())
    dtype = functools.reduce(jnp.promote_types, dtypes, jnp.dtype(jnp.float32))
    if h0 is None:
        h0 = jnp.zeros((*batch, heads, key.shape[-1], width), dtype)
    values = tuple(
        None if x is None else jnp.asarray(x) for x in (query, key, value, log_decay, erase)
    )
    return OpArguments(values, jnp.asarray(h0, dtype), reset, lengths)


def _check_shapes(given: dict[str, Any]) -> None:
    """Checks the shapes of the arrays that are given."""
    shape, key = given["value"].shape, given["key"].shape
    if len(shape) < 3:
        raise ValueError(
            f"linear_attention: value must be '*batch time heads value', got shape {shape}"
        )
    *batch, time, heads, width = shape
    channels = key[-1] if key else 0
    for name in ("query", "key", "erase"):
        if name not in given:
            continue
        got = given[name].shape
        fits = len(got) == len(shape) and got[-1] == channels and got[:-2] == shape[:-2]
        if not fits or got[-2] == 0 or heads % got[-2]:
            raise ValueError(
                f"linear_attention: {name} must be '*batch time heads key', with as many heads as "
                f"value or a number that divides them, and as many channels as key; value has "
                f"shape {shape}, key {key}, got {got}"
            )
    if "log_decay" in given:
        by_head = (*batch, time, heads)
        got = given["log_decay"].shape
        if got not in (by_head, (*by_head, channels)):
            raise ValueError(
                f"linear_attention: log_decay must be '*batch time heads', here {by_head}, or "
                f"'*batch time heads key', here {(*by_head, channels)}; got shape {got}"
            )
    if "h0" in given and given["h0"].shape != (*batch, heads, channels, width):
        raise ValueError(
            "linear_attention: h0 must be '*batch heads key value', here "
            f"{(*batch, heads, channels, width)}; got shape {given['h0'].shape}"
        )


def _canonical(arguments: OpArguments, *, reverse: bool):
    (query, key, value, log_decay, erase), h0, reset, lengths = arguments
    axis, heads = h0.ndim - 3, value.shape[-2]
    groups = min(query.shape[-2], key.shape[-2])
    query, key, erase = (_with_heads(x, groups, heads, axis + 1) for x in (query, key, erase))
    if log_decay is not None:
        log_decay = jnp.maximum(log_decay, _LEAST[h0.dtype.itemsize])
    valid = None
    if lengths is not None:
        valid = jnp.arange(value.shape[axis]) < lengths[..., None]
        reset = None if reset is None else reset & valid

    def kept(x):
        """Zero beyond the lengths: such a step does not change the state."""
        return x if valid is None else jnp.where(_with_axes(valid, x.ndim), x, 0)

    def turned(x):
        return jnp.flip(x, axis) if reverse else x

    arrays = (query, key, value, log_decay, erase)
    arrays = (None if x is None else turned(kept(x)) for x in arrays)
    cut = cuts(reset, reverse=reverse)

    def finish(outputs):
        y, h_last = outputs
        return kept(turned(y)), h_last

    return (*arrays, h0, None if cut is None else turned(cut)), finish


def _static(primals, *, reverse: bool, implementation: str | None) -> dict[str, Any]:
    del reverse  # The canonical arguments are in processing order.
    return {"chunk": _chunk_length(primals), "implementation": implementation}


ATTENTION = CanonicalOp(check=_check, canonical=_canonical, static=_static, operation=operation)


def _chunk_length(primals) -> int:
    """Steps in a chunk: about the same in all chunks, and a power of two for decays by channel."""
    _, _, value, log_decay, _, h0, _ = primals
    time = value.shape[h0.ndim - 3]
    chunk = max(1, -(-time // chunk_count(time, _CHUNK)))
    if log_decay is not None and log_decay.ndim == value.ndim:
        return 1 << (chunk - 1).bit_length()
    return chunk if time <= _CHUNK else round_up(chunk, _TILE)


def _with_heads(x: Array | None, groups: int, heads: int, axis: int) -> Array | None:
    """`x` with one head for each group, if it has so, or else for each head of values."""
    if x is None or x.shape[axis] == groups:
        return x
    return jnp.repeat(x, heads // x.shape[axis], axis=axis)


def _with_axes(x: Array, ndim: int) -> Array:
    return x.reshape(*x.shape, *(1,) * (ndim - x.ndim))
