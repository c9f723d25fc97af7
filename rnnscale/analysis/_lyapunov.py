"""How fast nearby trajectories of a recurrence come together or apart."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from rnnscale._base import State, check_features, checked_state
from rnnscale._errors import UserError
from rnnscale.analysis._step import Recurrent, as_vector, on_vectors, step_of


def lyapunov_spectrum(
    layer: Recurrent,
    xs: Float[Array, "*batch time idim"],
    state: State | None = None,
    *,
    count: int | None = None,
    burn_in: int = 0,
) -> Float[np.ndarray, "*batch count"]:
    r"""The Lyapunov exponents of a recurrence along the trajectory that a sequence drives it on:
    the mean growth of the logarithm of small distances, in nats a step.

    The largest is positive where trajectories part (chaos), zero where distances last, negative
    where the state forgets where it started. With all `n`, their sum is the mean of
    $\log|\det \partial h_t / \partial h_{t-1}|$. Each step moves `count` orthonormal directions by
    the derivative, $J_t Q_{t-1} = Q_t R_t$, and the exponents are the means of $\log|R_{ii}|$. The
    first directions are random, of a fixed key.

    ```python
    from rnnscale.analysis import lyapunov_spectrum

    exponents = lyapunov_spectrum(cell, xs, count=2, burn_in=4)    # of each row of xs
    ```

    Benettin, Galgani, Giorgilli, Strelcyn, *Lyapunov Characteristic Exponents for Smooth Dynamical
    Systems and for Hamiltonian Systems*, Meccanica 1980. For recurrent networks: Vogt, Puelma
    Touzel, Shlizerman, Lajoie, *On Lyapunov Exponents for RNNs*, Frontiers in Applied Mathematics
    and Statistics 2022.

    **Arguments:**

    - `layer`: a cell or a causal layer with `n` real entries of its state, two for each complex
        unit.
    - `xs`: what drives it. Constant zeros leave it alone.
    - `state`: to start from, `init_state(batch)` by default.
    - `count`: the largest so many exponents, from 1 to `n`; all by default. A step takes `count`
        derivatives and the QR decomposition of `n` by `count` numbers.
    - `burn_in`: steps at the start that are made and not counted, from 0 to `time - 1`: for the
        state to reach its attractor and the directions to turn towards theirs.

    **Returns:** float64 on the host, from the largest to the smallest. Steps are computed in the
    dtype of `xs`, at least float32, and logarithms are added up in float64. A direction that
    shrinks by more than that dtype resolves beside the largest, 16 nats a step in float32 and 36 in
    float64, is not seen to shrink faster. Where a step sets a direction to exactly zero, its
    exponent is minus infinity, unless rounding leaves it a remainder of that size.

    **Raises:** `ValueError` or `TypeError` where `xs` or the state is not as the layer takes it,
    there is no step, or a number is out of its range.
    """
    step_of(layer, jnp.float32)  # raises where there is none
    xs = jnp.asarray(xs)
    check_features(layer, xs, layer.idim, rank=2)
    *batch_shape, time, _ = xs.shape
    if state is None:
        state = layer.init_state(tuple(batch_shape), xs.dtype)
    state = checked_state(layer, state, tuple(batch_shape), xs.dtype)
    (units,) = jax.eval_shape(lambda: as_vector(layer.init_state((), xs.dtype))[0]).shape
    chosen = int(units) if count is None else count
    if not 1 <= chosen <= units:
        raise UserError(
            f"lyapunov_spectrum: count must be from 1 to {units}, the real entries of the state of "
            f"{type(layer).__name__}; got {chosen}."
        )
    if not 0 <= burn_in < time:
        raise UserError(
            f"lyapunov_spectrum: burn_in must be at least 0 and below the {time} steps of xs; got "
            f"{burn_in}."
        )
    logs = np.asarray(_logs_of_growth(layer, xs, state, chosen), np.float64)
    exponents = logs[..., burn_in:, :].mean(axis=-2)
    return np.sort(exponents, axis=-1)[..., ::-1]


@eqx.filter_jit
def _logs_of_growth(
    layer: Recurrent, xs: Float[Array, "*batch time idim"], state: State, count: int
) -> Float[Array, "*batch time count"]:
    step = step_of(layer, xs.dtype)

    def row(xs: Array, state: State) -> Array:
        vector, _ = as_vector(state)
        drawn = jax.random.normal(jax.random.key(0), (vector.size, count), vector.dtype)

        def body(carry: tuple[State, Array], x: Array) -> tuple[Any, Array]:
            state, directions = carry
            vector, _ = as_vector(state)
            _, push = jax.linearize(on_vectors(step, x, state), vector)
            moved = jax.vmap(push, in_axes=1, out_axes=1)(directions)
            directions, r = jnp.linalg.qr(moved)
            return (step(x, state), directions), jnp.log(jnp.abs(jnp.diagonal(r)))

        return lax.scan(body, (state, jnp.linalg.qr(drawn)[0]), xs)[1]

    with jax.default_matmul_precision("highest"):
        for _ in range(xs.ndim - 2):
            row = jax.vmap(row)
        return row(xs, state)
