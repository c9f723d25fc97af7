"""The gated recurrent unit and the long short-term memory of ParaRNN, with independent units."""

import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from rnnscale._base import state_dtype
from rnnscale._checks import BatchShape, FloatDType, Size, check_arguments
from rnnscale._fields import parameter
from rnnscale.cells._base import Affine, Cell, Units
from rnnscale.cells._gates import block_products
from rnnscale.cells._init import Horizon, chrono_bias, normal, uniform

type GateDrives = tuple[Units, Units, Units]

type ParaLSTMState = tuple[Units, Units]


class _ParaWeights(eqx.Module):
    """Vectors by gate, and the input maps of all gates."""

    recurrent: tuple[Float[Array, "state"], ...]
    peephole: tuple[Float[Array, "state"], ...]
    input: Float[Array, "gates state features"]
    bias: tuple[Float[Array, "state"], ...]
    head: Int[Array, "state"]  # of each unit


class ParaGRUCell(Cell):
    r"""The gated recurrent unit of ParaRNN.

    $$z_t, r_t = \mathrm{sigmoid}(a \odot h_{t-1} + B x_t + b), \qquad
      c_t = \tanh(a_c \odot h_{t-1} \odot r_t + B_c x_t + b_c)$$
    $$h_t = (1 - z_t) \odot h_{t-1} + z_t \odot c_t$$

    A unit does not see the past of another, so $\partial h_t / \partial h_{t-1}$ is diagonal, and a
    mesh may split the units over its axis `tensor`.

    Parameters have a leading axis of the update gate, the reset gate and the candidate, in the
    order `z, r, c`; `recurrent` holds $a$, `input` holds $B$. $B$ is block-diagonal over heads, as
    in the paper: the units of a head see only the features of that head. `input` has no zeros: it
    has one row for each unit, of the features of its head. One head, the default, sees all
    features.

    $a$ starts normal with a standard deviation of $2 / \sqrt{5 n}$, for `n = hdim`, the blocks of
    $B$ Xavier-uniform. The bias of the update gate starts at 0 for the first unit and falls in
    equal steps to -1 for the last, so that later units remember longer; with `t_max`, it starts at
    $-\log u$ for $u$ uniform in `[1, t_max - 1)`. The other biases start at zero.

    Danieli, Rodríguez, Sarabia, Suau, Zappella, *ParaRNN: Unlocking Parallel Training of Nonlinear
    RNNs for Large Language Models*, 2025; `t_max`: Tallec, Ollivier, *Can Recurrent Neural Networks
    Warp Time?*, ICLR 2018.
    """

    unit_axis: ClassVar[str] = "state"

    recurrent: Float[Array, "3 state"] = parameter(group="recurrence")
    input: Float[Array, "3 state features"] = parameter()
    bias: Float[Array, "3 state"] = parameter(group="bias")
    idim: int = eqx.field(static=True)
    hdim: int = eqx.field(static=True)

    @check_arguments
    def __init__(
        self,
        idim: Size,
        hdim: Size,
        *,
        heads: Size = 1,
        t_max: Horizon | None = None,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `idim`: number of input features.
        - `hdim`: number of units.
        - `heads`: blocks of the input maps, a divisor of `idim` and of `hdim`.
        - `t_max`: the longest time to remember, in steps, at least 3, for the bias of the update
            gate (chrono initialisation). None for the paper's.
        - `key`: for the initial parameters.

        **Raises:** `TypeError` if an argument has another kind, `ValueError` if it is out of range.
        """
        _check_heads(ParaGRUCell, idim, hdim, heads)
        recurrent_key, input_key, chrono_key = jax.random.split(key, 3)
        self.recurrent = _diagonal(recurrent_key, 3, hdim)
        self.input = _xavier_blocks(input_key, idim, hdim, heads)
        self.bias = _graded_bias(hdim)
        if t_max is not None:
            self.bias = self.bias.at[0].set(-chrono_bias(chrono_key, hdim, t_max))
        self.idim, self.hdim = idim, hdim

    def weights(self) -> _ParaWeights:
        return _ParaWeights(
            tuple(self.recurrent), (), self.input, tuple(self.bias), _head_of_each_unit(self)
        )

    def drive(self, weights: _ParaWeights, x: Float[Array, "*axes idim"]) -> GateDrives:
        return _gate_drives(self, weights, x)

    def advance(
        self, weights: _ParaWeights, drive: GateDrives, state: Units, affine: Affine
    ) -> Units:
        # Not through `affine`: keeping pre-activations costs more than computing them again.
        a_z, a_r, a_c = weights.recurrent
        z, r, c = drive
        z = jax.nn.sigmoid(z + a_z * state)
        r = jax.nn.sigmoid(r + a_r * state)
        c = jnp.tanh(c + a_c * state * r)
        return (1 - z) * state + z * c


class ParaLSTMCell(Cell):
    r"""The long short-term memory of ParaRNN, with peepholes and one gate to forget and to write.

    $$f_t = \mathrm{sigmoid}(a_f \odot h_{t-1} + p_f \odot c_{t-1} + B_f x_t + b_f), \qquad
      g_t = \tanh(a_g \odot h_{t-1} + B_g x_t + b_g)$$
    $$c_t = f_t \odot c_{t-1} + (1 - f_t) \odot g_t$$
    $$o_t = \mathrm{sigmoid}(a_o \odot h_{t-1} + p_o \odot c_t + B_o x_t + b_o), \qquad
      h_t = o_t \odot \tanh(c_t)$$

    A unit does not see the past of another, so the derivative of a step is one block of 2 x 2 for
    each unit, and a mesh may split the units over its axis `tensor`. The state is `(h, c)`.

    Parameters have a leading axis of the gates, in the order `f, g, o`; `recurrent` holds $a$,
    `peephole` holds $p$, in the order `f, o`, and `input` holds $B$. $B$ is block-diagonal over
    heads, as in `ParaGRUCell`.

    $a$ and $p$ start normal with a standard deviation of $2 / \sqrt{5 n}$, for `n = hdim`, the
    blocks of $B$ Xavier-uniform. The bias of the forget gate starts at 0 for the first unit and
    falls in equal steps to -1 for the last; with `t_max`, it starts at $\log u$ for $u$ uniform in
    `[1, t_max - 1)`. The other biases start at zero.

    Danieli, Rodríguez, Sarabia, Suau, Zappella, *ParaRNN: Unlocking Parallel Training of Nonlinear
    RNNs for Large Language Models*, 2025; `t_max`: Tallec, Ollivier, *Can Recurrent Neural Networks
    Warp Time?*, ICLR 2018.
    """

    unit_axis: ClassVar[str] = "state"

    recurrent: Float[Array, "3 state"] = parameter(group="recurrence")
    peephole: Float[Array, "2 state"] = parameter(group="recurrence")
    input: Float[Array, "3 state features"] = parameter()
    bias: Float[Array, "3 state"] = parameter(group="bias")
    idim: int = eqx.field(static=True)
    hdim: int = eqx.field(static=True)

    @check_arguments
    def __init__(
        self,
        idim: Size,
        hdim: Size,
        *,
        heads: Size = 1,
        t_max: Horizon | None = None,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `idim`: number of input features.
        - `hdim`: number of units.
        - `heads`: blocks of the input maps, a divisor of `idim` and of `hdim`.
        - `t_max`: the longest time to remember, in steps, at least 3, for the bias of the forget
            gate (chrono initialisation). None for the paper's.
        - `key`: for the initial parameters.

        **Raises:** `TypeError` if an argument has another kind, `ValueError` if it is out of range.
        """
        _check_heads(ParaLSTMCell, idim, hdim, heads)
        recurrent_key, peephole_key, input_key, chrono_key = jax.random.split(key, 4)
        self.recurrent = _diagonal(recurrent_key, 3, hdim)
        self.peephole = _diagonal(peephole_key, 2, hdim)
        self.input = _xavier_blocks(input_key, idim, hdim, heads)
        self.bias = _graded_bias(hdim)
        if t_max is not None:
            self.bias = self.bias.at[0].set(chrono_bias(chrono_key, hdim, t_max))
        self.idim, self.hdim = idim, hdim

    def weights(self) -> _ParaWeights:
        return _ParaWeights(
            tuple(self.recurrent),
            tuple(self.peephole),
            self.input,
            tuple(self.bias),
            _head_of_each_unit(self),
        )

    def drive(self, weights: _ParaWeights, x: Float[Array, "*axes idim"]) -> GateDrives:
        return _gate_drives(self, weights, x)

    def advance(
        self, weights: _ParaWeights, drive: GateDrives, state: ParaLSTMState, affine: Affine
    ) -> ParaLSTMState:
        # Not through `affine`: keeping pre-activations costs more than computing them again.
        a_f, a_g, a_o = weights.recurrent
        p_f, p_o = weights.peephole
        f, g, o = drive
        h, c = state
        f = jax.nn.sigmoid(f + a_f * h + p_f * c)
        g = jnp.tanh(g + a_g * h)
        c = f * c + (1 - f) * g
        o = jax.nn.sigmoid(o + a_o * h + p_o * c)
        return o * jnp.tanh(c), c

    def output(self, state: ParaLSTMState) -> Units:
        return state[0]

    @check_arguments
    def init_state(
        self, batch_shape: BatchShape = (), dtype: FloatDType | None = None
    ) -> ParaLSTMState:
        zeros = jnp.zeros((*batch_shape, self.hdim), state_dtype(dtype))
        return zeros, jnp.zeros_like(zeros)


def _check_heads(owner: type, idim: int, hdim: int, heads: int) -> None:
    if idim % heads or hdim % heads:
        raise ValueError(
            f"{owner.__name__}: heads must divide idim={idim} and hdim={hdim}; got heads={heads}. "
            "Choose a common divisor."
        )


def _diagonal(key: PRNGKeyArray, gates: int, hdim: int) -> Float[Array, "gates state"]:
    return normal(key, (gates, hdim), 2 / math.sqrt(5 * hdim))


def _xavier_blocks(
    key: PRNGKeyArray, idim: int, hdim: int, heads: int
) -> Float[Array, "3 state features"]:
    features, units = idim // heads, hdim // heads
    return uniform(key, (3, hdim, features), math.sqrt(6 / (features + units)))


def _graded_bias(hdim: int) -> Float[Array, "3 state"]:
    return jnp.zeros((3, hdim), jnp.float32).at[0].set(-jnp.linspace(0, 1, hdim, dtype=jnp.float32))


def _head_of_each_unit(cell: ParaGRUCell | ParaLSTMCell) -> Int[Array, "state"]:
    heads = cell.idim // cell.input.shape[-1]
    return jnp.arange(cell.hdim) // (cell.hdim // heads)


def _gate_drives(
    cell: ParaGRUCell | ParaLSTMCell, weights: _ParaWeights, x: Float[Array, "*axes idim"]
) -> GateDrives:
    """`B x + b` of every gate, for the units that `weights` holds: on a mesh, those of a device."""
    gates, units, features = weights.input.shape
    heads = cell.idim // features
    here = _heads_here(units, cell.hdim // heads)
    if here < heads:
        x = lax.dynamic_slice_in_dim(x, weights.head[0] * features, here * features, axis=-1)
    products = block_products(weights.input.reshape(gates, here, units // here, features), x)
    z, r, c = (product + bias for product, bias in zip(products, weights.bias, strict=True))
    return z, r, c


def _heads_here(units: int, units_of_a_head: int) -> int:
    """The heads that consecutive units of one device belong to."""
    if units % units_of_a_head and units_of_a_head % units:
        raise ValueError(
            f"a mesh gives {units} units to a device, which are neither whole heads of "
            f"{units_of_a_head} units nor a part of one. Choose heads that divide the size of the "
            "mesh axis tensor, or are a multiple of it."
        )
    return max(1, units // units_of_a_head)
