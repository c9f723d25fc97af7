"""The recurrent network with an antisymmetric matrix."""

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from rnnscale._checks import Finite, NonNegative, Positive, Size, check_arguments
from rnnscale._fields import parameter
from rnnscale.cells._base import Affine, AffineInputCell, Units
from rnnscale.cells._init import normal
from rnnscale.cells._warn import warn_caller


class _AntiSymmetricWeights(NamedTuple):
    recurrent: Float[Array, "hdim hdim"]
    input: Float[Array, "gates idim"]
    bias: Float[Array, "gates"]
    epsilon: Float[Array, ""]


class AntiSymmetricRNNCell(AffineInputCell):
    r"""A network with an antisymmetric matrix, at the edge of stability.

    $$h_t = h_{t-1} + \epsilon \tanh(M h_{t-1} + V x_t + b), \qquad M = W - W^T - \gamma I$$

    A step by Euler's method of an ordinary differential equation at the edge of stability: the
    eigenvalues of $M$ have the real part $-\gamma$, whatever $W$.

    $W$ starts normal with the standard deviation `recurrent_std` / $\sqrt{n}$ for `n = hdim`, $V$
    with $1 / \sqrt{m}$ for `m = idim`, and $b$ at zero. `epsilon` and `gamma` are arrays that are
    not trained: they can be changed or mapped over without compiling again.

    Chang, Chen, Haber, Chi, *AntisymmetricRNN: A Dynamical System View on Recurrent Neural
    Networks*, ICLR 2019.
    """

    recurrent: Float[Array, "hdim hdim"] = parameter()
    input: Float[Array, "hdim idim"] = parameter()
    bias: Float[Array, "hdim"] = parameter(group="bias")
    epsilon: Float[Array, ""] = parameter(group="recurrence", trainable=False)
    gamma: Float[Array, ""] = parameter(group="recurrence", trainable=False)
    idim: int = eqx.field(static=True)
    hdim: int = eqx.field(static=True)

    @check_arguments
    def __init__(
        self,
        idim: Size,
        hdim: Size,
        *,
        epsilon: Positive = 0.1,
        gamma: Finite = 0.01,
        recurrent_std: NonNegative = 1.0,
        key: PRNGKeyArray,
    ):
        r"""**Arguments:**

        - `idim`: number of input features.
        - `hdim`: number of units.
        - `epsilon`: the step $\epsilon$, positive. The paper searches 0.01, 0.1, and 1.
        - `gamma`: the diffusion $\gamma$, small.
        - `recurrent_std`: times $1 / \sqrt{n}$, the initial standard deviation of $W$. The paper
            searches 0, 1, 2, 4, 8, and 16.
        - `key`: for the initial parameters.

        **Raises:** `TypeError` if an argument has another kind, `ValueError` if it is out of range.

        **Warns:** if $\gamma$ is outside $[0, 2 / \epsilon]$: small states then grow, whatever $W$
        is.
        """
        _warn_of_growth(AntiSymmetricRNNCell, epsilon, gamma)
        recurrent_key, input_key = jax.random.split(key)
        self.recurrent = normal(recurrent_key, (hdim, hdim), recurrent_std / math.sqrt(hdim))
        self.input = normal(input_key, (hdim, idim), 1 / math.sqrt(idim))
        self.bias = jnp.zeros((hdim,), jnp.float32)
        self.epsilon = jnp.asarray(epsilon, jnp.float32)
        self.gamma = jnp.asarray(gamma, jnp.float32)
        self.idim, self.hdim = idim, hdim

    def weights(self) -> _AntiSymmetricWeights:
        matrix = _antisymmetric(self.recurrent, self.gamma)
        return _AntiSymmetricWeights(matrix, self.input, self.bias, self.epsilon)

    def advance(
        self, weights: _AntiSymmetricWeights, drive: Units, state: Units, affine: Affine
    ) -> Units:
        return state + weights.epsilon * jnp.tanh(affine(drive, weights.recurrent, state))


