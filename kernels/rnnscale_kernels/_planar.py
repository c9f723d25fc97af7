"""Complex numbers as two real arrays.

XLA on CPUs does not vectorise complex arithmetic, kernels on accelerators have no complex type, and
optimisers mistake the conjugate in a complex gradient. So a complex array is a pair of real ones
here. The arithmetic below takes real arrays as well, so that one definition serves both.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, overload

import jax
import jax.numpy as jnp
from jax import Array


class Planar(NamedTuple):
    """A complex array as its real and imaginary planes, of equal shape and dtype."""

    re: Array
    im: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.re.shape

    @property
    def ndim(self) -> int:
        return self.re.ndim

    @property
    def dtype(self):
        return self.re.dtype


Numbers = Array | Planar


def as_number(planes: Sequence) -> Any:
    """The number with these planes, one or two."""
    return Planar(*planes) if len(planes) == 2 else planes[0]


@overload
def multiply(x: Array, y: Array) -> Array: ...
@overload
def multiply(x: Planar, y: Planar) -> Planar: ...
def multiply(x, y):
    """x * y, elementwise."""
    if isinstance(x, Planar):
        return Planar(x.re * y.re - x.im * y.im, x.re * y.im + x.im * y.re)
    return x * y


@overload
def multiply_conjugate(x: Array, y: Array) -> Array: ...
@overload
def multiply_conjugate(x: Planar, y: Planar) -> Planar: ...
def multiply_conjugate(x, y):
    """conj(x) * y, elementwise: the backward pass of a multiplication by x."""
    if isinstance(x, Planar):
        return Planar(x.re * y.re + x.im * y.im, x.re * y.im - x.im * y.re)
    return x * y


def add[N: Numbers](x: N, y: N) -> N:
    """x + y, elementwise."""
    return jax.tree.map(jnp.add, x, y)


def where[N: Numbers](condition: Array, x: N | float, y: N) -> N:
    """`jnp.where` on every plane; `x` may be a Python number."""
    if isinstance(x, (int, float)):
        return jax.tree.map(lambda y: jnp.where(condition, x, y), y)
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), x, y)


def cast[N: Numbers](x: N, dtype) -> N:
    """`x` in another dtype, plane by plane."""
    return jax.tree.map(lambda plane: plane.astype(dtype), x)


def conjugate[N: (Array, Planar)](x: N) -> N:
    """The complex conjugate."""
    return Planar(x.re, -x.im) if isinstance(x, Planar) else x


def ones_like(x):
    """An array of ones."""
    if isinstance(x, Planar):
        return Planar(jnp.ones_like(x.re), jnp.zeros_like(x.im))
    return jnp.ones_like(x)


def product(x):
    """The product over axis -2, without that axis."""
    one = ones_like(jax.tree.map(lambda x: jnp.zeros((), x.dtype), x))
    return jax.lax.reduce(x, one, multiply, (x.ndim - 2,))


def in_double(x):
    """`x` in float64, whatever JAX's default precision is. It is meant for small arrays."""
    with jax.enable_x64(True):
        return cast(x, jnp.float64)


def multiply_in_double(x, y):
    """x * y, elementwise, for float64 numbers.

    Powers of decays need it: each squaring doubles the relative rounding error, so that in float32,
    after thousands of steps, the error would be thousands of units in the last place.
    """
    with jax.enable_x64(True):
        return multiply(x, y)


def power(x, n: int):
    """x to the power n >= 1, elementwise, rounded once; in float32 at least."""
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    x = in_double(x)
    result = x
    for bit in bin(n)[3:]:
        result = multiply_in_double(result, result)
        if bit == "1":
            result = multiply_in_double(result, x)
    return cast(result, dtype)


def powers(x, exponents: Array, most: int):
    """x, "channel", to the powers `exponents`, integers "*batch" from 0 to `most`.

    The result is "*batch channel", rounded once, in float32 at least.
    """
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    square = in_double(x)
    result = jax.tree.map(
        lambda one: jnp.broadcast_to(one, (*exponents.shape, *one.shape)), ones_like(square)
    )
    for bit in range(most.bit_length()):
        taken = (exponents >> bit & 1 == 1)[..., None]
        result = where(taken, multiply_in_double(result, square), result)
        square = multiply_in_double(square, square)
    return cast(result, dtype)
