"""The `RecurrentOp` of a recurrence, and the canonical form of its arguments.

Shared by all kinds of coefficients. Each public function checks its own arguments.
"""

import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from .._algebra import cast, power
from .._checks import check_reset
from .._recurrent_op import OpArguments, RecurrentOp
from ._operation import Recurrence


def recurrent_op(recurrence: Recurrence, check: Callable[..., OpArguments]) -> RecurrentOp:
    """The `RecurrentOp` of a recurrence whose arguments `check` checks.

    The `values` that `check` returns are the coefficients and the inputs, in the canonical form.
    """

    def totals(primals, **static):
        a, b, _, _ = primals
        decay, end = recurrence.totals(primals, **static)
        return _only_step(a) if a.shape[-2] == b.shape[-2] == 1 else decay, end

    def transpose_totals(primals, g, **static):
        a, _, h0, cut = primals
        return recurrence.transpose_totals((a, g, h0, cut), **static)

    return RecurrentOp(
        check=check,
        canonical=canonical,
        static=static,
        operation=recurrence.operation,
        time=lambda values: values[1].shape[-2],
        in_pieces=_in_pieces,
        total_decay=_total_decay,
        totals=totals,
        transpose_totals=transpose_totals,
        chain=partial(recurrence.scan, implementation="associative"),
    )


def op_arguments(name: str, a: Any, b: Any, h0: Any, reset: Any, states: tuple) -> OpArguments:
    """The arguments of the function `name`, whose states have the shape `states`, "*batch channel".

    The initial state is zero if absent, and has the dtype of the carry.

    **Raises:** `TypeError` or `ValueError` if `h0` or `reset` do not fit.
    """
    given = [x.dtype for x in (a, b, h0) if x is not None]
    dtype = functools.reduce(jnp.promote_types, given, jnp.dtype(jnp.float32))
    if h0 is None:
        h0 = jax.tree.map(lambda _: jnp.zeros(states, dtype), b)
    elif h0.shape != states:
        raise ValueError(
            f"{name}: h0 has shape {h0.shape}, but b of shape {b.shape} needs {states}"
        )
    check_reset(reset, b.shape[:-1])
    return OpArguments((a, b), cast(h0, dtype), reset, None)


def check_steps(name: str, shape: Sequence[int], axes: str) -> None:
    """Checks that `b` has an axis of time, with one step or more."""
    if len(shape) < 2:
        raise ValueError(f"{name}: b must be '{axes}', got shape {shape}")
    if shape[-2] == 0:
        raise ValueError(f"{name}: b must have at least one time step, got shape {shape}")


def canonical(arguments: OpArguments, *, reverse: bool):
    """The field `canonical` of `RecurrentOp`."""
    (a, b), h0, reset, _ = arguments
    return (a, b, h0, cuts(reset, reverse=reverse)), lambda outputs: outputs


def static(primals, *, reverse: bool, implementation: str | None) -> dict[str, Any]:
    """The field `static` of `RecurrentOp`."""
    return {"reverse": reverse, "implementation": implementation}


def cuts(
    reset: Bool[Array, "*batch time"] | None, *, reverse: bool
) -> Bool[Array, "*batch time"] | None:
    """The steps into which no carry goes: t where `reset` is true, or t - 1 in reverse."""
    if reset is None or not reverse:
        return reset
    return jnp.concatenate([reset[..., 1:], jnp.zeros_like(reset[..., :1])], axis=-1)


def _in_pieces(values, pieces: int):
    def split(x):
        *batch, time, channels = x.shape
        # What is time-invariant is the same in all pieces.
        return x.reshape(*batch, *((1, 1) if time == 1 else (pieces, time // pieces)), channels)

    return jax.tree.map(split, values)


def _only_step(a):
    """The coefficient of the only step."""
    return jax.tree.map(lambda x: x[..., 0, :], a)


def _total_decay(arguments: OpArguments):
    a, b = arguments.values
    if a.shape[-2] != 1:
        return None
    return power(_only_step(a), b.shape[-2])
