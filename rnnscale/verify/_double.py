"""What the oracles share: NumPy in double precision, one time step after another.

Nothing here calls the cells' own code, so that an oracle stays independent of what it checks.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from numpy.typing import NDArray

type Doubles = NDArray[np.float64]
type Oracle = Callable[[Any, Doubles, Any], tuple[Any, Doubles]]
"""`oracle(cell, xs, state) -> (last state, outputs)` for one sequence, every array a float64 NumPy
array: those of the cell, `xs` of shape `(time, idim)`, and the state."""

sigmoid: Callable[[Any], Any] = scipy.special.expit
"""The logistic function."""


def to_double(tree: Any) -> Any:
    """Returns the tree with NumPy arrays in place of its arrays, floating ones in float64."""

    def convert(x: Any) -> NDArray:
        x = np.asarray(x)
        return x.astype(np.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(convert, tree)


def fold(
    step: Callable[[Any, Doubles], Any],
    state: Any,
    xs: Doubles,
    output: Callable[[Any], Doubles] = lambda state: state,
) -> tuple[Any, Doubles]:
    """Runs `step(state, x) -> state` over a sequence.

    **Returns:** the last state, and `output(state)` after every step, of shape `(time, odim)`.
    """
    outputs = []
    for x in xs:
        state = step(state, x)
        outputs.append(output(state))
    return state, np.array(outputs)


def as_complex(re: Any, im: Any) -> NDArray[np.complex128]:
    """Returns the complex array of two real planes."""
    return np.asarray(re, np.float64) + 1j * np.asarray(im, np.float64)


def modrelu(z: Any, b: Doubles) -> Any:
    """`z / |z| * relu(|z| + b)`, which is 0 at 0."""
    # The sign of a complex number is z / |z|, and that of zero is zero.
    return np.sign(z) * np.maximum(np.abs(z) + b, 0)


def directional_derivative(
    fn: Callable[[list[Any]], float], at: list[Any], direction: list[Any], h: float
) -> float:
    """The derivative of `fn` along a direction, by central differences of fourth order."""

    def shifted(distance: float) -> float:
        return fn([x + distance * v for x, v in zip(at, direction, strict=True)])

    near, far = shifted(h) - shifted(-h), shifted(2 * h) - shifted(-2 * h)
    return (8 * near - far) / (12 * h)
