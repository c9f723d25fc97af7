"""The coupled oscillatory recurrent network, with units that are alike or that differ."""

import math
from typing import NamedTuple, final

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


class _OscillatorWeights(NamedTuple):
    recurrent: Float[Array, "hdim both"]  # W left of the matrix of the velocities
    input: Float[Array, "hdim idim"]
    bias: Float[Array, "hdim"]
    dt: Float[Array, ""]
    gamma: Float[Array, "*#hdim"]
    epsilon: Float[Array, "*#hdim"]


class _CoupledCell(OscillatorCell):
    """Oscillators that are coupled by their positions and velocities."""

    recurrent: eqx.AbstractVar[Float[Array, "2 hdim hdim"]]
    input: eqx.AbstractVar[Float[Array, "hdim idim"]]
    bias: eqx.AbstractVar[Float[Array, "hdim"]]
    dt: eqx.AbstractVar[Float[Array, ""]]
    gamma: eqx.AbstractVar[Float[Array, "*#hdim"]]
    epsilon: eqx.AbstractVar[Float[Array, "*#hdim"]]

    @final
    def weights(self) -> _OscillatorWeights:
        recurrent = jnp.concatenate(list(self.recurrent), axis=1)
        return _OscillatorWeights(
            recurrent, self.input, self.bias, self.dt, self.gamma, self.epsilon
        )

    @final
    def advance(
        self, weights: _OscillatorWeights, drive: Units, state: Oscillators, affine: Affine
    ) -> Oscillators:
        both = jnp.concatenate(state, axis=-1)
        force = jnp.tanh(affine(drive, weights.recurrent, both))
        return swing(state, force, weights.dt, weights.gamma, weights.epsilon)


class CoupledOscillatoryRNNCell(_CoupledCell):
    r"""The coupled oscillatory network, coRNN.

    $$z_t = z_{t-1} + \Delta t \left(\tanh(W y_{t-1} + \mathcal{W} z_{t-1} + V u_t + b)
      - \gamma y_{t-1} - \epsilon z_{t-1}\right), \qquad y_t = y_{t-1} + \Delta t \, z_t$$

    Oscillators of frequency $\sqrt\gamma$ and damping $\epsilon$. The paper lets the damping take
    $z_{t-1}$ or $z_t$; this is $z_{t-1}$, as in the authors' code. The state is `(y, z)`, the
    output $y$. `recurrent` holds $W$ and $\mathcal{W}$.

    Undriven, a unit is stable for $\Delta t^2 \gamma + 2 \Delta t \epsilon \le 4$; beyond, the
    spectral radius of its map exceeds one. $\Delta t$, $\gamma$ and $\epsilon$ are not trained.
    Their defaults are the paper's for sequential MNIST; for the permuted pixels it has
    0.076, 0.4 and 8.0. Every parameter starts uniform in $\pm 1 / \sqrt{m + 2n}$, for `m = idim`
    and `n = hdim`.

    Rusch, Mishra, *Coupled Oscillatory Recurrent Neural Network (coRNN): An Accurate and (Gradient)
    Stable Architecture for Learning Long Time Dependencies*, ICLR 2021.
    """

    recurrent: Float[Array, "2 hdim hdim"] = parameter()
    input: Float[Array, "hdim idim"] = parameter()
    bias: Float[Array, "hdim"] = parameter(group="bias")
    dt: Float[Array, ""] = parameter(group="recurrence", trainable=False)
    gamma: Float[Array, ""] = parameter(group="recurrence", trainable=False)
    epsilon: Float[Array, ""] = parameter(group="recurrence", trainable=False)
    idim: int = eqx.field(static=True)
    hdim: int = eqx.field(static=True)

    @check_arguments
    def __init__(
        self,
        idim: Size,
        hdim: Size,
        *,
        dt: Positive = 0.042,
        gamma: NonNegative = 2.7,
        epsilon: NonNegative = 4.7,
        key: PRNGKeyArray,
    ):
        r"""**Arguments:**

        - `idim`: number of input features.
        - `hdim`: number of oscillators.
        - `dt`: $\Delta t$, the step of time, positive.
        - `gamma`: $\gamma$, the square of the frequency, at least 0.
        - `epsilon`: $\epsilon$, the damping, at least 0.
        - `key`: for the initial parameters.

        **Warns:** if an undriven unit is not stable.

        **Raises:** `TypeError` if an argument has another kind, `ValueError` if it is out of range.
        """
        warn_of_growth(CoupledOscillatoryRNNCell, dt, gamma, epsilon)
        self.recurrent, self.input, self.bias = _initial_weights(idim, hdim, key)
        self.dt = jnp.asarray(dt, jnp.float32)
        self.gamma = jnp.asarray(gamma, jnp.float32)
        self.epsilon = jnp.asarray(epsilon, jnp.float32)
        self.idim, self.hdim = idim, hdim


