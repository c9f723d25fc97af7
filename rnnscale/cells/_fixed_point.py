r"""The iteration that solves a recurrence for all of its steps at once, and decides when to stop.

The recurrence $h_t = F_t(h_{t-1})$ is given by a function that computes all steps from the states
before them. The forward pass of the parallel loop solves the recurrence of the cell, and the
backward pass the linear recurrence of the cotangents.
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

# A residual up to this many machine epsilons may come from rounding alone.
_ROUNDING = 4
# A row is given up after this many iterations in a row that bring it no closer.
_PATIENCE = 10


class Criterion(NamedTuple):
    """When the iteration stops for a row.

    - `tolerance`: the largest residual and the largest last correction of a row that passes.
    - `max_iterations`: the number of iterations after which other rows are given up.
    - `exact`: whether the iteration uses the full Jacobian. The last correction then estimates the
        error before it. With a part of the Jacobian, it does so only if corrections shrink fast.
    - `linear`: whether the recurrence to solve is linear itself. The guess is then zero.
    """

    tolerance: float
    max_iterations: int
    exact: bool
    linear: bool = False


class Solution(NamedTuple):
    """The states that were found, and how well each row converged.

    - `states`: the states after each step; they mean nothing in rows that did not pass.
    - `entering`: the state before this device's first step, "batch ...".
    - `last`: the state after the last step of all devices, "batch ...".
    - `sizes`: the largest state of each leaf, "batch leaf".
    - `residual`, `iterations`, `passed`: for each row, its largest residual, its number of
        iterations, and whether it passed.
    """

    states: Leaves
    entering: Leaves
    last: Leaves
    sizes: Float[Array, "batch leaf"]
    residual: Float[Array, "batch"]
    iterations: Int[Array, "batch"]
    passed: Bool[Array, "batch"]


class _Iterate(NamedTuple):
    """The carry of the iteration. Errors are relative to the states, and the maximum over a row.

    - `states`, `entering`, `last`: the iterate, the state before its first step, and the last state
        of all devices.
    - `sizes`: the largest state of each leaf, "batch leaf".
    - `change`: the last correction on this device.
    - `correction`: the correction before the last one, on all devices.
    - `residual`: the residual of the previous iterate.
    - `nearest`, `ahead`: when the row last got closer, its residual, and the number of steps from
        the first one with a large residual to the end.
    - `since`: the number of iterations since then.
    - `iterations`: the number of iterations of the row.
    - `active`, `passed`: whether the row still iterates, and whether it has passed.
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

    `like` has the shapes of the states. Zeros are known on every device, which saves a gather.
    Their sizes are not computed, because the compiler would take minutes to fold that.
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
    # Devices that hold parts of one row have the same measures, but different states.
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
    # 1. The residual: compute all steps from the iterate, and subtract the iterate.
    after, a = evaluate(line.previous(now.states, now.entering))
    missed = jax.tree.map(jnp.subtract, after, now.states)
    scale = scales(now.states, now.sizes)
    errors = _relative(missed, scale)
    ahead = line.ahead(errors > criterion.tolerance)
    measures = [jnp.max(errors, axis=1), now.change, ahead.astype(now.change.dtype)]
    measures = jnp.concatenate([jnp.stack(measures, axis=1), _sizes(now.states)], axis=1)
    # 2. The correction solves a linear recurrence, in which values that are not finite are set to
    #    zero. Over devices, the same all-gather also shares the states at the borders and the
    #    measures.
    step, first_step, shared = line.scan(_finite(a), _finite(missed), now.states, measures)
    residual, correction, ahead = (shared.measures[:, i] for i in range(3))
    sizes = shared.measures[:, 3:]
    # 3. Far from the solution the linear recurrence may be a bad approximation, whose corrections
    #    grow along the sequence until they overflow. So corrections are clipped to the size of the
    #    state, or to one if that is larger. States that still are not finite start again from the
    #    guess.
    if not criterion.linear:
        step = _limited(step, scale)
        first_step = _limited(first_step, scales(_one_step(shared.entering), now.sizes))
    states = _finite_or(jax.tree.map(jnp.add, now.states, step), guess)
    first_step = [x[:, 0] for x in first_step]
    entering = _finite_or(jax.tree.map(jnp.add, shared.entering, first_step), first)
    change = jnp.max(_relative(step, scale), axis=1)
    # 4. A row passes by the residual of this iterate and the correction that led to it. A
    #    comparison with NaN is false, so a row with NaN does not pass.
    passes = (residual <= criterion.tolerance) & (correction <= criterion.tolerance)
    if not criterion.exact:
        rounding = _ROUNDING * float(jnp.finfo(residual.dtype).eps)
        passes &= (correction <= now.correction / 2) | (residual <= rounding)
    # 5. Rows that have passed keep the iterate that was measured. Rows that get no closer, or have
    #    no iterations left, are given up. After a bad guess the residual does not fall at first,
    #    but the number of solved steps before the first large residual keeps doubling, which counts
    #    as getting closer. If it only grows by a few steps each time, the loop by steps is faster.
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
    """The largest absolute value of each leaf."""
    each = [jnp.max(jnp.abs(x), axis=tuple(range(1, x.ndim))) for x in states]
    return jnp.stack(each, axis=1)


def scales(states: Leaves, sizes: Float[Array, "batch leaf"]) -> Leaves:
    """What errors are relative to, for each leaf and step: the largest state of the step, but at
    least one, or at least the largest state of the row if that is below one.

    Without this minimum, a step whose states are all near zero by chance would have large errors.
    """

    def scale(x: Array, size: Float[Array, "batch"]) -> Array:
        here = jnp.max(jnp.abs(x), axis=tuple(range(2, x.ndim)), keepdims=True)
        smallest = jnp.minimum(size, 1).reshape(-1, *(1,) * (x.ndim - 1))
        # Avoids a division by zero if all states are zero.
        return jnp.maximum(jnp.maximum(here, smallest), jnp.finfo(x.dtype).tiny)

    return [scale(x, sizes[:, i]) for i, x in enumerate(states)]


def _relative(errors: Leaves, scales: Leaves) -> Float[Array, "batch time"]:
    """The largest error of each step, relative to the scales; infinite if any error is NaN, because
    the maximum of XLA on CPUs ignores NaN.
    """

    def largest(x: Array, scale: Array) -> Array:
        relative = jnp.abs(x) / scale
        relative = jnp.where(jnp.isnan(relative), jnp.inf, relative)
        return jnp.max(relative, axis=tuple(range(2, x.ndim)))

    return jnp.max(jnp.stack(jax.tree.map(largest, errors, scales)), axis=0)


def _limited(corrections: Leaves, scales: Leaves) -> Leaves:
    """The corrections, clipped to their scale, or to one if that is larger."""

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
