"""The products of an input with the matrices of all gates, in cells with independent units."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def gate_products(
    weight: Float[Array, "gates state idim"], x: Float[Array, "*axes idim"]
) -> Float[Array, "gates *axes state"]:
    """`weight[gate] @ x` for every gate in one product, at least float32."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    weight = weight.astype(x.dtype)
    products = jnp.einsum("...i,gsi->...gs", x, weight, preferred_element_type=wide)
    return jnp.moveaxis(products, -2, 0)
