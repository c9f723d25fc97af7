r"""The loop over time of a nonlinear cell, in parallel, with its own derivative rule.

The forward pass solves for the states of all steps by Newton's method, see `Newton`. Rows that do
not pass are computed by `StepLoop` from their first step, not from a later state of the solution:
where errors grow with time, even a rounding error in that state would change all steps after it.

The backward pass needs only the states before the steps, however they were found. `BackwardPass`
describes it.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array, Bool, DTypeLike, Float, Int, PyTree

from rnnscale import sharding
from rnnscale._base import State
from rnnscale.cells._all_steps import Inputs, all_steps
from rnnscale.cells._backward_pass import BackwardPass
from rnnscale.cells._base import Cell
from rnnscale.cells._blocks import (
    flatten_batch,
    join_blocks,
    scan_blocks,
    split_blocks,
    unflatten_batch,
)
from rnnscale.cells._fixed_point import Criterion, solve
from rnnscale.cells._jacobian import Jacobian, Leaves, jacobian_of
from rnnscale.cells._layout import lay_out
from rnnscale.cells._line import Line
from rnnscale.cells._newton import Newton, default_tolerance, suitable_jacobian
from rnnscale.cells._rounding import rounding_errors
from rnnscale.cells._step_loop import StepLoop
from rnnscale.cells._trees import floats, where
from rnnscale.sharding import TimeAxis
from rnnscale_kernels import vary_alike

# With the default tolerance, a row fails if rounding errors grow by more than this factor. In
# float32 and float64, a step is taken to round by one machine epsilon, twice the largest error of a
# single operation.
_GROWTH = 64


class _Progress(NamedTuple):
    """What is carried from window to window.

    - `state`, `errors`: the state after the windows so far, and its rounding errors.
    - `passed`: the rows that passed in all windows so far.
    - `residual`, `iterations`: the largest residual, and the sum of the iterations.
    """

    state: State
    errors: Leaves
    passed: Bool[Array, "batch"]
    residual: Float[Array, "batch"]
    iterations: Int[Array, "batch"]


class Outcome(NamedTuple):
    """The figures of a `Certificate`, and the rows that passed."""

    residual: Float[Array, "*batch"]
    iterations: Int[Array, "*batch"]
    passed: Bool[Array, "*batch"]


@dataclass(frozen=True)
class ParallelLoop:
    """The two passes for arguments of given shapes.

    The primals of both are `(weights, xs, state, fresh, start, valid, reset)`: those of `StepLoop`,
    and `reset`. `reset` marks the first steps of segments in time order, `start` those in the
    direction of the loop.

    **Attributes:**

    - `steps`: the loop by steps for the same arguments.
    - `time`: how devices hold the steps.
    - `unit_axes`: the mesh axes that split the units.
    - `jacobian`: the kind of Jacobian.
    - `exact`: whether it is the full one.
    - `rounding`: the rounding error of one step, relative to the states.
    - `tolerance`, `max_iterations`, `window`: as in `Newton`, without defaults.
    """

    steps: StepLoop
    time: TimeAxis
    unit_axes: tuple[str, ...]
    jacobian: Jacobian
    exact: bool
    tolerance: float
    rounding: float
    max_iterations: int
    window: int

    @classmethod
    def of(
        cls, newton: Newton, cell: Cell, steps: StepLoop, time: TimeAxis, dtype: DTypeLike
    ) -> "ParallelLoop":
        """The loop of a cell for sequences of this dtype, on the ambient mesh.

        **Raises:** `ValueError` if the options do not fit the cell or the mesh.
        """
        if time.name is not None and newton.window is not None:
            raise ValueError(
                f"Newton: the mesh splits time over {time.name}={time.parts}, so that each device "
                "holds a window of its own and all are solved together; make window None, or "
                f"{time.name}=1"
            )
        jacobian, exact = jacobian_of(newton.jacobian or suitable_jacobian(cell), cell)
        mesh = jax.sharding.get_abstract_mesh()
        units = PartitionSpec()
        if sharding.automatic_axes(mesh):
            units = sharding.activation_spec((cell.unit_axis,), (cell.hdim,), mesh)
        return cls(
            steps,
            time,
            tuple(axis for axes in sharding.mesh_axes(units) for axis in axes),
            jacobian,
            exact,
            newton.tolerance or default_tolerance(dtype),
            default_tolerance(dtype) / _GROWTH,
            newton.max_iterations,
            newton.window or steps.time,
        )

    def specs(self, primals: tuple, mesh: AbstractMesh) -> sharding.Specs:
        """How the primals, the results and the residuals lie on a mesh."""
        specs = self.steps.specs(primals[:-1], mesh)
        states, rows = specs.public[0], specs.primals[-1]
        units = tuple(states)[len(rows) :]
        # Residuals have one batch axis.
        flat = tuple(rows)[:1] or (None,)
        over_time = PartitionSpec(*rows, self.time.name)
        weights, _, *ends = specs.primals[:4]
        return sharding.Specs(
            primals=(weights, over_time, *ends, *[over_time] * 3),
            public=(states, PartitionSpec(*rows, self.time.name, *units), rows),
            # The states before all steps, and the rows that passed.
            residuals=(
                PartitionSpec(*flat, self.time.name, *units),
                PartitionSpec(*flat),
            ),
            partial_sums=((), (), ()),
        )

    def value(self, primals: tuple) -> tuple[State, Array, Outcome]:
        """The last state, the outputs, and the outcome of each row."""
        return self.forward(primals)[0]

    def forward(self, primals: tuple) -> tuple[tuple[State, Array, Outcome], tuple]:
        """The value; and for the backward pass the states before all steps, "batch time ...", and
        the rows that passed."""
        batch_shape = primals[1].shape[:-2]
        weights, inputs, state, fresh = self._prepare(primals)
        progress, (before, ys) = self._solve_windows(weights, inputs, state, fresh)
        passed = progress.passed

        def found() -> tuple:
            return progress.state, vary_alike((ys, before))

        def finish() -> tuple:
            _, xs, _, *rest = primals[:-1]

            def run(state: State) -> tuple[State, tuple[Array, State]]:
                state = unflatten_batch(state, batch_shape)
                # The states before the steps have one batch axis already.
                value, before = self.steps.states((weights, xs, state, *rest))
                state, ys = flatten_batch(value, self.steps.batch_rank)
                return state, (ys, before)

            state_by_steps, rest_by_steps = self.time.in_turn(run, state)
            return (
                where(passed, progress.state, state_by_steps),
                vary_alike(where(passed, (ys, before), rest_by_steps)),
            )

        with jax.named_scope(Newton.scope):
            state, (ys, before) = lax.cond(jnp.all(passed), found, finish)
        outcome = Outcome(progress.residual, progress.iterations, passed)
        if self.unit_axes:
            # Devices that hold other units of the same rows iterated on their own.
            worst = (outcome.residual, outcome.iterations, (~passed).astype(jnp.int32))
            residual, iterations, failed = lax.pmax(worst, self.unit_axes)
            outcome = Outcome(residual, iterations, failed == 0)
        public = unflatten_batch((state, ys, outcome), batch_shape)
        return public, (before, outcome.passed)

    def _prepare(self, primals: tuple) -> tuple[Any, Inputs, State, State]:
        """The arguments with one batch axis."""
        weights, xs, state, fresh, start, valid, reset = primals
        rank = self.steps.batch_rank
        inputs = flatten_batch(Inputs(xs, start, valid, reset), rank)
        return weights, inputs, flatten_batch(state, rank), flatten_batch(fresh, rank)

    def _solve_windows(
        self, weights: Any, inputs: Inputs, state: State, fresh: State
    ) -> tuple[_Progress, tuple[State, Array]]:
        """Solves the windows one after another.

        **Returns:** the progress after the last one; the states before all steps, and the outputs.
        """
        leaf, *_ = jax.tree.leaves(floats(state))
        none = jnp.sum(jnp.zeros_like(leaf), axis=tuple(range(1, leaf.ndim)))
        errors = [jnp.zeros_like(x) for x in jax.tree.leaves(floats(state))]
        start = _Progress(state, errors, none == 0, none, none.astype(jnp.int32))
        start = vary_alike((start, inputs))[0] if self.time.name is None else start
        solve_window = partial(self._solve_window, weights, fresh)
        if self.window >= inputs.x.shape[1]:
            return solve_window(start, inputs)

        def swap(tree: PyTree[Array]) -> PyTree[Array]:
            return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), tree)

        def run(progress: _Progress, window: Inputs) -> tuple[_Progress, Any]:
            progress, results = solve_window(progress, swap(window))
            return progress, swap(results)

        windows = split_blocks(swap(inputs), self.window)
        progress, results = scan_blocks(run, start, windows, reverse=self.steps.reverse)
        return progress, swap(join_blocks(results))

    def _solve_window(
        self, weights: Any, fresh: State, progress: _Progress, inputs: Inputs
    ) -> tuple[_Progress, tuple[State, Array]]:
        cell = self.steps.cell
        steps, ends = all_steps(cell, self.time, weights, inputs, progress.state, fresh)
        entering = jax.tree.leaves(floats(progress.state))
        line = Line(self.time, self.jacobian, entering, inputs.reset, None)

        def evaluate(before: Leaves) -> tuple[Leaves, Any]:
            return self.jacobian.evaluate(steps, weights, before)

        # The first guess is what each input does to a state of zero.
        laid_out, shape = lay_out(weights), inputs.x.shape[:2]
        zeros = [jnp.zeros((*shape, *x.shape[1:]), x.dtype) for x in entering]
        guess = steps(laid_out, zeros)
        criterion = Criterion(self.tolerance, self.max_iterations, self.exact)
        found = solve(evaluate, line, guess, criterion, progress.passed)
        line = replace(line, start=progress.errors)
        errors = rounding_errors(
            steps, weights, self.jacobian, line, found, criterion, self.rounding
        )
        stable = jnp.all(errors.sizes <= self.tolerance * found.sizes, axis=1)
        before = line.previous(found.states, found.entering)
        ys = cell.output(steps.after(laid_out, before)).astype(inputs.x.dtype)
        if inputs.valid is not None:
            ys = where(inputs.valid, ys, jnp.zeros_like(ys))
        state = jax.tree.unflatten(steps.structure, found.last)
        progress = _Progress(
            eqx.combine(state, ends),
            errors.last,
            found.passed & errors.passed & stable,
            jnp.maximum(progress.residual, found.residual),
            progress.iterations + found.iterations + errors.iterations,
        )
        return progress, (steps.before(before), ys)

    def transpose(self, primals: tuple, outputs: tuple, cotangents: tuple) -> tuple:
        """The cotangents of the primals, from the primals, the results of `forward` and the
        cotangents of the value."""
        batch_shape, rank = primals[1].shape[:-2], self.steps.batch_rank
        before, passed = outputs[1]
        g_state, g_ys = flatten_batch(cotangents[:2], rank)
        weights, inputs, _, fresh = self._prepare(primals)
        if inputs.valid is not None:
            g_ys = where(inputs.valid, g_ys, jnp.zeros_like(g_ys))
        back_in_time = replace(self.time, reverse=not self.time.reverse)
        weights, inputs, before, g_ys = vary_alike((weights, inputs, before, g_ys))
        back = BackwardPass(
            self.steps, back_in_time, self.jacobian, weights, inputs, before, g_ys, g_state
        )
        criterion = Criterion(self.tolerance, self.max_iterations, self.exact)
        # If a part of the Jacobian was not enough for the states of a row, it is not tried here.
        solution = back.solve(criterion, passed | self.exact)

        def in_parallel() -> tuple:
            return back.first(solution), vary_alike(back.gradients(solution))

        def by_steps() -> tuple:
            # Every device runs its own steps again, from the state before the first of them.
            first = -1 if self.time.reverse else 0
            state = jax.tree.map(lambda x: x[:, first], before)
            local = unflatten_batch((state, fresh), batch_shape)
            own = (weights, primals[1], *local, *primals[4:6])
            outputs = self.steps.forward(own)

            def walk(g_state: State) -> tuple[State, tuple]:
                g_state = unflatten_batch(g_state, batch_shape)
                g_weights, g_xs, *g_rows, _, _ = self.steps.transpose(
                    own, outputs, (g_state, cotangents[1])
                )
                g_xs, g_state, g_fresh = flatten_batch((g_xs, *g_rows), rank)
                return g_state, (g_weights, g_xs, g_fresh)

            g_state_0, gradients = back_in_time.in_turn(walk, floats(g_state))
            return g_state_0, vary_alike(gradients)

        with jax.named_scope(Newton.scope):
            g_state, (g_weights, g_xs, g_fresh) = lax.cond(
                jnp.all(solution.passed), in_parallel, by_steps
            )
        g_rows = unflatten_batch((g_xs, g_state, g_fresh), batch_shape)
        return g_weights, *g_rows, *(None, None, None)
