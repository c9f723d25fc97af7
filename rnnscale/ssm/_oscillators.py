r"""The base class of layers of forced harmonic oscillators: the scan, the step and the state for
given 2 x 2 matrices.

Its own file because `LinOSS` and `DampedLinOSS`, each in the file of its paper, derive from it.
"""

import math
from abc import abstractmethod
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float, Int, Key, PRNGKeyArray

from rnnscale import sharding
from rnnscale._base import (
    CausalLayer,
    at_least_float32,
    check_call,
    check_step,
    in_precision,
    state_dtype,
    zero_padding,
)
from rnnscale._checks import BatchShape, FloatDType, check_arguments
from rnnscale._over_time import over_padded_pieces
from rnnscale_kernels import Planar

# The smallest step. The square of a smaller one could underflow in the bound on A.
_SMALLEST_STEP = 1e-6

# A damping this large forgets within one step, and its square does not overflow in float32.
_LARGEST_DAMPING = 1e18

# A stays below its upper bound by this factor. At the bound, -1 is a double eigenvalue, and
# rounding would move it out of the unit circle by the square root of the rounding error.
_MARGIN = 1 - 2**-20

type Matrix[T] = tuple[tuple[T, T], tuple[T, T]]
"""A 2 x 2 matrix for each oscillator, as its rows."""


class OscillatorState(NamedTuple):
    """The velocity $z$ and the position $y$ of every oscillator. They are complex, as $B$ is."""

    z: Planar
    y: Planar


