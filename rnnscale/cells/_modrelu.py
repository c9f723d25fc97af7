"""modReLU, the nonlinearity of unitary networks: it changes lengths and keeps phases."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rnnscale.cells._base import Units
from rnnscale_kernels import Planar

# The square of the smallest length that has a phase. Below it, the gradient would overflow.
_SMALLEST_SQUARE = 1e-30


def modrelu(z: Units, bias: Float[Array, "hdim"]) -> Units:
    r"""$\mathrm{sign}(z) \, \mathrm{relu}(|z| + b)$, zero at zero."""
    return jnp.sign(z) * jax.nn.relu(jnp.abs(z) + bias)


def complex_modrelu(z: Planar, bias: Float[Array, "hdim"]) -> Planar:
    r"""$\mathrm{relu}(|z| + b) \, z / |z|$, zero at zero and with a gradient of zero there."""
    square = z.re**2 + z.im**2
    nonzero = square > _SMALLEST_SQUARE
    length = jnp.sqrt(jnp.where(nonzero, square, 1))
    factor = jnp.where(nonzero, jax.nn.relu(length + bias) / length, 0)
    return Planar(factor * z.re, factor * z.im)
