"""The real-gated linear recurrent unit."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from rnnscale._checks import Size, check_arguments
from rnnscale._fields import parameter
from rnnscale.cells._base import Coefficients, LinearCell, Units
from rnnscale.cells._gates import block_products
from rnnscale.cells._init import normal

_SHARPNESS = 8.0  # The paper's c.

# The slowest decay of a step. It keeps a below one in float32, and the root away from zero, where
# its slope is infinite.
_SLOWEST = -(2.0**-22)


class RGLRUCell(LinearCell):
    r"""The real-gated linear recurrent unit of Griffin.

    $$r_t = \mathrm{sigmoid}(W_a x_t + b_a), \qquad i_t = \mathrm{sigmoid}(W_x x_t + b_x),
      \qquad \log a_t = -8 \, \mathrm{softplus}(\Lambda) \odot r_t$$
    $$h_t = a_t \odot h_{t-1} + \sqrt{1 - a_t^2} \odot (i_t \odot x_t)$$

    There are as many units as features, and $W_a, W_x$ are block-diagonal. $\Lambda$ starts such
    that $e^{-8 \, \mathrm{softplus}(\Lambda)}$, the decay with an open gate, is uniform between 0.9
    and 0.999; the gates start Lecun-normal, of variance `blocks / idim`, without bias. Gates have a
    leading axis, in the order `r, i`.

    De et al., *Griffin: Mixing Gated Linear Recurrences with Local Attention for Efficient Language
    Models*, 2024.

    **Differs from the paper:**

    - $\log a_t$ is at most $-2^{-22}$ (a memory of four million steps), so that $a_t$ stays below
      one in float32 and the root has a finite gradient, which is zero there.
    - The root is applied at the first step of a sequence too, where the authors' code has 1, as
      `rnnscale.GriffinRecurrence` does.

    **Differs from the authors' code**, recurrentgemma, in how parameters start. There,
    $e^{-\mathrm{softplus}(\Lambda)}$ lies between 0.9 and 0.999, its square uniform, and the decay
    with an open gate is the eighth power of it: memories are eight times shorter. The variance of
    the gates is `1 / idim` there, whatever `blocks` is.
    """

    gates: Float[Array, "2 blocks out in"] = parameter()
    bias: Float[Array, "2 state"] = parameter(group="bias")
    decay: Float[Array, "state"] = parameter(group="recurrence")
    idim: int = eqx.field(static=True)
    hdim: int = eqx.field(static=True)

    @check_arguments
    def __init__(self, idim: Size, *, blocks: Size = 1, key: PRNGKeyArray):
        r"""**Arguments:**

        - `idim`: number of input features, and of units.
        - `blocks`: blocks of $W_a$ and of $W_x$, a divisor of `idim`.
        - `key`: for the initial parameters.

        **Raises:** `TypeError` if an argument has another kind, `ValueError` if it is out of range.
        """
        if idim % blocks:
            raise ValueError(
                f"RGLRUCell: blocks must divide idim={idim}; got blocks={blocks}. Choose a divisor."
            )
        gates_key, decay_key = jax.random.split(key)
        width = idim // blocks
        self.gates = normal(gates_key, (2, blocks, width, width), 1 / math.sqrt(width))
        self.bias = jnp.zeros((2, idim), jnp.float32)
        a = jax.random.uniform(decay_key, (idim,), jnp.float32, 0.9, 0.999)
        self.decay = jnp.log(jnp.expm1(-jnp.log(a) / _SHARPNESS))
        self.idim = self.hdim = idim

    def weights(self) -> "RGLRUCell":
        return eqx.tree_at(lambda cell: cell.bias, self, tuple(self.bias))  # no matrix

    def drive(self, weights: "RGLRUCell", x: Float[Array, "*axes idim"]) -> Coefficients:
        a, root, gated = self.gated(weights, x)
        return a, root * gated

    def gated(
        self, weights: "RGLRUCell", x: Float[Array, "*axes idim"]
    ) -> tuple[Units, Units, Units]:
        r"""The factors of a step: $a_t$, $\sqrt{1 - a_t^2}$ and $i_t \odot x_t$."""
        wide = jnp.promote_types(x.dtype, jnp.float32)
        r, i = block_products(weights.gates, x)
        r_bias, i_bias = weights.bias
        r, i = jax.nn.sigmoid(r + r_bias), jax.nn.sigmoid(i + i_bias)
        log_a = jnp.minimum(-_SHARPNESS * jax.nn.softplus(weights.decay) * r, _SLOWEST)
        # 1 - a² without the cancellation near a = 1.
        power = -jnp.expm1(2 * log_a)
        return jnp.exp(log_a), jnp.sqrt(power), i * x.astype(wide)
