r"""How far rounding errors grow along the states that were found.

Where errors grow with time, a small residual is not enough. The states may obey the recurrence up
to rounding at every step and still differ from those of the loop, because rounding at an early step
changes all later ones. A step turns an error $e_{t-1}$ into $J_t e_{t-1}$, and rounding adds to it:

$$e_t = J_t e_{t-1} + n_t, \qquad |n_t| = u |h_t|$$

This linear recurrence is solved by the same iteration, with random signs of $n_t$. If its solution
is below the tolerance, then two ways of computing the same steps are expected to agree to it.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rnnscale.cells._all_steps import AllSteps
from rnnscale.cells._fixed_point import Criterion, Solution, scales, solve_linear
from rnnscale.cells._jacobian import Jacobian, Leaves
from rnnscale.cells._line import Line
from rnnscale.cells._trees import where

# Only the size of the errors is needed, so a rough solution is enough.
_PRECISION = 0.5


def rounding_errors(
    steps: AllSteps,
    weights: Any,
    jacobian: Jacobian,
    line: Line,
    found: Solution,
    criterion: Criterion,
    unit: float,
) -> Solution:
    """The errors after each step, in the rows that passed in `found`.

    `unit` is the rounding error of one step, relative to the states. `line` starts with the errors
    of the state before the first step.
    """
    before = line.previous(found.states, found.entering)
    _, a = jacobian.evaluate(steps, weights, before)
    _, push = jax.linearize(partial(steps, weights), before)
    added = _rounding(found, line, steps.inputs.valid, unit)

    def evaluate(errors: Leaves) -> tuple[Leaves, Any]:
        return jax.tree.map(jnp.add, push(errors), added), a

    criterion = criterion._replace(tolerance=_PRECISION)
    return solve_linear(evaluate, line, found.states, criterion, found.passed)


def _rounding(
    found: Solution, line: Line, valid: Bool[Array, "batch time"] | None, unit: float
) -> Leaves:
    """The rounding error of each state in one step, with random signs; zero beyond the length of a
    row."""
    key = line.time.key(jax.random.key(0))

    def rounding(i: int, x: Array, scale: Array) -> Float[Array, "batch time ..."]:
        # The same signs in all rows, so that a row does not depend on its place in the batch.
        signs = jax.random.rademacher(jax.random.fold_in(key, i), x.shape[1:], x.dtype)
        errors = jnp.broadcast_to(unit * scale * signs, x.shape)
        return errors if valid is None else where(valid, errors, jnp.zeros_like(errors))

    each = zip(found.states, scales(found.states, found.sizes), strict=True)
    return [rounding(i, x, scale) for i, (x, scale) in enumerate(each)]
