"""The scalar memory of the xLSTM."""

import math
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from rnnscale._base import state_dtype
from rnnscale._checks import BatchShape, FloatDType, Share, Size, check_arguments
from rnnscale._fields import parameter
from rnnscale.cells._base import Affine, Cell, JacobianKind, Units, linear
from rnnscale.cells._init import normal


class SLSTMState(NamedTuple):
    """The output $h$, $c$ and $n$, both divided by $e^m$, and the stabiliser $m$."""

    h: Units
    c: Units
    n: Units
    m: Units


class SLSTMWeights(NamedTuple):
    """Gates lie one below the other."""

    recurrent: Float[Array, "gates hdim"]
    input: Float[Array, "gates idim"] | None
    bias: Float[Array, "gates"]


class SLSTMCell(Cell):
    r"""The sLSTM: an LSTM with an exponential input gate, and a normaliser in place of the last
    tanh.

    $$(\tilde \imath, \tilde f, \tilde z, \tilde o) = W x_t + R h_{t-1} + b, \qquad
      \log f = \log \mathrm{sigmoid}(\tilde f), \qquad m_t = \max(\log f + m_{t-1}, \tilde \imath)$$
    $$i' = e^{\tilde \imath - m_t}, \qquad f' = e^{\log f + m_{t-1} - m_t}, \qquad
      c_t = f' c_{t-1} + i' \tanh(\tilde z), \qquad n_t = f' n_{t-1} + i'$$
    $$h_t = \mathrm{sigmoid}(\tilde o) \odot c_t / n_t$$

    $R$ is block-diagonal: a unit reads the units of its own head. Parameters have a leading axis of
    the four gates, in the order `i, f, z, o`. The state is `(h, c, n, m)`, zero at first. $m$ only
    keeps the exponentials within range: $h$ is the same for any $m$. For a unit whose $n$ is zero,
    that is, before its first step, $m_t = \tilde \imath$. So $n \ge 1$ after it.

    $W$ starts normal with variance `2 / (5 idim)`. $R$ and the biases start at zero, except the
    bias of the forget gate: in each head it falls from 5 to -7, by the power `0.3 + 1.3 position`
    of the unit's place in the head.

    The authors' block around the cell is `rnnscale.SLSTM`.

    Beck, Pöppel, Spanring, Auer, Prudnikova, Kopp, Klambauer, Brandstetter, Hochreiter, *xLSTM:
    Extended Long Short-Term Memory*, NeurIPS 2024, with the sigmoid forget gate and the initial
    values of the authors' code.

    **Differs from the authors' code:** there, $m_t = \tilde \imath$ if $n$ is zero for all rows and
    units of a batch, so a row would depend on others.
    """

    jacobian: ClassVar[JacobianKind] = "block"

    recurrent: Float[Array, "4 heads out in"] = parameter()
    input: Float[Array, "4 hdim idim"] | None = parameter()
    bias: Float[Array, "4 hdim"] = parameter(group="bias")
    idim: int = eqx.field(static=True)
    hdim: int = eqx.field(static=True)
    heads: int = eqx.field(static=True)

    @check_arguments
    def __init__(
        self,
        idim: Size,
        hdim: Size,
        *,
        heads: Size = 1,
        position: Share = 0.0,
        use_input_weights: bool = True,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `idim`: number of input features.
        - `hdim`: number of units.
        - `heads`: blocks of the recurrent matrices, a divisor of `hdim`.
        - `position`: of the cell in a stack, from 0 for the first to 1 for the last, for the
            initial bias of the forget gate.
        - `use_input_weights`: whether inputs are multiplied by a matrix. If not, they are the four
            pre-activations, and `idim` must be `4 * hdim`.
        - `key`: for the initial parameters.

        **Raises:** `TypeError` if an argument has another kind, `ValueError` if it is out of range.
        """
        if hdim % heads:
            raise ValueError(
                f"SLSTMCell: heads must divide hdim={hdim}; got heads={heads}. Choose a divisor."
            )
        if not use_input_weights and idim != 4 * hdim:
            raise ValueError(
                f"SLSTMCell: without input weights, idim must be 4 * hdim = {4 * hdim}, one number "
                f"for each gate of each unit; got idim={idim}."
            )
        width = hdim // heads
        self.recurrent = jnp.zeros((4, heads, width, width), jnp.float32)
        std = math.sqrt(2 / (5 * idim))
        self.input = normal(key, (4, hdim, idim), std) if use_input_weights else None
        place = jnp.arange(width, dtype=jnp.float32) / max(width - 1, 1)
        forget = 5 - 12 * place ** (0.3 + 1.3 * position)
        self.bias = jnp.zeros((4, hdim), jnp.float32).at[1].set(jnp.tile(forget, heads))
        self.idim, self.hdim, self.heads = idim, hdim, heads

    def weights(self) -> SLSTMWeights:
        # One product with a matrix that is zero between heads is faster than one for each head.
        blocks = jnp.einsum("ghoi,hk->ghoki", self.recurrent, jnp.eye(self.heads))
        return SLSTMWeights(
            blocks.reshape(4 * self.hdim, self.hdim),
            None if self.input is None else self.input.reshape(4 * self.hdim, self.idim),
            self.bias.reshape(-1),
        )

    def drive(
        self, weights: SLSTMWeights, x: Float[Array, "*axes idim"]
    ) -> Float[Array, "*axes gates"]:
        return (x if weights.input is None else linear(weights.input, x)) + weights.bias

    def advance(
        self,
        weights: SLSTMWeights,
        drive: Float[Array, "*axes gates"],
        state: SLSTMState,
        affine: Affine,
    ) -> SLSTMState:
        i, f, z, o = jnp.split(affine(drive, weights.recurrent, state.h), 4, axis=-1)
        # Before the first step nothing is kept.
        kept = jnp.where(state.n == 0, -jnp.inf, jax.nn.log_sigmoid(f) + state.m)
        m = jnp.maximum(kept, i)
        write, keep = jnp.exp(i - m), jnp.exp(kept - m)
        c = keep * state.c + write * jnp.tanh(z)
        n = keep * state.n + write
        return SLSTMState(jax.nn.sigmoid(o) * c / n, c, n, m)

    def output(self, state: SLSTMState) -> Units:
        return state.h

    @check_arguments
    def init_state(
        self, batch_shape: BatchShape = (), dtype: FloatDType | None = None
    ) -> SLSTMState:
        shape = *batch_shape, self.hdim
        return SLSTMState(*(jnp.zeros(shape, state_dtype(dtype)) for _ in SLSTMState._fields))
