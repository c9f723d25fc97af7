"""The undamped independent controlled oscillatory network."""

import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from rnnscale._checks import NonNegative, Positive, Size, check_arguments
from rnnscale._fields import parameter
from rnnscale.cells._base import Affine, Units
from rnnscale.cells._init import uniform
from rnnscale.cells._oscillators import OscillatorCell, Oscillators
from rnnscale.cells._warn import warn_caller


class _UnICORNNWeights(eqx.Module):
    recurrent: Float[Array, "state"]
    input: Float[Array, "state idim"]
    bias: Float[Array, "state"]
    step: Float[Array, "state"]  # of time, of each unit
    alpha: Float[Array, ""]


class UnICORNNCell(OscillatorCell):
    r"""The undamped independent controlled oscillatory network, UnICORNN.

    $$z_t = z_{t-1} - \Delta t \, \mathrm{sigmoid}(c) \odot \left(\tanh(w \odot y_{t-1} + V u_t + b)
      + \alpha y_{t-1}\right), \qquad y_t = y_{t-1} + \Delta t \, \mathrm{sigmoid}(c) \odot z_t$$

    Oscillators without damping, each with a step of time of its own. The step is symplectic: its
    derivative, one block of 2 x 2 for each unit, has the determinant 1, and it can be undone. A
    unit does not see the past of another, so a mesh may split the units over its axis `tensor`. The
    state is `(y, z)`, the output $y$. The paper's networks are a `DeepRNN` of these cells, each
    with a $\Delta t$ of its own.

    `recurrent` is $w$, `control` $c$, `input` $V$. $w$ starts uniform in `[0, 1)`, $c$ in `±0.1`,
    $V$ in $\pm \sqrt{6 / (65 m)}$, for `m = idim`, and $b$ at zero. $\Delta t$ and $\alpha$ are not
    trained. Without weights a unit is stable for $\Delta t^2 \alpha \le 4$, whatever $c$ is.

    Rusch, Mishra, *UnICORNN: A Recurrent Model for Learning Very Long Time Dependencies*, ICML
    2021.
    """

    unit_axis: ClassVar[str] = "state"

    recurrent: Float[Array, "state"] = parameter(group="recurrence")
    control: Float[Array, "state"] = parameter(group="recurrence")
    input: Float[Array, "state idim"] = parameter()
    bias: Float[Array, "state"] = parameter(group="bias")
    dt: Float[Array, ""] = parameter(group="recurrence", trainable=False)
    alpha: Float[Array, ""] = parameter(group="recurrence", trainable=False)
    idim: int = eqx.field(static=True)
    hdim: int = eqx.field(static=True)

    @check_arguments
    def __init__(
        self,
        idim: Size,
        hdim: Size,
        *,
        dt: Positive = 0.19,
        alpha: NonNegative = 30.65,
        key: PRNGKeyArray,
    ):
        r"""**Arguments:**

        - `idim`: number of input features.
        - `hdim`: number of oscillators.
        - `dt`: $\Delta t$, the largest step of time of a unit, positive. The default, as that of
            `alpha`, is the paper's for permuted sequential MNIST; it has 0.126 and 13 for noisy
            CIFAR-10, 2.81e-5 and 0.0343 in the two layers for EigenWorms, with an `alpha` of 0.
        - `alpha`: $\alpha$, the square of the frequency without weights, at least 0.
        - `key`: for the initial parameters.

        **Warns:** if a unit without weights may be unstable.

        **Raises:** `TypeError` if an argument has another kind, `ValueError` if it is out of range.
        """
        if dt**2 * alpha > 4:
            warn_caller(
                "UnICORNNCell: units may grow without bound. dt² alpha must be at most 4; got "
                f"{dt**2 * alpha:.3g} from dt={dt}, alpha={alpha}. Lower dt."
            )
        recurrent_key, control_key, input_key = jax.random.split(key, 3)
        self.recurrent = jax.random.uniform(recurrent_key, (hdim,), jnp.float32)
        self.control = uniform(control_key, (hdim,), 0.1)
        self.input = uniform(input_key, (hdim, idim), math.sqrt(6 / (65 * idim)))
        self.bias = jnp.zeros((hdim,), jnp.float32)
        self.dt = jnp.asarray(dt, jnp.float32)
        self.alpha = jnp.asarray(alpha, jnp.float32)
        self.idim, self.hdim = idim, hdim

    def weights(self) -> _UnICORNNWeights:
        step = self.dt * jax.nn.sigmoid(self.control)
        return _UnICORNNWeights(self.recurrent, self.input, self.bias, step, self.alpha)

    def advance(
        self, weights: _UnICORNNWeights, drive: Units, state: Oscillators, affine: Affine
    ) -> Oscillators:
        # Not through `affine`: keeping the pre-activation costs more than computing it again.
        y, z = state
        z = z - weights.step * (jnp.tanh(drive + weights.recurrent * y) + weights.alpha * y)
        return y + weights.step * z, z
