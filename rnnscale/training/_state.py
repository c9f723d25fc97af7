"""What training carries from step to step."""

import equinox as eqx
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key, PyTree

from rnnscale._checks import check_arguments
from rnnscale._fields import trainable
from rnnscale.training._carry import Carry
from rnnscale.training._moving_average import MovingAverage


class TrainState(eqx.Module):
    """The state of a run. Together with the data, it determines all further steps.

    **Attributes:**

    - `model`: any module whose arrays are annotated.
    - `opt_state`: the state of the optimiser, over the trainable arrays of the model.
    - `key`: never split or replaced; the randomness of a step is `fold_in(key, step)`.
    - `step`: the number of steps that led to it.
    - `carry`: the recurrent state that the next batch starts from; None if every batch starts from
        zero.
    - `average`: the moving average of the parameters; None for none.
    """

    model: PyTree
    opt_state: PyTree
    key: Key[Array, ""]
    step: Int[Array, ""]
    carry: Carry | None = None
    average: MovingAverage | None = None

    @property
    def averaged(self) -> PyTree:
        """The model to evaluate: with the averaged parameters if there is an average, and otherwise
        `model`."""
        return self.model if self.average is None else self.average.within(self.model)

    @classmethod
    @check_arguments
    def create(
        cls,
        model: PyTree,
        optimiser: optax.GradientTransformation,
        key: Key[Array, ""],
        *,
        carry: Carry | None = None,
        average: MovingAverage | None = None,
    ) -> "TrainState":
        """The state before the first step. Call it in `rnnscale.sharding.sharded_init` to build a
        model and its optimiser state laid out over a mesh.

        It holds the arrays of `model` themselves, and a train step donates them.

        **Arguments:**

        - `model`: the model to train.
        - `optimiser`: the one that `make_train_step` is given.
        - `key`: for the random numbers of all steps.
        - `carry`: with `Carry.zeros(model, batch_size)`, each row of a batch starts from the state
            in which that row ended in the batch before: truncated backpropagation through time, on
            the batches of `rnnscale.data.lanes`.
        - `average`: with `MovingAverage.start(model, decay)`, the steps keep a moving average of
            the parameters.

        **Raises:** `TypeError` if an argument has another kind.
        """
        opt_state = skip_non_finite(optimiser).init(eqx.filter(model, trainable(model)))
        # A copy of the key, which the caller may use again after a step has donated the state.
        return cls(model, opt_state, jnp.copy(key), jnp.zeros((), jnp.int32), carry, average)


def skip_non_finite(optimiser: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimiser, except that a step whose gradient is not finite changes nothing but a count.

    It does so for any number of steps in a row: `SkippedSteps` watches the count and decides when
    to stop.
    """
    return optax.apply_if_finite(optimiser, max_consecutive_errors=2**31 - 1)
