r"""The iteration that solves a recurrence for all of its steps at once, and says when it has.

The recurrence $h_t = F_t(h_{t-1})$ is given by a function that computes all steps from the states
before them. The forward pass of the parallel loop solves that of the cell, the backward pass the
linear one of the cotangents.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from rnnscale.cells._jacobian import Leaves
from rnnscale.cells._line import Line, Shared
from rnnscale_kernels import vary_alike

# Residuals of rounding, in units of the precision: of a few operations on a state.
_ROUNDING = 4
# Iterations in which a row may get no closer before it is given up.
_PATIENCE = 10


class Criterion(NamedTuple):
    """When a row is done.

    - `tolerance`: the largest residual and the largest last correction of a row that passes.
    - `max_iterations`: when the other rows are given up.
    - `exact`: whether the linear recurrence has the full Jacobian. The last correction then
        is an estimate of the error before it. Otherwise that holds only if corrections become
        smaller fast.
    - `linear`: whether the recurrence that is solved is linear itself, from a guess of zero.
    """

    tolerance: float
    max_iterations: int
    exact: bool
    linear: bool = False


class Solution(NamedTuple):
    """The states found, and how far they can be trusted.

    - `states`: the states after each step; of no meaning in rows that did not pass.
    - `entering`, `last`: the states before the first step and after the last, "batch ...". Over
        devices, the first is that of the device's own steps.
    - `sizes`: the largest state of each leaf, "batch leaf".
    - `residual`, `iterations`, `passed`: of each row.
    """

    states: Leaves
    entering: Leaves
    last: Leaves
    sizes: Float[Array, "batch leaf"]
    residual: Float[Array, "batch"]
    iterations: Int[Array, "batch"]
    passed: Bool[Array, "batch"]


class _Iterate(NamedTuple):
    """The carry of the iteration. Errors are relative, and the largest of a row.

    - `states`, `entering`, `last`: the iterate, the state before its first step, and the last one
        of all devices.
    - `sizes`: the largest state of each leaf, "batch leaf".
    - `change`: the last correction on this device.
    - `correction`: the one before it, on all devices.
    - `residual`: the residual of the iterate before.
    - `nearest`, `ahead`, `since`: the residual when the row last got closer, the steps from the
        first with a large one to the end, and how many iterations ago that was.
    - `iterations`: how often the row was measured.
    - `active`, `passed`: whether the row goes on, and whether it has passed.
    """

    states: Leaves
    entering: Leaves
    last: Leaves
    sizes: Float[Array, "batch leaf"]
    change: Float[Array, "batch"]
    correction: Float[Array, "batch"]
    residual: Float[Array, "batch"]
    nearest: Float[Array, "batch"]
    ahead: Float[Array, "batch"]
    since: Int[Array, "batch"]
    iterations: Int[Array, "batch"]
    active: Bool[Array, "batch"]
    passed: Bool[Array, "batch"]


def solve(
    evaluate: Callable[[Leaves], tuple[Leaves, Any]],
    line: Line,
    guess: Leaves,
    criterion: Criterion,
    active: Bool[Array, "batch"],
) -> Solution:
    """Solves `states = evaluate(states before them)`.

    **Arguments:**

    - `evaluate`: maps the states before all steps to those after them, and to the coefficients of
        the linear recurrence.
    - `line`: how steps follow one another, and the scan that solves linear recurrences.
    - `guess`: the states to start from.
    - `criterion`: when to stop.
    - `active`: the rows to solve. The others keep the guess, and do not pass.
    """
    return _iterate(evaluate, line, guess, line.share(guess, _sizes(guess)), criterion, active)


def solve_linear(
    evaluate: Callable[[Leaves], tuple[Leaves, Any]],
    line: Line,
    like: Leaves,
    criterion: Criterion,
    active: Bool[Array, "batch"],
) -> Solution:
    """As `solve`, for a recurrence that is linear, from zero.

    `like` has the shapes of the states. Zeros need not be shared, which saves a gather, nor
    measured, which would take the compiler minutes.
    """
    zeros = jax.tree.map(jnp.zeros_like, like)
    criterion = criterion._replace(linear=True)
    return _iterate(evaluate, line, zeros, line.share_zeros(), criterion, active)


def _iterate(
    evaluate: Callable,
    line: Line,
    guess: Leaves,
    shared: Shared,
    criterion: Criterion,
    active: Bool[Array, "batch"],
) -> Solution:
    improve = partial(_improve, evaluate, line, guess, shared.entering, criterion)
    every = guess[0].shape[1] * line.time.parts
    start = _start(guess, shared, active, every)
    end = lax.while_loop(lambda now: jnp.any(now.active), improve, start)
    return Solution(
        end.states, end.entering, end.last, end.sizes, end.residual, end.iterations, end.passed
    )


def _start(guess: Leaves, shared: Shared, active: Bool[Array, "batch"], every: int) -> _Iterate:
    """The carry before the first of the iterations, over `every` step of all devices."""
    entering, last, sizes = shared
    # Measures are the same on all devices that hold a part of a row, states are not.
    infinite = jnp.full_like(sizes[:, 0], jnp.inf)
    none = jnp.zeros_like(infinite, jnp.int32)
    active, *_ = vary_alike((active, infinite))
    return _Iterate(
        states=guess,
        entering=entering,
        last=last,
        sizes=sizes,
        change=jnp.full_like(_sizes(guess)[:, 0], jnp.inf),
        correction=infinite,
        residual=infinite,
        nearest=infinite,
        ahead=jnp.full_like(infinite, every),
        since=none,
        iterations=none,
        active=active,
        passed=jnp.zeros_like(active),
    )


def _improve(
    evaluate: Callable,
    line: Line,
    guess: Leaves,
    first: Leaves,
    criterion: Criterion,
    now: _Iterate,
) -> _Iterate:
    """Measures the iterate and corrects it. `first` is the guess of the state before its steps."""
    # 1. All steps from the iterate. What they miss it by is the residual.
    after, a = evaluate(line.previous(now.states, now.entering))
    missed = jax.tree.map(jnp.subtract, after, now.states)
    scale = scales(now.states, now.sizes)
    errors = _relative(missed, scale)
    ahead = line.ahead(errors > criterion.tolerance)
    measures = [jnp.max(errors, axis=1), now.change, ahead.astype(now.change.dtype)]
    measures = jnp.concatenate([jnp.stack(measures, axis=1), _sizes(now.states)], axis=1)
    # 2. The correction solves a linear recurrence, from which what is not finite is left out. Over
    #    devices, the states between them and the largest of their measures come with it.
    step, first_step, shared = line.scan(_finite(a), _finite(missed), now.states, measures)
    residual, correction, ahead = (shared.measures[:, i] for i in range(3))
    sizes = shared.measures[:, 3:]
    # 3. A nonlinear step may be far from its linear part, and corrections that grow along the
    #    sequence overflow. So none is larger than the state that it corrects, or than one. States
    #    that are not finite all the same come back to the guess, and are measured again.
    if not criterion.linear:
        step = _limited(step, scale)
        first_step = _limited(first_step, scales(_one_step(shared.entering), now.sizes))
    states = _finite_or(jax.tree.map(jnp.add, now.states, step), guess)
    first_step = [x[:, 0] for x in first_step]
    entering = _finite_or(jax.tree.map(jnp.add, shared.entering, first_step), first)
    change = jnp.max(_relative(step, scale), axis=1)
    # 4. The residual of this iterate and the correction that led to it decide. A comparison with
    #    NaN is false, so that a row with NaN does not pass.
    passes = (residual <= criterion.tolerance) & (correction <= criterion.tolerance)
    if not criterion.exact:
        rounding = _ROUNDING * float(jnp.finfo(residual.dtype).eps)
        passes &= (correction <= now.correction / 2) | (residual <= rounding)
    # 5. Rows that have passed keep the iterate that was measured. Rows that get no closer, or have
    #    no iterations left, are given up. From a far guess the residual does not become smaller at
    #    first, but the number of steps before the first one with a large residual doubles again and
    #    again. If it grows by a few steps in each iteration, the loop by steps is faster.
    every = errors.shape[1] * line.time.parts
    doubled = every - ahead >= 2 * jnp.maximum(every - now.ahead, 1)
    nearer = (residual < 0.9 * now.nearest) | doubled
    since = jnp.where(nearer, 0, now.since + 1)
    iterations = now.iterations + 1
    spent = (iterations >= criterion.max_iterations) | (since >= _PATIENCE)
    new = _Iterate(
        states=_where(passes, now.states, states),
        entering=_where(passes, now.entering, entering),
        last=shared.last,
        sizes=sizes,
        change=change,
        correction=correction,
        residual=residual,
        nearest=jnp.where(nearer, residual, now.nearest),
        ahead=jnp.where(nearer, ahead, now.ahead),
        since=since,
        iterations=iterations,
        active=~passes & ~spent,
        passed=passes,
    )
    return jax.tree.map(partial(_where, now.active), new, now)


def _sizes(states: Leaves) -> Float[Array, "batch leaf"]:
    """The largest state of each leaf. The solution has to be finite, so these may be too."""
    each = [jnp.max(jnp.abs(x), axis=tuple(range(1, x.ndim))) for x in states]
    return jnp.stack(each, axis=1)


def scales(states: Leaves, sizes: Float[Array, "batch leaf"]) -> Leaves:
    """What errors are relative to, for each leaf and step: the largest state of the step, but not
    less than one, or than the largest state of the row if that is less than one.

    A step may have states that all are near zero by chance.
    """

    def scale(x: Array, size: Float[Array, "batch"]) -> Array:
        here = jnp.max(jnp.abs(x), axis=tuple(range(2, x.ndim)), keepdims=True)
        smallest = jnp.minimum(size, 1).reshape(-1, *(1,) * (x.ndim - 1))
        # Zero only if all states are, where no residual is small but zero.
        return jnp.maximum(jnp.maximum(here, smallest), jnp.finfo(x.dtype).tiny)

    return [scale(x, sizes[:, i]) for i, x in enumerate(states)]


def _relative(errors: Leaves, scales: Leaves) -> Float[Array, "batch time"]:
    """The largest error of each step, relative to the scales; infinite if one is not a number.

    The maximum of XLA on a CPU leaves NaN out.
    """

    def largest(x: Array, scale: Array) -> Array:
        relative = jnp.abs(x) / scale
        relative = jnp.where(jnp.isnan(relative), jnp.inf, relative)
        return jnp.max(relative, axis=tuple(range(2, x.ndim)))

    return jnp.max(jnp.stack(jax.tree.map(largest, errors, scales)), axis=0)


def _limited(corrections: Leaves, scales: Leaves) -> Leaves:
    """The corrections, none larger than its scale or one."""

    def limited(x: Array, scale: Array) -> Array:
        limit = jnp.maximum(scale, 1)
        return jnp.clip(x, -limit, limit)

    return jax.tree.map(limited, corrections, scales)


def _one_step(rows: Leaves) -> Leaves:
    return [x[:, None] for x in rows]


def _finite_or(states: Leaves, others: Leaves) -> Leaves:
    return [jnp.where(jnp.isfinite(x), x, y) for x, y in zip(states, others, strict=True)]


def _finite(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.where(jnp.isfinite(x), x, 0), tree)


def _where(rows: Bool[Array, "batch"], xs: Any, ys: Any) -> Any:
    """`xs` in some rows, `ys` in the others."""

    def choose(x: Array, y: Array) -> Array:
        return jnp.where(rows.reshape(rows.shape + (1,) * (x.ndim - 1)), x, y)

    return jax.tree.map(choose, xs, ys)
