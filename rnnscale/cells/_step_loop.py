r"""The loop over time of a cell that is not linear in its state, with its own derivative rule.

JAX's rule for `lax.scan` adds the gradient of every parameter to an accumulator at every step, and
on a mesh sums it over devices there. This loop walks back through time for the cotangents of the
states only. The gradients of the parameters, which are sums over time, are taken block by block
with time as a batch axis: a few large matrix products. Over devices they are summed once, at the
end.

The forward pass keeps, for every step, the state before it and its pre-activations: the results of
the `affine` that the cell was given. With them the backward pass repeats no product with a state.
It treats the pre-activations $p_k$ of a step as variables of their own:

1. Walking back from the cotangent $g$ of the new state $h$, a step gives the cotangent of the state
   before it and the cotangents $g_k$ of its pre-activations.
2. What the step adds to the gradient by the parameters and the input is then the gradient of
   $\sum_k g_k \, p_k + g \, h$, where each $p_k$ is computed from them, and whatever follows from a
   pre-activation takes the kept one, as a constant. The steps are independent of one another here,
   so all steps of a block are computed at once.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array

from rnnscale import sharding
from rnnscale._base import State
from rnnscale.cells._base import Map, affine, linear
from rnnscale.cells._blocks import (
    Blocks,
    batch_major,
    flatten_batch,
    join_blocks,
    scan_blocks,
    split_blocks,
    time_major,
    unflatten_batch,
)
from rnnscale.cells._layout import as_gradient_of, floating_leaves, lay_out
from rnnscale.cells._trees import floats, inner, where
from rnnscale_kernels import vary_alike

# Steps in a block. On a CPU the drives of so few stay in the cache.
_BLOCK = 8


class _StepInputs(NamedTuple):
    """The inputs of steps, with the axes `time batch ...`."""

    x: Array
    start: Array | None  # whether it is the first step of a segment in the loop's direction
    valid: Array | None  # whether it is within its row


class _Residuals(NamedTuple):
    """What the forward pass keeps of a step."""

    state: State  # before the step
    pre_activations: list[Any]


@dataclass(frozen=True)
class StepLoop:
    """The two passes for arguments of given shapes.

    The primals of both are `(weights, xs, state, fresh, start, valid)`: `fresh` is the state after
    a reset, and `None` without resets.

    **Attributes:**

    - `cell`: the cell without its arrays.
    - `time`: the number of steps.
    - `batch_rank`: the number of batch axes.
    - `reverse`, `remat`: as in `time_loop`.
    """

    cell: Any
    time: int
    batch_rank: int
    reverse: bool
    remat: bool

    @property
    def block(self) -> int:
        """Steps in a block. With `remat`, each keeps its first state only."""
        if not self.remat:
            return _BLOCK
        return _BLOCK * max(1, round(math.sqrt(self.time) / _BLOCK))

    def specs(self, primals: tuple, mesh: AbstractMesh) -> sharding.Specs:
        """How the primals, the results and the residuals lie on a mesh."""
        weights, xs, *_ = primals
        row = sharding.row_spec(xs.shape[:-2], mesh)
        (unit,) = sharding.activation_spec((self.cell.unit_axis,), (self.cell.hdim,), mesh)
        units = (unit,) if unit else ()
        rows, states = PartitionSpec(*row), PartitionSpec(*row, *units)
        # Residuals have one batch axis, after those of time.
        residuals = (*(() if self.remat else (None,)), *tuple(row)[:1], *units)
        full, rest = divmod(self.time, self.block)
        return sharding.Specs(
            primals=(
                sharding.unit_specs(weights, mesh) if unit else PartitionSpec(),
                *(rows, states, states, rows, rows),
            ),
            public=(states, PartitionSpec(*row, None, *units)),
            residuals=Blocks(
                PartitionSpec(None, *residuals) if full else None,
                PartitionSpec(*residuals) if rest else None,
            ),
            partial_sums=((), ()),
        )

    def value(self, primals: tuple) -> tuple[State, Array]:
        """The last state and the outputs."""
        return self._run(primals, keep=False)[0]

    def forward(self, primals: tuple) -> tuple[tuple[State, Array], Blocks]:
        """The value, and the residuals in blocks: with `remat`, the state before each block."""
        return self._run(primals, keep=True)

    def states(self, primals: tuple) -> tuple[tuple[State, Array], State]:
        """The value; and the states before all steps, "batch time ..." with one batch axis."""
        value, residuals = replace(self, remat=False)._run(primals, keep=True)
        before = join_blocks(residuals).state
        return value, jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), before)

    def _run(self, primals: tuple, keep: bool) -> tuple[tuple[State, Array], Blocks]:
        batch_shape = primals[1].shape[:-2]
        weights, inputs, state, fresh = vary_alike(self._prepare(primals))

        def run(state: State, inputs: _StepInputs) -> tuple[State, tuple[Array, Any]]:
            last, (ys, kept) = self._run_steps(
                weights, state, fresh, inputs, keep and not self.remat
            )
            return last, (ys, state if keep and self.remat else kept)

        def in_blocks(state: State, inputs: _StepInputs) -> tuple[State, Blocks]:
            return scan_blocks(run, state, split_blocks(inputs, self.block), reverse=self.reverse)

        def at_once(state: State, inputs: _StepInputs) -> tuple[State, Blocks]:
            state, results = run(state, inputs)
            return state, split_blocks(results, self.block)

        # Without a cache to stay in, the drives of all steps are one large product.
        default = in_blocks if self.remat else at_once
        state, results = lax.platform_dependent(state, inputs, cpu=in_blocks, default=default)
        ys, residuals = (
            Blocks(*(None if part is None else part[i] for part in results)) for i in range(2)
        )
        ys = batch_major(join_blocks(ys), batch_shape)
        return (unflatten_batch(state, batch_shape), ys), residuals

    def transpose(
        self, primals: tuple, outputs: tuple[tuple, Blocks], cotangents: tuple[State, Array]
    ) -> tuple:
        """The cotangents of the primals, from the primals, the results of `forward` and the
        cotangents of the value."""
        batch_shape, batch_rank = primals[1].shape[:-2], self.batch_rank
        g_state, g_ys = cotangents
        g_state = flatten_batch(g_state, batch_rank)
        g_ys = time_major(g_ys, batch_rank)
        weights, inputs, state, fresh = self._prepare(primals)
        arrays, _ = floating_leaves(weights)
        sums = [jnp.zeros(p.shape, jnp.promote_types(p.dtype, jnp.float32)) for p in arrays]
        g_fresh = None if fresh is None else jax.tree.map(jnp.zeros_like, floats(fresh))
        carry = (g_state, g_fresh, sums)
        residuals = outputs[1]
        weights, fresh, *arguments = vary_alike((weights, fresh, carry, inputs, residuals, g_ys))
        back = partial(self._back, weights, fresh)

        def in_blocks(carry: tuple, inputs: _StepInputs, residuals: Blocks, g_ys: Array):
            parts = zip(
                split_blocks(inputs, self.block),
                residuals,
                split_blocks(g_ys, self.block),
                strict=True,
            )
            blocks = Blocks(*(None if part[0] is None else part for part in parts))
            carry, g_xs = scan_blocks(back, carry, blocks, reverse=not self.reverse)
            return carry, join_blocks(g_xs)

        def at_once(carry: tuple, inputs: _StepInputs, residuals: Blocks, g_ys: Array):
            return back(carry, (inputs, join_blocks(residuals), g_ys))

        default = in_blocks if self.remat else at_once
        carry, g_xs = lax.platform_dependent(*arguments, cpu=in_blocks, default=default)
        g_state, g_fresh, sums = carry
        return (
            as_gradient_of(primals[0], sums),
            batch_major(g_xs, batch_shape),
            unflatten_batch(g_state, batch_shape),
            unflatten_batch(g_fresh, batch_shape),
            *(None, None),
        )

    def _prepare(self, primals: tuple) -> tuple[Any, _StepInputs, State, State]:
        """The weights laid out, and the arguments with the axes `time batch ...`."""
        weights, xs, state, fresh, start, valid = primals
        inputs = time_major(_StepInputs(xs, start, valid), self.batch_rank)
        state, fresh = (flatten_batch(each, self.batch_rank) for each in (state, fresh))
        return lay_out(weights), inputs, state, fresh

    def _run_steps(
        self, weights: Any, state: State, fresh: State, inputs: _StepInputs, keep: bool
    ) -> tuple[State, tuple[Array, Any]]:
        """Consecutive steps: the state after them, their outputs, and with `keep` their residuals,
        otherwise `None`."""

        def step(state: State, inputs_t: tuple) -> tuple[State, tuple[Array, Any]]:
            drive, start, valid = inputs_t
            before = state if start is None else where(start, fresh, state)
            pre_activations = []

            def recorded(plus: Any, weight: Map, h: Any) -> Any:
                pre_activations.append(affine(plus, weight, h))
                return pre_activations[-1]

            after = self.cell.advance(weights, drive, before, recorded)
            y = self.cell.output(after).astype(inputs.x.dtype)
            if valid is not None:
                after, y = where(valid, after, before), where(valid, y, jnp.zeros_like(y))
            return after, (y, _Residuals(before, pre_activations) if keep else None)

        by_step = self.cell.drive(weights, inputs.x), inputs.start, inputs.valid
        return lax.scan(step, state, by_step, reverse=self.reverse, unroll=_BLOCK)

    def _back(self, weights: Any, fresh: State, carry: tuple, block: tuple) -> tuple[tuple, Array]:
        """Back through the consecutive steps of a block.

        `carry` has the cotangents of the state after the block and of `fresh`, and the gradients of
        the weights so far; `block` has the inputs of the steps, the residuals, and the cotangents
        of the outputs. Returns the carry before the block, and the cotangents of `x`.
        """
        g_state, g_fresh, sums = carry
        inputs, residuals, g_ys = block
        if self.remat:
            # The residual is the first state of the block: run it again for those of its steps.
            _, (_, residuals) = self._run_steps(weights, residuals, fresh, inputs, keep=True)
        if inputs.valid is not None:
            g_ys = jnp.where(inputs.valid[..., None], g_ys, 0)
        (g_state, g_fresh), cotangents = self._walk_back(
            weights, (g_state, g_fresh), inputs, residuals, g_ys
        )
        added, g_x = self._weight_gradients(weights, inputs.x, residuals, cotangents, g_ys)
        sums = [old + part.astype(old.dtype) for old, part in zip(sums, added, strict=True)]
        return (g_state, g_fresh, sums), g_x

    def _walk_back(
        self, weights: Any, carry: tuple, inputs: _StepInputs, residuals: _Residuals, g_ys: Array
    ) -> tuple[tuple, tuple]:
        """The first stage: through time, for the cotangents of states and pre-activations.

        Returns the cotangents of the state before the block and of `fresh`, and for every step
        those of the state after it and of its pre-activations.
        """

        def step_back(carry: tuple, inputs_t: tuple) -> tuple[tuple, tuple]:
            g_state, g_fresh = carry
            drive, start, valid, kept, g_y = inputs_t
            moving, integers = eqx.partition(kept.state, eqx.is_inexact_array)
            zeros = jax.tree.map(jnp.zeros_like, g_state)
            # A step beyond the length of its row hands its state on, and its cotangent back.
            g_after = g_state if valid is None else where(valid, g_state, zeros)

            def step(before: State, pre_activations: list) -> tuple[State, Array]:
                remaining = iter(pre_activations)

                def kept_affine(plus: Any, weight: Map, h: Any) -> Any:
                    return _with_derivative_of_affine(next(remaining), plus, weight, h)

                before = eqx.combine(before, integers)
                after = self.cell.advance(weights, drive, before, kept_affine)
                return floats(after), self.cell.output(after)

            (_, y), pull = jax.vjp(step, moving, kept.pre_activations)
            g_before, g_pre = pull((g_after, g_y.astype(y.dtype)))
            # Without it the compiler repeats a step's arithmetic in each of its users.
            g_before, g_pre = lax.optimization_barrier((g_before, g_pre))
            if valid is not None:
                g_before = where(valid, g_before, g_state)
            if start is not None:
                # A step after a reset started from `fresh`, and not from the step before it.
                g_fresh = jax.tree.map(jnp.add, g_fresh, where(start, g_before, zeros))
                g_before = where(start, zeros, g_before)
            return (g_before, g_fresh), (g_after, g_pre)

        drive = self.cell.drive(weights, inputs.x)
        by_step = drive, inputs.start, inputs.valid, residuals, g_ys
        return lax.scan(step_back, carry, by_step, reverse=not self.reverse, unroll=_BLOCK)

    def _weight_gradients(
        self, weights: Any, x: Array, residuals: _Residuals, cotangents: tuple, g_ys: Array
    ) -> tuple[list[Array], Array]:
        """The second stage: the gradients by weights and inputs, of all steps at once.

        They are those of one number, the sum of all pre-activations, states and outputs, each times
        its cotangent.
        """
        g_after, g_pre = cotangents
        arrays, rebuild = floating_leaves(weights)

        def weighted_sum(arrays: list[Array], x: Array) -> Any:
            weights = rebuild(arrays)
            remaining = iter(zip(residuals.pre_activations, g_pre, strict=True))
            terms = []

            def constant_affine(plus: Any, weight: Map, h: Any) -> Any:
                kept, g = next(remaining)
                terms.append(inner(g, affine(plus, weight, h)))
                return kept

            drive = self.cell.drive(weights, x)
            after = self.cell.advance(weights, drive, residuals.state, constant_affine)
            results = floats(after), self.cell.output(after)
            return sum(terms, inner((g_after, g_ys), results))

        return jax.grad(weighted_sum, (0, 1))(arrays, x)


def _with_derivative_of_affine(kept: Any, plus: Any, weight: Map, h: Any) -> Any:
    """`kept`, with the derivatives of `plus + weight @ h` with respect to `plus` and `h`.

    Its cotangent is also that of `kept` itself, which is how the walk back reads it.
    """

    @jax.custom_vjp
    def replaced(kept, plus, h):
        return kept

    def pull(h, g):
        return g, g, jax.vjp(partial(linear, weight), h)[1](g)[0]

    replaced.defvjp(lambda kept, plus, h: (kept, h), pull)
    plus = jax.tree.map(lambda x, y: jnp.broadcast_to(x, y.shape).astype(y.dtype), plus, kept)
    # On a mesh cotangents vary over its axes, so what they belong to must vary too.
    return replaced(*vary_alike((kept, plus, h)))
