"""The long short-term memory."""

import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from rnnscale._base import state_dtype
from rnnscale._checks import BatchShape, FloatDType, Size, check_arguments
from rnnscale._fields import parameter
from rnnscale.cells._base import Affine, AffineInputCell, DenseWeights, JacobianKind, Units
from rnnscale.cells._init import Horizon, chrono_bias, uniform

type LSTMState = tuple[Units, Units]


class LongShortTermMemoryCell(AffineInputCell):
    r"""The long short-term memory.

    $$i, f, o = \mathrm{sigmoid}(W h_{t-1} + V x_t + b), \qquad
      g = \tanh(W_g h_{t-1} + V_g x_t + b_g)$$
    $$c_t = f \odot c_{t-1} + i \odot g, \qquad h_t = o \odot \tanh(c_t)$$

    Parameters have a leading axis of the four gates, in the order `i, f, g, o`. They start uniform
    in $\pm 1 / \sqrt{n}$, for `n = hdim`, and the bias of the forget gate at one; with `t_max`, at
    $\log u$ for $u$ uniform in `[1, t_max - 1)`, and that of the input gate at $-\log u$. The state
    is `(h, c)`. `LongShortTermMemory` is another name of this class.

    Hochreiter, Schmidhuber, *Long Short-Term Memory*, Neural Computation 1997; forget gate: Gers,
    Schmidhuber, Cummins, *Learning to Forget*, Neural Computation 2000; its bias: Jozefowicz,
    Zaremba, Sutskever, *An Empirical Exploration of Recurrent Network Architectures*, ICML 2015;
    `t_max`: Tallec, Ollivier, *Can Recurrent Neural Networks Warp Time?*, ICLR 2018.
    """

    jacobian: ClassVar[JacobianKind] = "block"
    one_product: ClassVar[bool] = True

    recurrent: Float[Array, "4 hdim hdim"] = parameter()
    input: Float[Array, "4 hdim idim"] = parameter()
    bias: Float[Array, "4 hdim"] = parameter(group="bias")
    idim: int = eqx.field(static=True)
    hdim: int = eqx.field(static=True)

    @check_arguments
    def __init__(self, idim: Size, hdim: Size, *, t_max: Horizon | None = None, key: PRNGKeyArray):
        """**Arguments:**

        - `idim`: number of input features.
        - `hdim`: number of units.
        - `t_max`: the longest time to remember, in steps, at least 3, for the biases of the forget
            and the input gate (chrono initialisation). None for the bias of one.
        - `key`: for the initial parameters.

        **Raises:** `TypeError` if an argument has another kind, `ValueError` if it is out of range.
        """
        recurrent_key, input_key, bias_key, chrono_key = jax.random.split(key, 4)
        limit = 1 / math.sqrt(hdim)
        self.recurrent = uniform(recurrent_key, (4, hdim, hdim), limit)
        self.input = uniform(input_key, (4, hdim, idim), limit)
        bias = uniform(bias_key, (4, hdim), limit)
        if t_max is None:
            self.bias = bias.at[1].set(1.0)
        else:
            keep = chrono_bias(chrono_key, hdim, t_max)
            self.bias = bias.at[0].set(-keep).at[1].set(keep)
        self.idim, self.hdim = idim, hdim

    def weights(self) -> DenseWeights:
        return DenseWeights(
            self.recurrent.reshape(-1, self.hdim),
            self.input.reshape(-1, self.idim),
            self.bias.reshape(-1),
        )

    def advance(
        self,
        weights: DenseWeights,
        drive: Float[Array, "*axes gates"],
        state: LSTMState,
        affine: Affine,
    ) -> LSTMState:
        h, c = state
        i, f, g, o = jnp.split(affine(drive, weights.recurrent, h), 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jax.nn.sigmoid(o) * jnp.tanh(c), c

    def output(self, state: LSTMState) -> Units:
        return state[0]

    @check_arguments
    def init_state(
        self, batch_shape: BatchShape = (), dtype: FloatDType | None = None
    ) -> LSTMState:
        zeros = jnp.zeros((*batch_shape, self.hdim), state_dtype(dtype))
        return zeros, jnp.zeros_like(zeros)


LongShortTermMemory = LongShortTermMemoryCell
