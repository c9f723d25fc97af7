"""The independently recurrent network."""

from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from rnnscale._checks import Finite, Positive, Range, Size, check_arguments
from rnnscale._fields import parameter
from rnnscale.cells._base import Affine, AffineInputCell, Units
from rnnscale.cells._init import normal


class IndRNNCell(AffineInputCell):
    r"""The independently recurrent network.

    $$h_t = \sigma(u \odot h_{t-1} + W x_t + b)$$

    A unit does not see the past of another, so a mesh may split the units over its axis `tensor`.
    Over T steps of a relu the gradient $\partial h_T / \partial h_0$ stays below two if
    $|u| \le 2^{1/T}$, and `rnnscale.training.indrnn_constraint` keeps it there.

    $u$ starts uniform in `recurrent_range`, $W$ normal with a standard deviation of 0.001, and $b$
    at zero, as in the authors' code.

    Li, Li, Cook, Zhu, Gao, *Independently Recurrent Neural Network (IndRNN): Building A Longer and
    Deeper RNN*, CVPR 2018.
    """

    unit_axis: ClassVar[str] = "state"

    recurrent: Float[Array, "state"] = parameter(group="recurrence")
    input: Float[Array, "state idim"] = parameter()
    bias: Float[Array, "state"] = parameter(group="bias")
    idim: int = eqx.field(static=True)
    hdim: int = eqx.field(static=True)
    nonlinearity: Callable[[Array], Array] = eqx.field(static=True)

    @check_arguments
    def __init__(
        self,
        idim: Size,
        hdim: Size,
        *,
        recurrent_range: Range[Finite] = (0.0, 1.0),
        input_std: Positive = 0.001,
        nonlinearity: Callable[[Array], Array] = jax.nn.relu,
        key: PRNGKeyArray,
    ):
        r"""**Arguments:**

        - `idim`: number of input features.
        - `hdim`: number of units.
        - `recurrent_range`: the least and the largest initial $u$. For sequences of T steps the
            paper has `(0, 2 ** (1 / T))`, and in the last layer of a model that is read at its last
            step `(2 ** (-1 / T), 2 ** (1 / T))`, where every unit remembers the entire sequence.
        - `input_std`: the initial standard deviation of $W$, positive. The paper's is for the
            adding problem; if nothing normalises the input, a larger one keeps units from
            falling silent in the first steps of training.
        - `nonlinearity`: $\sigma$, elementwise.
        - `key`: for the initial parameters.

        **Raises:** `TypeError` if an argument has another kind, `ValueError` if it is out of range.
        """
        recurrent_key, input_key = jax.random.split(key)
        self.recurrent = jax.random.uniform(recurrent_key, (hdim,), jnp.float32, *recurrent_range)
        self.input = normal(input_key, (hdim, idim), input_std)
        self.bias = jnp.zeros((hdim,), jnp.float32)
        self.idim, self.hdim, self.nonlinearity = idim, hdim, nonlinearity

    def advance(self, weights: "IndRNNCell", drive: Units, state: Units, affine: Affine) -> Units:
        # Not through `affine`: keeping the pre-activation costs more than computing it again.
        return self.nonlinearity(drive + weights.recurrent * state)
