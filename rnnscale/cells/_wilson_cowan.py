"""The rate model of Wilson and Cowan, as a recurrent cell."""

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


class WilsonCowanCell(AffineInputCell):
    r"""The rate model of Wilson and Cowan.

    $$h_t = (1 - \alpha)\, h_{t-1} + \alpha\, (W \sigma(h_{t-1}) + V x_t + b)$$

    The state and output $h$ are membrane potentials, and $\sigma(h)$ the rates at which units fire.
    This is $\tau \dot h = -h + W \sigma(h) + V x + b$ by Euler's method with
    $\alpha = \Delta t / \tau$. Input and bias are not inside the nonlinearity. With $\alpha = 1$
    the rates are the states of `ElmanRNNCell`.

    Every parameter starts uniform in $\pm 1 / \sqrt{n}$, for `n = hdim`. `rate` is an array that is
    not trained: it can be changed or mapped over without compiling again.

    Wilson, Cowan, *Excitatory and Inhibitory Interactions in Localized Populations of Model
    Neurons*, Biophysical Journal 1972.

    **Differs from the paper:** the state holds potentials instead of rates, units have no
    refractory period, and $W$ may have any sign, instead of an excitatory and an inhibitory
    population.
    """

    jacobian: ClassVar[JacobianKind] = "block"

    recurrent: Float[Array, "hdim hdim"] = parameter()
    input: Float[Array, "hdim idim"] = parameter()
    bias: Float[Array, "hdim"] = parameter(group="bias")
    rate: Float[Array, ""] = parameter(group="recurrence", trainable=False)
    idim: int = eqx.field(static=True)
    hdim: int = eqx.field(static=True)
    nonlinearity: Callable[[Array], Array] = eqx.field(static=True)

    @check_arguments
    def __init__(
        self,
        idim: Size,
        hdim: Size,
        *,
        rate: Fraction = 0.5,
        nonlinearity: Callable[[Array], Array] = jnp.tanh,
        key: PRNGKeyArray,
    ):
        r"""**Arguments:**

        - `idim`: number of input features.
        - `hdim`: number of units.
        - `rate`: $\alpha$, the step in units of the membrane's time constant, in `(0, 1]`.
        - `nonlinearity`: $\sigma$, elementwise.
        - `key`: for the initial parameters.

        **Raises:** `TypeError` if an argument has another kind, `ValueError` if it is out of range.
        """
        recurrent_key, input_key, bias_key = jax.random.split(key, 3)
        limit = 1 / math.sqrt(hdim)
        self.recurrent = uniform(recurrent_key, (hdim, hdim), limit)
        self.input = uniform(input_key, (hdim, idim), limit)
        self.bias = uniform(bias_key, (hdim,), limit)
        self.rate = jnp.asarray(rate, jnp.float32)
        self.idim, self.hdim, self.nonlinearity = idim, hdim, nonlinearity

    def advance(
        self, weights: "WilsonCowanCell", drive: Units, state: Units, affine: Affine
    ) -> Units:
        target = affine(drive, weights.recurrent, self.nonlinearity(state))
        return (1 - weights.rate) * state + weights.rate * target