class OscillatorySSM(CausalLayer):
    r"""Forced harmonic oscillators, which do not see one another:

    $$y'' = -A \odot y - G \odot y' + B u, \qquad o = \mathrm{Re}(C y) + d \odot u$$

    With $z = y'$, a discretisation with the step $\Delta$ gives each oscillator a real matrix $M$,

    $$\begin{pmatrix} z_t \\ y_t \end{pmatrix} = M \left(\begin{pmatrix} z_{t-1} \\ y_{t-1}
      \end{pmatrix} + \begin{pmatrix} \Delta B u_t \\ 0 \end{pmatrix}\right)$$

    A subclass defines $M$ and $\Delta$ (`discretise`), the maps and `d`. The state is an
    `OscillatorState` with the axes `*batch state`, float32 under any compute dtype.

    The recurrence is `rnnscale.sharding.block_scan`: it runs on the fastest implementation for the
    platform, and is distributed over time if the ambient mesh splits time. Complex $B$ and $C$ make
    an oscillator two real ones with the same $M$: $\mathrm{Re}(C y) = \mathrm{Re}(C)\,y_{re} -
    \mathrm{Im}(C)\,y_{im}$. In the basis of its eigenvectors $M$ would be a complex number, but an
    oscillator whose eigenvalues are nearly equal has no such basis in floating point.
    """

    b_re: eqx.AbstractVar[Float[Array, "state idim"]]
    b_im: eqx.AbstractVar[Float[Array, "state idim"]]
    c_re: eqx.AbstractVar[Float[Array, "odim state"]]
    c_im: eqx.AbstractVar[Float[Array, "odim state"]]
    d: eqx.AbstractVar[Float[Array, "odim"] | None]
    state_dim: eqx.AbstractVar[int]

    @abstractmethod
    def discretise(self) -> tuple[Matrix[Float[Array, "state"]], Float[Array, "state"]]:
        r"""The matrix $M$ and the step $\Delta$ of every oscillator, in the precision of the
        parameters, at least float32. For inputs of higher precision, the parameters are cast to it
        before."""

    def __call__(
        self,
        xs: Float[Array, "*batch time idim"],
        state: OscillatorState | None = None,
        *,
        reset: Bool[Array, "*batch time"] | None = None,
        lengths: Int[Array, "*batch"] | None = None,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[OscillatorState, Float[Array, "*batch time odim"]]:
        """Runs all steps; see `SequenceLayer`.

        On one device the sequence is computed in pieces, and each piece again in the backward pass.
        A piece has about the square root of the number of steps, but at least 256. Over a mesh all
        steps are computed at once, so that outputs and gradients are summed over devices only once.
        """
        carried, lengths = check_call(self, xs, state, reset, lengths, key)
        *batch_shape, time, _ = xs.shape
        if time == 0:
            return carried, jnp.zeros((*xs.shape[:-1], self.odim), xs.dtype)
        xs = zero_padding(xs, lengths)
        system = in_precision(self, xs.dtype)._real_system()
        start = _interleaved(carried.z), _interleaved(carried.y)
        if sharding.automatic_axes(jax.sharding.get_abstract_mesh()):
            (_, y), (z_last, y_last) = sharding.block_scan(
                system.matrix, system.drive(xs), start, reset=reset, lengths=lengths
            )
            ys = system.read(y, xs.dtype)
        else:
            ends = jnp.array(time) if lengths is None else lengths[..., None]
            valid = jnp.broadcast_to(jnp.arange(time) < ends, xs.shape[:-1])
            (z_last, y_last), ys = over_padded_pieces(
                system.scan, start, (xs, reset, valid), axis=len(batch_shape)
            )
        last = OscillatorState(_planar(z_last), _planar(y_last))
        return last, self.add_skip(xs, zero_padding(ys, lengths))

    def step(
        self,
        x: Float[Array, "*batch idim"],
        state: OscillatorState,
        *,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[OscillatorState, Float[Array, "*batch odim"]]:
        state = check_step(self, x, state, key)
        system = in_precision(self, x.dtype)._real_system()
        (zz, zy), (yz, yy) = system.matrix
        z, y = _interleaved(state.z), _interleaved(state.y)
        to_z, to_y = system.drive(x.astype(z.dtype))
        z, y = zz * z + zy * y + to_z, yz * z + yy * y + to_y
        return OscillatorState(_planar(z), _planar(y)), self.add_skip(x, system.read(y, x.dtype))

    @check_arguments
    def init_state(
        self, batch_shape: BatchShape = (), dtype: FloatDType | None = None
    ) -> OscillatorState:
        dtype = jnp.promote_types(state_dtype(dtype), at_least_float32(self.b_re).dtype)
        planes = [jnp.zeros((*batch_shape, self.state_dim), dtype) for _ in range(4)]
        return OscillatorState(Planar(*planes[:2]), Planar(*planes[2:]))

    def add_skip(
        self, xs: Float[Array, "*axes idim"], ys: Float[Array, "*axes odim"]
    ) -> Float[Array, "*axes odim"]:
        r"""$y + d \odot u$, or `ys` if there is no `d`."""
        return ys if self.d is None else ys + self.d.astype(xs.dtype) * xs

    def _real_system(self) -> "_RealSystem":
        matrix, step = self.discretise()
        (zz, _), (yz, _) = matrix
        b = at_least_float32(jnp.stack([self.b_re, self.b_im], 1))
        c = at_least_float32(jnp.stack([self.c_re, -self.c_im], -1))

        def inputs(gain: Float[Array, "state"]) -> Float[Array, "real idim"]:
            return ((step * gain)[:, None, None] * b).reshape(-1, self.idim)

        doubled = jax.tree.map(lambda m: jnp.repeat(m, 2), matrix)
        return _RealSystem(doubled, inputs(zz), inputs(yz), c.reshape(self.odim, -1))


class _RealSystem(NamedTuple):
    """Twice as many real oscillators: their matrices, the inputs to z and y, and the outputs of y.

    The two parts of an oscillator are neighbours, so that a device that holds one part holds the
    other too.
    """

    matrix: Matrix[Float[Array, "real"]]
    b_z: Float[Array, "real idim"]
    b_y: Float[Array, "real idim"]
    c: Float[Array, "odim real"]

    def drive(self, u: Float[Array, "*axes idim"]) -> tuple[Array, Array]:
        """What the inputs add to z and y, at least float32."""

        def product(b: Float[Array, "real idim"]) -> Float[Array, "*axes real"]:
            wide = state_dtype(u.dtype)
            return jnp.matmul(u, b.T.astype(u.dtype), preferred_element_type=wide)

        return product(self.b_z), product(self.b_y)

    def read(self, y: Float[Array, "*axes real"], dtype: DTypeLike) -> Float[Array, "*axes odim"]:
        return y.astype(dtype) @ self.c.T.astype(dtype)

    def scan(
        self,
        state: tuple[Array, Array],
        inputs: tuple[Array, Array | None, Array],
    ) -> tuple[tuple[Array, Array], Float[Array, "*batch time odim"]]:
        """The steps `(xs, reset, valid)` from a state `(z, y)`: the state after the last valid step
        of each row, and all outputs."""
        xs, reset, valid = inputs
        (z, y), _ = sharding.block_scan(self.matrix, self.drive(xs), state, reset=reset)
        count = jnp.sum(valid, axis=-1, keepdims=True)
        end = jnp.maximum(count - 1, 0)[..., None]

        def at_end(x: Array, before: Array) -> Array:
            """The state at the last valid step, or before the first if no step is valid."""
            return jnp.where(count > 0, jnp.take_along_axis(x, end, axis=-2)[..., 0, :], before)

        return (at_end(z, state[0]), at_end(y, state[1])), self.read(y, xs.dtype)


def step_length(logit: Float[Array, "state"]) -> Float[Array, "state"]:
    r"""The step $\Delta$, between zero and one."""
    return jnp.maximum(jax.nn.sigmoid(at_least_float32(logit)), _SMALLEST_STEP)


def implicit(
    a: Float[Array, "state"], step: Float[Array, "state"]
) -> Matrix[Float[Array, "state"]]:
    r"""The matrix without damping, where both $z_t$ and $y_t$ depend on one another.

    Its eigenvalues are $S (1 \pm i \Delta \sqrt A)$ with $S = 1 / (1 + \Delta^2 A)$ for any
    $A \ge 0$, of magnitude $\sqrt S$.
    """
    a = jax.nn.relu(at_least_float32(a))
    s = 1 / (1 + step**2 * a)
    return (s, -step * a * s), (step * s, s)


def implicit_explicit(
    a: Float[Array, "state"], g: Float[Array, "state"] | float, step: Float[Array, "state"]
) -> Matrix[Float[Array, "state"]]:
    r"""The matrix where $z_t$ depends on $y_{t-1}$, and then $y_t$ on $z_t$; the damping
    $G = \mathrm{relu}(g)$ acts on $z_t$.

    $A$ is moved to the interval in which eigenvalues are a complex pair,
    $|s - 1| \le \Delta \sqrt A \le s + 1$ with $s^2 = 1 + \Delta G$. Their magnitude is then
    $1 / s$, whatever $A$ is.
    """
    g = jnp.minimum(jax.nn.relu(g), _LARGEST_DAMPING)
    square = 1 + step * g
    s = jnp.sqrt(square)
    # g / (1 + s) is (s - 1) / Δ without cancellation.
    lowest, highest = (g / (1 + s)) ** 2, _MARGIN * ((1 + s) / step) ** 2
    a = jnp.clip(at_least_float32(a), lowest, highest)
    return (1 / square, -step * a / square), (step / square, 1 - step**2 * a / square)


def uniform_planes(
    key: PRNGKeyArray, shape: tuple[int, int]
) -> tuple[Float[Array, "rows columns"], Float[Array, "rows columns"]]:
    """Both planes of a complex matrix, uniform in ±1 over the square root of its columns."""
    bound = 1 / math.sqrt(shape[1])
    re, im = jax.random.uniform(key, (2, *shape), jnp.float32, minval=-bound, maxval=bound)
    return re, im


def _interleaved(x: Planar) -> Float[Array, "*batch real"]:
    *batch_shape, states = x.shape
    return jnp.stack([x.re, x.im], -1).reshape(*batch_shape, 2 * states)


def _planar(x: Float[Array, "*batch real"]) -> Planar:
    *batch_shape, doubled = x.shape
    pairs = x.reshape(*batch_shape, doubled // 2, 2)
    return Planar(pairs[..., 0], pairs[..., 1])
