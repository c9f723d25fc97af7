"""The Lipschitz recurrent network."""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from rnnscale._checks import Finite, NonNegative, Positive, Share, Size, check_arguments
from rnnscale._fields import parameter
from rnnscale.cells._base import Affine, AffineInputCell, Units
from rnnscale.cells._init import normal, xavier_normal
from rnnscale.cells._warn import warn_caller

type Method = Literal["euler", "rk2"]
type Pair[T] = T | tuple[T, T]
type Slope = Callable[[Units], Units]

# An initial network that grows by more than this factor in this number of steps deserves a warning.
_GROWTH, _STEPS = 10, 1000


class _LipschitzWeights(NamedTuple):
    """A above W, and the input to the candidate above that to the gate."""

    recurrent: Float[Array, "both hdim"]
    input: Float[Array, "gates idim"]
    bias: Float[Array, "gates"]
    epsilon: Float[Array, ""]


class LipschitzRNNCell(AffineInputCell):
    r"""The Lipschitz network, a step of a differential equation.

    $$\dot h = A h + \tanh(W h + U x_t + b)$$

    over a time $\epsilon$ from $h_{t-1}$ to $h_t$, in one step of Euler's method or of the midpoint
    rule, with $x_t$ held. The matrices are

    $$A = (1 - \beta_A) (M_A + M_A^T) + \beta_A (M_A - M_A^T) - \gamma_A I$$

    and $W$ likewise: $\beta$ goes from a symmetric matrix to an antisymmetric one, and $\gamma$
    moves the eigenvalues to the left in the complex plane.

    `recurrent`, `beta` and `gamma` have a leading axis of A and W. $M$ starts normal with the
    standard deviation `init_std` / n for `n = hdim`, $U$ normal of the variance $2 / (m + n)$ for
    `m = idim`, and $b$ at zero. `epsilon`, `beta` and `gamma` are arrays that are
    not trained: they can be changed or mapped over without compiling again. The defaults are those
    of the authors' code for pixel-by-pixel MNIST. An earlier version of it had `epsilon=0.01`,
    `beta=0.65` (0.8 if permuted) and `init_std=32`, with which an untrained network of 128 units
    grows by $e^{22}$ in 784 steps, until $\tanh$ holds only the input back.

    Erichson, Azencot, Queiruga, Hodgkinson, Mahoney, *Lipschitz Recurrent Neural Networks*,
    ICLR 2021.

    **Differs from the authors' code:** there, $U$ and $b$ start uniform within
    $\pm 1 / \sqrt{m}$, the default of PyTorch's linear map.
    """

    recurrent: Float[Array, "2 hdim hdim"] = parameter()
    input: Float[Array, "hdim idim"] = parameter()
    bias: Float[Array, "hdim"] = parameter(group="bias")
    epsilon: Float[Array, ""] = parameter(group="recurrence", trainable=False)
    beta: Float[Array, "2"] = parameter(group="recurrence", trainable=False)
    gamma: Float[Array, "2"] = parameter(group="recurrence", trainable=False)
    idim: int = eqx.field(static=True)
    hdim: int = eqx.field(static=True)
    method: Method = eqx.field(static=True)

    @check_arguments
    def __init__(
        self,
        idim: Size,
        hdim: Size,
        *,
        epsilon: Positive = 0.03,
        beta: Pair[Share] = 0.75,
        gamma: Pair[Finite] = 0.001,
        init_std: NonNegative = 0.1,
        method: Method = "euler",
        key: PRNGKeyArray,
    ):
        r"""**Arguments:**

        - `idim`: number of input features.
        - `hdim`: number of units.
        - `epsilon`: the time $\epsilon$ of a step, positive.
        - `beta`: $\beta_A$ and $\beta_W$ in `[0, 1]`, or one number for both.
        - `gamma`: $\gamma_A$ and $\gamma_W$, or one number for both.
        - `init_std`: divided by n, the initial standard deviation of $M$.
        - `method`: `"euler"`, or `"rk2"` for the midpoint rule, which computes two products with
            the state at each step instead of one.
        - `key`: for the initial parameters.

        **Raises:** `TypeError` if an argument has another kind, `ValueError` if it is out of range.

        **Warns:** if $\gamma_A$ is outside $[0, 2 / \epsilon]$: states then grow through $A$ unless
        $M_A$ prevents it; and if the initial $A$ makes states grow tenfold within 1000 steps.
        """
        _warn_of_growth(LipschitzRNNCell, hdim, epsilon, beta, gamma, init_std)
        recurrent_key, input_key = jax.random.split(key)
        self.recurrent = normal(recurrent_key, (2, hdim, hdim), init_std / hdim)
        self.input = xavier_normal(input_key, (hdim, idim))
        self.bias = jnp.zeros((hdim,), jnp.float32)
        self.epsilon = jnp.asarray(epsilon, jnp.float32)
        self.beta = jnp.asarray(_pair(beta), jnp.float32)
        self.gamma = jnp.asarray(_pair(gamma), jnp.float32)
        self.idim, self.hdim, self.method = idim, hdim, method

    def weights(self) -> _LipschitzWeights:
        matrices = _matrices(self.recurrent, self.beta, self.gamma)
        return _LipschitzWeights(matrices, self.input, self.bias, self.epsilon)

    def advance(
        self, weights: _LipschitzWeights, drive: Units, state: Units, affine: Affine
    ) -> Units:
        def slope(h: Units) -> Units:
            linear_part, recurrent = _products(affine, weights, h)
            return linear_part + jnp.tanh(recurrent + drive)

        return _integrate(self.method, slope, state, weights.epsilon)


