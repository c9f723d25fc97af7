r"""What layers of forced harmonic oscillators share: the scan, the step and the state for given
matrices of two by two.

Its own file because `LinOSS` and `DampedLinOSS`, each in the file of its paper, derive from it.
"""

import math
from abc import abstractmethod
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

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
from rnnscale_kernels import Planar

# Sigmoids below it are as good as a step of zero, whose square would underflow in a bound on A.
_SMALLEST_STEP = 1e-6

# Larger dampings forget within one step; the square of an even larger one would overflow.
_LARGEST_DAMPING = 1e18

# How far below the bound from which an oscillator flips its sign at every step A stays. There the
# eigenvalue -1 is double, and rounding would move it outside of the unit circle by its square root.
_MARGIN = 1 - 2**-20

type Matrix[T] = tuple[tuple[T, T], tuple[T, T]]
"""A matrix of two by two for each oscillator, as its rows."""


class OscillatorState(NamedTuple):
    """The velocity $z$ and the position $y$ of every oscillator, complex as the input map is."""

    z: Planar
    y: Planar


class OscillatorySSM(CausalLayer):
    r"""Forced harmonic oscillators, which do not see one another:

    $$y'' = -A \odot y - G \odot y' + B u, \qquad o = \mathrm{Re}(C y) + d \odot u$$

    With $z = y'$, a discretisation with the step $\Delta$ gives each oscillator a real matrix $M$,

    $$\begin{pmatrix} z_t \\ y_t \end{pmatrix} = M \left(\begin{pmatrix} z_{t-1} \\ y_{t-1}
      \end{pmatrix} + \begin{pmatrix} \Delta B u_t \\ 0 \end{pmatrix}\right)$$

    A subclass defines $M$ and $\Delta$ (`discretise`), the maps and `d`, and its `__call__` and
    `step` use `scan_steps` and `one_step`. The state is an `OscillatorState` with the axes
    `*batch state`, float32 under any compute dtype.

    Complex $B$ and $C$ make
    an oscillator two real ones with the same $M$: $\mathrm{Re}(C y) = \mathrm{Re}(C)\,y_{re} -
    \mathrm{Im}(C)\,y_{im}$.
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

    def scan_steps(
        self,
        xs: Float[Array, "*batch time idim"],
        state: OscillatorState | None,
        *,
        reset: Bool[Array, "*batch time"] | None,
        lengths: Int[Array, "*batch"] | None,
        key: Key[Array, "*#batch"] | None,
    ) -> tuple[OscillatorState, Float[Array, "*batch time odim"]]:
        """All steps, as a call of a sequence layer."""
        carried, lengths = check_call(self, xs, state, reset, lengths, key)
        if xs.shape[-2] == 0:
            return carried, jnp.zeros((*xs.shape[:-1], self.odim), xs.dtype)
        xs = zero_padding(xs, lengths)
        matrix, b_z, b_y, c = in_precision(self, xs.dtype)._real_system()
        drive = (xs @ b_z.T.astype(xs.dtype), xs @ b_y.T.astype(xs.dtype))
        start = (_interleaved(carried.z), _interleaved(carried.y))
        (_, y), (z_last, y_last) = _block_scan(matrix, drive, start, reset=reset, lengths=lengths)
        last = OscillatorState(_planar(z_last), _planar(y_last))
        return last, self.add_skip(xs, y @ c.T.astype(xs.dtype))

    def one_step(
        self,
        x: Float[Array, "*batch idim"],
        state: OscillatorState,
        key: Key[Array, "*#batch"] | None,
    ) -> tuple[OscillatorState, Float[Array, "*batch odim"]]:
        """One step, as `step` of a sequence layer."""
        state = check_step(self, x, state, key)
        ((zz, zy), (yz, yy)), b_z, b_y, c = in_precision(self, x.dtype)._real_system()
        z, y, u = _interleaved(state.z), _interleaved(state.y), x.astype(state.z.dtype)
        z, y = zz * z + zy * y + u @ b_z.T, yz * z + yy * y + u @ b_y.T
        return OscillatorState(_planar(z), _planar(y)), self.add_skip(x, (y @ c.T).astype(x.dtype))

    @check_arguments
    def init_state(
        self, batch_shape: BatchShape = (), dtype: FloatDType | None = None
    ) -> OscillatorState:
        dtype = jnp.promote_types(state_dtype(dtype), at_least_float32(self.b_re).dtype)
        zeros = jnp.zeros((*batch_shape, self.state_dim), dtype)
        return OscillatorState(Planar(zeros, zeros), Planar(zeros, zeros))

    def add_skip(
        self, xs: Float[Array, "*axes idim"], ys: Float[Array, "*axes odim"]
    ) -> Float[Array, "*axes odim"]:
        r"""$y + d \odot u$, or `ys` if there is no `d`."""
        return ys if self.d is None else ys + self.d.astype(xs.dtype) * xs

    def _real_system(self) -> tuple[Matrix[Array], Array, Array, Array]:
        """The system of twice as many real oscillators: `(M, its inputs to z and y, C)`.

        The two parts of an oscillator follow one another, so that a device that holds some of the
        oscillators holds both parts of these.
        """
        matrix, step = self.discretise()
        (zz, _), (yz, _) = matrix
        b = at_least_float32(jnp.stack([self.b_re, self.b_im], 1))
        c = at_least_float32(jnp.stack([self.c_re, -self.c_im], -1))

        def inputs(gain: Float[Array, "state"]) -> Float[Array, "real idim"]:
            return ((step * gain)[:, None, None] * b).reshape(-1, self.idim)

        doubled = jax.tree.map(lambda m: jnp.repeat(m, 2), matrix)
        return doubled, inputs(zz), inputs(yz), c.reshape(self.odim, -1)


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
    # As (s - 1) / Δ, without the difference.
    lowest, highest = (g / (1 + s)) ** 2, _MARGIN * ((1 + s) / step) ** 2
    a = jnp.clip(at_least_float32(a), lowest, highest)
    return (1 / square, -step * a / square), (step / square, 1 - step**2 * a / square)


def uniform_planes(
    key: PRNGKeyArray, shape: tuple[int, int]
) -> tuple[Float[Array, "rows columns"], Float[Array, "rows columns"]]:
    """Both planes of a complex matrix, uniform up to one over the root of its columns."""
    bound = 1 / math.sqrt(shape[1])
    re, im = jax.random.uniform(key, (2, *shape), jnp.float32, minval=-bound, maxval=bound)
    return re, im


def _block_scan(
    a: Matrix[Array], b: Any, h0: Any, *, reset: Array | None, lengths: Array | None
) -> tuple[Any, Any]:
    """The states and the last state of $h_t = A h_{t-1} + b_t$, one step after another."""
    (zz, zy), (yz, yy) = a
    time = b[0].shape[-2]
    shape = b[0].shape[:-1]
    reset = jnp.zeros(shape, bool) if reset is None else reset
    valid = jnp.arange(time) < (time if lengths is None else lengths[..., None])
    valid = jnp.broadcast_to(valid, shape)

    def step(carry, inputs):
        (b_z, b_y), reset, valid = inputs
        z, y = (jnp.where(reset[..., None], 0, x) for x in carry)
        new = zz * z + zy * y + b_z, yz * z + yy * y + b_y
        carry = tuple(
            jnp.where(valid[..., None], x, old) for x, old in zip(new, carry, strict=True)
        )
        return carry, tuple(jnp.where(valid[..., None], x, 0).astype(b_z.dtype) for x in new)

    inputs = (
        tuple(jnp.moveaxis(x, -2, 0) for x in b),
        *(jnp.moveaxis(x, -1, 0) for x in (reset, valid)),
    )
    last, h = jax.lax.scan(step, h0, inputs)
    return tuple(jnp.moveaxis(x, 0, -2) for x in h), last


def _interleaved(x: Planar) -> Float[Array, "*batch real"]:
    *batch_shape, states = x.shape
    return jnp.stack([x.re, x.im], -1).reshape(*batch_shape, 2 * states)


def _planar(x: Float[Array, "*batch real"]) -> Planar:
    *batch_shape, doubled = x.shape
    pairs = x.reshape(*batch_shape, doubled // 2, 2)
    return Planar(pairs[..., 0], pairs[..., 1])
