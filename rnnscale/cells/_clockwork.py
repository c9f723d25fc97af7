"""The clockwork recurrent network."""

import math
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray
from numpy.typing import NDArray

from rnnscale._base import state_dtype
from rnnscale._checks import BatchShape, FloatDType, NonEmpty, Size, check_arguments
from rnnscale._fields import parameter
from rnnscale.cells._base import Affine, AffineInputCell, DenseWeights, JacobianKind, Units
from rnnscale.cells._init import normal

type ClockWorkState = tuple[Units, Int[Array, "*axes"]]

_LARGEST_CLOCK = 2**31 - 1


class ClockWorkRNNCell(AffineInputCell):
    r"""The clockwork network.

    Units form groups, one for each period, from the fastest to the slowest. At step t those
    with $t \bmod T_i = 0$ are active, and hear the groups that are at least as slow:

    $$h_{t,i} = \begin{cases}
        \sigma(\sum_{j : T_j \ge T_i} W_{ij} h_{t-1,j} + V_i x_t + b_i) & t \bmod T_i = 0 \\
        h_{t-1,i} & \text{otherwise}
      \end{cases}$$

    An inactive group is copied. The state is `(h, t)`, where t counts the steps from zero,
    modulo the least common multiple of the periods: at a sequence's first step all groups are
    active. What `recurrent` holds in the other blocks is not read.

    Weights start normal with a standard deviation of 0.1, and $b$ at zero.

    Koutník, Greff, Gomez, Schmidhuber, *A Clockwork RNN*, ICML 2014.

    **Differs from the paper:** the products of inactive groups are computed and not used, so slow
    groups save no time.
    """

    jacobian: ClassVar[JacobianKind] = "block"

    recurrent: Float[Array, "hdim hdim"] = parameter()
    input: Float[Array, "hdim idim"] = parameter()
    bias: Float[Array, "hdim"] = parameter(group="bias")
    idim: int = eqx.field(static=True)
    hdim: int = eqx.field(static=True)
    periods: tuple[int, ...] = eqx.field(static=True)
    sizes: tuple[int, ...] = eqx.field(static=True)
    nonlinearity: Callable[[Array], Array] = eqx.field(static=True)

    @check_arguments
    def __init__(
        self,
        idim: Size,
        hdim: Size,
        *,
        periods: NonEmpty[Size] = (1, 2, 4, 8),
        sizes: NonEmpty[Size] | None = None,
        nonlinearity: Callable[[Array], Array] = jnp.tanh,
        key: PRNGKeyArray,
    ):
        r"""**Arguments:**

        - `idim`: number of input features.
        - `hdim`: number of units.
        - `periods`: the period of each group in steps, in any order. The paper uses powers of two.
        - `sizes`: the number of units in each group, in the order of `periods`; they sum to `hdim`.
            Default equal groups, for which `hdim` is a multiple of the number of periods.
        - `nonlinearity`: $\sigma$, elementwise.
        - `key`: for the initial parameters.

        **Raises:** `TypeError` if an argument has another kind; `ValueError` if it is out of range,
        the groups are not equal, or the least common multiple of the periods is no 32-bit integer.
        """
        if sizes is None and hdim % len(periods):
            raise ValueError(
                f"ClockWorkRNNCell: for {len(periods)} groups of equal size, hdim must be a "
                f"multiple of {len(periods)}; got {hdim}. Give sizes for groups that differ."
            )
        if sizes is None:
            sizes = [hdim // len(periods)] * len(periods)
        if len(sizes) != len(periods) or sum(sizes) != hdim:
            raise ValueError(
                f"ClockWorkRNNCell: sizes must have the units of each of the {len(periods)} "
                f"groups, which sum to hdim={hdim}; got {tuple(sizes)}."
            )
        self.periods, self.sizes = zip(*sorted(zip(periods, sizes, strict=True)), strict=True)
        if math.lcm(*self.periods) > _LARGEST_CLOCK:
            raise ValueError(
                "ClockWorkRNNCell: the least common multiple of the periods must be at most "
                f"{_LARGEST_CLOCK}; got {math.lcm(*self.periods)} from {self.periods}."
            )
        recurrent_key, input_key = jax.random.split(key)
        self.recurrent = normal(recurrent_key, (hdim, hdim), 0.1)
        self.input = normal(input_key, (hdim, idim), 0.1)
        self.bias = jnp.zeros((hdim,), jnp.float32)
        self.idim, self.hdim, self.nonlinearity = idim, hdim, nonlinearity

    @property
    def unit_periods(self) -> NDArray[np.int32]:
        """The period of every unit."""
        return np.repeat(np.array(self.periods, np.int32), self.sizes)

    def weights(self) -> DenseWeights:
        periods = self.unit_periods
        hears = periods[None, :] >= periods[:, None]
        return DenseWeights(jnp.where(hears, self.recurrent, 0), self.input, self.bias)

    def advance(
        self, weights: DenseWeights, drive: Units, state: ClockWorkState, affine: Affine
    ) -> ClockWorkState:
        h, t = state
        active = t[..., None] % self.unit_periods == 0
        h = jnp.where(active, self.nonlinearity(affine(drive, weights.recurrent, h)), h)
        return h, (t + 1) % math.lcm(*self.periods)

    def output(self, state: ClockWorkState) -> Units:
        return state[0]

    @check_arguments
    def init_state(
        self, batch_shape: BatchShape = (), dtype: FloatDType | None = None
    ) -> ClockWorkState:
        zeros = jnp.zeros((*batch_shape, self.hdim), state_dtype(dtype))
        return zeros, jnp.zeros(batch_shape, jnp.int32)
