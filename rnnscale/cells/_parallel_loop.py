r"""The loop over time of a nonlinear cell, in parallel, with its own derivative rule.

The forward pass solves for the states of all steps by Newton's method, see `Newton`. Rows that do
not pass are computed by `StepLoop` from their first step. It has to be the first: where errors grow
with time, a start that is right but for rounding ends anywhere.

The backward pass needs the states before the steps only, however they were found. Their cotangents
obey a recurrence from the last step to the first, which is linear, and is solved in the same way.
The gradients of the parameters follow from these with time as a batch axis, as in `StepLoop`.
"""

from collections.abc import Callable
from dataclasses import dataclass
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
from rnnscale.cells._base import Cell, affine
from rnnscale.cells._blocks import (
    flatten_batch,
    join_blocks,
    scan_blocks,
    split_blocks,
    unflatten_batch,
)
from rnnscale.cells._fixed_point import Criterion, Solution, solve
from rnnscale.cells._jacobian import Jacobian, Leaves, jacobian_of
from rnnscale.cells._layout import as_gradient_of, floating_leaves, lay_out
from rnnscale.cells._linear import Line
from rnnscale.cells._newton import Certificate, Newton, default_tolerance, suitable_jacobian
from rnnscale.cells._step_loop import StepLoop
from rnnscale.cells._trees import floats, where
from rnnscale_kernels import vary_alike


class _Inputs(NamedTuple):
    """The inputs of steps, "batch time ..."."""

    x: Array
    start: Array | None  # whether it is the first step of a segment in the loop's direction
    valid: Array | None  # whether it is within its row
    reset: Array | None  # whether it is the first step of a segment in time order


class _Progress(NamedTuple):
    """What is carried from window to window.

    - `state`: the state after the windows so far.
    - `passed`: the rows that passed in all of them.
    - `residual`, `iterations`: the largest residual, and the sum of the iterations.
    """

    state: State
    passed: Bool[Array, "batch"]
    residual: Float[Array, "batch"]
    iterations: Int[Array, "batch"]


@dataclass(frozen=True)
class _Steps:
    """The steps of a window, all at once, as functions of the states before them.

    - `cell`: the cell without its arrays.
    - `drive`: as the cell returns it.
    - `inputs`: the inputs.
    - `fresh`: the state after a reset, or `None`.
    - `integers`: the integer leaves of the states before the steps. The floating ones are `None`.
    - `structure`: that of the floating leaves.
    """

    cell: Any
    drive: Any
    inputs: _Inputs
    fresh: State
    integers: Any
    structure: Any

    def before(self, leaves: Leaves) -> State:
        """The states before the steps, from their floating leaves. After a reset it is `fresh`."""
        state = eqx.combine(jax.tree.unflatten(self.structure, leaves), self.integers)
        if self.inputs.start is None:
            return state
        fresh = jax.tree.map(lambda x: x[:, None], self.fresh)
        return where(self.inputs.start, fresh, state)

    def after(self, weights: Any, leaves: Leaves) -> State:
        """The states after the steps. One that is not valid leaves the state as it was."""
        before = self.before(leaves)
        after = self.cell.advance(weights, self.drive, before, affine)
        return after if self.inputs.valid is None else where(self.inputs.valid, after, before)

    def __call__(self, weights: Any, leaves: Leaves) -> Leaves:
        """The floating leaves of the states after the steps."""
        return jax.tree.leaves(floats(self.after(weights, leaves)))


