"""The public function, with its checks and the canonical form of its arguments; and `SELECTIVE`."""

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
from .._recurrent_op import OpArguments, RecurrentOp
from ..linear_scan import SCAN, cuts
from ._implementations import DISPATCH
from ._operation import operation, totals, transpose_totals

# The backward pass holds the states of a chunk, which take about this many bytes, so that they stay
# in a CPU's cache. With fewer steps, the states at borders would take more memory than the inputs.
_CHUNK_BYTES, _SHORTEST, _LONGEST = 1 << 21, 32, 256


def selective_scan(
    u: Float[Array, "*batch time channel"],
    delta: Float[Array, "*batch time channel"],
    a: Float[Array, "channel modes"],
    b: Float[Array, "*batch time modes"],
    c: Float[Array, "*batch time modes"],
    h0: Float[Array, "*batch channel modes"] | None = None,
    *,
    reverse: bool = False,
    reset: Bool[Array, "*batch time"] | None = None,
    lengths: Int[Array, "*batch"] | None = None,
    implementation: str | None = None,
) -> tuple[Float[Array, "*batch time channel"], Float[Array, "*batch channel modes"]]:
    """The recurrence of Mamba: each channel has a diagonal system of its own, whose step, input map
    and output map differ at every time,

        h_t[d, n] = exp(delta_t[d] a[d, n]) h_{t-1}[d, n] + delta_t[d] b_t[n] u_t[d],
        y_t[d] = sum_n c_t[n] h_t[d, n].

    The states of all steps would take `modes` times the memory of the inputs, so they are never
    held: it runs in chunks of time, keeps the state that enters each chunk, and computes the others
    again in the backward pass. Forward mode and derivatives of higher order do hold them. It works
    under `jax.jit`, `jax.vmap` (which folds into the batch), `jax.checkpoint` and `jax.shard_map`.

    **Arguments:**

    - `u`: the input, with any number of leading batch axes.
    - `delta`: the length of each step, at least 0 for a stable system.
    - `a`: the continuous eigenvalues, negative for a stable system.
    - `b`, `c`: the input and output maps, which all channels share.
    - `h0`: the state before the first step in processing order. Zero if absent.
    - `reverse`: run from each row's own last step to its first.
    - `reset`: true at t marks t as the first step of a segment in time order, in either direction:
        no state crosses from one segment into another. A reset restores zero, not `h0`, and stops
        infinities and NaN, in the gradient too.
    - `lengths`: the number of valid steps of each row, from 0 to `time`. Beyond them `y` is zero,
        and what the arguments hold there, even NaN, has no effect on results or gradients.
    - `implementation`: `None` takes the fastest for the device compiled for, and a name that one:
        `"sequential"`, a loop over steps in plain XLA, or `"chunked"`, whose chunks run one after
        another on the implementations of `linear_scan`.

    **Returns:**

    The pair `(y, h_last)`: the output in the dtype of `u`, and the state after each row's own last
    step in processing order, in at least float32.

    **Raises:** `TypeError` or `ValueError` if dtypes or shapes do not fit together.

    Gu, Dao, *Mamba: Linear-Time Sequence Modeling with Selective State Spaces*, 2023.
    """
    arguments = _check(
        *(u, delta, a, b, c, h0),
        reverse=reverse,
        reset=reset,
        lengths=lengths,
        implementation=implementation,
    )
    primals, finish = _canonical(vary_alike(arguments), reverse=reverse)
    static = _static(primals, reverse=reverse, implementation=implementation)
    outputs, _ = operation.forward(vary_alike(primals), **static)
    y, h_last = finish(outputs)
    return y, h_last.reshape(*h_last.shape[:-1], *a.shape)