class GatedAntiSymmetricRNNCell(AffineInputCell):
    r"""A network with an antisymmetric matrix and a gate.

    $$h_t = h_{t-1} + \epsilon\, z \odot \tanh(M h_{t-1} + V x_t + b), \qquad
      z = \mathrm{sigmoid}(M h_{t-1} + V_z x_t + b_z)$$

    with $M = W - W^T - \gamma I$, which the gate shares.

    `input` and `bias` have a leading axis of the candidate and the gate, in this order. Parameters
    start as in `AntiSymmetricRNNCell`, and `epsilon` and `gamma` are arrays that are not trained.

    Chang, Chen, Haber, Chi, *AntisymmetricRNN: A Dynamical System View on Recurrent Neural
    Networks*, ICLR 2019.
    """

    recurrent: Float[Array, "hdim hdim"] = parameter()
    input: Float[Array, "2 hdim idim"] = parameter()
    bias: Float[Array, "2 hdim"] = parameter(group="bias")
    epsilon: Float[Array, ""] = parameter(group="recurrence", trainable=False)
    gamma: Float[Array, ""] = parameter(group="recurrence", trainable=False)
    idim: int = eqx.field(static=True)
    hdim: int = eqx.field(static=True)

    @check_arguments
    def __init__(
        self,
        idim: Size,
        hdim: Size,
        *,
        epsilon: Positive = 0.1,
        gamma: Finite = 0.01,
        recurrent_std: NonNegative = 1.0,
        key: PRNGKeyArray,
    ):
        r"""**Arguments:**

        - `idim`: number of input features.
        - `hdim`: number of units.
        - `epsilon`: the step $\epsilon$, positive.
        - `gamma`: the diffusion $\gamma$, small.
        - `recurrent_std`: times $1 / \sqrt{n}$, the initial standard deviation of $W$.
        - `key`: for the initial parameters.

        **Raises:** `TypeError` if an argument has another kind, `ValueError` if it is out of range.

        **Warns:** if $\gamma$ is outside $[0, 2 / \epsilon]$: small states then grow, whatever $W$
        is.
        """
        _warn_of_growth(GatedAntiSymmetricRNNCell, epsilon, gamma)
        recurrent_key, input_key = jax.random.split(key)
        self.recurrent = normal(recurrent_key, (hdim, hdim), recurrent_std / math.sqrt(hdim))
        self.input = normal(input_key, (2, hdim, idim), 1 / math.sqrt(idim))
        self.bias = jnp.zeros((2, hdim), jnp.float32)
        self.epsilon = jnp.asarray(epsilon, jnp.float32)
        self.gamma = jnp.asarray(gamma, jnp.float32)
        self.idim, self.hdim = idim, hdim

    def weights(self) -> _AntiSymmetricWeights:
        return _AntiSymmetricWeights(
            _antisymmetric(self.recurrent, self.gamma),
            self.input.reshape(-1, self.idim),
            self.bias.reshape(-1),
            self.epsilon,
        )

    def advance(
        self,
        weights: _AntiSymmetricWeights,
        drive: Float[Array, "*axes gates"],
        state: Units,
        affine: Affine,
    ) -> Units:
        candidate_drive, gate_drive = jnp.split(drive, 2, axis=-1)
        product = affine(jnp.zeros_like(gate_drive), weights.recurrent, state)
        gate = jax.nn.sigmoid(product + gate_drive)
        return state + weights.epsilon * gate * jnp.tanh(product + candidate_drive)


def _antisymmetric(
    recurrent: Float[Array, "hdim hdim"], gamma: Float[Array, ""]
) -> Float[Array, "hdim hdim"]:
    return recurrent - recurrent.T - gamma * jnp.eye(len(recurrent), dtype=recurrent.dtype)


def _warn_of_growth(owner: type, epsilon: float, gamma: float) -> None:
    if not 0 <= gamma <= 2 / epsilon:
        warn_caller(
            f"{owner.__name__}: small states grow, whatever the weights are, unless gamma is in "
            f"[0, 2 / epsilon], here [0, {2 / epsilon:.4g}]; got {gamma}."
        )
