"""The laws of sequence models: what every one of them must do, whatever it computes.

`layer` is any `SequenceModel` that returns `(state, ys)`. `xs` is its input with the axes
`*batch time features`, or integer tokens `*batch time`. Bounds are for float32; pass a tighter one
for a layer whose parameters are float64, under `jax.enable_x64`.

The laws share their programs: each calls the layer with as few combinations of shapes and arguments
as it can, and those that occur in several laws are compiled once. Everything around the calls is
NumPy, which compiles nothing.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpy.typing import NDArray

from rnnscale._base import has_step
from rnnscale._fields import trainable
from rnnscale.verify._check import Check, agrees, relative_error


def step_equals_call(layer: Any, xs: Any, bound: float = 1e-5) -> Check:
    """Folding `step` over time gives the outputs and the state of a call."""
    xs = np.asarray(xs)
    state, ys = jax.device_get(_fold(layer, _initial_state(layer, xs), xs))
    expected = call_layer(layer, xs)
    ys = np.moveaxis(ys, 0, expected[1].ndim - 2)
    return agrees("step equals call", (state, ys), expected, bound)


def chunks_equal_one_call(layer: Any, xs: Any, at: int, bound: float = 1e-5) -> Check:
    """Two calls, one up to step `at` and one from there with the state, give what one call gives.

    The first of the two is given the initial state, the one call is not.
    """
    xs = np.asarray(xs)
    state, before = call_layer(layer, _steps(xs, 0, at), _initial_state(layer, xs))
    state, after = call_layer(layer, _steps(xs, at, None), state)
    ys = np.concatenate([before, after], axis=-2)
    return agrees("chunks equal one call", (state, ys), call_layer(layer, xs), bound)


def reset_equals_fresh(layer: Any, xs: Any, at: int, bound: float = 1e-5) -> Check:
    """A reset at `at` equals running both segments on their own, for a layer in any direction.

    A causal layer starts from a state of NaN, or of other integers, with a reset at the first step
    too, which keeps it out; its returned state is that of the second segment.
    """
    xs = np.asarray(xs)
    initial = state = _initial_state(layer, xs)
    if layer.causal:
        spoiled = lambda x: x * np.nan if eqx.is_inexact_array(x) else x + 1  # noqa: E731
        state = jax.tree.map(spoiled, state)
    reset = np.zeros(_axes(xs), bool)
    reset[..., [0, at]] = True
    state, ys = call_layer(layer, xs, state, reset=reset)
    _, before = call_layer(layer, _steps(xs, 0, at), initial)
    expected_state, after = call_layer(layer, _steps(xs, at, None), initial)
    error = relative_error(ys, np.concatenate([before, after], axis=-2))
    if layer.causal:
        error = max(error, relative_error(state, expected_state))
    return Check("reset equals fresh", error, bound)


def padding_is_inert(layer: Any, xs: Any, lengths: list[int], bound: float = 1e-5) -> Check:
    """Rows padded with NaN give the states and outputs of unpadded rows, and zeros after them.

    `xs` has one batch axis, of the size of `lengths`. A length of zero is allowed. The unpadded
    rows of one length are computed together: rows do not depend on one another, which is the law
    `batching_agrees`.
    """
    xs = np.asarray(xs)
    initial = _initial_state(layer, xs)
    state, ys = call_layer(layer, _padded(xs, lengths), lengths=np.asarray(lengths))
    per_step = ys.ndim == len(_axes(xs)) + 1
    unpadded = {
        n: call_layer(layer, _steps(xs, 0, n), *(() if n == _axes(xs)[-1] else (initial,)))
        for n in {*lengths} - {0}
    }
    error = 0.0
    for row, length in enumerate(lengths):
        got_state = _row_of_state(layer, state, row)
        if per_step:
            error = max(error, relative_error(1 + ys[row, length:], np.ones_like(ys[row, length:])))
        if length == 0:
            error = max(error, relative_error(got_state, _row_of_state(layer, initial, row)))
            continue
        expected_state, expected = unpadded[length]
        got = ys[row, :length] if per_step else ys[row]
        expected = _row_of_state(layer, expected_state, row), expected[row]
        error = max(error, relative_error((got_state, got), expected))
    return Check("padding is inert", error, bound)


def padding_spares_gradient(layer: Any, xs: Any, lengths: list[int], bound: float = 1e-5) -> Check:
    """NaN in the padding gives the gradient that zeros give, and a finite one."""
    xs = np.asarray(xs)
    zeros = _gradient(layer, _padded(xs, lengths, 0), lengths)
    poisoned = _gradient(layer, _padded(xs, lengths), lengths)
    return agrees("padding spares gradient", poisoned, zeros, bound)


def state_is_stable(layer: Any, xs: Any) -> Check:
    """A call and a step return a state of the structure, shapes and dtypes that they took."""
    xs = np.asarray(xs)
    state = jax.eval_shape(lambda: layer.init_state(_axes(xs)[:-1], _dtype(xs)))
    found = [eqx.filter_eval_shape(layer, xs, state)[0], eqx.filter_eval_shape(layer, xs)[0]]
    if has_step(layer):
        x = np.take(xs, 0, axis=_time_axis(xs))
        found.append(eqx.filter_eval_shape(layer.step, x, state)[0])
    wrong = sum(_specs(each) != _specs(state) for each in found)
    return Check("state is stable", float(wrong), 0.0)


def batching_agrees(layer: Any, xs: Any, bound: float = 1e-5) -> Check:
    """A batch, `eqx.filter_vmap`, rows one by one and another batch rank give the same numbers.

    `xs` has one batch axis.
    """
    xs = np.asarray(xs)
    _, expected = call_layer(layer, xs)
    mapped = _call_rows(layer, xs)
    state = _initial_state(layer, xs[0])
    rows = np.stack([call_layer(layer, x, state)[1] for x in xs])
    ranked = call_layer(layer, xs[None, :, None])[1][0, :, 0]
    error = max(relative_error(ys, expected) for ys in (mapped, rows, ranked))
    return Check("batching agrees", error, bound)


def gradient_reaches_parameters(layer: Any, xs: Any) -> Check:
    """Counts the parameters that are trained but get no gradient, or one that is not finite.

    `xs` has one batch axis.
    """
    xs = np.asarray(xs)
    lengths = [_axes(xs)[-1]] * _axes(xs)[0]
    leaves = jax.tree.leaves(_gradient(layer, xs, lengths))
    bad = sum(not (np.isfinite(leaf).all() and leaf.any()) for leaf in leaves)
    return Check("gradient reaches parameters", float(bad), 0.0)


def bfloat16_keeps_dtypes(layer: Any, xs: Any, bound: float = 0.05) -> Check:
    """With bfloat16 inputs outputs are bfloat16, near those of float32, and the state has the
    dtypes of `init_state`."""
    xs = np.asarray(xs)
    low = xs.astype(jnp.bfloat16)
    state, ys = call_layer(layer, low)
    kept = ys.dtype == jnp.bfloat16 and _specs(state) == _specs(_initial_state(layer, low))
    error = relative_error(ys, call_layer(layer, xs)[1]) if kept else float("inf")
    return Check("bfloat16 keeps dtypes", error, bound)


def flip_law(layer: Any, mirrored: Any, xs: Any, bound: float = 1e-5) -> Check:
    """A bidirectional layer with its directions swapped maps flipped time to flipped outputs.

    The state is a pair `(forward, backward)`, and its halves change places.
    """
    xs = np.asarray(xs)
    (before, after), ys = call_layer(layer, xs)
    flipped_state, flipped = call_layer(mirrored, np.flip(xs, _time_axis(xs)))
    return agrees("flip law", (flipped_state, np.flip(flipped, -2)), ((after, before), ys), bound)


def call_layer(layer: Any, xs: Any, *args: Any, **kwargs: Any) -> tuple[Any, NDArray]:
    """Returns `layer(xs, ...)`, compiled, as NumPy arrays."""
    return jax.device_get(_call(layer, xs, *args, **kwargs))


@eqx.filter_jit
def _call(layer: Any, xs: Array, *args: Any, **kwargs: Any) -> tuple[Any, Array]:
    return layer(xs, *args, **kwargs)


@eqx.filter_jit
def _call_rows(layer: Any, xs: Array) -> Array:
    return eqx.filter_vmap(lambda x: layer(x)[1])(xs)


@eqx.filter_jit
def _fold(layer: Any, state: Any, xs: Array) -> tuple[Any, Array]:
    xs = jnp.moveaxis(xs, _time_axis(xs), 0)
    return jax.lax.scan(lambda state, x: layer.step(x, state), state, xs)


def _gradient(layer: Any, xs: NDArray, lengths: list[int]) -> Any:
    weights, fixed = eqx.partition(layer, trainable(layer))
    return jax.device_get(_compiled_gradient(weights, fixed, xs, np.asarray(lengths)))


@eqx.filter_jit
@eqx.filter_grad
def _compiled_gradient(weights: Any, fixed: Any, xs: Any, lengths: Any) -> Array:
    _, ys = eqx.combine(weights, fixed)(xs, lengths=lengths)
    # A plain sum of squares is blind to the scale that a norm takes away.
    return jnp.sum(jnp.sin(ys + jnp.arange(ys.size).reshape(ys.shape)))


def _initial_state(layer: Any, xs: NDArray) -> Any:
    return jax.device_get(layer.init_state(_axes(xs)[:-1], _dtype(xs)))


def _time_axis(xs: Any) -> int:
    return -1 if jnp.issubdtype(xs.dtype, jnp.integer) else -2


def _axes(xs: NDArray) -> tuple[int, ...]:
    """The shape of `*batch time`."""
    return xs.shape if _time_axis(xs) == -1 else xs.shape[:-1]


def _dtype(xs: NDArray) -> Any:
    return None if _time_axis(xs) == -1 else xs.dtype


def _steps(xs: NDArray, start: int, stop: int | None) -> NDArray:
    return xs[..., start:stop] if _time_axis(xs) == -1 else xs[..., start:stop, :]


def _padded(xs: NDArray, lengths: list[int], fill: float = np.nan) -> NDArray:
    """`xs` with another value beyond the lengths, or for tokens another token."""
    valid = np.arange(_axes(xs)[-1]) < np.asarray(lengths)[:, None]
    if _time_axis(xs) == -1:
        # -1 is not a token, and an embedding maps it to NaN.
        return np.where(valid, xs, 0 if fill == 0 else -1).astype(xs.dtype)
    return np.where(valid[..., None], xs, fill).astype(xs.dtype)


def _row_of_state(layer: Any, state: Any, row: int) -> Any:
    """The state of one row, on whichever axis a leaf has its batch."""
    size = 7919  # No other axis has it.
    like = jax.eval_shape(lambda: layer.init_state((size,)))
    return jax.tree.map(lambda leaf, spec: np.take(leaf, row, spec.shape.index(size)), state, like)


def _specs(tree: Any) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]
