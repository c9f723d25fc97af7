"""What the choice of an implementation may depend on: the static properties of one call."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from .._by_equation import primitives


@dataclass(frozen=True)
class ElementwiseSpec:
    """The static properties of one call of `elementwise_scan`.

    `batch` is the number of rows; `weights`, `inputs`, `states` and `returned` are numbers of
    arrays. `operations` are the names of the primitives of a step and of its derivative.
    """

    batch: int
    time: int
    channels: int
    weights: int
    inputs: int
    states: int
    returned: int
    dtype: str
    state_dtype: str
    cut: bool
    lengths: bool
    reverse: bool
    operations: frozenset[str]

    @classmethod
    def of(
        cls, primals, *, step: Callable, reverse: bool, returned: tuple[int, ...]
    ) -> "ElementwiseSpec":
        """The properties of a call with these primals of the operation."""
        weights, inputs, h0, _, cut, lengths = primals
        x, *_ = jax.tree.leaves(inputs)
        *batch, time, channels = x.shape
        return cls(
            batch=math.prod(batch),
            time=time,
            channels=channels,
            weights=len(jax.tree.leaves(weights)),
            inputs=len(jax.tree.leaves(inputs)),
            states=len(jax.tree.leaves(h0)),
            returned=len(returned),
            dtype=str(x.dtype),
            state_dtype=str(jax.tree.leaves(h0)[0].dtype),
            cut=cut is not None,
            lengths=lengths is not None,
            reverse=reverse,
            operations=_operations(step, weights, h0, inputs),
        )

    def __str__(self) -> str:
        flags = [name for name in ("cut", "lengths", "reverse") if getattr(self, name)]
        shape = f"{self.batch}x{self.time}x{self.channels}"
        arrays = f"{self.weights} weights, {self.inputs} inputs, {self.states} states"
        return ", ".join([shape, self.dtype, arrays, *flags])


def _operations(step: Callable, weights: Any, h0: Any, inputs: Any) -> frozenset[str]:
    """The names of the primitives in a step and its pullback, on numbers of the carry's dtype."""
    dtype = jax.tree.leaves(h0)[0].dtype
    numbers = jax.tree.map(lambda _: jax.ShapeDtypeStruct((1,), dtype), (weights, h0, inputs))

    def step_and_pullback(*arguments):
        after, pull = jax.vjp(step, *arguments)
        return step(*arguments), pull(after)

    return frozenset(primitives(jax.make_jaxpr(step_and_pullback)(*numbers).jaxpr))
