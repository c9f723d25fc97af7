"""The arithmetic of linear recurrences: numbers, and coefficients that act on states.

XLA on CPUs does not vectorise complex arithmetic, kernels on accelerators have no complex type, and
optimisers do not expect that JAX conjugates complex gradients. So a complex array is a pair of real
ones here, a `Planar`. A coefficient of a recurrence is a real or complex number, which acts
elementwise, or a `Coefficient`: a block or a matrix, which mixes the planes or the channels of a
state. One definition of a recurrence serves them all.
"""

from abc import ABC, abstractmethod
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


class Coefficient(ABC):
    """A linear map from states to states at each step, which is not elementwise. Maps do not
    commute.

    Its leaves, like those of the states that it acts on, are arrays "*batch time channel", where
    any axis may have size 1. So code that shifts, splits, sums or gathers along batch and time does
    not depend on the kind of coefficient.
    """

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The shape of each leaf."""

    @property
    @abstractmethod
    def dtype(self) -> Any: ...

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @abstractmethod
    def multiply(self, x: Any) -> Any:
        """The map applied to a state `x`; or to a coefficient `x`, the composition in which `x`
        acts first."""

    @abstractmethod
    def adjoint(self) -> "Coefficient":
        """The transposed map."""

    @abstractmethod
    def outer(self, x: Any, y: Any) -> "Coefficient":
        """x y^T for two states, as a coefficient of this kind; nothing else of `self` matters."""

    @abstractmethod
    def identity(self) -> "Coefficient":
        """The identity, with the shape and dtype of `self`."""

    def outer_sum(self, x: Any, y: Any) -> "Coefficient":
        """`outer`, summed over the axes along which `self` has size 1, in its dtype."""
        return sum_to(self.outer(x, y), self)


Numbers = Array | Planar | Coefficient | tuple[Array, ...]


def as_number(planes: Sequence) -> Any:
    """The number with these planes, one or two."""
    return Planar(*planes) if len(planes) == 2 else planes[0]


@overload
def multiply(x: Array, y: Array) -> Array: ...
@overload
def multiply(x: Planar, y: Planar) -> Planar: ...
@overload
def multiply(x: Coefficient, y: Any) -> Any: ...
def multiply(x, y):
    """x y: elementwise for numbers; a coefficient acts on a state or another coefficient."""
    if isinstance(x, Coefficient):
        return x.multiply(y)
    if isinstance(x, Planar):
        return Planar(x.re * y.re - x.im * y.im, x.re * y.im + x.im * y.re)
    return x * y


@overload
def multiply_conjugate(x: Array, y: Array) -> Array: ...
@overload
def multiply_conjugate(x: Planar, y: Planar) -> Planar: ...
def multiply_conjugate(x, y):
    """conj(x) * y, elementwise."""
    if isinstance(x, Planar):
        return Planar(x.re * y.re + x.im * y.im, x.re * y.im - x.im * y.re)
    return x * y


def multiply_add(a, x, y):
    """a x + y for the coefficient `a` and states, in as few roundings as there are products: each
    is one multiply-add, if the compiler makes them."""
    if isinstance(a, Planar):
        return Planar(
            (y.re + a.re * x.re) - a.im * x.im,
            (y.im + a.re * x.im) + a.im * x.re,
        )
    return add(multiply(a, x), y)


def multiply_adjoint(a, x):
    """The adjoint of the coefficient `a` times the state `x`: the cotangent of y in multiply(a, y)
    for the cotangent x."""
    return a.adjoint().multiply(x) if isinstance(a, Coefficient) else multiply_conjugate(a, x)


def outer(x, y, *, like):
    """The cotangent of the coefficient `like` in multiply(like, y) for the cotangent x, where both
    are states: an outer product, which is elementwise for numbers."""
    return like.outer(x, y) if isinstance(like, Coefficient) else multiply_conjugate(y, x)


def outer_sum(x, y, *, like):
    """`outer`, summed over the axes along which `like` has size 1, in its dtype."""
    if isinstance(like, Coefficient):
        return like.outer_sum(x, y)
    return sum_to(outer(x, y, like=like), like)


def sum_to(x, like):
    """`x` summed over the axes along which `like` has size 1, in the dtype of `like`."""

    def one(x, like):
        axes = tuple(i for i, n in enumerate(like.shape) if n == 1 and x.shape[i] != 1)
        return jnp.sum(x, axes, keepdims=True).astype(like.dtype)

    return jax.tree.map(one, x, like)


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


def adjoint(a):
    """The map whose matrix is the conjugate transpose of that of the coefficient `a`."""
    return a.adjoint() if isinstance(a, Coefficient) else conjugate(a)


def identity(a):
    """The coefficient that changes no state, with the shape and dtype of `a`."""
    if isinstance(a, Coefficient):
        return a.identity()
    if isinstance(a, Planar):
        return Planar(jnp.ones_like(a.re), jnp.zeros_like(a.im))
    return jnp.ones_like(a)


def product(a, *, reverse: bool = False):
    """The product of the coefficients of all steps, axis -2, without that axis: the last step is
    the leftmost factor, or with `reverse` the first step."""
    if not isinstance(a, Coefficient):  # one reduction, in any order
        one = identity(jax.tree.map(lambda x: jnp.zeros((), x.dtype), a))
        return jax.lax.reduce(a, one, multiply, (a.ndim - 2,))
    while (steps := a.shape[-2]) > 1:
        pairs = steps // 2

        def take(start, stop, stride=1, a=a):
            return jax.tree.map(lambda x: x[..., start:stop:stride, :], a)

        before, after = take(0, 2 * pairs, 2), take(1, 2 * pairs, 2)
        halved = multiply(before, after) if reverse else multiply(after, before)
        alone = take(2 * pairs, steps)
        a = jax.tree.map(lambda *x: jnp.concatenate(x, axis=-2), halved, alone)
    return jax.tree.map(lambda x: x[..., 0, :], a)


def in_double(x):
    """`x` in float64, whatever JAX's default precision is. It is meant for small arrays."""
    with jax.enable_x64(True):
        return cast(x, jnp.float64)


def multiply_in_double(x, y):
    """`multiply` for float64 numbers.

    Powers of decays need it: each squaring doubles the relative rounding error, so that in float32,
    after thousands of steps, the error would be thousands of units in the last place.
    """
    with jax.enable_x64(True):
        return multiply(x, y)


def power(x, n: int):
    """The coefficient x to the power n >= 1, rounded once; in float32 at least."""
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
        lambda one: jnp.broadcast_to(one, (*exponents.shape, *one.shape)), identity(square)
    )
    for bit in range(most.bit_length()):
        taken = (exponents >> bit & 1 == 1)[..., None]
        result = where(taken, multiply_in_double(result, square), result)
        square = multiply_in_double(square, square)
    return cast(result, dtype)
