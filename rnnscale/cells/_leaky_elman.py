"""The simple recurrent network with leaky units."""

import math
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from rnnscale._checks import Fraction, Size, check_arguments
from rnnscale._fields import parameter
from rnnscale.cells._base import Affine, AffineInputCell, JacobianKind, Units
from rnnscale.cells._init import uniform


class LeakyElmanCell(AffineInputCell):
    r"""Elman's network with leaky units, as echo state networks have them.

    $$h_t = (1 - \alpha)\, h_{t-1} + \alpha\, \sigma(W h_{t-1} + V x_t + b)$$

    Every parameter starts uniform in $\pm 1 / \sqrt{n}$, for `n = hdim`. `leak` is an array that is
    not trained: it can be changed or mapped over without compiling again.

    Jaeger, Lukoševičius, Popovici, Siewert, *Optimization and Applications of Echo State Networks
    with Leaky-Integrator Neurons*, Neural Networks 2007, with a leaking rate of one and the gain
    $\alpha$.

    **Differs from the paper:** $W$ and $V$ are trained, there is a bias, and the output is not fed
    back.
    """

    jacobian: ClassVar[JacobianKind] = "block"

    recurrent: Float[Array, "hdim hdim"] = parameter()
    input: Float[Array, "hdim idim"] = parameter()
    bias: Float[Array, "hdim"] = parameter(group="bias")
    leak: Float[Array, ""] = parameter(group="recurrence", trainable=False)
    idim: int = eqx.field(static=True)
    hdim: int = eqx.field(static=True)
    nonlinearity: Callable[[Array], Array] = eqx.field(static=True)

    @check_arguments
    def __init__(
        self,
        idim: Size,
        hdim: Size,
        *,
        leak: Fraction = 0.5,
        nonlinearity: Callable[[Array], Array] = jnp.tanh,
        key: PRNGKeyArray,
    ):
        r"""**Arguments:**

        - `idim`: number of input features.
        - `hdim`: number of units.
        - `leak`: $\alpha$, in `(0, 1]`. With one, the cell is `ElmanRNNCell`.
        - `nonlinearity`: $\sigma$, elementwise.
        - `key`: for the initial parameters.

        **Raises:** `TypeError` if an argument has another kind, `ValueError` if it is out of range.
        """
        recurrent_key, input_key, bias_key = jax.random.split(key, 3)
        limit = 1 / math.sqrt(hdim)
        self.recurrent = uniform(recurrent_key, (hdim, hdim), limit)
        self.input = uniform(input_key, (hdim, idim), limit)
        self.bias = uniform(bias_key, (hdim,), limit)
        self.leak = jnp.asarray(leak, jnp.float32)
        self.idim, self.hdim, self.nonlinearity = idim, hdim, nonlinearity

    def advance(
        self, weights: "LeakyElmanCell", drive: Units, state: Units, affine: Affine
    ) -> Units:
        target = self.nonlinearity(affine(drive, weights.recurrent, state))
        return (1 - weights.leak) * state + weights.leak * target
