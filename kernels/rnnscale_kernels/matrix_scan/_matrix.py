"""Dense matrices as coefficients."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from .._algebra import Coefficient


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Matrix(Coefficient):
    """A matrix for each step, "*batch time dim*dim", with its rows one after another."""

    flat: Any  # an array, or a shape where JAX has only that

    @property
    def shape(self) -> tuple[int, ...]:
        return self.flat.shape

    @property
    def dtype(self) -> Any:
        return self.flat.dtype

    @property
    def rows(self) -> Array:
        """The matrices, "*batch time dim dim"."""
        dim = math.isqrt(self.shape[-1])
        return self.flat.reshape(*self.shape[:-1], dim, dim)

    @classmethod
    def of(cls, rows: Array) -> "Matrix":
        """From matrices "*batch time dim dim"."""
        return cls(rows.reshape(*rows.shape[:-2], math.prod(rows.shape[-2:])))

    def multiply(self, x):
        if isinstance(x, Matrix):
            return Matrix.of(_matmul(self.rows, x.rows))
        return _matmul(self.rows, x[..., None])[..., 0]

    def adjoint(self):
        return Matrix.of(jnp.swapaxes(self.rows, -1, -2))

    def outer(self, x, y):
        return Matrix.of(x[..., :, None] * y[..., None, :])

    def outer_sum(self, x, y):
        # One product of matrices sums over rows and steps: the outer products of all steps are
        # never in memory.
        shape = self.shape[:-1]
        summed = [i for i, n in enumerate(shape) if n == 1]
        kept = [i for i, n in enumerate(shape) if n > 1]
        axes = len(shape)
        out = [*kept, axes, axes + 1]
        total = jnp.einsum(
            x, [*range(axes), axes], y, [*range(axes), axes + 1], out, precision=_PRECISION
        )
        return Matrix(jnp.expand_dims(total, summed).reshape(self.shape).astype(self.dtype))

    def identity(self):
        dim = math.isqrt(self.shape[-1])
        return Matrix(jnp.broadcast_to(jnp.eye(dim, dtype=self.dtype).ravel(), self.shape))


# Products of float32 that are rounded to fewer bits would add their errors up over time.
_PRECISION = lax.Precision.HIGHEST


def _matmul(x: Array, y: Array) -> Array:
    return jnp.matmul(x, y, precision=_PRECISION)
