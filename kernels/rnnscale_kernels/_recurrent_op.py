"""What an op exports to code that runs it piece by piece, as the distributed scan does."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from ._operation import Operation


class OpArguments(NamedTuple):
    """The checked arguments of an op.

    The fields hold arrays, or, in a layout over a mesh, the partition specs of arrays.

    - `values`: the op's arrays other than the initial state, some with an axis of time.
    - `h0`: the state before the first step in processing order, "*batch state".
    - `reset`: booleans, "*batch time", or `None`.
    - `lengths`: the number of valid steps in each row, "*batch", or `None`.
    """

    values: tuple
    h0: Any
    reset: Any
    lengths: Any


@dataclass(frozen=True)
class CanonicalOp:
    """A recurrence over time, in the parts from which a caller can run its two passes.

    - `check(*arguments, **options)`: `OpArguments`, from the arguments of the public function;
        raises that function's errors.
    - `canonical(arguments, *, reverse)`: `(primals, finish)`: the primals of `operation`, and the
        function from the operation's public outputs to those of the public function. The first
        primals are `arguments.values` and `arguments.h0`, possibly transformed.
    - `static(primals, *, reverse, implementation)`: the static values of the operation.
    - `operation`: the differentiable operation, for its forward pass and its transpose.
    """

    check: Callable[..., OpArguments]
    canonical: Callable[..., tuple[tuple, Callable[[tuple], tuple]]]
    static: Callable[..., dict[str, Any]]
    operation: Operation


@dataclass(frozen=True)
class RecurrentOp(CanonicalOp):
    """A recurrence over time that a caller can also run piece by piece.

    A piece is a number of consecutive steps, for example those on one device. It turns the state
    that enters it into `decay * state + end`: the pair `(decay, end)` is the *total* of the piece.
    The totals of all pieces, combined by `chain`, give the state that enters each piece, and with
    it every piece can be run on its own.

    - `time(values)`: the number of steps.
    - `in_pieces(values, n)`: the values with their steps split into `n` pieces of equal length,
        which are the last batch axis.
    - `total_decay(arguments)`: the decay of all steps together, "*#batch state", if it follows
        from their number alone; `None` if it differs from piece to piece.
    - `totals(primals, **static)`: `(decay, end)` of a piece. The decay is the product over all
        steps, whether or not one of them is a reset, or `None` if `total_decay` gives it. `end` is
        the state that leaves the piece when a state of zero enters it.
    - `transpose_totals(primals, g, **static)`: the same `end` for the backward pass: the cotangent
        of `h0`, for the cotangents `g` of the operation's sequence output alone.
    - `chain(decay, end, start, cut, *, reverse)`: `(leaving, last)`, the states that leave the
        pieces, "*batch piece state", and the last one, when `start` enters the first piece. `cut`,
        "*batch piece", is true where no state passes through a piece.
    """

    time: Callable[[tuple], int]
    in_pieces: Callable[[tuple, int], tuple]
    total_decay: Callable[[OpArguments], Any]
    totals: Callable[..., tuple[Any, Any]]
    transpose_totals: Callable[..., Any]
    chain: Callable[..., tuple[Any, Any]]
