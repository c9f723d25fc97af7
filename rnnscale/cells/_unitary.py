"""The unitary evolution recurrent network."""

import math
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from rnnscale._base import state_dtype
from rnnscale._checks import BatchShape, FloatDType, Size, check_arguments
from rnnscale._fields import parameter
from rnnscale.cells._base import Affine, Cell, linear
from rnnscale.cells._init import uniform
from rnnscale_kernels import Planar

# The square of the smallest length that has a phase. Below it, the gradient would overflow.
_SMALLEST_SQUARE = 1e-30


class _UnitaryWeights(NamedTuple):
    rotations: tuple[Planar, ...]  # the diagonals of D_1, D_2, D_3
    reflections: tuple[Planar, ...]  # unit normals of R_1, R_2
    permutation: Int[Array, "hdim"]
    input: Float[Array, "planes idim"]  # the real plane above the imaginary one
    bias: Float[Array, "hdim"]


class UnitaryEvolutionRNNCell(Cell):
    r"""The unitary evolution network.

    $$h_t = \mathrm{modReLU}(W h_{t-1} + V x_t), \qquad
      W = D_3 R_2 F^{-1} D_2 \Pi R_1 F D_1$$
    $$\mathrm{modReLU}(z) = \mathrm{relu}(|z| + b) \, z / |z|$$

    with a complex state and a unitary $W$. $D = \mathrm{diag}(e^{i \theta})$ are rotations,
    $R = 1 - 2 v v^H / \|v\|^2$ reflections, $F$ is the Fourier transform and $\Pi$ a fixed random
    permutation. A step takes of the order of `hdim * log(hdim)` operations. modReLU is zero at
    zero.

    The state is `Planar(re, im)`, the output the two planes one after the other, so `odim` is
    `2 * hdim`. The initial state is learned, and a reset restores it.

    With `n = hdim` and `m = idim`, $\theta$ starts uniform in $\pm \pi$, $v$ in
    $\pm \sqrt{6 / (2 + 2n)}$, $V$ in $\pm \sqrt{6 / (m + 2n)}$, $b$ in $\pm 0.01$ and the initial
    state in $\pm \sqrt{3 / 2n}$, each plane on its own.

    Arjovsky, Shah, Bengio, *Unitary Evolution Recurrent Neural Networks*, ICML 2016.

    **Differs from the paper:** the initial $v$ and $V$ are those of the authors' code.

    **Differs from the authors' code:** there, a reflection is
    $1 - 2 \bar v v^T / \|v\|^2$, which is ours for the conjugate of $v$, so weights from there need
    the sign of `reflection_im` changed; and modReLU divides by $|z| + 10^{-5}$, in later versions
    with $|z|^2 + 10^{-5}$ under the root.
    """

    theta: Float[Array, "3 hdim"] = parameter(group="recurrence")
    reflection_re: Float[Array, "2 hdim"] = parameter(group="recurrence")
    reflection_im: Float[Array, "2 hdim"] = parameter(group="recurrence")
    permutation: Int[Array, "hdim"] = parameter(group="recurrence", trainable=False)
    input_re: Float[Array, "hdim idim"] = parameter()
    input_im: Float[Array, "hdim idim"] = parameter()
    bias: Float[Array, "hdim"] = parameter(group="bias")
    initial_re: Float[Array, "hdim"] = parameter(group="bias")
    initial_im: Float[Array, "hdim"] = parameter(group="bias")
    idim: int = eqx.field(static=True)
    hdim: int = eqx.field(static=True)

    @check_arguments
    def __init__(self, idim: Size, hdim: Size, *, key: PRNGKeyArray):
        r"""**Arguments:**

        - `idim`: number of input features.
        - `hdim`: number of complex units.
        - `key`: for the initial parameters and $\Pi$.

        **Raises:** `TypeError` if an argument has another kind, `ValueError` if it is out of range.
        """
        keys = jax.random.split(key, 6)
        self.theta = uniform(keys[0], (3, hdim), math.pi)
        reflection = uniform(keys[1], (2, 2, hdim), math.sqrt(6 / (2 + 2 * hdim)))
        self.reflection_re, self.reflection_im = reflection
        self.permutation = jax.random.permutation(keys[2], hdim)
        inputs = uniform(keys[3], (2, hdim, idim), math.sqrt(6 / (idim + 2 * hdim)))
        self.input_re, self.input_im = inputs
        self.bias = uniform(keys[4], (hdim,), 0.01)
        initial = uniform(keys[5], (2, hdim), math.sqrt(3 / (2 * hdim)))
        self.initial_re, self.initial_im = initial
        self.idim, self.hdim = idim, hdim

    @property
    def odim(self) -> int:
        return 2 * self.hdim

    def weights(self) -> _UnitaryWeights:
        square = jnp.sum(self.reflection_re**2 + self.reflection_im**2, axis=1, keepdims=True)
        length = jnp.sqrt(square)
        return _UnitaryWeights(
            tuple(map(Planar, jnp.cos(self.theta), jnp.sin(self.theta))),
            tuple(map(Planar, self.reflection_re / length, self.reflection_im / length)),
            self.permutation,
            jnp.concatenate([self.input_re, self.input_im]),
            self.bias,
        )

    def drive(self, weights: _UnitaryWeights, x: Float[Array, "*axes idim"]) -> Planar:
        return Planar(*jnp.split(linear(weights.input, x), 2, axis=-1))

    def advance(
        self, weights: _UnitaryWeights, drive: Planar, state: Planar, affine: Affine
    ) -> Planar:
        return _modrelu(affine(drive, partial(_evolve, weights), state), weights.bias)

    def output(self, state: Planar) -> Float[Array, "*axes odim"]:
        return jnp.concatenate(state, axis=-1)

    @check_arguments
    def init_state(self, batch_shape: BatchShape = (), dtype: FloatDType | None = None) -> Planar:
        shape, dtype = (*batch_shape, self.hdim), state_dtype(dtype)
        planes = (self.initial_re, self.initial_im)
        return Planar(*(jnp.broadcast_to(plane.astype(dtype), shape) for plane in planes))


def _evolve(weights: _UnitaryWeights, h: Planar) -> Planar:
    """`W h`. The planes are complex numbers only inside this function."""
    rotations = [jax.lax.complex(*each) for each in weights.rotations]
    reflections = [jax.lax.complex(*each) for each in weights.reflections]
    z = jax.lax.complex(*h) * rotations[0]
    # The factors that make the transforms unitary cancel. Left out, they add no rounding.
    z = _reflect(reflections[0], jnp.fft.fft(z))
    z = jnp.fft.ifft(z[..., weights.permutation] * rotations[1])
    z = _reflect(reflections[1], z) * rotations[2]
    return Planar(z.real, z.imag)


def _reflect(normal: Array, z: Array) -> Array:
    return z - 2 * normal * jnp.sum(normal.conj() * z, axis=-1, keepdims=True)


def _modrelu(z: Planar, bias: Float[Array, "hdim"]) -> Planar:
    r"""$\mathrm{relu}(|z| + b) \, z / |z|$, zero at zero and with a gradient of zero there."""
    square = z.re**2 + z.im**2
    nonzero = square > _SMALLEST_SQUARE
    length = jnp.sqrt(jnp.where(nonzero, square, 1))
    factor = jnp.where(nonzero, jax.nn.relu(length + bias) / length, 0)
    return Planar(factor * z.re, factor * z.im)