def _check(
    u, delta, a, b, c, h0=None, *, reverse=False, reset=None, lengths=None, implementation=None
) -> OpArguments:
    """The field `check` of `RecurrentOp`. It gives `h0` one axis for all states of a row."""
    check_implementation(implementation, DISPATCH.names)
    check_reverse(reverse)
    check_real(u=u, delta=delta, a=a, b=b, c=c, **({} if h0 is None else {"h0": h0}))
    _check_shapes(u, delta, a, b, c, h0)
    *batch, time, _ = u.shape
    check_reset(reset, (*batch, time))
    given = [x.dtype for x in (u, delta, a, b, c, h0) if x is not None]
    dtype = functools.reduce(jnp.promote_types, given, jnp.dtype(jnp.float32))
    states = (*batch, a.size)
    h0 = jnp.zeros(states, dtype) if h0 is None else jnp.asarray(h0, dtype).reshape(states)
    if lengths is not None:
        lengths = checked_lengths(lengths, tuple(batch), time)
    values = tuple(map(jnp.asarray, (u, delta, a.astype(dtype), b, c)))
    return OpArguments(values, h0, reset, lengths)


def _canonical(arguments: OpArguments, *, reverse: bool):
    (u, delta, a, b, c), h0, reset, lengths = arguments
    axis = u.ndim - 2
    valid = None
    if lengths is not None:
        valid = jnp.arange(u.shape[axis]) < lengths[..., None]
        # A step of length zero keeps the state.
        u, delta, b, c = (jnp.where(valid[..., None], x, 0) for x in (u, delta, b, c))
        reset = None if reset is None else reset & valid
    cut = cuts(reset, reverse=reverse)

    def turn(x: Any) -> Any:
        return jnp.flip(x, axis) if reverse and x is not None else x

    u, delta, b, c, cut = map(turn, (u, delta, b, c, cut))
    a = a.reshape((1,) * axis + a.shape)

    def finish(outputs):
        y, h_last = outputs
        y = turn(y)
        return y if valid is None else jnp.where(valid[..., None], y, 0), h_last

    return (u, delta, a, b, c, h0, cut), finish


def _static(primals, *, reverse: bool, implementation: str | None) -> dict[str, Any]:
    del reverse
    u, *_, h0, _ = primals
    return {"chunk": _chunk_length(h0.size, u.shape[-2]), "implementation": implementation}


def _chunk_length(width: int, time: int) -> int:
    """Steps in a chunk, where all states of a step are `width` numbers: about the same in all
    chunks."""
    longest = min(max(_CHUNK_BYTES // (4 * max(width, 1)), _SHORTEST), _LONGEST)
    return -(-time // -(-time // longest))


def _in_pieces(values, pieces: int):
    u, delta, a, b, c = values

    def split(x):
        *batch, time, width = x.shape
        return x.reshape(*batch, pieces, time // pieces, width)

    return split(u), split(delta), a, split(b), split(c)


SELECTIVE = RecurrentOp(
    check=_check,
    canonical=_canonical,
    static=_static,
    operation=operation,
    time=lambda values: values[0].shape[-2],
    in_pieces=_in_pieces,
    total_decay=lambda arguments: None,
    totals=totals,
    transpose_totals=transpose_totals,
    chain=SCAN.chain,
)


def _check_shapes(u, delta, a, b, c, h0) -> None:
    if u.ndim < 2 or u.shape[-2] == 0:
        raise ValueError(
            "selective_scan: u must be '*batch time channel' with one time step or more, got shape "
            f"{u.shape}"
        )
    *rows, channels = u.shape
    if delta.shape != u.shape:
        raise ValueError(
            f"selective_scan: delta must have the shape of u, {u.shape}, got {delta.shape}"
        )
    if a.ndim != 2 or a.shape[0] != channels:
        raise ValueError(
            f"selective_scan: a must be 'channel modes' with {channels} channels, got shape "
            f"{a.shape}"
        )
    for name, x in (("b", b), ("c", c)):
        if x.shape != (*rows, a.shape[1]):
            raise ValueError(
                f"selective_scan: {name} must be '*batch time modes', {(*rows, a.shape[1])}, got "
                f"shape {x.shape}"
            )

    states = (*u.shape[:-2], *a.shape)
    if h0 is not None and h0.shape != states:
        raise ValueError(
            f"selective_scan: h0 must be '*batch channel modes', {states}, got shape {h0.shape}"
        )
