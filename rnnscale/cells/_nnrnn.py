"""The non-normal recurrent network."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from rnnscale._checks import Size, check_arguments
from rnnscale._fields import parameter
from rnnscale.cells._base import Affine, Cell, DenseWeights, Units, linear
from rnnscale.cells._init import normal, uniform
from rnnscale.cells._orthogonal import (
    OrthogonalInit,
    initial_log,
    modrelu,
    orthogonal,
    pair_diagonal,
)


class NonNormalRNNCell(Cell):
    r"""The non-normal network, with a matrix in Schur form.

    $$h_t = \mathrm{modReLU}(V h_{t-1} + U x_t), \qquad V = P \Theta P^T$$
    $$\mathrm{modReLU}(z) = \mathrm{sign}(z) \, \mathrm{relu}(|z| + b)$$

    The Schur form of $V$: $P$ is orthogonal, as in `ExpRNNCell`; $\Theta$ has the blocks
    $\gamma_j R(\theta_j)$, rotations by $\theta_j$, on its diagonal, and above them a free
    $T$, which makes $V$ non-normal and leaves the moduli of its eigenvalues at $|\gamma_j|$. $V$ is
    computed once in a call.

    At the start $\gamma = 1$, $T = 0$ and $\theta$ is uniform in $[0, 2 \pi)$, so that $V$ is
    orthogonal; $U$ is Kaiming-normal, of variance `2 / idim`, and $b$ uniform in $\pm 0.01$.

    Kerg, Goyette, Puelma Touzel, Gidel, Vorontsov, Bengio, Lajoie, *Non-normal Recurrent Neural
    Network (nnRNN): learning long time dependencies while improving expressivity with transient
    dynamics*, NeurIPS 2019.

    **Differs from the paper:** $T$ is zero in the upper corners of the diagonal blocks, where the
    authors' code lets it change the eigenvalues.
    """

    log_orthogonal: Float[Array, "hdim hdim"] = parameter(group="recurrence")
    gamma: Float[Array, "pairs"] = parameter(group="recurrence")
    theta: Float[Array, "pairs"] = parameter(group="recurrence")
    upper: Float[Array, "hdim hdim"] = parameter(group="recurrence")
    input: Float[Array, "hdim idim"] = parameter()
    bias: Float[Array, "hdim"] = parameter(group="bias")
    idim: int = eqx.field(static=True)
    hdim: int = eqx.field(static=True)

    @check_arguments
    def __init__(
        self, idim: Size, hdim: Size, *, init: OrthogonalInit = "cayley", key: PRNGKeyArray
    ):
        r"""**Arguments:**

        - `idim`: number of input features.
        - `hdim`: number of units, even.
        - `init`: how $P$ starts, as in `ExpRNNCell`.
        - `key`: for the initial parameters.

        **Raises:** `TypeError` if an argument has another kind, `ValueError` if it is out of range.
        """
        if hdim % 2:
            raise ValueError(
                f"NonNormalRNNCell: hdim must be even, as eigenvalues come in pairs; got {hdim}."
            )
        log_key, theta_key, input_key, bias_key = jax.random.split(key, 4)
        self.log_orthogonal = initial_log(log_key, hdim, init)
        self.gamma = jnp.ones(hdim // 2, jnp.float32)
        self.theta = jax.random.uniform(theta_key, (hdim // 2,), jnp.float32, 0, 2 * math.pi)
        self.upper = jnp.zeros((hdim, hdim), jnp.float32)
        self.input = normal(input_key, (hdim, idim), math.sqrt(2 / idim))
        self.bias = uniform(bias_key, (hdim,), 0.01)
        self.idim, self.hdim = idim, hdim

    def penalty(self) -> Float[Array, ""]:
        r"""$\|\gamma - 1\|^2$, which the paper adds to the loss, times its $\delta$."""
        return jnp.sum((self.gamma - 1) ** 2)

    def weights(self) -> DenseWeights:
        pair = jnp.arange(self.hdim) // 2
        above = jnp.where(pair[:, None] < pair, self.upper, 0)
        cos = jnp.diag(jnp.repeat(self.gamma * jnp.cos(self.theta), 2))
        sin = pair_diagonal(self.gamma * jnp.sin(self.theta), self.hdim)
        p = orthogonal(self.log_orthogonal)
        with jax.default_matmul_precision("highest"):
            recurrent = p @ (cos - sin + sin.T + above) @ p.T
        return DenseWeights(recurrent, self.input, self.bias)

    def drive(self, weights: DenseWeights, x: Float[Array, "*axes idim"]) -> Units:
        return linear(weights.input, x)

    def advance(self, weights: DenseWeights, drive: Units, state: Units, affine: Affine) -> Units:
        return modrelu(affine(drive, weights.recurrent, state), weights.bias)
