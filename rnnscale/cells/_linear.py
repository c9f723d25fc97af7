"""`LinearCell`, the base of cells with a linear recurrence of independent units."""

from abc import abstractmethod
from typing import ClassVar, final

import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from rnnscale._base import state_dtype
from rnnscale.cells._base import Affine, Cell, Units

type Coefficients = tuple[Units, Units]
"""`(a, b)` of `h_t = a_t * h_{t-1} + b_t`: the decay and the drive."""


class LinearCell(Cell):
    r"""A cell that is linear in its state, with units that do not see one another.

    $$h_t = a_t \odot h_{t-1} + b_t$$

    A subclass defines `drive`, which returns `(a, b)`. Both depend on the input only, so all steps
    can be computed in parallel, by `rnnscale.sharding.linear_scan`. They are at least float32. The
    initial state is zero.
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
    """`weight[gate] @ x` for every gate in one product, at least float32."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    weight = weight.astype(x.dtype)
    products = jnp.einsum("...i,gsi->...gs", x, weight, preferred_element_type=wide)
    return jnp.moveaxis(products, -2, 0)
