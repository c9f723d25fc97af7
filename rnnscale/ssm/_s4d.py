"""S4D, a diagonal state-space model for each feature."""

import math
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray
from numpy.typing import NDArray

from rnnscale._base import at_least_float32, check_call, check_step, in_precision, zero_padding
from rnnscale._checks import Positive, Size, check_arguments
from rnnscale._fields import parameter
from rnnscale.ssm._base import DiagonalSSM
from rnnscale.ssm._discretise import (
    LARGEST_REAL_PART,
    Discretisation,
    bilinear,
    bounded_exp,
    limit_magnitude,
    multiply,
    scale,
    zero_order_hold,
)
from rnnscale.ssm._hippo import half_of_hippo
from rnnscale.ssm._siso import scan_features
from rnnscale_kernels import Planar

type Init = Literal["lin", "inv", "legs", "quad", "real"]


class S4D(DiagonalSSM):
    r"""A diagonal state-space model for each feature, with one input and one output.

    For the feature $h$,

    $$\dot x_h = A_h \odot x_h + u_h, \qquad y_h = 2\,\mathrm{Re}(C_h \cdot x_h) + d_h u_h,
      \qquad A = -e^{\alpha} + i \omega$$

    discretised with a step $\Delta_h$ for every feature, by zero-order hold,
    $\bar A = e^{A\Delta}$, $\bar B = (\bar A - 1) / A$, or by the bilinear transform. Eigenvalues
    come in conjugate pairs, of which one is kept: a feature has `state_dim / 2` complex states. The
    layer does not mix features; the `make_mixer` of a block does.

    The states of all steps would take `state_dim` times the memory of the inputs, so they are never
    held. A call runs in chunks of at most 64 steps: the convolution with the kernel of a chunk, and
    a scan over the states at its borders.

    Gu, Gupta, Goel, Ré, *On the Parameterization and Initialization of Diagonal State Space
    Models*, NeurIPS 2022.

    **Differs from the paper:**

    - As in the authors' short version, B is one and not trained: only the product of B and C
      matters, which is the parameter C. With `init="legs"`, C starts with the B of HiPPO as a
      factor.
    - Real parts of A are at most $-10^{-4}$, and $|\bar A|$ is at most $1 - 2^{-22}$, so that it is
      below one in float32 for any parameters.
    """

    log_a_re: Float[Array, "state modes"] = parameter(group="recurrence")
    a_im: Float[Array, "state modes"] = parameter(group="recurrence")
    log_step: Float[Array, "state"] = parameter(group="recurrence")
    c_re: Float[Array, "state modes"] = parameter()
    c_im: Float[Array, "state modes"] = parameter()
    d: Float[Array, "odim"] = parameter(group="bias")
    idim: int = eqx.field(static=True)
    odim: int = eqx.field(static=True)
    state_dim: int = eqx.field(static=True)
    discretisation: Discretisation = eqx.field(static=True)

    @check_arguments
    def __init__(
        self,
        idim: Size,
        state_dim: Size = 64,
        *,
        init: Init = "lin",
        dt_min: Positive = 1e-3,
        dt_max: Positive = 1e-1,
        discretisation: Discretisation = "zoh",
        key: PRNGKeyArray,
    ):
        r"""**Arguments:**

        - `idim`: features of the input, and of the output.
        - `state_dim`: the paper's $N$, the order of the real system of each feature; even. Default
            64.
        - `init`: where A starts. With $n$ from 0 to $N/2 - 1$: `"lin"` for
            $-\tfrac12 + i \pi n$, `"inv"` for
            $-\tfrac12 + i \tfrac N\pi (\tfrac N{2n+1} - 1)$, `"legs"` for the eigenvalues of
            HiPPO-N, `"quad"` for $-\tfrac12 + \tfrac i\pi (2n+1)^2$, `"real"` for $-(n+1)$. A mode
            that starts real counts twice, as in the authors' code.
        - `dt_min`, `dt_max`: the steps start log-uniformly between them, `0 < dt_min <= dt_max`.
        - `discretisation`: `"zoh"` or `"bilinear"`.
        - `key`: for the initial parameters.

        **Raises:** `ValueError` if a size, range or choice is invalid; `TypeError` if an argument
        is another kind of thing.
        """
        if state_dim % 2:
            raise ValueError(
                "S4D: state_dim must be even, because states come in conjugate pairs; got "
                f"state_dim={state_dim}."
            )
        if dt_min > dt_max:
            raise ValueError(
                f"S4D: the steps must satisfy 0 < dt_min <= dt_max; got dt_min={dt_min}, "
                f"dt_max={dt_max}."
            )
        step_key, c_key, d_key = jax.random.split(key, 3)
        shape = (idim, state_dim // 2)
        eigenvalues, b = _initial_modes(state_dim, init)
        self.log_a_re, self.a_im = (
            jnp.broadcast_to(jnp.asarray(x, jnp.float32), shape)
            for x in (np.log(-eigenvalues.real), eigenvalues.imag)
        )
        self.log_step = jax.random.uniform(
            step_key, (idim,), jnp.float32, minval=math.log(dt_min), maxval=math.log(dt_max)
        )
        re, im = jax.random.normal(c_key, (2, *shape), jnp.float32) * math.sqrt(0.5)
        c = multiply(Planar(re, im), Planar(jnp.float32(b.real), jnp.float32(b.imag)))
        self.c_re, self.c_im = c
        self.d = jax.random.normal(d_key, (idim,), jnp.float32)
        self.idim = self.odim = idim
        self.state_dim, self.discretisation = state_dim, discretisation

    def __call__(
        self,
        xs: Float[Array, "*batch time idim"],
        state: Planar | None = None,
        *,
        reset: Bool[Array, "*batch time"] | None = None,
        lengths: Int[Array, "*batch"] | None = None,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[Planar, Float[Array, "*batch time idim"]]:
        carried, lengths = check_call(self, xs, state, reset, lengths, key)
        if xs.shape[-2] == 0:
            return carried, xs
        xs = zero_padding(xs, lengths)
        system = in_precision(self, xs.dtype).discretise()
        last, ys = scan_features(xs, *system, carried, reset=reset, lengths=lengths)
        return last, zero_padding(self.add_skip(xs, ys), lengths)

    def step(
        self,
        x: Float[Array, "*batch idim"],
        state: Planar,
        *,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[Planar, Float[Array, "*batch idim"]]:
        state = check_step(self, x, state, key)
        decay, b, c = in_precision(self, x.dtype).discretise()
        u = x.astype(state.dtype)[..., None]
        state = Planar(*(h + u * each for h, each in zip(multiply(decay, state), b, strict=True)))
        y = jnp.sum(c.re * state.re - c.im * state.im, axis=-1)
        return state, self.add_skip(x, y.astype(x.dtype))

    def discretise(self) -> tuple[Planar, Planar, Planar]:
        """The discrete system, all with the axes `state modes`."""
        step = bounded_exp(at_least_float32(self.log_step))[:, None]
        transform = zero_order_hold if self.discretisation == "zoh" else bilinear
        decay, b = transform(self.eigenvalues(), step)
        c = scale(Planar(at_least_float32(self.c_re), at_least_float32(self.c_im)), 2.0)
        return limit_magnitude(decay), b, c

    def eigenvalues(self) -> Planar:
        """A, the eigenvalues in continuous time, with the axes `state modes`."""
        real = jnp.minimum(-bounded_exp(at_least_float32(self.log_a_re)), LARGEST_REAL_PART)
        return Planar(real, at_least_float32(self.a_im))


def _initial_modes(
    state_dim: int, init: Init
) -> tuple[NDArray[np.complex128], NDArray[np.complex128]]:
    """The initial eigenvalues of a feature, and its B."""
    n = np.arange(state_dim // 2, dtype=np.complex128)
    b = np.ones_like(n)
    match init:
        case "lin":
            a = -0.5 + 1j * math.pi * n
        case "inv":
            a = -0.5 + 1j * state_dim / math.pi * (state_dim / (2 * n + 1) - 1)
        case "legs":
            a, vectors = half_of_hippo(state_dim)
            b = vectors.conj().T @ np.sqrt(2 * np.arange(state_dim) + 1).astype(np.complex128)
        case "quad":
            a = -0.5 + 1j / math.pi * (2 * n + 1) ** 2
        case "real":
            a = -(n + 1)
    return a, b
