"""The minimal gated unit, in the forms that differ in where its gate resets the state."""

import math
from typing import ClassVar, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from rnnscale._checks import Size, check_arguments
from rnnscale._fields import parameter
from rnnscale.cells._base import Affine, AffineInputCell, JacobianKind, Units
from rnnscale.cells._init import Horizon, chrono_bias, uniform

type ResetGate = Literal["before", "after", "none"]


class _MGUWeights(NamedTuple):
    gate: Float[Array, "hdim hdim"]
    candidate: Float[Array, "hdim hdim"]
    candidate_bias: Float[Array, "hdim"] | None
    input: Float[Array, "gates idim"]
    bias: Float[Array, "gates"]


class MinimalGatedUnitCell(AffineInputCell):
    r"""The minimal gated unit: a gated recurrent unit whose two gates are one.

    $$f_t = \mathrm{sigmoid}(W h_{t-1} + V x_t + b), \qquad
      h_t = (1 - f_t) \odot h_{t-1} + f_t \odot n_t$$

    The gate is the strength of an update in every form. They differ in how it resets the state that
    the candidate $n_t$ sees:

    - `"before"` the product, the paper's: $\tanh(W_n (f_t \odot h_{t-1}) + V_n x_t + b_n)$;
    - `"after"` the product, as in the GRU of cuDNN:
      $\tanh(V_n x_t + b_n + f_t \odot (W_n h_{t-1} + c))$;
    - `"none"`, the update gate network of Collins et al.: $\tanh(W_n h_{t-1} + V_n x_t + b_n)$.

    Parameters have a leading axis of the gate and the candidate, in the order `f, n`; $c$ is
    `candidate_bias`, which only `"after"` has. They start uniform in $\pm 1 / \sqrt{d}$, for
    `d = hdim`; the paper does not say how. With `t_max`, the bias of the gate starts at $-\log u$
    for $u$ uniform in `[1, t_max - 1)`.

    Zhou, Wu, Zhang, Zhou, *Minimal Gated Unit for Recurrent Neural Networks*, International Journal
    of Automation and Computing 2016; without reset: Collins, Sohl-Dickstein, Sussillo, *Capacity
    and Trainability in Recurrent Neural Networks*, ICLR 2017; `t_max`: Tallec, Ollivier, *Can
    Recurrent Neural Networks Warp Time?*, ICLR 2018.

    **Differs from the papers:** the gate of Collins et al. is $1 - f_t$. Flax's `MGUCell` resets by
    the gate that keeps the state, $1 - f_t$ here, and computes something else than any form.
    """

    jacobian: ClassVar[JacobianKind] = "block"

    recurrent: Float[Array, "2 hdim hdim"] = parameter()
    input: Float[Array, "2 hdim idim"] = parameter()
    bias: Float[Array, "2 hdim"] = parameter(group="bias")
    candidate_bias: Float[Array, "hdim"] | None = parameter(group="bias")
    idim: int = eqx.field(static=True)
    hdim: int = eqx.field(static=True)
    reset_gate: ResetGate = eqx.field(static=True)

    @check_arguments
    def __init__(
        self,
        idim: Size,
        hdim: Size,
        *,
        reset_gate: ResetGate = "before",
        t_max: Horizon | None = None,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `idim`: number of input features.
        - `hdim`: number of units.
        - `reset_gate`: `"before"`, `"after"` or `"none"`.
        - `t_max`: the longest time to remember, in steps, at least 3, for the bias of the gate
            (chrono initialisation). None for a bias like the others.
        - `key`: for the initial parameters.

        **Raises:** `TypeError` if an argument has another kind, `ValueError` if it is out of range.
        """
        recurrent_key, input_key, bias_key, candidate_key, chrono_key = jax.random.split(key, 5)
        limit = 1 / math.sqrt(hdim)
        self.recurrent = uniform(recurrent_key, (2, hdim, hdim), limit)
        self.input = uniform(input_key, (2, hdim, idim), limit)
        self.bias = uniform(bias_key, (2, hdim), limit)
        if t_max is not None:
            self.bias = self.bias.at[0].set(-chrono_bias(chrono_key, hdim, t_max))
        self.candidate_bias = (
            uniform(candidate_key, (hdim,), limit) if reset_gate == "after" else None
        )
        self.idim, self.hdim, self.reset_gate = idim, hdim, reset_gate

    def weights(self) -> _MGUWeights:
        gate, candidate = self.recurrent
        return _MGUWeights(
            gate,
            candidate,
            self.candidate_bias,
            self.input.reshape(-1, self.idim),
            self.bias.reshape(-1),
        )

    def advance(
        self,
        weights: _MGUWeights,
        drive: Float[Array, "*axes gates"],
        state: Units,
        affine: Affine,
    ) -> Units:
        gate, candidate = jnp.split(drive, 2, axis=-1)
        f = jax.nn.sigmoid(affine(gate, weights.gate, state))
        if self.reset_gate == "before":
            n = affine(candidate, weights.candidate, f * state)
        elif self.reset_gate == "after":
            n = candidate + f * affine(weights.candidate_bias, weights.candidate, state)
        else:
            n = affine(candidate, weights.candidate, state)
        return (1 - f) * state + f * jnp.tanh(n)
