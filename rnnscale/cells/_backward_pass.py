r"""The backward pass of the parallel loop.

With the states known, the cotangents $\lambda_t$ of the states before the steps obey the recurrence

$$\lambda_t = J_t^T (\lambda_{t+1} + g_t)$$

from the last step to the first, where $J_t$ is the Jacobian of a step and $g_t$ the cotangent that
comes from its output. This recurrence is linear. The iteration of the forward pass solves it, from
zero: the residuals use exact products with $J_t^T$, and the scans use the chosen part of $J_t^T$.
With the full Jacobian, the first scan is the solution, a second one corrects its rounding errors,
and a third iteration confirms it. With a part, there are more iterations. The gradients of weights
and inputs are then computed for all steps at once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from rnnscale._base import State
from rnnscale.cells._all_steps import AllSteps, Inputs
from rnnscale.cells._base import affine
from rnnscale.cells._fixed_point import Criterion, Solution, solve_linear
from rnnscale.cells._jacobian import Jacobian, Leaves
from rnnscale.cells._layout import as_gradient_of, floating_leaves, lay_out
from rnnscale.cells._line import Line
from rnnscale.cells._step_loop import StepLoop
from rnnscale.cells._trees import floats, where
from rnnscale.sharding import TimeAxis

type Gradients = tuple[Any, Array, Any]
"""The cotangents of the weights, of the input, and of the fresh state or `None`."""


@dataclass(frozen=True)
class BackwardPass:
    """The backward pass over all steps, with one batch axis.

    - `steps`: the loop by steps.
    - `time`: how devices hold the steps, from the last to the first in the order of the loop.
    - `jacobian`: the kind of Jacobian.
    - `weights`, `inputs`: of the forward pass.
    - `before`: the states before all steps.
    - `g_ys`: the cotangents of the outputs, zero beyond the lengths.
    - `g_state`: the cotangent of the last state.
    """

    steps: StepLoop
    time: TimeAxis
    jacobian: Jacobian
    weights: Any
    inputs: Inputs
    before: State
    g_ys: Array
    g_state: State

    def solve(self, criterion: Criterion, active: Bool[Array, "batch"]) -> Solution:
        """The cotangents of the states before the steps."""
        leaves, structure, integers = self._moving()
        # `before` has `fresh` after each reset already, so the steps need no resets.
        inputs = self.inputs._replace(start=None)
        drive = self.steps.cell.drive(lay_out(self.weights), inputs.x)
        steps = AllSteps(self.steps.cell, drive, inputs, None, integers, structure)
        _, a = self.jacobian.evaluate(steps, self.weights, leaves)
        a = self.jacobian.transpose(a)
        pull = self._pullback_to_states()

        def evaluate(g_after: Leaves) -> tuple[Leaves, Any]:
            return pull(self._unless_restarted(g_after)), a

        return solve_linear(evaluate, self._line, leaves, criterion, active)

    def gradients(self, solution: Solution) -> Gradients:
        """The gradients, from the cotangents of the states before the steps."""
        g_after = self._line.previous(solution.states, solution.entering)
        sums, g_x = self._pull_to_weights(self._unless_restarted(g_after))
        return as_gradient_of(self.weights, sums), g_x, self._fresh(solution.states)

    def first(self, solution: Solution) -> State:
        """The cotangent of the state before the first step."""
        return jax.tree.unflatten(self._moving()[1], solution.last)

    @property
    def _line(self) -> Line:
        start = self.inputs.start
        # If this device's first step in the loop follows a reset, it starts from `fresh`, and no
        # cotangent goes to the device before.
        stopped = None if start is None else start[:, 0 if self.time.reverse else -1]
        g_end = jax.tree.leaves(floats(self.g_state))
        return Line(self.time, self.jacobian, g_end, self.inputs.reset, stopped)

    def _moving(self) -> tuple[Leaves, Any, Any]:
        """The floating leaves of the states before the steps, their structure, and the rest."""
        moving, integers = eqx.partition(self.before, eqx.is_inexact_array)
        leaves, structure = jax.tree.flatten(moving)
        return leaves, structure, integers

    def _fresh(self, g_before: Leaves) -> State:
        """The cotangent of the state after a reset, which the first step of each segment starts
        from."""
        start = self.inputs.start
        if start is None:
            return None
        restarted = where(start, g_before, _zeros(g_before))
        sums = [jnp.sum(x, axis=1) for x in restarted]
        return jax.tree.unflatten(self._moving()[1], sums)

    def _unless_restarted(self, g_after: Leaves) -> Leaves:
        """The cotangents of the states after the steps, zero where the next step is a restart."""
        start = self.inputs.start
        if start is None:
            return g_after
        (ends,) = self._line.previous([start], [jnp.zeros_like(start[:, 0])])
        return where(ends, _zeros(g_after), g_after)

    def _run(self, weights: Any, x: Array, leaves: Leaves) -> tuple[Leaves, Array]:
        """The floating leaves of the states after the steps, and the outputs."""
        cell, (_, structure, integers) = self.steps.cell, self._moving()
        before = eqx.combine(jax.tree.unflatten(structure, leaves), integers)
        after = cell.advance(weights, cell.drive(weights, x), before, affine)
        return jax.tree.leaves(floats(after)), cell.output(after)

    def _pullback_to_states(self) -> Callable[[Leaves], Leaves]:
        """Maps cotangents of the states after the steps to those of the states before them, with
        the cotangents of the outputs added."""
        laid_out, valid = lay_out(self.weights), self.inputs.valid

        def run(leaves: Leaves) -> tuple[Leaves, Array]:
            return self._run(laid_out, self.inputs.x, leaves)

        (_, y), pull = jax.vjp(run, self._moving()[0])

        def pull_back(g_after: Leaves) -> Leaves:
            (g_before,) = pull((self._within(g_after), self.g_ys.astype(y.dtype)))
            # A step beyond the length of its row does not change the state, nor its cotangent.
            return g_before if valid is None else where(valid, g_before, g_after)

        return pull_back

    def _pull_to_weights(self, g_after: Leaves) -> tuple[list[Array], Array]:
        """From the cotangents of the states after the steps to those of weights and inputs."""
        arrays, rebuild = floating_leaves(lay_out(self.weights))

        def run(arrays: list[Array], x: Array) -> tuple[Leaves, Array]:
            return self._run(rebuild(arrays), x, self._moving()[0])

        (_, y), pull = jax.vjp(run, arrays, self.inputs.x)
        return pull((self._within(g_after), self.g_ys.astype(y.dtype)))

    def _within(self, g_after: Leaves) -> Leaves:
        valid = self.inputs.valid
        return g_after if valid is None else where(valid, g_after, _zeros(g_after))


def _zeros(tree: Any) -> Any:
    return jax.tree.map(jnp.zeros_like, tree)
