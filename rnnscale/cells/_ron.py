"""The randomly coupled oscillators, a reservoir."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from rnnscale._checks import NonNegative, Positive, Range, Size, check_arguments
from rnnscale._fields import parameter
from rnnscale.cells._base import Affine, Units
from rnnscale.cells._init import uniform
from rnnscale.cells._oscillators import (
    OscillatorCell,
    Oscillators,
    swing,
    warn_of_growth,
)

# After k squarings, the error of the log radius is the log of the condition number of the
# eigenvectors, divided by 2^k: below the rounding of float32.
_SQUARINGS = 30


class RandomOscillatorsCell(OscillatorCell):
    r"""The randomly coupled oscillators, a reservoir.

    $$z_t = z_{t-1} + \Delta t \left(\tanh(W y_{t-1} + V u_t + b) - \gamma \odot y_{t-1}
      - \epsilon \odot z_{t-1}\right), \qquad y_t = y_{t-1} + \Delta t \, z_t$$

    The heterogeneous form, in which each unit has its own frequency and damping. The state is
    `(y, z)`, the output $y$. Nothing is trained: the cell is a reservoir for a linear readout.

    $W$ is uniform and rescaled to the spectral radius; $V$ is uniform in `[0, input_scaling)` and
    $b$ in `±input_scaling`, as in the authors' code; $\gamma$ and $\epsilon$ are uniform in their
    ranges. Undriven, a unit is stable for $\Delta t^2 \gamma + 2 \Delta t \epsilon \le 4$.

    Ceni, Cossu, Stölzle, Liu, Della Santina, Bacciu, Gallicchio, *Random Oscillators Network for
    Time Series Processing*, AISTATS 2024.
    """

    recurrent: Float[Array, "hdim hdim"] = parameter(trainable=False)
    input: Float[Array, "hdim idim"] = parameter(trainable=False)
    bias: Float[Array, "hdim"] = parameter(group="bias", trainable=False)
    dt: Float[Array, ""] = parameter(group="recurrence", trainable=False)
    gamma: Float[Array, "hdim"] = parameter(group="recurrence", trainable=False)
    epsilon: Float[Array, "hdim"] = parameter(group="recurrence", trainable=False)
    idim: int = eqx.field(static=True)
    hdim: int = eqx.field(static=True)

    @check_arguments
    def __init__(
        self,
        idim: Size,
        hdim: Size,
        *,
        dt: Positive = 0.042,
        gamma: Range[NonNegative] = (1.7, 3.7),
        epsilon: Range[NonNegative] = (4.2, 5.2),
        spectral_radius: NonNegative = 0.9,
        input_scaling: NonNegative = 1.0,
        key: PRNGKeyArray,
    ):
        r"""**Arguments:**

        - `idim`: number of input features.
        - `hdim`: number of oscillators.
        - `dt`: $\Delta t$, the step of time, positive.
        - `gamma`: the range of $\gamma$, the squares of the frequencies, at least 0.
        - `epsilon`: the range of $\epsilon$, the damping, at least 0.
        - `spectral_radius`: the spectral radius of $W$, at least 0.
        - `input_scaling`: the largest entry of $V$ and of $b$, at least 0.
        - `key`: for all arrays.

        **Warns:** if an undriven unit in these ranges is not stable.

        **Raises:** `TypeError` if an argument has another kind, `ValueError` if it is out of range.
        """
        warn_of_growth(RandomOscillatorsCell, dt, gamma[1], epsilon[1])
        keys = jax.random.split(key, 5)
        recurrent = uniform(keys[0], (hdim, hdim), 1.0)
        self.recurrent = recurrent * (spectral_radius / _spectral_radius(recurrent))
        self.input = jax.random.uniform(keys[1], (hdim, idim), jnp.float32, 0, input_scaling)
        self.bias = uniform(keys[2], (hdim,), input_scaling)
        self.dt = jnp.asarray(dt, jnp.float32)
        self.gamma = jax.random.uniform(keys[3], (hdim,), jnp.float32, *gamma)
        self.epsilon = jax.random.uniform(keys[4], (hdim,), jnp.float32, *epsilon)
        self.idim, self.hdim = idim, hdim

    def advance(
        self, weights: "RandomOscillatorsCell", drive: Units, state: Oscillators, affine: Affine
    ) -> Oscillators:
        force = jnp.tanh(affine(drive, weights.recurrent, state[0]))
        return swing(state, force, weights.dt, weights.gamma, weights.epsilon)


def _spectral_radius(matrix: Float[Array, "n n"]) -> Float[Array, ""]:
    r"""$\lim_k \|M^{2^k}\|^{2^{-k}}$, by squaring, which works on any device.

    The entries of `matrix` are random, so no power is zero.
    """

    def square(carry, exponent):
        power, log_radius = carry
        norm = jnp.linalg.norm(power)
        power = power / norm
        power = jnp.matmul(power, power, precision="highest")
        return (power, log_radius + jnp.log(norm) / exponent), None

    exponents = 2.0 ** jnp.arange(_SQUARINGS, dtype=jnp.float32)
    (_, log_radius), _ = jax.lax.scan(square, (matrix, jnp.zeros((), matrix.dtype)), exponents)
    return jnp.exp(log_radius)
