"""The constraint on the recurrent weights of IndRNN, as the last step of an optimiser."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from rnnscale._checks import Positive, check_arguments
from rnnscale.cells import IndRNNCell


@check_arguments
def indrnn_constraint(limit: Positive) -> optax.GradientTransformation:
    r"""Keeps $|u| \le$ `limit` in every `IndRNNCell` of a model, exactly, after each update.

    With `limit` $2^{1/T}$, a gradient through T steps of a relu grows by a factor of at most two.
    Put it last in a chain, since it depends on the parameters that the update leads to:

    ```python
    import optax
    from rnnscale.training import indrnn_constraint

    steps = 1000  # in a sequence
    optimiser = optax.chain(optax.adam(2e-4), indrnn_constraint(2 ** (1 / steps)))
    ```

    Li, Li, Cook, Zhu, Gao, *Independently Recurrent Neural Network (IndRNN): Building A Longer and
    Deeper RNN*, CVPR 2018.

    **Arguments:**

    - `limit`: the largest $|u|$, positive.

    **Returns:** a transformation without a state, which needs `params` in its update.

    **Raises:** `ValueError` if `limit` is not positive; in `init`, if the parameters have no
    `IndRNNCell`; in the update, if it gets no parameters.
    """

    def init(params: PyTree) -> optax.EmptyState:
        if not any(map(_is_indrnn, jax.tree.leaves(params, is_leaf=_is_indrnn))):
            raise ValueError(
                "indrnn_constraint: there is no IndRNNCell in the parameters. Give it the model, "
                "or a part of it that has its modules, such as eqx.filter(model, trainable(model))."
            )
        return optax.EmptyState()

    def update(
        updates: PyTree, state: optax.OptState, params: PyTree | None = None
    ) -> tuple[PyTree, optax.OptState]:
        if params is None:
            raise ValueError(
                "indrnn_constraint: it needs the parameters: call update(updates, state, params)."
            )

        def constrain(param: PyTree, update: PyTree) -> PyTree:
            if not _is_indrnn(param):
                return update
            # In one of the two trees of `eqx.partition` the weights are None.
            recurrent = jax.tree.map(partial(_within, limit), param.recurrent, update.recurrent)
            return eqx.tree_at(_recurrent, update, recurrent, is_leaf=lambda x: x is None)

        return jax.tree.map(constrain, params, updates, is_leaf=_is_indrnn), state

    return optax.GradientTransformation(init, update)


def _is_indrnn(x: PyTree) -> bool:
    return isinstance(x, IndRNNCell)


def _recurrent(cell: IndRNNCell) -> Float[Array, "*stack state"]:
    return cell.recurrent


def _within(
    limit: float, param: Float[Array, "*stack state"], update: Float[Array, "*stack state"]
) -> Float[Array, "*stack state"]:
    """The update that leads to the nearest value within the limit."""
    bound = _rounded_down(limit, param.dtype)
    target = jnp.clip(param + update, -bound, bound)
    # In a fusion the compiler may compute with a higher precision than that of the update.
    info = jnp.finfo(update.dtype)
    step = jax.lax.reduce_precision((target - param).astype(update.dtype), info.nexp, info.nmant)
    # The sum with the parameter is rounded as well. If rounding takes it beyond the bound, the next
    # smaller step is taken: its exact sum is within the bound, and so is the rounded one, since
    # rounding keeps the order and the bound is a number of the dtype.
    inwards = jnp.copysign(jnp.array(jnp.inf, step.dtype), -target)
    return jnp.where(jnp.abs(param + step) > bound, jnp.nextafter(step, inwards), step)


def _rounded_down(limit: float, dtype: jnp.dtype) -> Array:
    """The largest number of the dtype that is at most `limit`."""
    nearest = np.asarray(limit, dtype)
    if float(nearest) > limit:
        nearest = np.nextafter(nearest, np.zeros_like(nearest))
    return jnp.asarray(nearest)
