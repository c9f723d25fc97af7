"""The public function, with its checks and the canonical form of its arguments; and `SSM`."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from .._algebra import Planar, cast, power, powers
from .._checks import (
    check_implementation,
    check_planes,
    check_reset,
    check_reverse,
    checked_lengths,
)
from .._operation import vary_alike
from .._recurrent_op import OpArguments, RecurrentOp
from ..linear_scan import SCAN, cuts, time_invariant
from ._implementations import DISPATCH
from ._operation import operation, totals, transpose_totals

# The states of a chunk take about this many bytes. So they stay in a CPU's cache, and the loop over
# chunks has few turns (measured by `python -m benchmarks layers`).
_CHUNK_BYTES = 1 << 21
# A GPU takes tiles of 64 steps, and needs many chunks to have work for all its multiprocessors.
_TILE, _LONGEST = 64, 256


def diagonal_ssm(
    u: Float[Array, "*batch time idim"],
    decay: Float[Array, " state"] | Planar,
    b: Float[Array, "state idim"] | Planar,
    c: Float[Array, "odim state"] | Planar,
    h0: Float[Array, "*batch state"] | Planar | None = None,
    *,
    reverse: bool = False,
    reset: Bool[Array, "*batch time"] | None = None,
    lengths: Int[Array, "*batch"] | None = None,
    implementation: str | None = None,
) -> tuple[Float[Array, "*batch time odim"], Float[Array, "*batch state"] | Planar]:
    """The linear part of a state-space layer, h_t = decay h_{t-1} + B u_t, y_t = Re(C h_t).

    From the forward to the backward pass it keeps one state for each chunk of time, the one that
    enters the chunk. The backward pass computes the others again.

    It has the derivatives of `linear_scan` and works under the same transformations. Forward mode
    and derivatives of higher order are computed by `"unfused"`. So is `jax.vmap` over the matrices,
    unless an implementation is named: that one then takes the matrices one after another.

    **Arguments:**

    - `u`: the input, real.
    - `decay`, `b`, `c`: all real or all `Planar`. States have the dtype of the decay, at least
        float32. The matrices are cast to the dtype of `u` for their products, which add up in
        float32. Float32 products have the precision that `jax.default_matmul_precision` sets; by
        default TPUs round their factors to bfloat16.
    - `h0`: the state before each row's first step in processing order. Zero if absent.
    - `reverse`: run from each row's own last step to its first.
    - `reset`: true at t marks t as the first step of a segment in time order, in either
        direction. It restores zero, not `h0`.
    - `lengths`: the number of valid steps in each row, from 0 to `time`; traced ones cannot be
        checked and are clipped. At the other steps `y` is zero, and what `u` holds there, even NaN,
        has no effect on results or gradients.
    - `implementation`: `None` takes the fastest for the device compiled for. A name takes that one
        or raises an error: `"chunked"`, plain XLA in chunks of time, which needs the least memory;
        `"unfused"`, which holds all states in memory during a pass and runs the recurrence on the
        kernels of `linear_scan`; `"mosaic_gpu"`, one kernel for NVIDIA's Hopper GPUs, in bfloat16
        and float16, for matrices that fit on chip; `"mosaic_gpu_wide"`, for wider ones, which
        writes the states to memory once, in 16 bits; and `"mosaic_tpu"`, one kernel for TPUs, in
        bfloat16 and float32. With `_interpreted` added to its name, such a kernel runs on a CPU,
        slowly. The recurrence always carries its state in the states' dtype. But
        if `u` has 16 bits and states have 32, `"unfused"` rounds the drive B u, the states and
        their cotangents to 16 bits in memory; with `lengths` then also `h_last`.

    **Returns:**

    The pair `(y, h_last)`: the output in the dtype of `u`, and each row's state after its own last
    step in processing order, in the dtype of the states.

    **Raises:** `TypeError` or `ValueError` if dtypes or shapes do not fit together;
    `NotImplementedError` if the implementation named cannot run there or take these arguments.
    """
    arguments = _check(
        *(u, decay, b, c, h0),
        reverse=reverse,
        reset=reset,
        lengths=lengths,
        implementation=implementation,
    )
    primals, finish = _canonical(vary_alike(arguments), reverse=reverse)
    primals = vary_alike(primals)
    static = _static(primals, reverse=reverse, implementation=implementation)
    outputs, _ = operation.forward(primals, **static)
    return finish(outputs)


def _check(
    u, decay, b, c, h0=None, *, reverse=False, reset=None, lengths=None, implementation=None
) -> OpArguments:
    check_implementation(implementation, DISPATCH.names)
    check_reverse(reverse)
    check_planes(decay=decay, b=b, c=c, **({} if h0 is None else {"h0": h0}))
    check_planes(u=u)
    _check_shapes(u, decay, b, c)
    *batch, time, _ = u.shape
    check_reset(reset, (*batch, time))
    given = [x.dtype for x in (decay, u, h0) if x is not None]
    dtype = functools.reduce(jnp.promote_types, given, jnp.dtype(jnp.float32))
    (state,) = decay.shape
    if h0 is None:
        h0 = jax.tree.map(lambda _: jnp.zeros((*batch, state), dtype), decay)
    elif h0.shape != (*batch, state):
        raise ValueError(
            f"diagonal_ssm: h0 must be '*batch state', {(*batch, state)}, got shape {h0.shape}"
        )
    if lengths is not None:
        lengths = checked_lengths(lengths, tuple(batch), time)
    return OpArguments((u, cast(decay, dtype), b, c), cast(h0, dtype), reset, lengths)


def _canonical(arguments: OpArguments, *, reverse: bool):
    (u, decay, b, c), h0, reset, lengths = arguments
    axis = u.ndim - 2
    valid = None
    if lengths is not None:
        valid = jnp.arange(u.shape[axis]) < lengths[..., None]
        u = jnp.where(valid[..., None], u, 0)
        reset = None if reset is None else reset & valid
    cut = cuts(reset, reverse=reverse)
    if reverse:
        u, cut = (None if x is None else _turn(x, lengths, axis) for x in (u, cut))
    if valid is not None:
        # No state goes on into the padding, where it might overflow.
        cut = ~valid if cut is None else cut | ~valid

    def finish(outputs):
        y, h_last = outputs
        if reverse:
            y = _turn(y, lengths, axis)
        return y if valid is None else jnp.where(valid[..., None], y, 0), h_last

    return (u, decay, b, c, h0, cut, lengths), finish


def _static(primals, *, reverse: bool, implementation: str | None) -> dict[str, Any]:
    u, decay, *_ = primals
    *batch, time, _ = u.shape
    width = math.prod(batch) * sum(x.size for x in jax.tree.leaves(decay))
    return {"chunk": _chunk_length(width, time), "implementation": implementation}


def _total_decay(arguments: OpArguments):
    if arguments.lengths is not None:
        return None
    u, decay, *_ = arguments.values
    return time_invariant(power(decay, u.shape[-2]), u.ndim - 1)


def _totals(primals, **static):
    u, decay, *_, lengths = primals
    total = None if lengths is None else powers(decay, lengths, u.shape[-2])
    return total, totals(primals, **static)


def _in_pieces(values, pieces: int):
    u, *others = values
    *batch, time, idim = u.shape
    return u.reshape(*batch, pieces, time // pieces, idim), *others


SSM = RecurrentOp(
    check=_check,
    canonical=_canonical,
    static=_static,
    operation=operation,
    time=lambda values: values[0].shape[-2],
    in_pieces=_in_pieces,
    total_decay=_total_decay,
    totals=_totals,
    transpose_totals=transpose_totals,
    chain=SCAN.chain,
)


def _chunk_length(width: int, time: int) -> int:
    """Steps in a chunk, where all states of a step are `width` numbers: about the same in all
    chunks."""
    fitting = _CHUNK_BYTES // (4 * max(width, 1)) // _TILE * _TILE
    longest = min(max(fitting, _TILE), _LONGEST)
    if time <= longest:
        return time
    chunk = -(-time // -(-time // longest))
    return -(-chunk // _TILE) * _TILE


def _turn(x, lengths, axis: int):
    """The time axis reversed, in each row within its own length."""
    if lengths is None:
        return jnp.flip(x, axis)
    steps = jnp.arange(x.shape[axis])
    end = lengths[..., None]
    source = jnp.where(steps < end, end - 1 - steps, steps)
    source = source.reshape(source.shape + (1,) * (x.ndim - source.ndim))
    return jnp.take_along_axis(x, source, axis)


def _check_shapes(u, decay, b, c) -> None:
    if u.ndim < 2:
        raise ValueError(f"diagonal_ssm: u must be '*batch time idim', got shape {u.shape}")
    *_, time, idim = u.shape
    if time == 0:
        raise ValueError(f"diagonal_ssm: u must have at least one time step, got shape {u.shape}")
    if decay.ndim != 1:
        raise ValueError(f"diagonal_ssm: decay must be 'state', one axis, got shape {decay.shape}")
    (state,) = decay.shape
    if b.shape != (state, idim):
        raise ValueError(
            f"diagonal_ssm: b must be 'state idim', {(state, idim)}, got shape {b.shape}"
        )
    if c.ndim != 2 or c.shape[1] != state:
        raise ValueError(
            f"diagonal_ssm: c must be 'odim state' with {state} states, got shape {c.shape}"
        )
