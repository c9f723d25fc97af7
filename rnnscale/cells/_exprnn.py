"""The recurrent network with an orthogonal matrix, by the exponential map."""

import math

import equinox as eqx
import jax
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
)


class ExpRNNCell(Cell):
    r"""A network with an orthogonal matrix, by the exponential map.

    $$h_t = \mathrm{modReLU}(e^A h_{t-1} + V x_t), \qquad
      A = \mathrm{triu}(L, 1) - \mathrm{triu}(L, 1)^T$$
    $$\mathrm{modReLU}(z) = \mathrm{sign}(z) \, \mathrm{relu}(|z| + b)$$

    $e^A$ is orthogonal whatever $L$, the parameter `log_orthogonal`, and is computed once in a
    call. The authors train $L$ at a tenth of the learning rate of the rest. $V$ starts
    Kaiming-normal, of variance `2 / idim`, and $b$ uniform in $\pm 0.01$.

    In bfloat16 the matrix is orthogonal up to the rounding of its entries only.

    Lezcano-Casado, Martínez-Rubio, *Cheap Orthogonal Constraints in Neural Networks: A Simple
    Parametrization of the Orthogonal and Unitary Group*, ICML 2019.
    """

    log_orthogonal: Float[Array, "hdim hdim"] = parameter(group="recurrence")
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
        - `hdim`: number of units.
        - `init`: how $e^A$ starts, as rotations in planes of two units: by angles uniform in
            $\pm \pi$ (`"henaff"`) or, in the mean, nearer to the identity (`"cayley"`, which
            has $-\tan(u / 2)$ for $u$ uniform in $[0, \pi / 2)$).
        - `key`: for the initial parameters.

        **Raises:** `TypeError` if an argument has another kind, `ValueError` if it is out of range.
        """
        log_key, input_key, bias_key = jax.random.split(key, 3)
        self.log_orthogonal = initial_log(log_key, hdim, init)
        self.input = normal(input_key, (hdim, idim), math.sqrt(2 / idim))
        self.bias = uniform(bias_key, (hdim,), 0.01)
        self.idim, self.hdim = idim, hdim

    def weights(self) -> DenseWeights:
        return DenseWeights(orthogonal(self.log_orthogonal), self.input, self.bias)

    def drive(self, weights: DenseWeights, x: Float[Array, "*axes idim"]) -> Units:
        return linear(weights.input, x)

    def advance(self, weights: DenseWeights, drive: Units, state: Units, affine: Affine) -> Units:
        return modrelu(affine(drive, weights.recurrent, state), weights.bias)
