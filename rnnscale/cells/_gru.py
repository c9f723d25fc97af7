"""The gated recurrent unit, in the two forms that differ in where the reset gate acts."""

import math
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from rnnscale._checks import Size, check_arguments
from rnnscale._fields import parameter
from rnnscale.cells._base import Affine, Cell, JacobianKind, Units, identity, linear
from rnnscale.cells._init import Horizon, chrono_bias, normal, uniform

type GRUDrive = tuple[Float[Array, "*axes gates"], Units]
"""Two terms: one added to the products with the state, one added to the candidate."""


class _GRUWeights(NamedTuple):
    """The gates, one below the other."""

    recurrent: Float[Array, "gates hdim"]
    input: Float[Array, "gates idim"]
    bias: Float[Array, "gates"]
    candidate_bias: Float[Array, "hdim"]


class GatedRecurrentUnitCell(Cell):
    r"""The gated recurrent unit, in the form of cuDNN.

    The reset gate acts on the product with the state, so that a step has one product only:

    $$r, z = \mathrm{sigmoid}(W h_{t-1} + V x_t + b), \qquad
      n = \tanh(V_n x_t + b_n + r \odot (W_n h_{t-1} + c))$$
    $$h_t = (1 - z) \odot n + z \odot h_{t-1}$$

    Parameters have a leading axis of the reset gate, the update gate and the candidate, in the
    order `r, z, n`; $c$ is `candidate_bias`. They start uniform in $\pm 1 / \sqrt{d}$, for
    `d = hdim`; with `t_max`, the bias of the update gate starts at $\log u$ for $u$ uniform in
    `[1, t_max - 1)`. This is the form of cuDNN, PyTorch and Equinox. `GatedRecurrentUnit` is
    another name of the class.

    Cho, van Merriënboer, Gulcehre, Bahdanau, Bougares, Schwenk, Bengio, *Learning Phrase
    Representations using RNN Encoder-Decoder for Statistical Machine Translation*, EMNLP 2014;
    `t_max`: Tallec, Ollivier, *Can Recurrent Neural Networks Warp Time?*, ICLR 2018.

    **Differs from the paper:** the paper's reset gate acts on the state before the product, as in
    `ChoGatedRecurrentUnitCell`, and the paper has no biases.
    """

    jacobian: ClassVar[JacobianKind] = "block"
    one_product: ClassVar[bool] = True

    recurrent: Float[Array, "3 hdim hdim"] = parameter()
    input: Float[Array, "3 hdim idim"] = parameter()
    bias: Float[Array, "3 hdim"] = parameter(group="bias")
    candidate_bias: Float[Array, "hdim"] = parameter(group="bias")
    idim: int = eqx.field(static=True)
    hdim: int = eqx.field(static=True)

    @check_arguments
    def __init__(self, idim: Size, hdim: Size, *, t_max: Horizon | None = None, key: PRNGKeyArray):
        """**Arguments:**

        - `idim`: number of input features.
        - `hdim`: number of units.
        - `t_max`: the longest time to remember, in steps, at least 3, for the bias of the update
            gate (chrono initialisation). None for a bias like the others.
        - `key`: for the initial parameters.

        **Raises:** `TypeError` if an argument has another kind, `ValueError` if it is out of range.
        """
        recurrent_key, input_key, bias_key, candidate_key, chrono_key = jax.random.split(key, 5)
        limit = 1 / math.sqrt(hdim)
        self.recurrent = uniform(recurrent_key, (3, hdim, hdim), limit)
        self.input = uniform(input_key, (3, hdim, idim), limit)
        self.bias = uniform(bias_key, (3, hdim), limit)
        if t_max is not None:
            self.bias = self.bias.at[1].set(chrono_bias(chrono_key, hdim, t_max))
        self.candidate_bias = uniform(candidate_key, (hdim,), limit)
        self.idim, self.hdim = idim, hdim

    def weights(self) -> _GRUWeights:
        return _GRUWeights(
            self.recurrent.reshape(-1, self.hdim),
            self.input.reshape(-1, self.idim),
            self.bias.reshape(-1),
            self.candidate_bias,
        )

    def drive(self, weights: _GRUWeights, x: Float[Array, "*axes idim"]) -> GRUDrive:
        inputs = linear(weights.input, x) + weights.bias
        gates, candidate = jnp.split(inputs, [2 * self.hdim], axis=-1)
        candidate_bias = jnp.broadcast_to(weights.candidate_bias, candidate.shape)
        return jnp.concatenate([gates, candidate_bias], axis=-1), candidate

    def advance(self, weights: _GRUWeights, drive: GRUDrive, state: Units, affine: Affine) -> Units:
        product_drive, candidate_drive = drive
        r, z, product = jnp.split(affine(product_drive, weights.recurrent, state), 3, axis=-1)
        n = jnp.tanh(affine(candidate_drive, identity, jax.nn.sigmoid(r) * product))
        z = jax.nn.sigmoid(z)
        return (1 - z) * n + z * state


