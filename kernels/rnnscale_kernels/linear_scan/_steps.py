"""One time step of every pass, and the four kernels of a toolchain as sweeps of these steps.

The arithmetic of the recurrence is here once. A toolchain adds a *sweep*: a loop over time that
brings the numbers of each step on chip, calls the step with them, and takes its results away.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._algebra import (
    add,
    adjoint,
    as_number,
    identity,
    multiply,
    multiply_add,
    multiply_adjoint,
    outer,
    where,
)
from ._kernels import Kernels, Launch, SideBySide


def keep(cut, x):
    """`x`, or zero where it is cut. A product with zero would let infinities through."""
    return x if cut is None else where(cut, 0.0, x)


def advance(h, cut, a, b):
    """The state h_t = a_t h_{t-1} + b_t, which forgets h_{t-1} where step t is cut."""
    after = multiply_add(a, h, b)
    return after if cut is None else where(cut, b, after)


def advance_adjoint(c, cut, a, g):
    """`(s, c)`: the cotangent of h_t, and the cotangent that it passes on to h_{t-1}."""
    s = add(g, c)
    return s, keep(cut, multiply_adjoint(a, s))


class Total(NamedTuple):
    """How some consecutive steps turn the state h that enters them into `product h + end`.

    `stopped` is 1 where one of the steps is cut, so that nothing of h is left, otherwise 0; `None`
    if no step is.
    """

    product: Any
    stopped: Any
    end: Any


def compose(later: Total, earlier: Total) -> Total:
    """The total of all steps, from those of the steps processed later and earlier."""
    return Total(
        multiply(later.product, earlier.product),
        None if later.stopped is None else jnp.maximum(later.stopped, earlier.stopped),
        leave(later, earlier.end),
    )


def leave(total: Total, h):
    """The state that leaves the steps if h enters them."""
    cut = None if total.stopped is None else total.stopped != 0
    return advance(h, cut, total.product, total.end)


class Linear(NamedTuple):
    """How the carry of a sweep depends on the one that enters: what it takes to find the total of
    some steps, and to skip them.

    - `advance(end, cut_t, a_t, x_t)`: the state after step t.
    - `factor(a_t)`: the coefficient of the state in it.
    - `through(total, carry)`: the carry that leaves steps with this total.
    """

    advance: Callable
    factor: Callable
    through: Callable = leave


class SweepKernels(Kernels):
    """The four kernels of a toolchain that provides `sweep`, for every kind of coefficients.

    **Arguments:**

    - `operation`: the name of the operation, for profiles.
    """

    step_bytes = 256
    """The most bytes that a channel may read and write in a step. With more, the tiles of either
    toolchain would have too few steps."""

    def __init__(self, operation: str):
        self.operation = operation

    @abstractmethod
    def sweep(
        self, step: Callable, a, inputs: Sequence, entering, cut, launch: Launch,
        *, name: str, linear: Linear | None, outputs: Sequence = (), before: tuple | None = None,
        sums: Any = None,
    ) -> tuple[list, Any, Any]:  # fmt: skip
        """Runs `carry, results, terms = step(carry, t, cut_t, a_t, *inputs_t)` over every chunk.

        **Arguments:**

        - `step`: receives the carry and the numbers of step `t` in float32, on chip.
        - `inputs`: sequences "B L D".
        - `entering`: the tree of carries that enter the chunks, "B S D" in float32. A Python number
            in it stands for an array that holds only this number.
        - `linear`: how the carry depends on the one that enters. A sweep that splits time by itself
            uses it. If `None`, the carry is not linear, and time is not split.
        - `outputs`: the results, as trees whose leaves are dtypes.
        - `sums`: a tree with the structure of `terms`, which are summed over time. Those of a tile
            are summed first, so that a sum over many steps is as accurate as one over a few.
        - `before`: the pair `(x, x0)`, "B L D" and "B D". If given, the step also receives `x` at
            the step that this sweep takes after t, and `x0`. At the last step of the sweep there is
            no such `x`: any value may stand there.
        - `name`: the name of the kernel in profiles.

        **Returns:**

        The list of results, "B L D", the carries that leave the chunks, "B S D", and the sums over
        the chunks, "B S D" in float32.
        """

    def forward(self, a, b, h0, cut, launch):
        def step(h, t, cut, a, b):
            h = advance(h, cut, a, b)
            return h, [h], None

        (h,), last, _ = self.sweep(
            step, a, [b], h0, cut, launch,
            name=f"{self.operation}_forward", linear=_FORWARD, outputs=[_filled(b, b.dtype)],
        )  # fmt: skip
        return h, last

    def forward_totals(self, a, b, cut, launch):
        return self._totals(_FORWARD, multiply, a, b, cut, launch, name="forward_totals")

    def backward(self, a, h, h0, cut, g, c, launch, *, da_dtype):
        varying = _is_varying(a)
        last = 0 if launch.descending else g.shape[1] - 1

        def step(c, t, cut, a, g, h_before, h0):
            s, c = advance_adjoint(c, cut, a, g)
            # The state before the step that this sweep takes last is the one before the row.
            da = keep(cut, outer(s, where(t == last, h0, h_before), like=a))
            # The gradient of a time-invariant decay is a sum, which stays on chip.
            return (c, [s, da], None) if varying else (c, [s], da)

        outputs = [_filled(g, g.dtype), _filled(a, da_dtype)]
        outputs, c_out, total = self.sweep(
            step, a, [g], c, cut, launch,
            name=f"{self.operation}_backward", linear=_BACKWARD, outputs=outputs[: 1 + varying],
            before=(h, h0), sums=None if varying else _filled(a, 0.0),
        )  # fmt: skip
        db, da = outputs if varying else (*outputs, total)
        return da, db, c_out

    def backward_totals(self, a, g, cut, launch):
        # This pass takes the steps from the last to the first, but the product is the same.
        return self._totals(
            _BACKWARD, lambda a, product: multiply(product, a), a, g, cut, launch,
            name="backward_totals",
        )  # fmt: skip

    def _totals(self, linear: Linear, compose: Callable, a, x, cut, launch: Launch, *, name: str):
        """`(product, end)` of each chunk, with `product = compose(a_t, product)`, wherever it is
        cut."""
        varying = _is_varying(a)

        def step(carry, t, cut, a, x):
            product, end = carry
            product = compose(a, product) if varying else None
            return (product, linear.advance(end, cut, a, x)), [], None

        def through(total: Total, carry):
            product, end = carry
            product = compose(linear.factor(total.product), product) if varying else None
            return product, leave(total, end)

        chunks = -(-x.shape[1] // launch.chunk)
        one = identity(_filled(a, jnp.zeros((x.shape[0], chunks, x.shape[2]), jnp.float32)))
        state = as_number([0.0, 0.0]) if isinstance(x, SideBySide) else _filled(x, 0.0)
        entering = one if varying else None, state
        _, totals, _ = self.sweep(
            step, a, [x], entering, cut, launch,
            name=f"{self.operation}_{name}", linear=linear._replace(through=through),
        )  # fmt: skip
        return totals


_FORWARD = Linear(advance, lambda a: a)
_BACKWARD = Linear(lambda c, cut, a, g: advance_adjoint(c, cut, a, g)[1], adjoint)


def carries(entering, fill: Callable[[float], Any], read: Callable[[Any], Any]):
    """The tree of carries, with `fill` in place of its numbers and `read` of its arrays."""
    return jax.tree.map(lambda x: fill(x) if isinstance(x, float) else read(x), entering)


def _is_varying(a) -> bool:
    return a.shape[1] > 1


def _filled(tree, value: Any):
    """The tree with `value` in place of each array."""
    return jax.tree.map(lambda _: value, tree)
