"""The minimal gated recurrent unit."""

import math

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from rnnscale._base import check_size
from rnnscale._fields import parameter
from rnnscale.cells._init import uniform
from rnnscale.cells._linear import Coefficients, LinearCell, gate_products


class MinGRUCell(LinearCell):
    r"""The minimal gated recurrent unit.

    $$z_t = \mathrm{sigmoid}(W_z x_t + b_z), \qquad \tilde h_t = W_h x_t + b_h, \qquad
      h_t = (1 - z_t) \odot h_{t-1} + z_t \odot \tilde h_t$$

    The vanilla form, whose candidate may have either sign. The state is a weighted mean of the
    candidates and the initial state.

    Parameters have a leading axis of the two products, in the order `z, h`. They start uniform in
    $\pm 1 / \sqrt{m}$, for `m = idim`.

    Feng, Tung, Ahmed, Bengio, Hajimirsadeghi, *Were RNNs All We Needed?*, 2024.
    """

    input: Float[Array, "2 state idim"] = parameter()
    bias: Float[Array, "2 state"] = parameter(group="bias")
    idim: int = eqx.field(static=True)
    hdim: int = eqx.field(static=True)

    def __init__(self, idim: int, hdim: int, *, key: PRNGKeyArray):
        """**Arguments:**

        - `idim`: number of input features.
        - `hdim`: number of units.
        - `key`: for the initial parameters.

        **Raises:** `ValueError` if a size is below 1.
        """
        check_size(MinGRUCell, idim=idim, hdim=hdim)
        input_key, bias_key = jax.random.split(key)
        limit = 1 / math.sqrt(idim)
        self.input = uniform(input_key, (2, hdim, idim), limit)
        self.bias = uniform(bias_key, (2, hdim), limit)
        self.idim, self.hdim = idim, hdim

    def drive(self, weights: "MinGRUCell", x: Float[Array, "*axes idim"]) -> Coefficients:
        z, candidate = gate_products(weights.input, x)
        z_bias, candidate_bias = weights.bias
        z = z + z_bias
        # 1 - z as its own sigmoid keeps its digits near zero.
        return jax.nn.sigmoid(-z), jax.nn.sigmoid(z) * (candidate + candidate_bias)