GatedRecurrentUnit = GatedRecurrentUnitCell


class _ChoGRUWeights(NamedTuple):
    """The two gates, one below the other, and the candidate."""

    gates: Float[Array, "gates hdim"]
    candidate: Float[Array, "hdim hdim"]
    input: Float[Array, "gates idim"]
    bias: Float[Array, "gates"]


class ChoGatedRecurrentUnitCell(Cell):
    r"""The gated recurrent unit, in the form of its paper.

    The reset gate acts on the state:

    $$r, z = \mathrm{sigmoid}(W h_{t-1} + V x_t + b), \qquad
      n = \tanh(W_n (r \odot h_{t-1}) + V_n x_t + b_n)$$
    $$h_t = z \odot h_{t-1} + (1 - z) \odot n$$

    Parameters have a leading axis of the reset gate, the update gate and the candidate, in the
    order `r, z, n`. The recurrent matrices start orthogonal, those of the input normal with a
    standard deviation of 0.01, as in the paper, and the biases at zero; with `t_max`, that of the
    update gate at $\log u$ for $u$ uniform in `[1, t_max - 1)`. A step has two products one after
    the other; `GatedRecurrentUnitCell` has one.

    Cho, van Merriënboer, Gulcehre, Bahdanau, Bougares, Schwenk, Bengio, *Learning Phrase
    Representations using RNN Encoder-Decoder for Statistical Machine Translation*, EMNLP 2014;
    `t_max`: Tallec, Ollivier, *Can Recurrent Neural Networks Warp Time?*, ICLR 2018.

    **Differs from the paper:** the paper has no biases.
    """

    jacobian: ClassVar[JacobianKind] = "block"

    recurrent: Float[Array, "3 hdim hdim"] = parameter()
    input: Float[Array, "3 hdim idim"] = parameter()
    bias: Float[Array, "3 hdim"] = parameter(group="bias")
    idim: int = eqx.field(static=True)
    hdim: int = eqx.field(static=True)

    @check_arguments
    def __init__(self, idim: Size, hdim: Size, *, t_max: Horizon | None = None, key: PRNGKeyArray):
        """**Arguments:**

        - `idim`: number of input features.
        - `hdim`: number of units.
        - `t_max`: the longest time to remember, in steps, at least 3, for the bias of the update
            gate (chrono initialisation). None for a bias of zero.
        - `key`: for the initial parameters.

        **Raises:** `TypeError` if an argument has another kind, `ValueError` if it is out of range.
        """
        recurrent_key, input_key, chrono_key = jax.random.split(key, 3)
        self.recurrent = jax.random.orthogonal(recurrent_key, hdim, (3,), jnp.float32)
        self.input = normal(input_key, (3, hdim, idim), 0.01)
        self.bias = jnp.zeros((3, hdim), jnp.float32)
        if t_max is not None:
            self.bias = self.bias.at[1].set(chrono_bias(chrono_key, hdim, t_max))
        self.idim, self.hdim = idim, hdim

    def weights(self) -> _ChoGRUWeights:
        return _ChoGRUWeights(
            self.recurrent[:2].reshape(-1, self.hdim),
            self.recurrent[2],
            self.input.reshape(-1, self.idim),
            self.bias.reshape(-1),
        )

    def drive(self, weights: _ChoGRUWeights, x: Float[Array, "*axes idim"]) -> GRUDrive:
        gates, candidate = jnp.split(
            linear(weights.input, x) + weights.bias, [2 * self.hdim], axis=-1
        )
        return gates, candidate

    def advance(
        self, weights: _ChoGRUWeights, drive: GRUDrive, state: Units, affine: Affine
    ) -> Units:
        gate_drive, candidate_drive = drive
        r, z = jnp.split(jax.nn.sigmoid(affine(gate_drive, weights.gates, state)), 2, axis=-1)
        n = jnp.tanh(affine(candidate_drive, weights.candidate, r * state))
        return z * state + (1 - z) * n
