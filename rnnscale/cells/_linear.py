"""`Line`: how steps follow one another in time, and the linear recurrences along them."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from rnnscale.cells._jacobian import Block, Dense, Jacobian, Leaves
from rnnscale_kernels import linear_scan


@dataclass(frozen=True)
class Line:
    """The steps of a sequence in the order in which they are processed.

    - `jacobian`: the kind of linear recurrence.
    - `reset`: true where a step is the first of a segment in time order, "batch time", or `None`.
    - `reverse`: whether steps are processed from the last to the first.
    """

    jacobian: Jacobian
    reset: Bool[Array, "batch time"] | None
    reverse: bool

    def previous(self, states: Leaves, entering: Leaves) -> Leaves:
        """The states before the steps, from those after them. It knows no resets."""

        def shift(x: Array, first: Array) -> Array:
            first = first[:, None]
            parts = [x[:, 1:], first] if self.reverse else [first, x[:, :-1]]
            return jnp.concatenate(parts, axis=1)

        return [shift(x, first) for x, first in zip(states, entering, strict=True)]

    def last(self, states: Leaves) -> Leaves:
        """The state after the last step."""
        return [x[:, 0 if self.reverse else -1] for x in states]

    def share(
        self, states: Leaves, entering: Leaves, measures: Array
    ) -> tuple[Leaves, Float[Array, "batch measures"]]:
        """The state before the first step, and the largest measures, of all devices."""
        return entering, measures

    def scan(
        self, a: Any, inputs: Leaves, states: Leaves, entering: Leaves, measures: Array
    ) -> tuple[Leaves, Leaves, Float[Array, "batch measures"]]:
        """The linear recurrence with these coefficients and inputs, from zero; and what `share`
        returns, the state before the first step with its correction."""
        b = self.jacobian.pack(inputs)
        return self.jacobian.unpack(self._scan(a, b), inputs), entering, measures

    def _scan(self, a: Any, b: Any) -> Any:
        if isinstance(self.jacobian, Block):
            return _block(a, b, self.reset, self.reverse)
        if isinstance(self.jacobian, Dense):
            return _matrix(a, b, self.reset, self.reverse)
        return linear_scan(a, b, reset=self.reset, reverse=self.reverse)[0]


def _block(a, b, reset, reverse):
    a = jnp.stack([jnp.stack(row, -1) for row in a], -2)
    h = _matrix(a, jnp.stack(b, -1), None if reset is None else reset[..., None], reverse)
    return tuple(h[..., i] for i in range(len(b)))


def _matrix(a, b, reset, reverse):
    if reset is not None:
        if reverse:
            reset = jnp.concatenate([reset[:, 1:], jnp.zeros_like(reset[:, :1])], 1)
        a = jnp.where(reset[..., None, None], 0, a)

    def combine(x, y):
        (a1, b1), (a2, b2) = x, y
        return a2 @ a1, (a2 @ b1[..., None])[..., 0] + b2

    return lax.associative_scan(combine, (a, b), axis=1, reverse=reverse)[1]
