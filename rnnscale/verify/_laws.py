"""What every sequence layer must do, whatever it computes.

`layer` is a `SequenceLayer` or a model that is called like one, `xs` its input with the axes
`*batch time features`, or integer tokens `*batch time`. Bounds are for float32; pass a tighter one
for a layer whose parameters are float64, under `jax.enable_x64`.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from rnnscale._fields import trainable
from rnnscale.verify._check import Check, relative_error


def step_equals_call(layer: Any, xs: Array, bound: float = 1e-5) -> Check:
    """Folding `step` over time gives the outputs and the state of a call."""
    axis = _time_axis(xs)
    state = layer.init_state(_batch_shape(xs), _dtype(xs))

    @eqx.filter_jit
    def fold(layer: Any, state: Any, xs: Array) -> tuple[Any, Array]:
        return jax.lax.scan(lambda state, x: layer.step(x, state), state, jnp.moveaxis(xs, axis, 0))

    state, ys = fold(layer, state, xs)
    expected_state, expected = _call(layer, xs)
    ys = jnp.moveaxis(ys, 0, expected.ndim - 2)
    return Check("step equals call", relative_error((state, ys), (expected_state, expected)), bound)


def cut_equals_whole(layer: Any, xs: Array, at: int, bound: float = 1e-5) -> Check:
    """Cutting a sequence and handing the state over changes nothing."""
    state, before = _call(layer, _steps(xs, 0, at))
    state, after = _call(layer, _steps(xs, at, None), state)
    ys = jnp.concatenate([before, after], axis=-2)
    return Check("cut equals whole", relative_error((state, ys), _call(layer, xs)), bound)


def reset_equals_fresh(layer: Any, xs: Array, at: int, bound: float = 1e-5) -> Check:
    """A reset at `at` equals running both segments on their own, for a layer in any direction.

    A causal layer starts from a state of NaN, with a reset at the first step too, which keeps it
    out; its returned state is that of the second segment.
    """
    causal = is_causal(layer)
    state = layer.init_state(_batch_shape(xs), _dtype(xs))
    if causal:
        state = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), state)
    reset = jnp.zeros(_axes(xs), bool).at[..., jnp.array([0, at])].set(True)
    state, ys = _call(layer, xs, state, reset=reset)
    _, before = _call(layer, _steps(xs, 0, at))
    expected_state, after = _call(layer, _steps(xs, at, None))
    error = relative_error(ys, jnp.concatenate([before, after], axis=-2))
    if causal:
        error = max(error, relative_error(state, expected_state))
    return Check("reset equals fresh", error, bound)


def padding_is_inert(layer: Any, xs: Array, lengths: list[int], bound: float = 1e-5) -> Check:
    """Rows padded with NaN give the states and outputs of rows on their own, and zeros after them.

    `xs` has one batch axis, of the size of `lengths`. A length of zero is allowed.
    """
    state, ys = _call(layer, _padded(xs, lengths), lengths=jnp.asarray(lengths))
    per_step = ys.ndim == len(_axes(xs)) + 1
    error = 0.0
    for row, length in enumerate(lengths):
        got_state = _row_of_state(layer, state, row)
        if per_step:
            error = max(error, float(jnp.max(jnp.abs(ys[row, length:]), initial=0)))
        if length == 0:
            error = max(error, relative_error(got_state, layer.init_state((), _dtype(xs))))
            continue
        got = ys[row, :length] if per_step else ys[row]
        error = max(error, relative_error((got_state, got), _call(layer, xs[row, :length])))
    return Check("padding is inert", error, bound)


def padding_spares_gradient(
    layer: Any, xs: Array, lengths: list[int], bound: float = 1e-5
) -> Check:
    """NaN in the padding gives the gradient that zeros give, and a finite one."""
    zeros = _gradient(layer, _padded(xs, lengths, 0), lengths)
    poisoned = _gradient(layer, _padded(xs, lengths), lengths)
    return Check("padding spares gradient", relative_error(poisoned, zeros), bound)


def state_is_stable(layer: Any, xs: Array) -> Check:
    """A call and a step return a state of the structure, shapes and dtypes that they took."""
    state = layer.init_state(_batch_shape(xs), _dtype(xs))
    expected = jax.eval_shape(lambda: state)
    found = [eqx.filter_eval_shape(layer, xs, state)[0], eqx.filter_eval_shape(layer, xs)[0]]
    if is_causal(layer) and hasattr(layer, "step"):
        x = jnp.take(xs, 0, axis=_time_axis(xs))
        found.append(eqx.filter_eval_shape(layer.step, x, state)[0])
    wrong = sum(_specs(one) != _specs(expected) for one in found)
    return Check("state is stable", float(wrong), 0.0)


def batching_agrees(layer: Any, xs: Array, bound: float = 1e-5) -> Check:
    """A batch, `eqx.filter_vmap`, rows one by one and another batch rank give the same numbers.

    `xs` has one batch axis.
    """
    _, expected = _call(layer, xs)
    mapped = eqx.filter_jit(eqx.filter_vmap(lambda x: layer(x)[1]))(xs)
    rows = jnp.stack([_call(layer, x)[1] for x in xs])
    ranked = _call(layer, xs[None, :, None])[1][0, :, 0]
    error = max(relative_error(ys, expected) for ys in (mapped, rows, ranked))
    return Check("batching agrees", error, bound)


def gradient_reaches_parameters(layer: Any, xs: Array) -> Check:
    """Counts the parameters that are trained but get no gradient, or one that isn't finite.

    `xs` has one batch axis.
    """
    lengths = [_axes(xs)[-1]] * _axes(xs)[0]
    leaves = jax.tree.leaves(_gradient(layer, xs, lengths))
    bad = sum(not (np.isfinite(leaf).all() and leaf.any()) for leaf in map(np.asarray, leaves))
    return Check("gradient reaches parameters", float(bad), 0.0)


def bfloat16_keeps_dtypes(layer: Any, xs: Array, bound: float = 0.05) -> Check:
    """bfloat16 in, bfloat16 out, the state as `init_state` says, and numbers near float32's."""
    low = xs.astype(jnp.bfloat16)
    state, ys = _call(layer, low)
    expected_state = layer.init_state(_batch_shape(xs), jnp.bfloat16)
    kept = ys.dtype == jnp.bfloat16 and _specs(state) == _specs(expected_state)
    error = relative_error(ys, _call(layer, xs)[1]) if kept else float("inf")
    return Check("bfloat16 keeps dtypes", error, bound)


