r"""The loop over time of any cell, with its own derivative rule.

JAX's rule for `lax.scan` adds the gradient of every parameter to an accumulator at every step, and
on a mesh sums it over devices there. This one walks back through time for the cotangents of the
states only. The gradients of the parameters, which are sums over time, are taken block by block
with time as a batch axis: a few large matrix products. Over devices they are summed once, at the
end.

Of every step the backward pass keeps the state before it and the pre-activations, which are what
the cell made with its `affine`, so that no product with the state is computed twice. There the
pre-activations $p_k$ are variables of their own. The walk gives their cotangents $g_k$ beside the
cotangent $g$ of the new state $h$; then $\sum_k g_k \, \partial p_k + g \, \partial h$, with all
pre-activations but the one on the left held constant, is what a step adds to the gradient.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PyTree

from rnnscale import sharding
from rnnscale._base import State, check_features, checked_state, zero_padding
from rnnscale.cells._base import (
    Cell,
    Map,
    Matrix,
    affine,
    compute_weights,
    linear,
)
from rnnscale.cells._linear import LinearCell
from rnnscale_kernels import check_reset, checked_lengths, vary_alike

# Steps in a block. On a CPU the drives of so many stay in the cache.
_BLOCK = 8


def time_loop(
    cell: Cell,
    xs: Float[Array, "*batch time idim"],
    state: State | None = None,
    *,
    reset: Bool[Array, "*batch time"] | None = None,
    lengths: Int[Array, "*batch"] | None = None,
    reverse: bool = False,
    remat: bool = False,
) -> tuple[State, Float[Array, "*batch time odim"]]:
    """All steps of a cell.

    A `LinearCell` runs in parallel over time, on `rnnscale.sharding.linear_scan`, which a mesh may
    split over `seq`; any other step by step, and that has no forward mode; over a mesh, reverse
    mode of first order only.

    **Arguments:**

    - `cell`: steps along each row of the batch.
    - `xs`: the sequences.
    - `state`: the state to start from, `cell.init_state(batch)` if `None`.
    - `reset`: true at `t` where `t` is the first step of a segment in time order, in either
        direction. It restores `cell.init_state(batch)`, never `state`.
    - `lengths`: the number of valid steps of each row, from 0 to `time`; traced ones cannot be
        checked and are clipped. The others leave the state as it is, and what `xs` holds there
        reaches nothing.
    - `reverse`: from the last step to the first, each row within its own length.
    - `remat`: keep nothing but the states at the borders of blocks of about the square root of the
        length, and compute the rest again in the backward pass.

    **Returns:** `(state, ys)`: the state after the last step made, and the outputs, zero beyond
    `lengths`, in the dtype of `xs`.

    **Raises:** `ValueError` or `TypeError` where the features, the state, `reset` or `lengths` are
    not those of the cell and the sequences; `ValueError` where the ambient mesh has `seq` above 1
    and the cell isn't linear in its state.
    """
    xs = jnp.asarray(xs)
    check_features(cell, xs, cell.idim, rank=2)
    batch_shape, time = xs.shape[:-2], xs.shape[-2]
    if state is None:
        state = cell.init_state(batch_shape, xs.dtype)
    state = checked_state(cell, state, batch_shape, xs.dtype)
    check_reset(reset, (*batch_shape, time))
    valid = None
    if lengths is not None:
        lengths = checked_lengths(lengths, batch_shape, time)
        valid = jnp.arange(time) < lengths[..., None]
        xs = zero_padding(xs, lengths)
        reset = None if reset is None else reset & valid
    if time == 0:
        return state, jnp.zeros((*batch_shape, 0, cell.odim), xs.dtype)
    run = _in_parallel if isinstance(cell, LinearCell) else _step_by_step
    return run(cell, xs, state, reset, valid, reverse, remat)


def _in_parallel(
    cell: Cell,
    xs: Array,
    state: Any,
    reset: Array | None,
    valid: Array | None,
    reverse: bool,
    remat: bool,
) -> tuple[State, Array]:
    def run(cell: Cell, xs: Array, state: Any) -> tuple[Any, Array]:
        decay, drive = cell.drive(compute_weights(cell, xs.dtype), xs)
        if valid is not None:
            decay = jnp.where(valid[..., None], decay, 1)
            drive = jnp.where(valid[..., None], drive, 0)
        hs, state = sharding.linear_scan(decay, drive, state, reset=reset, reverse=reverse)
        ys = cell.output(hs).astype(xs.dtype)
        return state, ys if valid is None else jnp.where(valid[..., None], ys, 0)

    return (eqx.filter_checkpoint(run) if remat else run)(cell, xs, state)


def _step_by_step(
    cell: Cell,
    xs: Array,
    state: State,
    reset: Array | None,
    valid: Array | None,
    reverse: bool,
    remat: bool,
) -> tuple[State, Array]:
    _check_time_is_whole(cell)
    if reset is not None and reverse:
        # Backwards, a segment starts before the first step of the one that follows it in time.
        reset = jnp.concatenate([reset[..., 1:], jnp.zeros_like(reset[..., :1])], axis=-1)
    batch_shape, time = xs.shape[:-2], xs.shape[-2]
    cell = sharding.gathered(cell)
    fresh = None if reset is None else cell.init_state(batch_shape, xs.dtype)
    primals = compute_weights(cell, xs.dtype), xs, state, fresh, reset, valid
    _check_drive(cell, *primals[:2])
    _, equations = eqx.partition(cell, eqx.is_array)
    loop = _Loop(equations, time, len(batch_shape), reverse, remat)
    return sharding.differentiable_on_mesh(
        loop.forward, loop.transpose, primals, partial(loop.specs, primals), value=loop.value
    )


def _check_time_is_whole(cell: Cell) -> None:
    mesh = jax.sharding.get_abstract_mesh()
    for axis in sharding.automatic_axes(mesh).intersection(sharding.ACTIVATION_AXES["time"]):
        raise ValueError(
            f"the mesh splits time over {axis}={mesh.shape[axis]}, but {type(cell).__name__} takes "
            f"its steps one after another: make {axis}=1, with those devices on data or fsdp, or "
            "use what is linear in its state: S5, LRU, LinearAttention, or RNNEncoder of "
            "MinGRUCell, MinLSTMCell or RGLRUCell"
        )


def _check_drive(cell: Cell, weights: Any, xs: Array) -> None:
    for leaf in jax.tree.leaves(jax.eval_shape(cell.drive, weights, xs)):
        if leaf.shape[: xs.ndim - 1] != xs.shape[:-1]:
            raise ValueError(
                f"{type(cell).__name__}.drive must give arrays with the leading axes of its input, "
                f"{xs.shape[:-1]}; got shape {leaf.shape}. What is the same at all steps belongs "
                "to `weights`."
            )


class _Steps(NamedTuple):
    """What steps take from outside, with the axes `time batch ...`."""

    x: Array
    start: Array | None  # whether it is the first step of a segment in the loop's direction
    valid: Array | None  # whether it is within its row


class _Kept(NamedTuple):
    """What a step leaves to the backward pass."""

    state: State  # before it
    affine: list[Any]  # its pre-activations


class _Split(NamedTuple):
    """Arrays over time, cut into blocks: those of full length, stacked, and the rest."""

    blocks: PyTree[Array] | None
    rest: PyTree[Array] | None


@dataclass(frozen=True)
class _Loop:
    """The two passes for arguments of given shapes. `cell` has no arrays."""

    cell: Any
    time: int
    batch_rank: int
    reverse: bool
    remat: bool

    @property
    def block(self) -> int:
        """Steps between two sets of residuals."""
        if not self.remat:
            return _BLOCK
        return _BLOCK * max(1, round(math.sqrt(self.time) / _BLOCK))

    def specs(self, primals: tuple, mesh: AbstractMesh) -> sharding.Specs:
        weights, xs, *_ = primals
        row = sharding.row_spec(xs.shape[:-2], mesh)
        (unit,) = sharding.activation_spec((self.cell.unit_axis,), (self.cell.hdim,), mesh)
        units = (unit,) if unit else ()
        rows, states = PartitionSpec(*row), PartitionSpec(*row, *units)
        # Residuals have one batch axis, behind those of time.
        kept = (*(() if self.remat else (None,)), *tuple(row)[:1], *units)
        blocks, rest = divmod(self.time, self.block)
        return sharding.Specs(
            primals=(
                sharding.unit_specs(weights, mesh) if unit else PartitionSpec(),
                *(rows, states, states, rows, rows),
            ),
            public=(states, PartitionSpec(*row, None, *units)),
            residuals=_Split(
                PartitionSpec(None, *kept) if blocks else None,
                PartitionSpec(*kept) if rest else None,
            ),
            partial_sums=((), ()),
        )

    def value(self, primals: tuple) -> tuple[State, Array]:
        return self._forward(primals, keep=False)[0]

    def forward(self, primals: tuple) -> tuple[tuple[State, Array], _Split]:
        return self._forward(primals, keep=True)

    def _forward(self, primals: tuple, keep: bool) -> tuple[tuple[State, Array], _Split]:
        batch_shape = primals[1].shape[:-2]
        weights, steps, state, fresh = vary_alike(self._prepare(primals))

        def run(state: State, steps: _Steps) -> tuple[State, tuple[Array, Any]]:
            end, (ys, kept) = self._run(weights, state, fresh, steps, keep and not self.remat)
            return end, (ys, state if keep and self.remat else kept)

        def in_blocks(state: State, steps: _Steps) -> tuple[State, _Split]:
            return _over_blocks(run, state, _split(steps, self.block), reverse=self.reverse)

        def at_once(state: State, steps: _Steps) -> tuple[State, _Split]:
            state, made = run(state, steps)
            return state, _split(made, self.block)

        # Where there is no cache to stay in, the drives of all steps are one large product.
        default = in_blocks if self.remat else at_once
        state, made = lax.platform_dependent(state, steps, cpu=in_blocks, default=default)
        ys, residuals = (
            _Split(*(None if part is None else part[i] for part in made)) for i in range(2)
        )
        ys = _join(ys)
        ys = jnp.moveaxis(ys, 0, 1).reshape(*batch_shape, self.time, ys.shape[-1])
        return (_unflatten_batch(state, batch_shape), ys), residuals

    def transpose(
        self, primals: tuple, outputs: tuple[tuple, _Split], cotangents: tuple[State, Array]
    ) -> tuple:
        batch_shape, batch_rank = primals[1].shape[:-2], self.batch_rank
        g_state, g_ys = cotangents
        g_state = _flatten_batch(g_state, batch_rank)
        g_ys = _time_major(g_ys, batch_rank)
        weights, steps, state, fresh = self._prepare(primals)
        parameters, _ = _differentiated(weights)
        sums = [jnp.zeros(p.shape, jnp.promote_types(p.dtype, jnp.float32)) for p in parameters]
        g_fresh = None if fresh is None else jax.tree.map(jnp.zeros_like, _floats(fresh))
        carry = (g_state, g_fresh, sums)
        kept = outputs[1]
        weights, fresh, *arguments = vary_alike((weights, fresh, carry, steps, kept, g_ys))
        pull = partial(self._pull, weights, fresh)

        def in_blocks(carry: tuple, steps: _Steps, kept: _Split, g_ys: Array):
            parts = zip(_split(steps, self.block), kept, _split(g_ys, self.block), strict=True)
            inputs = _Split(*(None if part[0] is None else part for part in parts))
            carry, g_xs = _over_blocks(pull, carry, inputs, reverse=not self.reverse)
            return carry, _join(g_xs)

        def at_once(carry: tuple, steps: _Steps, kept: _Split, g_ys: Array):
            return pull(carry, (steps, _join(kept), g_ys))

        default = in_blocks if self.remat else at_once
        carry, g_xs = lax.platform_dependent(*arguments, cpu=in_blocks, default=default)
        g_state, g_fresh, sums = carry
        return (
            _natural(primals[0], sums),
            jnp.moveaxis(g_xs, 0, 1).reshape(*batch_shape, self.time, g_xs.shape[-1]),
            _unflatten_batch(g_state, batch_shape),
            _unflatten_batch(g_fresh, batch_shape),
            *(None, None),
        )

    def _prepare(self, primals: tuple) -> tuple[Any, _Steps, State, State]:
        """The weights laid out, and the arguments with the axes `time batch ...`."""
        weights, xs, state, fresh, start, valid = primals
        steps = _time_major(_Steps(xs, start, valid), self.batch_rank)
        state, fresh = (_flatten_batch(each, self.batch_rank) for each in (state, fresh))
        return _lay_out(weights), steps, state, fresh

    def _run(
        self, weights: Any, state: State, fresh: State, steps: _Steps, keep: bool
    ) -> tuple[State, tuple[Array, _Kept | None]]:
        """Consecutive steps: the state after them, their outputs, and what they keep."""

        def step(state: State, inputs: tuple) -> tuple[State, tuple[Array, _Kept | None]]:
            drive, start, valid = inputs
            before = state if start is None else _where(start, fresh, state)
            made = []

            def record(plus: Any, weight: Map, h: Any) -> Any:
                made.append(affine(plus, weight, h))
                return made[-1]

            after = self.cell.advance(weights, drive, before, record)
            y = self.cell.output(after).astype(steps.x.dtype)
            if valid is not None:
                after, y = _where(valid, after, before), _where(valid, y, jnp.zeros_like(y))
            return after, (y, _Kept(before, made) if keep else None)

        inputs = self.cell.drive(weights, steps.x), steps.start, steps.valid
        return lax.scan(step, state, inputs, reverse=self.reverse, unroll=_BLOCK)

    def _pull(self, weights: Any, fresh: State, carry: tuple, inputs: tuple) -> tuple[tuple, Array]:
        """Back through consecutive steps."""
        kept: Any
        g_state, g_fresh, sums = carry
        steps, kept, g_ys = inputs
        if self.remat:
            _, (_, kept) = self._run(weights, kept, fresh, steps, keep=True)
        if steps.valid is not None:
            g_ys = jnp.where(steps.valid[..., None], g_ys, 0)

        def walk(carry: tuple, inputs: tuple) -> tuple[tuple, tuple]:
            g_state, g_fresh = carry
            drive, start, valid, kept, g_y = inputs
            moving, still = eqx.partition(kept.state, eqx.is_inexact_array)
            zeros = jax.tree.map(jnp.zeros_like, g_state)
            g_after = g_state if valid is None else _where(valid, g_state, zeros)

            def step(before: State, made: list) -> tuple[State, Array]:
                given = iter(made)

                def substitute(plus: Any, weight: Map, h: Any) -> Any:
                    return _substitute(next(given), plus, weight, h)

                before = eqx.combine(before, still)
                after = self.cell.advance(weights, drive, before, substitute)
                return _floats(after), self.cell.output(after)

            (_, y), pull = jax.vjp(step, moving, kept.affine)
            g_before, g_affine = pull((g_after, g_y.astype(y.dtype)))
            # Without it the compiler makes a step's arithmetic again in each of its users.
            g_before, g_affine = lax.optimization_barrier((g_before, g_affine))
            if valid is not None:
                g_before = _where(valid, g_before, g_state)
            if start is not None:
                g_fresh = jax.tree.map(jnp.add, g_fresh, _where(start, g_before, zeros))
                g_before = _where(start, zeros, g_before)
            return (g_before, g_fresh), (g_after, g_affine)

        drive = self.cell.drive(weights, steps.x)
        (g_state, g_fresh), (g_after, g_affine) = lax.scan(
            walk,
            (g_state, g_fresh),
            (drive, steps.start, steps.valid, kept, g_ys),
            reverse=not self.reverse,
            unroll=_BLOCK,
        )
        parameters, rebuild = _differentiated(weights)

        def total(parameters: list[Array], x: Array) -> Any:
            weights = rebuild(parameters)
            given = iter(zip(kept.affine, g_affine, strict=True))
            terms = []

            def tally(plus: Any, weight: Map, h: Any) -> Any:
                made, g = next(given)
                terms.append(_inner(g, affine(plus, weight, h)))
                return made

            drive = self.cell.drive(weights, x)
            after = self.cell.advance(weights, drive, kept.state, tally)
            return sum(terms, _inner((g_after, g_ys), (_floats(after), self.cell.output(after))))

        added, g_x = jax.grad(total, (0, 1))(parameters, steps.x)
        sums = [old + part.astype(old.dtype) for old, part in zip(sums, added, strict=True)]
        return (g_state, g_fresh, sums), g_x


def _substitute(made: Any, plus: Any, weight: Map, h: Any) -> Any:
    """`made`, with the derivatives that `plus + weight @ h` has by `plus` and `h`."""

    @jax.custom_vjp
    def substitute(made, plus, h):
        return made

    def pull(h, g):
        return g, g, jax.vjp(partial(linear, weight), h)[1](g)[0]

    substitute.defvjp(lambda made, plus, h: (made, h), pull)
    plus = jax.tree.map(lambda x, y: jnp.broadcast_to(x, y.shape).astype(y.dtype), plus, made)
    # On a mesh cotangents vary over its axes, and what they belong to must too.
    return substitute(*vary_alike((made, plus, h)))


def _inner(xs: PyTree[Array], ys: PyTree[Array]) -> Any:
    pairs = zip(jax.tree.leaves(xs), jax.tree.leaves(ys), strict=True)
    return sum(jnp.sum(x * y) for x, y in pairs)


def _where[Tree: PyTree](condition: Bool[Array, "*axes"], x: Tree, y: Tree) -> Tree:
    """`jnp.where` with a condition on the leading axes of every leaf."""

    def choose(x, y):
        axes = condition.shape + (1,) * (x.ndim - condition.ndim)
        return jnp.where(condition.reshape(axes), x, y)

    return jax.tree.map(choose, x, y)


def _floats(tree: PyTree[Array]) -> PyTree[Array]:
    return eqx.filter(tree, eqx.is_inexact_array)


def _split(tree: PyTree[Array], block: int) -> _Split:
    count, rest = divmod(jax.tree.leaves(tree)[0].shape[0], block)
    end = count * block
    return _Split(
        jax.tree.map(lambda x: x[:end].reshape(count, block, *x.shape[1:]), tree)
        if count
        else None,
        jax.tree.map(lambda x: x[end:], tree) if rest else None,
    )


def _join(split: _Split) -> PyTree[Array]:
    blocks, rest = split
    if blocks is None:
        return rest
    blocks = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), blocks)
    return blocks if rest is None else jax.tree.map(_concatenate, blocks, rest)


def _concatenate(x: Array, y: Array) -> Array:
    return jnp.concatenate([x, y])


def _over_blocks(
    fn: Callable[[Any, Any], tuple[Any, Any]], carry: Any, inputs: _Split, *, reverse: bool
) -> tuple[Any, _Split]:
    """`lax.scan` over blocks, with the rest after them, or in reverse before them."""
    blocks = rest = None
    if reverse and inputs.rest is not None:
        carry, rest = fn(carry, inputs.rest)
    if inputs.blocks is not None:
        carry, blocks = lax.scan(fn, carry, inputs.blocks, reverse=reverse)
    if not reverse and inputs.rest is not None:
        carry, rest = fn(carry, inputs.rest)
    return carry, _Split(blocks, rest)


def _time_major[Tree: PyTree](tree: Tree, batch_rank: int) -> Tree:
    """From `*batch time ...` to `time batch ...`."""
    return jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), _flatten_batch(tree, batch_rank))


def _flatten_batch[Tree: PyTree](tree: Tree, batch_rank: int) -> Tree:
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[batch_rank:]), tree)


def _unflatten_batch[Tree: PyTree](tree: Tree, batch_shape: tuple[int, ...]) -> Tree:
    return jax.tree.map(lambda x: x.reshape(*batch_shape, *x.shape[1:]), tree)


def _lay_out(weights: Any) -> Any:
    """The weights with a `Matrix` for every matrix."""

    def lay_out(leaf):
        if leaf.ndim != 2 or not eqx.is_inexact_array(leaf):
            return leaf
        # On a CPU a product with a transposed matrix takes half as long again. The barrier keeps
        # the compiler from folding the transpose back into the products.
        return Matrix(*lax.optimization_barrier((leaf.T, leaf)))

    return jax.tree.map(lay_out, weights)


def _is_matrix(x: Any) -> bool:
    return isinstance(x, Matrix)


def _differentiated(weights: Any) -> tuple[list[Array], Callable[[list[Array]], Any]]:
    """The floating arrays of weights that are laid out, a matrix by its forward layout, and the
    function that puts others in their place."""
    leaves, structure = jax.tree.flatten(weights, is_leaf=_is_matrix)
    chosen = [
        i for i, x in enumerate(leaves) if _is_matrix(x) or jnp.issubdtype(x.dtype, jnp.inexact)
    ]

    def rebuild(parameters: list[Array]) -> Any:
        changed = list(leaves)
        for i, new in zip(chosen, parameters, strict=True):
            old = leaves[i]
            changed[i] = Matrix(new, old.backward) if _is_matrix(old) else new
        return jax.tree.unflatten(structure, changed)

    return [leaves[i].forward if _is_matrix(leaves[i]) else leaves[i] for i in chosen], rebuild


def _natural(weights: Any, sums: list[Array]) -> Any:
    """Gradients by `_differentiated`, as those of the weights before they were laid out."""
    remaining = iter(sums)

    def gradient(leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return None
        total = next(remaining).astype(leaf.dtype)
        return total.T if leaf.ndim == 2 else total

    return jax.tree.map(gradient, weights)