@dataclass(frozen=True)
class ParallelLoop:
    """The two passes for arguments of given shapes.

    The primals of both are those of `StepLoop`, and `reset`, which in the direction of the loop is
    `start`: `(weights, xs, state, fresh, start, valid, reset)`.

    **Attributes:**

    - `steps`: the loop by steps for the same arguments.
    - `jacobian`: the kind of Jacobian.
    - `exact`: whether it is the full one.
    - `tolerance`, `max_iterations`, `window`: as in `Newton`, without defaults.
    """

    steps: StepLoop
    jacobian: Jacobian
    exact: bool
    tolerance: float
    max_iterations: int
    window: int

    @classmethod
    def of(cls, newton: Newton, cell: Cell, steps: StepLoop, dtype: DTypeLike) -> "ParallelLoop":
        """The loop of a cell for sequences of this dtype."""
        kind = newton.jacobian or suitable_jacobian(cell)
        jacobian, exact = jacobian_of(kind, cell)
        tolerance = newton.tolerance or default_tolerance(dtype)
        window = newton.window or steps.time
        return cls(steps, jacobian, exact, tolerance, newton.max_iterations, window)

    def specs(self, primals: tuple, mesh: AbstractMesh) -> sharding.Specs:
        """How the primals, the results and the residuals lie on a mesh."""
        specs = self.steps.specs(primals[:-1], mesh)
        states, ys = specs.public
        rows = specs.primals[-1]
        units = tuple(ys)[len(rows) + 1 :]
        flat = tuple(rows)[:1] or (None,)
        return sharding.Specs(
            primals=(*specs.primals, rows),
            public=(states, ys, rows),
            # The states before all steps, and the rows that passed.
            residuals=(PartitionSpec(*flat, None, *units), PartitionSpec(*flat)),
            partial_sums=((), (), ()),
        )

    def value(self, primals: tuple) -> tuple[State, Array, Certificate]:
        """The last state, the outputs, and the certificate."""
        return self.forward(primals)[0]

    def forward(self, primals: tuple) -> tuple[tuple[State, Array, Certificate], tuple]:
        """The value, and as residuals the states before all steps, "batch time ...", and the rows
        that passed."""
        batch_shape = primals[1].shape[:-2]
        weights, inputs, state, fresh = vary_alike(self._prepare(primals))
        progress, (before, ys) = self._solve_windows(weights, inputs, state, fresh)
        passed = progress.passed
        found = progress.state, ys, before

        def finish(found: tuple) -> tuple:
            (state, ys), before = self.steps.states(primals[:-1])
            rank = self.steps.batch_rank
            state, ys = flatten_batch((state, ys), rank)
            return where(passed, found, vary_alike((state, ys, before)))

        with jax.named_scope(Newton.scope):
            state, ys, before = lax.cond(jnp.all(passed), lambda found: found, finish, found)
        certificate = Certificate(
            progress.residual, progress.iterations, self._stepped(inputs, passed)
        )
        public = unflatten_batch((state, ys, certificate), batch_shape)
        return public, (before, passed)

    def _prepare(self, primals: tuple) -> tuple[Any, _Inputs, State, State]:
        """The arguments with one batch axis."""
        weights, xs, state, fresh, start, valid, reset = primals
        rank = self.steps.batch_rank
        inputs = flatten_batch(_Inputs(xs, start, valid, reset), rank)
        return weights, inputs, flatten_batch(state, rank), flatten_batch(fresh, rank)

    def _stepped(self, inputs: _Inputs, passed: Bool[Array, "batch"]) -> Int[Array, "batch"]:
        time = jnp.full(passed.shape, inputs.x.shape[1], jnp.int32)
        lengths = time if inputs.valid is None else jnp.sum(inputs.valid, axis=1, dtype=jnp.int32)
        return jnp.where(passed, 0, lengths)

    def _solve_windows(
        self, weights: Any, inputs: _Inputs, state: State, fresh: State
    ) -> tuple[_Progress, tuple[State, Array]]:
        """Windows one after another: the progress after them, the states before all steps, and the
        outputs."""
        rows = inputs.x.shape[0]
        dtype = jax.tree.leaves(floats(state))[0].dtype
        start = _Progress(
            state, jnp.ones(rows, bool), jnp.zeros(rows, dtype), jnp.zeros(rows, jnp.int32)
        )
        start = vary_alike((start, inputs.x))[0]
        solve_window = partial(self._solve_window, weights, fresh)
        if self.window >= inputs.x.shape[1]:
            return solve_window(start, inputs)

        def swap(tree: PyTree[Array]) -> PyTree[Array]:
            return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), tree)

        def run(progress: _Progress, window: _Inputs) -> tuple[_Progress, Any]:
            progress, results = solve_window(progress, swap(window))
            return progress, swap(results)

        windows = split_blocks(swap(inputs), self.window)
        progress, results = scan_blocks(run, start, windows, reverse=self.steps.reverse)
        return progress, swap(join_blocks(results))

    def _solve_window(
        self, weights: Any, fresh: State, progress: _Progress, inputs: _Inputs
    ) -> tuple[_Progress, tuple[State, Array]]:
        steps, ends = self._steps(weights, fresh, progress.state, inputs)
        line = Line(self.jacobian, inputs.reset, self.steps.reverse)
        entering = jax.tree.leaves(floats(progress.state))

        def evaluate(before: Leaves) -> tuple[Leaves, Any]:
            return self.jacobian.evaluate(steps, weights, before)

        # The first guess is what each input does to a state of zero.
        laid_out, shape = lay_out(weights), inputs.x.shape[:2]
        zeros = [jnp.zeros((*shape, *x.shape[1:]), x.dtype) for x in entering]
        guess = steps(laid_out, zeros)
        criterion = Criterion(self.tolerance, self.max_iterations, self.exact)
        found = solve(evaluate, line, guess, entering, criterion, progress.passed)
        before = line.previous(found.states, found.entering)
        ys = self.steps.cell.output(steps.after(laid_out, before)).astype(inputs.x.dtype)
        if inputs.valid is not None:
            ys = where(inputs.valid, ys, jnp.zeros_like(ys))
        state = jax.tree.unflatten(steps.structure, line.last(found.states))
        progress = _Progress(
            eqx.combine(state, ends),
            found.passed,
            jnp.maximum(progress.residual, found.residual),
            progress.iterations + found.iterations,
        )
        return progress, (steps.before(before), ys)

    def _steps(
        self, weights: Any, fresh: State, state: State, inputs: _Inputs
    ) -> tuple[_Steps, Any]:
        """The steps, and the integer leaves of the state after them."""
        cell = self.steps.cell
        drive = cell.drive(lay_out(weights), inputs.x)
        moving, integers = eqx.partition(state, eqx.is_inexact_array)
        structure = jax.tree.structure(moving)
        if not jax.tree.leaves(integers):
            return _Steps(cell, drive, inputs, fresh, integers, structure), integers
        # They depend on no floating leaf. The compiler leaves out all that is computed with those.
        first = jax.tree.map(lambda x: x[:, 0], drive)

        def count(integers: Any, flags: tuple) -> tuple[Any, Any]:
            start, valid = flags
            before = eqx.combine(moving, integers)
            if start is not None:
                before = where(start, fresh, before)
            after = cell.advance(weights, first, before, affine)
            if valid is not None:
                after = where(valid, after, before)
            return eqx.filter(after, eqx.is_inexact_array, inverse=True), integers

        flags = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), (inputs.start, inputs.valid))
        length = inputs.x.shape[1]
        ends, integers = lax.scan(count, integers, flags, length=length, reverse=self.steps.reverse)
        integers = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), integers)
        return _Steps(cell, drive, inputs, fresh, integers, structure), ends

    def transpose(self, primals: tuple, outputs: tuple, cotangents: tuple) -> tuple:
        """The cotangents of the primals, from the primals, the results of `forward` and the
        cotangents of the value."""
        batch_shape, rank = primals[1].shape[:-2], self.steps.batch_rank
        g_state, g_ys, _ = cotangents
        arguments = *self._prepare(primals), *outputs[1], *flatten_batch((g_state, g_ys), rank)
        weights, inputs, _, _, before, passed, g_state, g_ys = vary_alike(arguments)
        back = _Back(self, weights, inputs, before, g_ys)
        found = back.solve(g_state, passed)

        def in_parallel() -> tuple:
            sums, *g_rows = back.gradients(found)
            return as_gradient_of(weights, sums), *unflatten_batch(tuple(g_rows), batch_shape)

        def by_steps() -> tuple:
            outputs = self.steps.forward(primals[:-1])
            return self.steps.transpose(primals[:-1], outputs, cotangents[:2])[:4]

        with jax.named_scope(Newton.scope):
            gradients = lax.cond(
                jnp.all(found.passed),
                lambda: vary_alike(in_parallel()),
                lambda: vary_alike(by_steps()),
            )
        return *gradients, *(None, None, None)


