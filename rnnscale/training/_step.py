"""One step of training as a plain jitted function."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Key, PyTree

from rnnscale._fields import map_parameters, trainable
from rnnscale.layers import row_keys
from rnnscale.sharding import ACTIVATION_AXES, automatic_axes, parameter_spec
from rnnscale.training._loss import Totals, means
from rnnscale.training._state import TrainState, skip_non_finite

type Batch = Mapping[str, Array | np.ndarray]
type Loss = Callable[[Any, Batch, Key[Array, "*#batch"] | None], Totals]


def make_train_step(
    loss: Loss, optimiser: optax.GradientTransformation, *, accumulation: int = 1
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """`train_step(state, batch) -> (state, metrics)`, jitted, for any loop.

    It runs on whatever mesh `jax.set_mesh` has set, or none, with the same numbers. The arrays of
    the state given are donated. A step whose gradient is not finite leaves the model as it was.

    **Arguments:**

    - `loss`: `loss(model, batch, keys)` gives sums over the batch, among them `loss` and `count`;
        what is minimised is their quotient. `keys` has a key for each row of the batch, so that
        randomness belongs to the row, whatever device has it. See `cross_entropy` and
        `squared_error`.
    - `optimiser`: the one `TrainState.create` was given.
    - `accumulation`: do the batch in so many parts, one after another, to save memory. Each
        device goes through its own rows, and gradients are added up over devices once, at the end;
        parameters that `fsdp` splits are gathered once, at the start.

    **Returns:** the function. `batch` is a dictionary of arrays whose leading axis is the batch;
    `metrics` holds the means of the sums (with `accuracy` or `nrmse` for those that it is made of),
    `grad_norm`, `skipped` (0 or 1) and `skipped_in_a_row`.

    **Raises:** `ValueError` where `accumulation` is below 1, and, when the step is traced, where it
    does not divide the rows of a device.
    """
    if accumulation < 1:
        raise ValueError(f"accumulation must be at least 1, got {accumulation}")
    optimiser = skip_non_finite(optimiser)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        params, fixed = eqx.partition(state.model, trainable(state.model))

        def differentiate(params, batch, keys):
            def total(params):
                totals = loss(eqx.combine(params, fixed), batch, keys)
                return totals["loss"], totals

            return jax.grad(total, has_aux=True)(params)

        rows = jax.tree.leaves(batch)[0].shape[0]
        keys = row_keys(jax.random.fold_in(state.key, state.step), (rows,))
        if accumulation > 1:
            grads, totals = _accumulate(differentiate, accumulation, params, batch, keys)
        else:
            grads, totals = differentiate(params, batch, keys)
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
        model, opt_state = _keep_layout((model, opt_state))
        return TrainState(model, opt_state, state.key, state.step + 1), metrics

    return jax.jit(train_step, donate_argnums=0)


def make_eval_step(loss: Loss) -> Callable[[PyTree, Batch], Totals]:
    """`eval_step(model, batch) -> totals`, jitted: the loss's sums without dropout."""
    return jax.jit(lambda model, batch: loss(model, batch, None))


def _accumulate(differentiate, parts: int, params, batch, keys):
    """Sums of gradients and totals over `parts` parts of the batch.

    Left to itself the compiler would add up over devices after every part, and may gather the
    batch to cut it. So each device is handed its own rows and its own copy of the parameters.
    """
    mesh = jax.sharding.get_abstract_mesh()
    automatic = automatic_axes(mesh)
    axes = tuple(axis for axis in ACTIVATION_AXES["batch"] if axis in automatic)

    def on_one_device(params, batch, keys):
        def part(x):
            if x.shape[0] % parts:
                raise ValueError(
                    f"accumulation={parts} must divide the {x.shape[0]} rows that each device has"
                )
            return x.reshape(parts, x.shape[0] // parts, *x.shape[1:])

        def add(sums, inputs):
            return jax.tree.map(jnp.add, sums, differentiate(params, *inputs)), None

        params = _vary(params, axes)
        inputs = jax.tree.map(part, (batch, keys))
        first = jax.tree.map(lambda x: x[0], inputs)
        shapes = jax.eval_shape(differentiate, params, *first)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        sums, _ = jax.lax.scan(add, _vary(zeros, axes), inputs)
        return jax.tree.map(lambda x: x[None], sums)

    if axes:
        rows = PartitionSpec(axes)
        on_one_device = jax.shard_map(
            on_one_device,
            in_specs=(PartitionSpec(), rows, rows),
            out_specs=rows,
            axis_names=frozenset(axes),
        )
    return jax.tree.map(lambda x: jnp.sum(x, 0), on_one_device(params, batch, keys))


def _vary(tree: PyTree, axes: tuple[str, ...]) -> PyTree:
    return jax.tree.map(lambda x: jax.lax.pcast(x, axes, to="varying") if axes else x, tree)


def _keep_layout(tree: PyTree) -> PyTree:
    """The layout that parameters have by their annotations, on the ambient mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return tree
    specs = map_parameters(lambda each: parameter_spec(each, mesh), tree)
    return jax.lax.with_sharding_constraint(tree, specs)
