"""What cells with a linear recurrence of independent units have in common."""

from abc import abstractmethod
from typing import ClassVar, final

import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from rnnscale._base import state_dtype
from rnnscale.cells._base import Affine, Cell, Units

type Coefficients = tuple[Units, Units]
"""The decay and what is added: `a` and `b` of `h_t = a_t * h_{t-1} + b_t`."""


class LinearCell(Cell):
    r"""$$h_t = a_t \odot h_{t-1} + b_t$$

    A subclass gives `drive`, which is `(a, b)`. Both depend on the input alone, so that all steps
    can be computed in parallel, by `rnnscale.sharding.linear_scan`. They are at least float32. The
    step and the initial state, which is zero, are the same for all subclasses.
    """

    unit_axis: ClassVar[str] = "state"

    @abstractmethod
    def drive(self, weights: "LinearCell", x: Float[Array, "*axes idim"]) -> Coefficients: ...

    @final
    def advance(
        self, weights: "LinearCell", drive: Coefficients, state: Units, affine: Affine
    ) -> Units:
        a, b = drive
        return a * state + b

    @final
    def init_state(
        self, batch_shape: tuple[int, ...] = (), dtype: DTypeLike | None = None
    ) -> Float[Array, "*batch hdim"]:
        return jnp.zeros((*batch_shape, self.hdim), state_dtype(dtype))


def gate_products(
    weight: Float[Array, "gates state idim"], x: Float[Array, "*axes idim"]
) -> Float[Array, "gates *axes state"]:
    """`weight[gate] @ x` of every gate in one product, in the dtype of `x`, at least float32."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    weight = weight.astype(x.dtype)
    products = jnp.einsum("...i,gsi->...gs", x, weight, preferred_element_type=wide)
    return jnp.moveaxis(products, -2, 0)