class GatedLipschitzRNNCell(AffineInputCell):
    r"""The Lipschitz network with a gate.

    $$\dot h = \mathrm{sigmoid}(W h + U_z x_t + b_z) \odot (A h + \tanh(W h + U x_t + b))$$

    and otherwise as `LipschitzRNNCell`. The gate shares $W$ and scales the linear term too.

    `input` and `bias` have a leading axis of the candidate and the gate, in this order.

    Erichson, Azencot, Queiruga, Hodgkinson, Mahoney, *Lipschitz Recurrent Neural Networks*,
    ICLR 2021.

    **Differs from the paper:** the gate is in the authors' code and not in the paper, and the code
    has Euler's method only.
    """

    recurrent: Float[Array, "2 hdim hdim"] = parameter()
    input: Float[Array, "2 hdim idim"] = parameter()
    bias: Float[Array, "2 hdim"] = parameter(group="bias")
    epsilon: Float[Array, ""] = parameter(group="recurrence", trainable=False)
    beta: Float[Array, "2"] = parameter(group="recurrence", trainable=False)
    gamma: Float[Array, "2"] = parameter(group="recurrence", trainable=False)
    idim: int = eqx.field(static=True)
    hdim: int = eqx.field(static=True)
    method: Method = eqx.field(static=True)

    @check_arguments
    def __init__(
        self,
        idim: Size,
        hdim: Size,
        *,
        epsilon: Positive = 0.03,
        beta: Pair[Share] = 0.75,
        gamma: Pair[Finite] = 0.001,
        init_std: NonNegative = 0.1,
        method: Method = "euler",
        key: PRNGKeyArray,
    ):
        r"""**Arguments:**

        - `idim`: number of input features.
        - `hdim`: number of units.
        - `epsilon`: the time $\epsilon$ of a step, positive.
        - `beta`: $\beta_A$ and $\beta_W$ in `[0, 1]`, or one number for both.
        - `gamma`: $\gamma_A$ and $\gamma_W$, or one number for both.
        - `init_std`: divided by n, the initial standard deviation of $M$.
        - `method`: `"euler"` or `"rk2"`, as in `LipschitzRNNCell`.
        - `key`: for the initial parameters.

        **Raises:** `TypeError` if an argument has another kind, `ValueError` if it is out of range.

        **Warns:** if $\gamma_A$ is outside $[0, 2 / \epsilon]$: states then grow through $A$ unless
        $M_A$ prevents it; and if the initial $A$ makes states grow tenfold within 1000 steps.
        """
        _warn_of_growth(GatedLipschitzRNNCell, hdim, epsilon, beta, gamma, init_std)
        recurrent_key, *input_keys = jax.random.split(key, 3)
        self.recurrent = normal(recurrent_key, (2, hdim, hdim), init_std / hdim)
        self.input = jnp.stack([xavier_normal(key, (hdim, idim)) for key in input_keys])
        self.bias = jnp.zeros((2, hdim), jnp.float32)
        self.epsilon = jnp.asarray(epsilon, jnp.float32)
        self.beta = jnp.asarray(_pair(beta), jnp.float32)
        self.gamma = jnp.asarray(_pair(gamma), jnp.float32)
        self.idim, self.hdim, self.method = idim, hdim, method

    def weights(self) -> _LipschitzWeights:
        return _LipschitzWeights(
            _matrices(self.recurrent, self.beta, self.gamma),
            self.input.reshape(-1, self.idim),
            self.bias.reshape(-1),
            self.epsilon,
        )

    def advance(
        self,
        weights: _LipschitzWeights,
        drive: Float[Array, "*axes gates"],
        state: Units,
        affine: Affine,
    ) -> Units:
        candidate_drive, gate_drive = jnp.split(drive, 2, axis=-1)

        def slope(h: Units) -> Units:
            linear_part, recurrent = _products(affine, weights, h)
            gate = jax.nn.sigmoid(recurrent + gate_drive)
            return gate * (linear_part + jnp.tanh(recurrent + candidate_drive))

        return _integrate(self.method, slope, state, weights.epsilon)


