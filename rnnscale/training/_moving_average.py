"""`MovingAverage`, an exponential moving average of the parameters, for evaluation."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from rnnscale._checks import check_arguments
from rnnscale._fields import trainable


class MovingAverage(eqx.Module):
    r"""The exponential moving average of a model's parameters over the steps, without bias.

    $$\bar\theta_n = \frac{1 - d}{1 - d^n} \sum_{i=1}^{n} d^{n-i} \theta_i$$

    Parameters before the first step have no part in it. As a part of a `TrainState` it is updated
    by the train step, except where that skips a step, laid out over the mesh like the parameters,
    and saved with them. It is kept in float32 or the dtype of the parameters, if that is wider.

    Polyak, Juditsky, *Acceleration of Stochastic Approximation by Averaging*, SIAM Journal on
    Control and Optimization, 1992; with exponential weights as in Adam's moments.

    **Attributes:**

    - `parameters`: the average of the trained arrays; the other fields of the model are None.
    - `count`: the number of steps in the average.
    - `decay`: $d$.
    """

    parameters: PyTree
    count: Int[Array, ""]
    decay: float = eqx.field(static=True)

    @classmethod
    @check_arguments
    def start(cls, model: PyTree, decay: float) -> "MovingAverage":
        """The average before the first step, which is the model itself.

        **Arguments:**

        - `model`: the model to be trained.
        - `decay`: weight of the average of a step in that of the next one, above 0 and below 1. It
            spans about the last `1 / (1 - decay)` steps.

        **Raises:** `ValueError` if `decay` is out of range.
        """
        if not 0 < decay < 1:
            raise ValueError(
                f"decay of the moving average must be above 0 and below 1, got {decay}"
            )
        # Copies: the model's own arrays stand beside them in the state, which is donated.
        parameters = jax.tree.map(
            lambda x: jnp.array(x, jnp.promote_types(x.dtype, jnp.float32), copy=True),
            eqx.filter(model, trainable(model)),
        )
        return cls(parameters, jnp.zeros((), jnp.int32), decay)

    def after(self, model: PyTree) -> "MovingAverage":
        """The average after a step that led to `model`."""
        count = self.count + 1
        weight = (1 - self.decay) / -jnp.expm1(count * math.log(self.decay))
        new: Any = eqx.filter(model, trainable(model))
        parameters = optax.incremental_update(new, self.parameters, weight)
        return MovingAverage(parameters, count, self.decay)

    def within(self, model: PyTree) -> PyTree:
        """The model with the averaged parameters in place of its own."""
        like = eqx.filter(model, trainable(model))
        averaged = jax.tree.map(lambda x, p: x.astype(p.dtype), self.parameters, like)
        return eqx.combine(averaged, model)
