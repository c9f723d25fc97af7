"""What cells with an orthogonal matrix share: exponentials of skew-symmetric ones, and modReLU."""

import math
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from rnnscale.cells._base import Units
from rnnscale.cells._init import uniform

type OrthogonalInit = Literal["henaff", "cayley"]


def orthogonal(log: Float[Array, "n n"]) -> Float[Array, "n n"]:
    r"""$e^A$ for $A = \mathrm{triu}(L, 1) - \mathrm{triu}(L, 1)^T$: a rotation.

    Squaring, by which the exponential is computed, leaves an error that grows with A, and over
    thousands of steps lengths would show it. A Newton step towards the nearest orthogonal matrix
    takes it back to rounding, in value and gradient; along orthogonal matrices its derivative is
    the identity.
    """
    upper = jnp.triu(log, 1)
    with jax.default_matmul_precision("highest"):
        q = jax.scipy.linalg.expm(upper - upper.T)
        return q + q @ (jnp.eye(len(q), dtype=q.dtype) - q.T @ q) / 2


def initial_log(key: PRNGKeyArray, size: int, init: OrthogonalInit) -> Float[Array, "n n"]:
    r"""The logarithm of rotations in planes of two units, by angles $s$.

    - `"henaff"`: $s$ uniform in $\pm \pi$ (Henaff, Szlam, LeCun, ICML 2016).
    - `"cayley"`: $s = -\sqrt{(1 - \cos u) / (1 + \cos u)}$ for $u$ uniform in $[0, \pi / 2)$
        (Helfrich, Willmott, Ye, ICML 2018).
    """
    pairs = (size // 2,)
    if init == "henaff":
        angles = uniform(key, pairs, math.pi)
    else:
        # The root is the tangent of half the angle.
        angles = -jnp.tan(jax.random.uniform(key, pairs, jnp.float32, 0, math.pi / 2) / 2)
    return pair_diagonal(angles, size)


def pair_diagonal(values: Float[Array, "pairs"], size: int) -> Float[Array, "n n"]:
    """The matrix with `values[j]` at `(2j, 2j + 1)` and zero elsewhere."""
    first = 2 * jnp.arange(len(values))
    return jnp.zeros((size, size), values.dtype).at[first, first + 1].set(values)


def modrelu(z: Units, bias: Float[Array, "hdim"]) -> Units:
    r"""$\mathrm{sign}(z) \, \mathrm{relu}(|z| + b)$, zero at zero."""
    return jnp.sign(z) * jax.nn.relu(jnp.abs(z) + bias)