def _matrices(
    m: Float[Array, "2 hdim hdim"], beta: Float[Array, "2"], gamma: Float[Array, "2"]
) -> Float[Array, "both hdim"]:
    """A above W."""
    transposed = jnp.swapaxes(m, 1, 2)
    beta, gamma = beta[:, None, None], gamma[:, None, None]
    identity = jnp.eye(m.shape[-1], dtype=m.dtype)
    both = (1 - beta) * (m + transposed) + beta * (m - transposed) - gamma * identity
    return both.reshape(-1, m.shape[-1])


def _products(affine: Affine, weights: _LipschitzWeights, h: Units) -> list[Units]:
    """A h and W h."""
    zeros = jnp.zeros((*h.shape[:-1], 2 * h.shape[-1]), h.dtype)
    return jnp.split(affine(zeros, weights.recurrent, h), 2, axis=-1)


def _integrate(method: Method, slope: Slope, h: Units, epsilon: Float[Array, ""]) -> Units:
    middle = h if method == "euler" else h + epsilon / 2 * slope(h)
    return h + epsilon * slope(middle)


def _pair(value: Pair[float]) -> tuple[float, float]:
    """One value each for A and W."""
    return value if isinstance(value, tuple) else (value, value)


def _warn_of_growth(
    owner: type,
    hdim: int,
    epsilon: float,
    beta: Pair[float],
    gamma: Pair[float],
    init_std: float,
) -> None:
    gamma_a, beta_a = _pair(gamma)[0], _pair(beta)[0]
    if not 0 <= gamma_a <= 2 / epsilon:
        warn_caller(
            f"{owner.__name__}: states grow through A, unless its M prevents it, with gamma "
            f"outside [0, 2 / epsilon], here [0, {2 / epsilon:.4g}]; got {gamma_a}."
        )
        return
    # The symmetric part of A bounds the growth. Its largest eigenvalue follows Wigner's semicircle:
    # the entries of M + M^T have the standard deviation sqrt(2) init_std / hdim.
    largest = (1 - beta_a) * 2 * math.sqrt(2 / hdim) * init_std - gamma_a
    if epsilon * largest * _STEPS > math.log(_GROWTH):
        warn_caller(
            f"{owner.__name__}: states may grow by a factor of {math.exp(epsilon * largest):.4g} a "
            f"step before any training, through A; a smaller init_std (here {init_std}), a smaller "
            f"epsilon ({epsilon}), or a beta nearer to 1 ({beta_a}) prevents it."
        )
