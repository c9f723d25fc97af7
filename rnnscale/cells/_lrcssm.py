"""The liquid-resistance liquid-capacitance cell of LrcSSM."""

import math
from typing import ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from rnnscale._checks import Positive, Size, check_arguments
from rnnscale._fields import parameter
from rnnscale.cells._base import Affine, Cell, Units
from rnnscale.cells._gates import gate_products
from rnnscale.cells._init import uniform


class LrcSSMCell(Cell):
    r"""The liquid-resistance liquid-capacitance cell of LrcSSM, with independent units.

    $$f_t = g_l + W \, \mathrm{sigmoid}(s_x \odot (x_t - m_x))
      + w \odot \mathrm{sigmoid}(s_h \odot (h_{t-1} - m_h))$$
    $$g_t = g_l + W_h \, \mathrm{sigmoid}(s_x \odot (x_t - m_x))
      + w_h \odot \mathrm{sigmoid}(s_h \odot (h_{t-1} - m_h))$$
    $$h_t = h_{t-1} + \Delta t \, \epsilon_t \odot
      \left(v \odot \tanh(g_t) - \mathrm{sigmoid}(f_t) \odot h_{t-1}\right)$$

    Neurons whose membranes have a resistance and a capacitance that depend on the state. A unit
    does not see the past of another, so $\partial h_t / \partial h_{t-1}$ is diagonal, and a mesh
    may split the units over its axis `tensor`. The elastance $\epsilon_t$, the inverse of the
    capacitance, has two forms:

    - `"asymmetric"`: $\mathrm{sigmoid}(e \odot h_{t-1} + e_0)$;
    - `"symmetric"`: $\mathrm{sigmoid}(e \odot h_{t-1} + e_0 + k) -
      \mathrm{sigmoid}(e \odot h_{t-1} + e_0 - k)$.

    The synapses of the input have the parameters `input_slope` $s_x$, `input_midpoint` $m_x$ and
    `input`, $W$ and $W_h$; those of the state `slope` $s_h$, `midpoint` $m_h$, `conductance` $w$
    and `potential` $w_h$. `leak` is $g_l$, `reversal` $v$, `elastance` $e$, `elastance_bias` $e_0$
    and `elastance_shift` $k$. All start uniform in $\pm 1 / \sqrt{n}$, for `n = hdim`, as in the
    authors' code.

    Farsang, Hasani, Rus, Grosu, *Scaling Up Liquid-Resistance Liquid-Capacitance Networks for
    Efficient Sequence Modeling*, NeurIPS 2025.

    **Differs from the paper:** these are real states; the paper also has a variant with complex
    ones. Its layers put the cell between norms and perceptrons; see "A layer around a cell" in the
    guide to cells.
    """

    unit_axis: ClassVar[str] = "state"

    input_slope: Float[Array, "idim"] = parameter(group="bias")
    input_midpoint: Float[Array, "idim"] = parameter(group="bias")
    input: Float[Array, "2 state idim"] = parameter()
    slope: Float[Array, "state"] = parameter(group="recurrence")
    midpoint: Float[Array, "state"] = parameter(group="recurrence")
    conductance: Float[Array, "state"] = parameter(group="recurrence")
    potential: Float[Array, "state"] = parameter(group="recurrence")
    leak: Float[Array, "state"] = parameter(group="bias")
    reversal: Float[Array, "state"] = parameter(group="recurrence")
    elastance: Float[Array, "state"] = parameter(group="recurrence")
    elastance_bias: Float[Array, "state"] = parameter(group="recurrence")
    elastance_shift: Float[Array, "state"] | None = parameter(group="recurrence")
    dt: Float[Array, ""] = parameter(group="recurrence", trainable=False)
    idim: int = eqx.field(static=True)
    hdim: int = eqx.field(static=True)

    @check_arguments
    def __init__(
        self,
        idim: Size,
        hdim: Size,
        *,
        form: Literal["asymmetric", "symmetric"] = "asymmetric",
        dt: Positive = 1.0,
        key: PRNGKeyArray,
    ):
        r"""**Arguments:**

        - `idim`: number of input features.
        - `hdim`: number of units.
        - `form`: of the elastance, `"asymmetric"` or `"symmetric"`.
        - `dt`: $\Delta t$, the step of time, positive, not trained; 1 in the paper.
        - `key`: for the initial parameters.

        **Raises:** `TypeError` if an argument has another kind, `ValueError` if it is out of range.
        """
        keys = iter(jax.random.split(key, 12))

        def draw(*shape: int) -> Array:
            return uniform(next(keys), shape, 1 / math.sqrt(hdim))

        self.input_slope, self.input_midpoint = draw(idim), draw(idim)
        self.input = draw(2, hdim, idim)
        self.slope, self.midpoint = draw(hdim), draw(hdim)
        self.conductance, self.potential = draw(hdim), draw(hdim)
        self.leak, self.reversal = draw(hdim), draw(hdim)
        self.elastance, self.elastance_bias = draw(hdim), draw(hdim)
        self.elastance_shift = draw(hdim) if form == "symmetric" else None
        self.dt = jnp.asarray(dt, jnp.float32)
        self.idim, self.hdim = idim, hdim

    def drive(self, weights: "LrcSSMCell", x: Float[Array, "*axes idim"]) -> tuple[Units, Units]:
        synapses = jax.nn.sigmoid(weights.input_slope * (x - weights.input_midpoint))
        f, g = gate_products(weights.input, synapses.astype(x.dtype))
        return f + weights.leak, g + weights.leak

    def advance(
        self, weights: "LrcSSMCell", drive: tuple[Units, Units], state: Units, affine: Affine
    ) -> Units:
        # Not through `affine`: keeping pre-activations costs more than computing them again.
        f, g = drive
        synapses = jax.nn.sigmoid(weights.slope * (state - weights.midpoint))
        decay = jax.nn.sigmoid(f + weights.conductance * synapses)
        inflow = weights.reversal * jnp.tanh(g + weights.potential * synapses)
        return state + weights.dt * _elastance(weights, state) * (inflow - decay * state)


def _elastance(weights: LrcSSMCell, state: Units) -> Units:
    e = weights.elastance * state + weights.elastance_bias
    if weights.elastance_shift is None:
        return jax.nn.sigmoid(e)
    return jax.nn.sigmoid(e + weights.elastance_shift) - jax.nn.sigmoid(e - weights.elastance_shift)