def flip_law(layer: Any, mirrored: Any, xs: Array, bound: float = 1e-5) -> Check:
    """A bidirectional layer with its directions swapped runs flipped time to flipped outputs.

    The state is a pair `(forward, backward)`, and its halves change places.
    """
    (before, after), ys = _call(layer, xs)
    flipped_state, flipped = _call(mirrored, jnp.flip(xs, _time_axis(xs)))
    error = relative_error((flipped_state, jnp.flip(flipped, -2)), ((after, before), ys))
    return Check("flip law", error, bound)


@eqx.filter_jit
def _call(layer: Any, xs: Array, *args: Any, **kwargs: Any) -> tuple[Any, Array]:
    return layer(xs, *args, **kwargs)


def _gradient(layer: Any, xs: Array, lengths: list[int]) -> Any:
    weights, fixed = eqx.partition(layer, trainable(layer))
    return _compiled_gradient(weights, fixed, xs, jnp.asarray(lengths))


@eqx.filter_jit
@eqx.filter_grad
def _compiled_gradient(weights: Any, fixed: Any, xs: Array, lengths: Array) -> Array:
    _, ys = eqx.combine(weights, fixed)(xs, lengths=lengths)
    # A plain sum of squares is blind to the scale that a norm takes away.
    return jnp.sum(jnp.sin(ys + jnp.arange(ys.size).reshape(ys.shape)))


def _time_axis(xs: Array) -> int:
    return -1 if jnp.issubdtype(xs.dtype, jnp.integer) else -2


def _axes(xs: Array) -> tuple[int, ...]:
    """The shape of `*batch time`."""
    return xs.shape if _time_axis(xs) == -1 else xs.shape[:-1]


def _batch_shape(xs: Array) -> tuple[int, ...]:
    return _axes(xs)[:-1]


def _dtype(xs: Array) -> Any:
    return None if _time_axis(xs) == -1 else xs.dtype


def _steps(xs: Array, start: int, stop: int | None) -> Array:
    return xs[..., start:stop] if _time_axis(xs) == -1 else xs[..., start:stop, :]


def is_causal(layer: Any) -> bool:
    return getattr(layer, "stack", layer).causal


def _padded(xs: Array, lengths: list[int], fill: float = jnp.nan) -> Array:
    tokens = _time_axis(xs) == -1
    valid = jnp.arange(_axes(xs)[-1]) < jnp.asarray(lengths)[:, None]
    if tokens:
        # No token at all, which an embedding turns to NaN.
        return jnp.where(valid, xs, 0 if fill == 0 else -1)
    return jnp.where(valid[..., None], xs, fill)


def _row_of_state(layer: Any, state: Any, row: int) -> Any:
    """The state of one row, on whichever axis a leaf has its batch."""
    size = 7919  # No other axis has it.
    like = jax.eval_shape(lambda: layer.init_state((size,)))
    return jax.tree.map(lambda leaf, spec: jnp.take(leaf, row, spec.shape.index(size)), state, like)


def _specs(tree: Any) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]
