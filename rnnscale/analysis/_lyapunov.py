"""Lyapunov exponents: how fast nearby trajectories of a layer converge or diverge."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from rnnscale._base import State, at_least_float32, batch_axes
from rnnscale._checks import check_arguments
from rnnscale._errors import UserError
from rnnscale.analysis._step import Recurrent, as_vector, check_recurrent, on_vectors, step_of


@check_arguments
def lyapunov_spectrum(
    layer: Recurrent,
    xs: Float[Array, "*batch time idim"],
    state: State | None = None,
    *,
    count: int | None = None,
    burn_in: int = 0,
) -> Float[np.ndarray, "*batch count"]:
    r"""The Lyapunov exponents of a layer along the trajectory on which a sequence drives it: the
    mean growth per step of the logarithm of small distances, in nats.

    The largest exponent is positive where trajectories diverge (chaos), zero where distances are
    kept, and negative where the state forgets its start. The sum of all `n` is the mean of
    $\log|\det \partial h_t / \partial h_{t-1}|$. At each step the derivative maps `count`
    orthonormal directions, a QR decomposition makes them orthonormal again,
    $J_t Q_{t-1} = Q_t R_t$, and the exponents are the means of $\log|R_{ii}|$. The first
    directions are random, from a fixed key.

    ```python
    from rnnscale.analysis import lyapunov_spectrum

    exponents = lyapunov_spectrum(cell, xs, count=2, burn_in=4)    # of each row of xs
    ```

    Benettin, Galgani, Giorgilli, Strelcyn, *Lyapunov Characteristic Exponents for Smooth Dynamical
    Systems and for Hamiltonian Systems*, Meccanica 1980. For recurrent networks: Vogt, Puelma
    Touzel, Shlizerman, Lajoie, *On Lyapunov Exponents for RNNs*, Frontiers in Applied Mathematics
    and Statistics 2022.

    **Arguments:**

    - `layer`: a cell or a causal layer with `n` real numbers in its state; a complex unit counts as
        two.
    - `xs`: the sequences that drive it. Zeros leave it undriven.
    - `state`: the state before the first step, `init_state(batch)` by default.
    - `count`: the number of exponents, the largest ones, from 1 to `n`; all by default. A step
        takes `count` derivatives and the QR decomposition of `n` by `count` numbers.
    - `burn_in`: the number of first steps that are run but not counted, from 0 to `time - 1`. In
        them the state reaches its attractor and the directions turn towards theirs.

    **Returns:** float64 on the host, from the largest to the smallest. Steps are computed in the
    dtype of `xs`, at least float32, and logarithms are added in float64. The shrinking of a
    direction relative to the largest is resolved down to what the dtype holds, 16 nats per step in
    float32 and 36 in float64. If a step sets a direction to exactly zero, its exponent is minus
    infinity, unless rounding leaves a remainder.

    **Raises:** `ValueError` or `TypeError` if `xs` or the state does not fit the layer, if it has
    no step, or if `count` or `burn_in` is out of range.
    """
    xs, state = check_recurrent(layer, at_least_float32(xs), state, rank=2)
    step_of(layer, xs.dtype)  # raises if there is none
    time = xs.shape[-2]
    (units,) = jax.eval_shape(lambda: as_vector(layer.init_state((), xs.dtype))[0]).shape
    chosen = int(units) if count is None else count
    if not 1 <= chosen <= units:
        raise UserError(
            f"lyapunov_spectrum: count must be from 1 to {units}, the real numbers in the state of "
            f"{type(layer).__name__}; got {chosen}."
        )
    if not 0 <= burn_in < time:
        raise UserError(
            f"lyapunov_spectrum: burn_in must be at least 0 and below the {time} steps of xs; got "
            f"{burn_in}."
        )
    logs = np.asarray(_log_growth(layer, xs, state, chosen), np.float64)
    exponents = logs[..., burn_in:, :].mean(axis=-2)
    return np.sort(exponents, axis=-1)[..., ::-1]


@eqx.filter_jit
def _log_growth(
    layer: Recurrent, xs: Float[Array, "*batch time idim"], state: State, count: int
) -> Float[Array, "*batch time count"]:
    step, axes = step_of(layer, xs.dtype), batch_axes(layer, xs.dtype)

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
            row = jax.vmap(row, in_axes=(0, axes))
        return row(xs, state)
