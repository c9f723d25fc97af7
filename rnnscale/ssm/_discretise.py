r"""Coefficients of discrete diagonal systems, as two real planes.

Everything here is elementwise. A continuous system $\dot x = \lambda x + b u$ with step $\Delta$
becomes $x_{k+1} = \bar\lambda x_k + g b u_k$; the functions return the decay $\bar\lambda$ and the
gain $g$. Complex arithmetic is written out, because parameters are real, and because the usual
formulas are inaccurate: $\lambda\Delta$ is small, so $e^{\lambda\Delta} - 1$ loses digits.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rnnscale_kernels import Planar

type Discretisation = Literal["zoh", "bilinear"]

# The largest magnitude of a decay. Four units in the last place of float32 below one, so that
# rounding in the sine, the cosine and the products cannot carry |decay| back to one.
MAX_MAGNITUDE = 1 - 2**-22

# The largest real part of an eigenvalue, so that a continuous system forgets.
LARGEST_REAL_PART = -1e-4

# Training may move parameters anywhere, so nothing below may overflow: an infinity times a zero in
# the gradient, or the cosine of an infinity, is NaN. At these values decays have underflowed.
_LARGEST_LOG = 80.0
_LARGEST = 1e18


def bounded_exp(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """`exp(x)`, finite whatever `x` is."""
    return jnp.exp(jnp.minimum(x, _LARGEST_LOG))


def polar(magnitude: Float[Array, "*n"], phase: Float[Array, "*n"]) -> Planar:
    return Planar(magnitude * jnp.cos(phase), magnitude * jnp.sin(phase))


def scale(x: Planar, factor: Float[Array, "*n"] | float) -> Planar:
    return Planar(x.re * factor, x.im * factor)


def multiply(x: Planar, y: Planar) -> Planar:
    return Planar(x.re * y.re - x.im * y.im, x.re * y.im + x.im * y.re)


def reciprocal(x: Planar) -> Planar:
    square = x.re**2 + x.im**2
    return Planar(x.re / square, -x.im / square)


def limit_magnitude(x: Planar) -> Planar:
    """Shortens the entries of `x` that are longer than `MAX_MAGNITUDE` to that length."""
    # Without it the compiler may compute x twice, with different rounding, for test and product.
    x = jax.lax.optimization_barrier(x)
    square = x.re**2 + x.im**2
    limit = MAX_MAGNITUDE**2
    # The inner maximum keeps the root of a zero out of the gradient.
    shorter = MAX_MAGNITUDE / jnp.sqrt(jnp.maximum(square, limit))
    return scale(x, jnp.where(square > limit, shorter, 1))


def zero_order_hold(eigenvalue: Planar, step: Float[Array, "*n"]) -> tuple[Planar, Planar]:
    r"""$\bar\lambda = e^{\lambda\Delta}$ and $g = (e^{\lambda\Delta} - 1) / \lambda$."""
    exponent = _bounded(scale(eigenvalue, step))
    real, phase = jnp.minimum(exponent.re, _LARGEST_LOG), exponent.im
    decay = polar(jnp.exp(real), phase)
    # exp(x + iy) - 1 = expm1(x) cos(y) - 2 sin²(y/2) + i exp(x) sin(y)
    growth = Planar(jnp.expm1(real) * jnp.cos(phase) - 2 * jnp.sin(phase / 2) ** 2, decay.im)
    return decay, multiply(growth, reciprocal(_bounded(eigenvalue)))


def bilinear(eigenvalue: Planar, step: Float[Array, "*n"]) -> tuple[Planar, Planar]:
    r"""$\bar\lambda = (1 + \lambda\Delta/2) / (1 - \lambda\Delta/2)$ and
    $g = \Delta / (1 - \lambda\Delta/2)$."""
    product = _bounded(scale(eigenvalue, step))
    inverse = reciprocal(Planar(1 - product.re / 2, -product.im / 2))
    # Written as 1 + λΔ / (1 - λΔ/2), the decay, which is near one, is rounded near one only once.
    growth = multiply(product, inverse)
    return Planar(1 + growth.re, growth.im), scale(inverse, step)


def _bounded(x: Planar) -> Planar:
    return Planar(*(jnp.clip(plane, -_LARGEST, _LARGEST) for plane in x))
