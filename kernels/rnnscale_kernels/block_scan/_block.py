"""Blocks of k x k planes, and the states of k planes on which they act."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from .._algebra import Coefficient


@jax.tree_util.register_pytree_node_class
class Vector(tuple[Array, ...]):
    """A state of k planes, of equal shape and dtype."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self[0].shape

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> Any:
        return self[0].dtype

    def tree_flatten(self):
        return tuple(self), None

    @classmethod
    def tree_unflatten(cls, _, planes):
        return cls(planes)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Block(Coefficient):
    """A k x k block for each channel, as rows of planes of equal shape and dtype."""

    rows: tuple[tuple[Any, ...], ...]  # of arrays, or of shapes where JAX has only those

    @property
    def shape(self) -> tuple[int, ...]:
        return self.rows[0][0].shape

    @property
    def dtype(self) -> Any:
        return self.rows[0][0].dtype

    def multiply(self, x):
        if isinstance(x, Block):
            columns = tuple(zip(*x.rows, strict=True))
            return Block(tuple(tuple(_dot(row, column) for column in columns) for row in self.rows))
        return Vector(_dot(row, x) for row in self.rows)

    def adjoint(self):
        return Block(tuple(zip(*self.rows, strict=True)))

    def outer(self, x, y):
        return Block(tuple(tuple(one * other for other in y) for one in x))

    def identity(self):
        return Block(
            tuple(
                tuple((jnp.ones_like if i == j else jnp.zeros_like)(x) for j, x in enumerate(row))
                for i, row in enumerate(self.rows)
            )
        )


def _dot(x: Iterable[Array], y: Iterable[Array]) -> Array:
    return functools.reduce(jnp.add, map(jnp.multiply, x, y))
