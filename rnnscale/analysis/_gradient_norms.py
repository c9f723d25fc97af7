"""How much of a gradient is left after a number of steps."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from rnnscale._base import State, batch_axes
from rnnscale._checks import check_arguments
from rnnscale._errors import UserError
from rnnscale.analysis._step import Recurrent, as_vector, check_recurrent, step_of
from rnnscale.cells import Cell, time_loop


@check_arguments
def gradient_norms(
    layer: Recurrent,
    xs: Float[Array, "*batch time idim"],
    state: State | None = None,
    *,
    probes: int = 8,
    key: PRNGKeyArray,
) -> Float[np.ndarray, "time"]:
    r"""The gradient of the last output with respect to the input `lag` steps before it:

    $$g_{\mathrm{lag}} = \sqrt{\mathrm{E}_v \left\| v^T \,
      \frac{\partial y_L}{\partial x_{L - \mathrm{lag}}} \right\|^2}
      = \frac{1}{\sqrt m} \left\| \frac{\partial y_L}{\partial x_{L - \mathrm{lag}}} \right\|_F$$

    over unit vectors $v$ in all $m$ directions of the output. The expectation over $v$ and over the
    rows of the batch is estimated: each probe draws one $v$ for each row and takes one backward
    pass. Probes run one after another, so the memory is that of one backward pass of the layer,
    plus a few numbers per step.

    ```python
    from rnnscale.analysis import gradient_norms

    norms = gradient_norms(layer, xs, key=key)    # norms[0]: of the last input itself
    ```

    **Arguments:**

    - `layer`: a cell or any sequence layer, including one that looks ahead.
    - `xs`: the sequences. Every step counts: there is no padding.
    - `state`: the state before the first step, `init_state(batch)` by default.
    - `probes`: vectors drawn for each row, at least 1. With `p` probes of `B` rows the relative
        error of the estimate is about $1 / \sqrt{2 p B}$ if the gradient has a single direction,
        and smaller if it is spread over many.
    - `key`: the random key of the probes.

    **Returns:** float64 on the host, by lag, from 0 to `time - 1`. Gradients below the range of
    `xs.dtype` (about 1e-38 in float32) are zero.

    **Raises:** `ValueError` or `TypeError` if `xs` or the state does not fit the layer, or if there
    is no row, no step or no probe.
    """
    xs, state, keys = _check_arguments("gradient_norms", layer, xs, state, probes, key)
    return _root_mean_square(_by_input(layer, xs, state, keys))


@check_arguments
def state_gradient_norms(
    layer: Recurrent,
    xs: Float[Array, "*batch time idim"],
    state: State | None = None,
    *,
    probes: int = 8,
    key: PRNGKeyArray,
) -> Float[np.ndarray, "time"]:
    r"""Like `gradient_norms`, for the last state with respect to the state `lag` steps before it:
    $\|\partial h_L / \partial h_{L - \mathrm{lag}}\|_F / \sqrt n$ for $n$ real numbers in the
    state.

    It is one at lag 0, stays one if states are only rotated, and for a diagonal layer is the root
    mean square of $|\lambda|^{\mathrm{lag}}$. The layer runs step by step.

    **Arguments:** those of `gradient_norms`; `layer` is a cell or a causal layer.
    """
    xs, state, keys = _check_arguments("state_gradient_norms", layer, xs, state, probes, key)
    step_of(layer, xs.dtype)  # raises if there is none
    return _root_mean_square(_by_state(layer, xs, state, keys))


def _check_arguments(
    name: str, layer: Recurrent, xs: Any, state: State | None, probes: int, key: PRNGKeyArray
) -> tuple[Array, State, PRNGKeyArray]:
    """The inputs, the state, and one key for each probe."""
    xs, state = check_recurrent(layer, xs, state, rank=2)
    if 0 in xs.shape[:-1]:
        raise UserError(f"{name}: xs needs at least one row and one step; got shape {xs.shape}.")
    if probes < 1:
        raise UserError(f"{name}: probes must be at least 1; got {probes}.")
    return xs, state, jax.random.split(key, probes)


@eqx.filter_jit
def _by_input(
    layer: Recurrent, xs: Float[Array, "*batch time idim"], state: State, keys: PRNGKeyArray
) -> Float[Array, "probe time *batch"]:
    def last(xs: Array) -> Array:
        ys = (time_loop(layer, xs, state) if isinstance(layer, Cell) else layer(xs, state))[1]
        return ys[..., -1, :]

    return _norms_of_probes(last, xs, keys)


@eqx.filter_jit
def _by_state(
    layer: Recurrent, xs: Float[Array, "*batch time idim"], state: State, keys: PRNGKeyArray
) -> Float[Array, "probe time *batch"]:
    rows = xs.reshape(-1, *xs.shape[-2:])
    batch = xs.ndim - 2

    def by_row(x: Array, axis: int) -> Array:
        x = jnp.moveaxis(x, range(axis, axis + batch), range(batch))
        return x.reshape(rows.shape[0], *x.shape[batch:])

    state = jax.tree.map(by_row, state, batch_axes(layer, xs.dtype))
    step = step_of(layer, xs.dtype)

    def last(nudges: Float[Array, "row time units"]) -> Float[Array, "row units"]:
        """The last state when `nudges` are added to the states on the way. The gradient of a nudge
        is that of the state that it is added to."""

        def row(xs: Array, state: State, nudges: Array) -> Array:
            def body(state: State, inputs: tuple[Array, Array]) -> tuple[State, None]:
                x, nudge = inputs
                vector, unravel = as_vector(step(x, state))
                return unravel(vector + nudge), None

            return as_vector(lax.scan(body, state, (xs, nudges))[0])[0]

        return jax.vmap(row)(rows, state, nudges)

    units = jax.eval_shape(jax.vmap(lambda state: as_vector(state)[0]), state)
    return _norms_of_probes(last, jnp.zeros((*rows.shape[:2], units.shape[1]), units.dtype), keys)


def _norms_of_probes(
    function: Callable[[Array], Array], at: Float[Array, "*batch time dim"], keys: PRNGKeyArray
) -> Float[Array, "probe time *batch"]:
    """For each probe, a random unit vector for each row of `function(at)`, the norm of its gradient
    at each step of `at`."""
    y, pull = jax.vjp(function, at)

    def norms(key: PRNGKeyArray) -> Array:
        (gradient,) = pull(_unit_vectors(key, y))
        return jnp.moveaxis(_norm(gradient), -1, 0)

    return lax.map(norms, keys)


def _unit_vectors(key: PRNGKeyArray, like: Float[Array, "*rows m"]) -> Float[Array, "*rows m"]:
    drawn = jax.random.normal(key, like.shape, like.dtype)
    return drawn / jnp.linalg.norm(drawn, axis=-1, keepdims=True)


def _norm(x: Float[Array, "*axes features"]) -> Float[Array, "*axes"]:
    """The norm over the last axis, without squares that underflow."""
    largest = jnp.max(jnp.abs(x), axis=-1)
    scale = jnp.where(largest > 0, largest, 1)
    return scale * jnp.linalg.norm(x / scale[..., None], axis=-1)


def _root_mean_square(norms: Float[Array, "probe time *batch"]) -> Float[np.ndarray, "time"]:
    square = np.asarray(norms, np.float64) ** 2
    rest = tuple(axis for axis in range(square.ndim) if axis != 1)
    return np.sqrt(square.mean(axis=rest))[::-1]
