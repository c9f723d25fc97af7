"""A training step and an evaluation step as plain jitted functions, for any training loop."""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec
from jaxtyping import Array, PyTree

from rnnscale._checks import Size, check_arguments
from rnnscale._fields import map_parameters, trainable
from rnnscale.layers import row_keys
from rnnscale.sharding import ACTIVATION_AXES, automatic_axes, parameter_spec
from rnnscale.training._carry import Carry
from rnnscale.training._loss import Batch, Totals, means
from rnnscale.training._loss_form import Loss, RowLoss, as_sums
from rnnscale.training._state import TrainState, skip_non_finite


@check_arguments
def make_train_step(
    loss: Loss | RowLoss, optimiser: optax.GradientTransformation, *, accumulation: Size = 1
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """Makes `train_step(state, batch) -> (state, metrics)`, a jitted function for any loop.

    It runs on the mesh that `jax.set_mesh` has set, or on none, with the same numbers. The arrays
    of `state` are donated. If the gradient is not finite, the model, the optimiser state and the
    carry stay as they were. If the state has a `carry`, the batch starts from it, and no gradient
    flows into the batch before.

    **Arguments:**

    - `loss`: `loss(model, batch) -> value`, with a number for each row of the batch, or their mean,
        which is minimised. Or `loss(model, batch, keys, state) -> (state, totals)`: the model's
        last state, and sums over the batch, among them `loss` and `count`, whose quotient is
        minimised. `keys` has one key for each row of the batch, so that a row draws the same random
        numbers on any device. See `cross_entropy` and `squared_error`.
    - `optimiser`: the one that `TrainState.create` was given.
    - `accumulation`: number of parts in which the batch is processed, one after another, to save
        memory; at least 1. Each device goes through its own rows. Gradients are added up over
        devices once, at the end, and parameters that `fsdp` splits are gathered once, at the start.

    **Returns:** the function. `batch` is a dictionary of arrays whose leading axis is the batch.
    `metrics` holds the sums over `count` (and `accuracy` or `nrmse`, see `cross_entropy` and
    `squared_error`), `grad_norm`, `skipped` (0 or 1) and `skipped_in_a_row`.

    **Raises:** `TypeError` if `loss` does not have one of these forms, or `optimiser` is not an
    optax optimiser; `ValueError` if `accumulation` is below 1. When the step is traced,
    `ValueError` if `accumulation` does not divide the rows of a device, and `TypeError` or
    `ValueError` if the loss does not return what it has to.
    """
    loss = as_sums(loss)
    optimiser = skip_non_finite(optimiser)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        params, fixed = eqx.partition(state.model, trainable(state.model))

        def differentiate(params, batch, keys, carry):
            def total(params):
                before = None if carry is None else carry.state
                after, totals = loss(eqx.combine(params, fixed), batch, keys, before)
                return totals["loss"], (totals, None if carry is None else carry.after(after))

            grads, (totals, carry) = jax.grad(total, has_aux=True)(params)
            return (grads, totals), carry

        rows = jax.tree.leaves(batch)[0].shape[0]
        if state.carry is not None and state.carry.arrays[0].shape[0] != rows:
            raise ValueError(
                f"the carry of the state has {state.carry.arrays[0].shape[0]} rows and the batch "
                f"has {rows}; make the carry with Carry.zeros(model, {rows})"
            )
        keys = row_keys(jax.random.fold_in(state.key, state.step), (rows,))
        run = (
            partial(_accumulate, differentiate, accumulation) if accumulation > 1 else differentiate
        )
        (grads, totals), carry = run(params, batch, keys, state.carry)
        grads = jax.tree.map(lambda g: g / totals["count"], grads)
        opt_state: Any
        updates, opt_state = optimiser.update(grads, state.opt_state, params)
        model = eqx.combine(optax.apply_updates(params, updates), fixed)
        metrics = {
            **means(totals),
            "grad_norm": optax.tree.norm(grads),
            "skipped": 1 - opt_state.last_finite.astype(jnp.int32),
            "skipped_in_a_row": opt_state.notfinite_count,
        }
        average = None if state.average is None else state.average.after(model)
        carry, average = jax.tree.map(
            partial(jnp.where, opt_state.last_finite),
            (carry, average),
            (state.carry, state.average),
        )
        model, opt_state, carry, average = _keep_layout((model, opt_state, carry, average))
        return TrainState(model, opt_state, state.key, state.step + 1, carry, average), metrics

    return jax.jit(train_step, donate_argnums=0)


@check_arguments
def make_eval_step(loss: Loss | RowLoss) -> Callable[..., tuple[Carry | None, Totals]]:
    """Makes `eval_step(model, batch, carry=None) -> (carry, totals)`, a jitted function.

    **Arguments:**

    - `loss`: as for `make_train_step`. It is called without keys, so there is no dropout.

    **Returns:** the function. It returns the sums of the loss over a batch, and the carry for the
    next batch; None if it was given none, and then every batch starts from zero.

    **Raises:** as `make_train_step` for `loss`.
    """
    loss = as_sums(loss)

    def eval_step(
        model: PyTree, batch: Batch, carry: Carry | None = None
    ) -> tuple[Carry | None, Totals]:
        after, totals = loss(model, batch, None, None if carry is None else carry.state)
        return None if carry is None else _keep_layout(carry.after(after)), totals

    return jax.jit(eval_step)


def _accumulate(differentiate, parts: int, params, batch, keys, carry):
    """Sums of gradients and totals over `parts` parts of the batch, and the carry of all rows.

    The compiler alone would add up over devices after every part, and may gather the batch to cut
    it. So `shard_map` gives each device its own rows and its own copy of the parameters.
    """
    mesh = jax.sharding.get_abstract_mesh()
    automatic = automatic_axes(mesh)
    axes = tuple(axis for axis in ACTIVATION_AXES["batch"] if axis in automatic)

    def on_one_device(params, batch, keys, carry):
        def split(x):
            if x.shape[0] % parts:
                raise ValueError(
                    f"accumulation={parts} must divide the {x.shape[0]} rows that each device has"
                )
            return x.reshape(parts, x.shape[0] // parts, *x.shape[1:])

        def add(sums, inputs):
            more, carry = differentiate(params, *inputs)
            return jax.tree.map(jnp.add, sums, more), carry

        # Parameters that vary over devices have gradients that do, which are not added up yet.
        params = _vary(params, axes)
        inputs = jax.tree.map(split, (batch, keys, carry))
        first = jax.tree.map(lambda x: x[0], inputs)
        shapes, _ = jax.eval_shape(differentiate, params, *first)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, _wide(x.dtype)), shapes)
        sums, carry = jax.lax.scan(add, _vary(zeros, axes), inputs)
        carry = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), carry)
        return jax.tree.map(lambda x: x[None], sums), carry

    if axes:
        rows = PartitionSpec(axes)
        on_one_device = jax.shard_map(
            on_one_device,
            in_specs=(PartitionSpec(), rows, rows, rows),
            out_specs=rows,
            axis_names=frozenset(axes),
        )
    sums, carry = on_one_device(params, batch, keys, carry)
    return jax.tree.map(lambda x: jnp.sum(x, 0), sums), carry


def _wide(dtype: Any) -> Any:
    """The dtype in which numbers of many parts are added up."""
    floating = jnp.issubdtype(dtype, jnp.floating)
    return jnp.promote_types(dtype, jnp.float32) if floating else dtype


def _vary(tree: PyTree, axes: tuple[str, ...]) -> PyTree:
    return jax.tree.map(lambda x: jax.lax.pcast(x, axes, to="varying") if axes else x, tree)


def _keep_layout(tree: PyTree) -> PyTree:
    """The tree, with the layout on the ambient mesh that its annotations say."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return tree
    specs = map_parameters(lambda each: parameter_spec(each, mesh), tree)
    return jax.lax.with_sharding_constraint(tree, specs)
