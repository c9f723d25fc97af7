"""The clockwork network: its equation in NumPy, and its invariants."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from rnnscale.cells import ClockWorkRNNCell
from rnnscale.verify._check import Check, agrees, follows, normal
from rnnscale.verify._double import Doubles, fold
from rnnscale.verify._probe import (
    build,
    draw,
    elman_with_arrays_of,
    fold_steps,
    largest,
    run_steps,
    with_normal,
)
from rnnscale.verify._subject import CellSubject


def _build(key: PRNGKeyArray) -> ClockWorkRNNCell:
    cell = ClockWorkRNNCell(2, 9, periods=(3, 1, 2), key=key)
    return with_normal(cell, key, recurrent=1 / 3, input=1.0, bias=1.0)


def _build_unequal(key: PRNGKeyArray) -> ClockWorkRNNCell:
    cell = ClockWorkRNNCell(2, 9, periods=(3, 1, 2), sizes=(2, 3, 4), key=key)
    return with_normal(cell, key, recurrent=1 / 3, input=1.0, bias=1.0)


def _oracle(cell: Any, xs: Doubles, state: Any) -> tuple[Any, Doubles]:
    r"""Koutník et al. 2014; state (h, t), where t counts the steps taken.

    The rows of h are groups, one for each period, in ascending order of the periods. Group i is
    active where $t \bmod T_i = 0$; otherwise it is copied. Active groups hear those that are at
    least as slow: $h'_i = \tanh(\sum_{j: T_j \ge T_i} W_{ij} h_j + V_i x + b_i)$. The blocks of W
    that the sum leaves out are not read.
    """
    periods = sorted(cell.periods)
    groups = np.split(np.arange(cell.hdim), np.cumsum(cell.sizes)[:-1])
    W, V, b = cell.recurrent, cell.input, cell.bias

    def step(state, x):
        h, t = state
        new = h.copy()
        for period, rows in zip(periods, groups, strict=True):
            if t % period == 0:
                total = V[rows] @ x + b[rows]
                for other_period, columns in zip(periods, groups, strict=True):
                    if other_period >= period:
                        total = total + W[np.ix_(rows, columns)] @ h[columns]
                new[rows] = np.tanh(total)
        return new, (t + 1) % math.lcm(*periods)

    return fold(step, state, xs, lambda state: state[0])


def _invariants(key: PRNGKeyArray) -> list[Check]:
    cell = build(_build, key)
    h, xs = draw(key, (9,), (25, 2))
    start = (h, np.int32(0))
    (_, clock), ys = run_steps(cell, xs, start)
    states = np.concatenate([h[None], ys])
    active = np.arange(25)[:, None] % np.repeat([1, 2, 3], 3) == 0
    unchanged = states[1:] == states[:-1]
    every_step = build(lambda key: ClockWorkRNNCell(2, 9, periods=(1, 1, 1), key=key), key)
    elman = elman_with_arrays_of(every_step)
    slow, fast = np.arange(9) >= 6, np.arange(9) < 6

    @jax.jit
    @jax.grad
    def gradient_from_slow_groups(cell: ClockWorkRNNCell) -> Float[Array, ""]:
        return jnp.sum(fold_steps(cell, xs, start)[0][0][6:] ** 2)

    gradient = jax.device_get(gradient_from_slow_groups(cell))
    recurrent, weight, bias = gradient.recurrent, gradient.input, gradient.bias
    to_fast = [recurrent[fast], recurrent[np.ix_(slow, fast)], weight[fast], bias[fast]]
    to_slow = [recurrent[np.ix_(slow, slow)], weight[slow], bias[slow]]
    large = build(lambda key: ClockWorkRNNCell(7, 40, key=key), key)
    return [
        Check("inactive groups that change by a bit", float(np.sum(~unchanged & ~active)), 0.0),
        Check("active groups that do not change", float(np.sum(unchanged & active)), 0.0),
        Check("the clock stays within its common multiple", abs(float(clock) - 25 % 6), 0.0),
        agrees(
            "periods of one are Elman's network",
            run_steps(every_step, xs, start)[1],
            run_steps(elman, xs, h)[1],
            1e-6,
        ),
        Check("gradient from slow groups to fast", float(np.max([*map(largest, to_fast)])), 0.0),
        Check(
            "no gradient from slow groups to themselves",
            -float(np.min([*map(largest, to_slow)])),
            -1e-3,
        ),
        follows("initial weights", large.recurrent, normal(0.1)),
    ]


def _unequal_invariants(key: PRNGKeyArray) -> list[Check]:
    """The units that change at each step are those of the active groups: 3, 4 and 2 of them."""
    cell = build(_build_unequal, key)
    h, xs = draw(key, (9,), (25, 2))
    _, ys = run_steps(cell, xs, (h, np.int32(0)))
    changed = np.diff(np.concatenate([h[None], ys]), axis=0) != 0
    active = np.arange(25)[:, None] % np.array([1, 1, 1, 2, 2, 2, 2, 3, 3]) == 0
    return [Check("units that are active in the wrong steps", float(np.sum(changed ^ active)), 0.0)]


SUBJECTS = [
    CellSubject("ClockWorkRNNCell", "Koutník et al. 2014", _build, _oracle, _invariants),
    CellSubject(
        "ClockWorkRNNCell unequal groups",
        "Koutník et al. 2014",
        _build_unequal,
        _oracle,
        _unequal_invariants,
    ),
]