class HeterogeneousOscillatoryRNNCell(_CoupledCell):
    r"""The coupled oscillatory network with a frequency and a damping for each unit, both trained.

    $$z_t = z_{t-1} + \Delta t \left(\tanh(W y_{t-1} + \mathcal{W} z_{t-1} + V u_t + b)
      - \gamma \odot y_{t-1} - \epsilon \odot z_{t-1}\right),
      \qquad y_t = y_{t-1} + \Delta t \, z_t$$

    `CoupledOscillatoryRNNCell` with vectors $\gamma$ and $\epsilon$, which start uniform in their
    ranges and belong to the group `"recurrence"` of an optimiser. Training is not kept from values
    that are not stable: a unit is for $\gamma, \epsilon \ge 0$ and
    $\Delta t^2 \gamma + 2 \Delta t \epsilon \le 4$. $\Delta t$ is not trained.

    Rusch, Mishra, *Coupled Oscillatory Recurrent Neural Network (coRNN): An Accurate and (Gradient)
    Stable Architecture for Learning Long Time Dependencies*, ICLR 2021; heterogeneous form: Ceni,
    Cossu, Stölzle, Liu, Della Santina, Bacciu, Gallicchio, *Random Oscillators Network for Time
    Series Processing*, AISTATS 2024.

    **Differs from the papers:** Rusch and Mishra have one $\gamma$ and one $\epsilon$, chosen for
    a task. The form of Ceni et al., hcoRNN, leaves out $\mathcal{W}$. Its $\gamma$ and $\epsilon$
    are trained as an option of their later code.
    """

    recurrent: Float[Array, "2 hdim hdim"] = parameter()
    input: Float[Array, "hdim idim"] = parameter()
    bias: Float[Array, "hdim"] = parameter(group="bias")
    dt: Float[Array, ""] = parameter(group="recurrence", trainable=False)
    gamma: Float[Array, "hdim"] = parameter(group="recurrence")
    epsilon: Float[Array, "hdim"] = parameter(group="recurrence")
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
        key: PRNGKeyArray,
    ):
        r"""**Arguments:**

        - `idim`: number of input features.
        - `hdim`: number of oscillators.
        - `dt`: $\Delta t$, the step of time, positive.
        - `gamma`: the range in which $\gamma$, the squares of the frequencies, start; at least 0.
        - `epsilon`: the range in which $\epsilon$, the damping, starts; at least 0.
        - `key`: for the initial parameters.

        **Warns:** if an undriven unit in these ranges is not stable.

        **Raises:** `TypeError` if an argument has another kind; `ValueError` if a size is below 1
        or a number is out of its range.
        """
        warn_of_growth(HeterogeneousOscillatoryRNNCell, dt, gamma[1], epsilon[1])
        weights_key, gamma_key, epsilon_key = jax.random.split(key, 3)
        self.recurrent, self.input, self.bias = _initial_weights(idim, hdim, weights_key)
        self.dt = jnp.asarray(dt, jnp.float32)
        self.gamma = jax.random.uniform(gamma_key, (hdim,), jnp.float32, *gamma)
        self.epsilon = jax.random.uniform(epsilon_key, (hdim,), jnp.float32, *epsilon)
        self.idim, self.hdim = idim, hdim


def _initial_weights(idim: int, hdim: int, key: PRNGKeyArray) -> tuple[Array, Array, Array]:
    recurrent_key, input_key, bias_key = jax.random.split(key, 3)
    limit = 1 / math.sqrt(idim + 2 * hdim)
    return (
        uniform(recurrent_key, (2, hdim, hdim), limit),
        uniform(input_key, (hdim, idim), limit),
        uniform(bias_key, (hdim,), limit),
    )
