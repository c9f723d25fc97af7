"""The simple recurrent network."""

import math
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from rnnscale._checks import Size, check_arguments
from rnnscale._fields import parameter
from rnnscale.cells._base import Affine, AffineInputCell, JacobianKind, Units
from rnnscale.cells._init import uniform


class ElmanRNNCell(AffineInputCell):
    r"""Elman's simple recurrent network.

    $$h_t = \sigma(W h_{t-1} + V x_t + b)$$

    Every parameter starts uniform in $\pm 1 / \sqrt{n}$, for `n = hdim`.

    Elman, *Finding Structure in Time*, Cognitive Science 1990.
    """

    jacobian: ClassVar[JacobianKind] = "block"
    one_product: ClassVar[bool] = True

    recurrent: Float[Array, "hdim hdim"] = parameter()
    input: Float[Array, "hdim idim"] = parameter()
    bias: Float[Array, "hdim"] = parameter(group="bias")
    idim: int = eqx.field(static=True)
    hdim: int = eqx.field(static=True)
    nonlinearity: Callable[[Array], Array] = eqx.field(static=True)

    @check_arguments
    def __init__(
        self,
        idim: Size,
        hdim: Size,
        *,
        nonlinearity: Callable[[Array], Array] = jnp.tanh,
        key: PRNGKeyArray,
    ):
        r"""**Arguments:**

        - `idim`: number of input features.
        - `hdim`: number of units.
        - `nonlinearity`: $\sigma$, elementwise.
        - `key`: for the initial parameters.

        **Raises:** `TypeError` if an argument has another kind, `ValueError` if it is out of range.
        """
        recurrent_key, input_key, bias_key = jax.random.split(key, 3)
        limit = 1 / math.sqrt(hdim)
        self.recurrent = uniform(recurrent_key, (hdim, hdim), limit)
        self.input = uniform(input_key, (hdim, idim), limit)
        self.bias = uniform(bias_key, (hdim,), limit)
        self.idim, self.hdim, self.nonlinearity = idim, hdim, nonlinearity

    def advance(self, weights: "ElmanRNNCell", drive: Units, state: Units, affine: Affine) -> Units:
        return self.nonlinearity(affine(drive, weights.recurrent, state))