@dataclass(frozen=True)
class _Back:
    """The backward pass over all steps, from the states before them and the cotangents of the
    outputs."""

    loop: ParallelLoop
    weights: Any
    inputs: _Inputs
    before: State
    g_ys: Array

    def solve(self, g_state: State, passed: Bool[Array, "batch"]) -> Solution:
        """The cotangents of the states before the steps, given that of the last state.

        Those of a step follow from those of the one after it by the transposed Jacobian.
        """
        loop = self.loop
        moving, integers = eqx.partition(self.before, eqx.is_inexact_array)
        structure, leaves = jax.tree.structure(moving), jax.tree.leaves(moving)
        # The states before the steps are known, so no reset has to be looked at.
        inputs = self.inputs._replace(start=None)
        drive = loop.steps.cell.drive(lay_out(self.weights), inputs.x)
        steps = _Steps(loop.steps.cell, drive, inputs, None, integers, structure)
        _, a = loop.jacobian.evaluate(steps, self.weights, leaves)
        a = loop.jacobian.transpose(a)
        pull = self._pullback(with_respect_to_weights=False)

        def evaluate(g_after: Leaves) -> tuple[Leaves, Any]:
            g_after = self._unless_restarted(g_after)
            (g_before,) = pull(g_after)
            return g_before, a

        criterion = Criterion(loop.tolerance, loop.max_iterations, loop.exact, linear=True)
        # Where a part of the Jacobian was not enough for the states, neither it is here.
        active = passed | loop.exact
        zeros = [jnp.zeros_like(x) for x in leaves]
        return solve(
            evaluate, self._line, zeros, jax.tree.leaves(floats(g_state)), criterion, active
        )

    def gradients(self, found: Solution) -> tuple[list[Array], Array, Any, Any]:
        """The cotangents of the floating weights, the input, the first state and `fresh`."""
        g_after = self._unless_restarted(self._line.previous(found.states, found.entering))
        sums, g_x = self._pullback(with_respect_to_weights=True)(g_after)
        structure = jax.tree.structure(floats(self.before))
        g_before = jax.tree.unflatten(structure, found.states)
        g_state = jax.tree.unflatten(structure, self._line.last(found.states))
        start = self.inputs.start
        if start is None:
            return sums, g_x, g_state, None
        # A step after a reset started from `fresh`, and not from the step before it.
        restarted = where(start, g_before, _zeros(g_before))
        g_fresh = jax.tree.map(lambda x: jnp.sum(x, axis=1), restarted)
        first = self._line.last([start])[0]
        return sums, g_x, where(first, _zeros(g_state), g_state), g_fresh

    @property
    def _line(self) -> Line:
        return Line(self.loop.jacobian, self.inputs.reset, not self.loop.steps.reverse)

    def _unless_restarted(self, g_after: Leaves) -> Leaves:
        """The cotangents of the states after the steps, zero where the next one is a restart."""
        start = self.inputs.start
        if start is None:
            return g_after
        (ends,) = self._line.previous([start], [jnp.zeros_like(start[:, 0])])
        return where(ends, _zeros(g_after), g_after)

    def _pullback(self, *, with_respect_to_weights: bool) -> Callable[[Leaves], tuple]:
        """Maps the cotangents of the states after the steps to those of the weights and the input,
        or of the states before the steps."""
        cell, inputs, valid = self.loop.steps.cell, self.inputs, self.inputs.valid
        arrays, rebuild = floating_leaves(lay_out(self.weights))
        moving, integers = eqx.partition(self.before, eqx.is_inexact_array)
        leaves, structure = jax.tree.flatten(moving)
        g_ys = self.g_ys if valid is None else where(valid, self.g_ys, jnp.zeros_like(self.g_ys))

        def run(arrays: list[Array], x: Array, leaves: Leaves) -> tuple[Leaves, Array]:
            weights = rebuild(arrays)
            before = eqx.combine(jax.tree.unflatten(structure, leaves), integers)
            after = cell.advance(weights, cell.drive(weights, x), before, affine)
            return jax.tree.leaves(floats(after)), cell.output(after)

        if with_respect_to_weights:
            (_, y), pull = jax.vjp(lambda arrays, x: run(arrays, x, leaves), arrays, inputs.x)
        else:
            (_, y), pull = jax.vjp(lambda leaves: run(arrays, inputs.x, leaves), leaves)

        def apply(g_after: Leaves) -> tuple:
            # A step beyond the length of its row hands its state on, and its cotangent back.
            g_run = g_after if valid is None else where(valid, g_after, _zeros(g_after))
            results = pull((g_run, g_ys.astype(y.dtype)))
            if valid is None or with_respect_to_weights:
                return results
            return (where(valid, results[0], g_after),)

        return apply


def _zeros(tree: Any) -> Any:
    return jax.tree.map(jnp.zeros_like, tree)
