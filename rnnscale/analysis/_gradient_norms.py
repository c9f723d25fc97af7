"""How much of a gradient is left after so many steps."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from rnnscale._base import State, check_features, checked_state
from rnnscale._errors import UserError
from rnnscale.analysis._step import Recurrent, as_vector, step_of
from rnnscale.cells import Cell, time_loop


def gradient_norms(
    layer: Recurrent,
    xs: Float[Array, "*batch time idim"],
    state: State | None = None,
    *,
    probes: int = 8,
    key: PRNGKeyArray,
) -> Float[np.ndarray, "time"]:
    r"""The gradient of the last output with respect to the input `lag` steps before:

    $$g_{\mathrm{lag}} = \sqrt{\mathrm{E}_v \left\| v^T \,
      \frac{\partial y_L}{\partial x_{L - \mathrm{lag}}} \right\|^2}
      = \frac{1}{\sqrt m} \left\| \frac{\partial y_L}{\partial x_{L - \mathrm{lag}}} \right\|_F$$

    over unit vectors $v$ in all $m$ directions of the output. The expectation, and that over the
    rows of the batch, is estimated: every probe draws a $v$ for every row. A probe is one backward
    pass, and probes are done one after the other, so the memory is that of one backward pass of the
    layer, a few numbers per step more.

    ```python
    from rnnscale.analysis import gradient_norms

    norms = gradient_norms(layer, xs, key=key)    # norms[0]: of the last input itself
    ```

    **Arguments:**

    - `layer`: a cell or any sequence layer, also one that looks ahead.
    - `xs`: the sequences, all steps of which are valid.
    - `state`: to start from, `init_state(batch)` by default.
    - `probes`: vectors drawn for each row. The estimate is off by about $1 / \sqrt{2 p B}$ of
        itself where the gradient is in one direction, for `p` probes of `B` rows, and by less where
        it is spread over many.
    - `key`: for the probes.

    **Returns:** float64 on the host, by lag, from 0 to `time - 1`. Gradients below the range of
    `xs.dtype` (about 1e-38 in float32) are zero.

    **Raises:** `ValueError` or `TypeError` where `xs` or the state is not as the layer takes it, or
    there is no step or no probe.
    """
    xs, state, keys = _checked("gradient_norms", layer, xs, state, probes, key)
    return _root_mean_square(_by_input(layer, xs, state, keys))


def state_gradient_norms(
    layer: Recurrent,
    xs: Float[Array, "*batch time idim"],
    state: State | None = None,
    *,
    probes: int = 8,
    key: PRNGKeyArray,
) -> Float[np.ndarray, "time"]:
    r"""As `gradient_norms`, of the last state with respect to the state `lag` steps before:
    $\|\partial h_L / \partial h_{L - \mathrm{lag}}\|_F / \sqrt n$ for $n$ real entries of the
    state.

    At lag 0 it is one; it stays one where states are only rotated, and for a diagonal layer is the
    root mean square of $|\lambda|^{\mathrm{lag}}$. The layer runs step by step.

    **Arguments:** as of `gradient_norms`; `layer` is a cell or a causal layer.
    """
    xs, state, keys = _checked("state_gradient_norms", layer, xs, state, probes, key)
    step_of(layer, xs.dtype)  # raises where there is none
    return _root_mean_square(_by_state(layer, xs, state, keys))


def _checked(
    name: str, layer: Any, xs: Any, state: Any, probes: int, key: PRNGKeyArray
) -> tuple[Array, State, PRNGKeyArray]:
    if not (hasattr(layer, "idim") and hasattr(layer, "init_state")):
        step_of(layer, jnp.float32)  # raises
    xs = jnp.asarray(xs)
    check_features(layer, xs, layer.idim, rank=2)
    *batch_shape, time, _ = xs.shape
    if time == 0 or 0 in batch_shape:
        raise UserError(f"{name}: xs needs at least one row and one step; got shape {xs.shape}.")
    if probes < 1:
        raise UserError(f"{name}: probes must be at least 1; got {probes}.")
    if state is None:
        state = layer.init_state(tuple(batch_shape), xs.dtype)
    state = checked_state(layer, state, tuple(batch_shape), xs.dtype)
    return xs, state, jax.random.split(key, probes)


@eqx.filter_jit
def _by_input(
    layer: Recurrent, xs: Float[Array, "*batch time idim"], state: State, keys: PRNGKeyArray
) -> Float[Array, "probe time *batch"]:
    def last(xs: Array) -> Array:
        ys = (time_loop(layer, xs, state) if isinstance(layer, Cell) else layer(xs, state))[1]
        return ys[..., -1, :]

    y, pull = jax.vjp(last, xs)

    def norms(key: PRNGKeyArray) -> Array:
        (gradient,) = pull(_unit_vectors(key, y))
        return jnp.moveaxis(_norm(gradient), -1, 0)

    return lax.map(norms, keys)


@eqx.filter_jit
def _by_state(
    layer: Recurrent, xs: Float[Array, "*batch time idim"], state: State, keys: PRNGKeyArray
) -> Float[Array, "probe time *batch"]:
    rows = xs.reshape(-1, *xs.shape[-2:])
    state = jax.tree.map(lambda x: x.reshape(rows.shape[0], *x.shape[xs.ndim - 2 :]), state)
    step = step_of(layer, xs.dtype)

    def last(nudges: Float[Array, "row time units"]) -> Float[Array, "row units"]:
        """The last state, with something added to every state on the way."""

        def row(xs: Array, state: State, nudges: Array) -> Array:
            def body(state: State, inputs: tuple[Array, Array]) -> tuple[State, None]:
                x, nudge = inputs
                vector, unravel = as_vector(step(x, state))
                return unravel(vector + nudge), None

            return as_vector(lax.scan(body, state, (xs, nudges))[0])[0]

        return jax.vmap(row)(rows, state, nudges)

    units = jax.eval_shape(jax.vmap(lambda state: as_vector(state)[0]), state)
    h, pull = jax.vjp(last, jnp.zeros((*rows.shape[:2], units.shape[1]), units.dtype))

    def norms(key: PRNGKeyArray) -> Array:
        (gradient,) = pull(_unit_vectors(key, h))
        return jnp.moveaxis(_norm(gradient), -1, 0)

    return lax.map(norms, keys)


def _unit_vectors(key: PRNGKeyArray, like: Float[Array, "*rows m"]) -> Float[Array, "*rows m"]:
    drawn = jax.random.normal(key, like.shape, like.dtype)
    return drawn / jnp.linalg.norm(drawn, axis=-1, keepdims=True)


def _norm(x: Float[Array, "*axes features"]) -> Float[Array, "*axes"]:
    """Without squares that underflow."""
    largest = jnp.max(jnp.abs(x), axis=-1)
    scale = jnp.where(largest > 0, largest, 1)
    return scale * jnp.linalg.norm(x / scale[..., None], axis=-1)


def _root_mean_square(norms: Float[Array, "probe time *batch"]) -> Float[np.ndarray, "time"]:
    square = np.asarray(norms, np.float64) ** 2
    rest = tuple(axis for axis in range(square.ndim) if axis != 1)
    return np.sqrt(square.mean(axis=rest))[::-1]
