"""One time step of every pass, and the four kernels of a toolchain as sweeps of these steps.

The arithmetic of the recurrence is here once. A toolchain adds a *sweep*: a loop over time that
brings the numbers of each step on chip, calls the step with them, and takes its results away.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .._algebra import add, as_number, identity, multiply, multiply_adjoint, outer, where
from ._kernels import Kernels, Launch, SideBySide


def keep(cut, x):
    """`x`, or zero where it is cut. A product with zero would let infinities through."""
    return x if cut is None else where(cut, 0.0, x)


def advance(h, cut, a, b):
    """The state h_t = a_t h_{t-1} + b_t, which forgets h_{t-1} where step t is cut."""
    return add(keep(cut, multiply(a, h)), b)


def advance_adjoint(c, cut, a, g):
    """`(s, c)`: the cotangent of h_t, and the cotangent that it passes on to h_{t-1}."""
    s = add(g, c)
    return s, keep(cut, multiply_adjoint(a, s))


class SweepKernels(Kernels):
    """The four kernels of a toolchain that provides `sweep`, for every kind of coefficients.

    **Arguments:**

    - `operation`: the name of the operation, for profiles.
    """

    def __init__(self, operation: str):
        self.operation = operation

    @abstractmethod
    def sweep(
        self, step: Callable, a, inputs: Sequence, entering, cut, launch: Launch,
        *, name: str, outputs: Sequence = (), before: tuple | None = None,
    ) -> tuple[list, Any]:  # fmt: skip
        """Runs `carry, results = step(carry, t, cut_t, a_t, *inputs_t)` over every chunk.

        **Arguments:**

        - `step`: receives the carry and the numbers of step `t` in float32, on chip.
        - `inputs`: sequences "B L D".
        - `entering`: the tree of carries that enter the chunks, "B S D" in float32. A Python number
            in it stands for an array that holds only this number.
        - `outputs`: the results, as trees whose leaves are dtypes.
        - `before`: the pair `(x, x0)`, "B L D" and "B D". If given, the step also receives `x` at
            the step that this sweep takes after t, and `x0`. At the last step of the sweep there is
            no such `x`: any value may stand there.
        - `name`: the name of the kernel in profiles.

        **Returns:**

        The list of results, "B L D", and the carries that leave the chunks, "B S D".
        """

    def forward(self, a, b, h0, cut, launch):
        def step(h, t, cut, a, b):
            h = advance(h, cut, a, b)
            return h, [h]

        (h,), last = self.sweep(
            step, a, [b], h0, cut, launch,
            name=f"{self.operation}_forward", outputs=[_filled(b, b.dtype)],
        )  # fmt: skip
        return h, last

    def forward_totals(self, a, b, cut, launch):
        return self._totals(advance, multiply, a, b, cut, launch, name="forward_totals")

    def backward(self, a, h, h0, cut, g, c, launch, *, da_dtype):
        varying = _is_varying(a)
        last = 0 if launch.descending else g.shape[1] - 1

        def step(carry, t, cut, a, g, h_before, h0):
            c, total = carry
            s, c = advance_adjoint(c, cut, a, g)
            # The state before the step that this sweep takes last is the one before the row.
            da = keep(cut, outer(s, where(t == last, h0, h_before), like=a))
            # The gradient of a time-invariant decay is a sum, which stays on chip.
            return ((c, None), [s, da]) if varying else ((c, add(total, da)), [s])

        outputs = [_filled(g, g.dtype), _filled(a, da_dtype)]
        outputs, (c_out, total) = self.sweep(
            step, a, [g], (c, None if varying else _filled(a, 0.0)), cut, launch,
            name=f"{self.operation}_backward", outputs=outputs[: 1 + varying], before=(h, h0),
        )  # fmt: skip
        db, da = outputs if varying else (*outputs, total)
        return da, db, c_out

    def backward_totals(self, a, g, cut, launch):
        def advance_cotangent(c, cut, a, g):
            _, c = advance_adjoint(c, cut, a, g)
            return c

        # This pass takes the steps from the last to the first, but the product is the same.
        return self._totals(
            advance_cotangent, lambda a, product: multiply(product, a), a, g, cut, launch,
            name="backward_totals",
        )  # fmt: skip

    def _totals(
        self, advance: Callable, compose: Callable, a, x, cut, launch: Launch, *, name: str
    ):
        """`(product, end)` of each chunk, from `state = advance(state, cut_t, a_t, x_t)` and
        `product = compose(a_t, product)`."""
        varying = _is_varying(a)

        def step(carry, t, cut, a, x):
            product, end = carry
            return (compose(a, product) if varying else None, advance(end, cut, a, x)), []

        state = as_number([0.0, 0.0]) if isinstance(x, SideBySide) else _filled(x, 0.0)
        entering = _one(a) if varying else None, state
        _, totals = self.sweep(step, a, [x], entering, cut, launch, name=f"{self.operation}_{name}")
        return totals


def carries(entering, fill: Callable[[float], Any], read: Callable[[Any], Any]):
    """The tree of carries, with `fill` in place of its numbers and `read` of its arrays."""
    return jax.tree.map(lambda x: fill(x) if isinstance(x, float) else read(x), entering)


def _is_varying(a) -> bool:
    return a.shape[1] > 1


def _filled(tree, value: Any):
    """The tree with `value` in place of each array."""
    return jax.tree.map(lambda _: value, tree)


def _one(a):
    """The coefficient that changes no state, of the kind of `a`, as a tree of Python numbers."""
    with jax.ensure_compile_time_eval():
        return jax.tree.map(float, identity(_filled(a, jnp.zeros(()))))
