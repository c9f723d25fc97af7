"""The minimal gated recurrent unit and the minimal long short-term memory."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from rnnscale._checks import Size, check_arguments
from rnnscale._fields import parameter
from rnnscale.cells._base import Coefficients, LinearCell
from rnnscale.cells._gates import gate_products
from rnnscale.cells._init import Horizon, chrono_bias, uniform


class MinGRUCell(LinearCell):
    r"""The minimal gated recurrent unit.

    $$z_t = \mathrm{sigmoid}(W_z x_t + b_z), \qquad \tilde h_t = W_h x_t + b_h, \qquad
      h_t = (1 - z_t) \odot h_{t-1} + z_t \odot \tilde h_t$$

    The vanilla form, whose candidate may have either sign. The state is a weighted mean of the
    candidates and the initial state.

    Parameters have a leading axis of the two products, in the order `z, h`. They start uniform in
    $\pm 1 / \sqrt{m}$, for `m = idim`; with `t_max`, the bias of the gate starts at $-\log u$ for
    $u$ uniform in `[1, t_max - 1)`.

    Feng, Tung, Ahmed, Bengio, Hajimirsadeghi, *Were RNNs All We Needed?*, 2024; `t_max`: Tallec,
    Ollivier, *Can Recurrent Neural Networks Warp Time?*, ICLR 2018.
    """

    input: Float[Array, "2 state idim"] = parameter()
    bias: Float[Array, "2 state"] = parameter(group="bias")
    idim: int = eqx.field(static=True)
    hdim: int = eqx.field(static=True)

    @check_arguments
    def __init__(self, idim: Size, hdim: Size, *, t_max: Horizon | None = None, key: PRNGKeyArray):
        """**Arguments:**

        - `idim`: number of input features.
        - `hdim`: number of units.
        - `t_max`: the longest time to remember, in steps, at least 3, for the bias of the gate
            (chrono initialisation). None for a bias like the others.
        - `key`: for the initial parameters.

        **Raises:** `TypeError` if an argument has another kind, `ValueError` if it is out of range.
        """
        input_key, bias_key, chrono_key = jax.random.split(key, 3)
        limit = 1 / math.sqrt(idim)
        self.input = uniform(input_key, (2, hdim, idim), limit)
        self.bias = uniform(bias_key, (2, hdim), limit)
        if t_max is not None:
            self.bias = self.bias.at[0].set(-chrono_bias(chrono_key, hdim, t_max))
        self.idim, self.hdim = idim, hdim

    def weights(self) -> "MinGRUCell":
        return eqx.tree_at(lambda cell: cell.bias, self, tuple(self.bias))  # no matrix

    def drive(self, weights: "MinGRUCell", x: Float[Array, "*axes idim"]) -> Coefficients:
        z, candidate = gate_products(weights.input, x)
        z_bias, candidate_bias = weights.bias
        z = z + z_bias
        # 1 - z as its own sigmoid keeps its digits near zero.
        return jax.nn.sigmoid(-z), jax.nn.sigmoid(z) * (candidate + candidate_bias)


class MinLSTMCell(LinearCell):
    r"""The minimal long short-term memory.

    $$f_t = \mathrm{sigmoid}(W_f x_t + b_f), \qquad i_t = \mathrm{sigmoid}(W_i x_t + b_i),
      \qquad \tilde h_t = W_h x_t + b_h$$
    $$h_t = \frac{f_t}{f_t + i_t} \odot h_{t-1} + \frac{i_t}{f_t + i_t} \odot \tilde h_t$$

    The state is a weighted mean of the candidates and the initial state.

    Parameters have a leading axis of the three products, in the order `f, i, h`. They start uniform
    in $\pm 1 / \sqrt{m}$, for `m = idim`; with `t_max`, the bias of the forget gate starts at
    $\log u$ for $u$ uniform in `[1, t_max - 1)`, and that of the input gate at $-\log u$.

    Feng, Tung, Ahmed, Bengio, Hajimirsadeghi, *Were RNNs All We Needed?*, 2024; `t_max`: Tallec,
    Ollivier, *Can Recurrent Neural Networks Warp Time?*, ICLR 2018.
    """

    input: Float[Array, "3 state idim"] = parameter()
    bias: Float[Array, "3 state"] = parameter(group="bias")
    idim: int = eqx.field(static=True)
    hdim: int = eqx.field(static=True)

    @check_arguments
    def __init__(self, idim: Size, hdim: Size, *, t_max: Horizon | None = None, key: PRNGKeyArray):
        """**Arguments:**

        - `idim`: number of input features.
        - `hdim`: number of units.
        - `t_max`: the longest time to remember, in steps, at least 3, for the biases of both gates
            (chrono initialisation). None for biases like the others.
        - `key`: for the initial parameters.

        **Raises:** `TypeError` if an argument has another kind, `ValueError` if it is out of range.
        """
        input_key, bias_key, chrono_key = jax.random.split(key, 3)
        limit = 1 / math.sqrt(idim)
        self.input = uniform(input_key, (3, hdim, idim), limit)
        self.bias = uniform(bias_key, (3, hdim), limit)
        if t_max is not None:
            keep = chrono_bias(chrono_key, hdim, t_max)
            self.bias = self.bias.at[:2].set(jnp.stack([keep, -keep]))
        self.idim, self.hdim = idim, hdim

    def weights(self) -> "MinLSTMCell":
        return eqx.tree_at(lambda cell: cell.bias, self, tuple(self.bias))  # no matrix

    def drive(self, weights: "MinLSTMCell", x: Float[Array, "*axes idim"]) -> Coefficients:
        f, i, candidate = gate_products(weights.input, x)
        f_bias, i_bias, candidate_bias = weights.bias
        # log(f / i). A quotient of gates that have both underflowed would be 0 / 0.
        ratio = jax.nn.log_sigmoid(f + f_bias) - jax.nn.log_sigmoid(i + i_bias)
        return jax.nn.sigmoid(ratio), jax.nn.sigmoid(-ratio) * (candidate + candidate_bias)
