"""The linear recurrent unit (LRU)."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from rnnscale._base import at_least_float32
from rnnscale._checks import Positive, Share, Size, check_arguments
from rnnscale._fields import parameter
from rnnscale.ssm._base import DenseSSM
from rnnscale.ssm._discretise import MAX_MAGNITUDE, bounded_exp, limit_magnitude, polar
from rnnscale_kernels import Planar


class LRU(DenseSSM):
    r"""The linear recurrent unit.

    $$h_t = \lambda \odot h_{t-1} + e^{\gamma} \odot (B u_t), \qquad
      y_t = \mathrm{Re}(C h_t) + d \odot u_t, \qquad \lambda = \exp(-e^{\nu} + i e^{\theta})$$

    The decays start uniformly on the ring between `r_min` and `r_max`, with phases up to
    `max_phase`, and $\gamma$ at $\log\sqrt{1 - |\lambda|^2}$, which gives every state unit power
    under white noise. For long sequences take `r_min` of 0.9 or more and a `max_phase` of
    $\pi / 10$ or less.

    Orvieto et al., *Resurrecting Recurrent Neural Networks for Long Sequences*, ICML 2023.

    **Differs from the paper:**

    - $|\lambda|$ is at most $1 - 2^{-22}$ (a memory of four million steps), so that it stays below
      one in float32 for any $\nu$; the gradient with respect to $\nu$ is zero beyond.
    - With `odim != idim` there is no skip term, and `d` is `None`.
    """

    nu_log: Float[Array, "state"] = parameter(group="recurrence")
    theta_log: Float[Array, "state"] = parameter(group="recurrence")
    gamma_log: Float[Array, "state"] = parameter(group="recurrence")
    b_re: Float[Array, "state idim"] = parameter(group="recurrence")
    b_im: Float[Array, "state idim"] = parameter(group="recurrence")
    c_re: Float[Array, "odim state"] = parameter()
    c_im: Float[Array, "odim state"] = parameter()
    d: Float[Array, "odim"] | None = parameter(group="bias")
    idim: int = eqx.field(static=True)
    odim: int = eqx.field(static=True)
    state_dim: int = eqx.field(static=True)

    @check_arguments
    def __init__(
        self,
        idim: Size,
        state_dim: Size,
        odim: Size | None = None,
        *,
        r_min: Share = 0.0,
        r_max: Share = 1.0,
        max_phase: Positive = 6.28,
        key: PRNGKeyArray,
    ):
        r"""**Arguments:**

        - `idim`: features of the input.
        - `state_dim`: complex states.
        - `odim`: features of the output. Default `idim`.
        - `r_min`, `r_max`: the ring of the initial decays, `0 <= r_min < r_max <= 1`.
        - `max_phase`: the largest initial phase in radians, in `(0, 2π]`.
        - `key`: for the initial parameters.

        **Raises:** `ValueError` if a size is below 1 or a range is invalid; `TypeError` if an
        argument is another kind of thing.
        """
        odim = idim if odim is None else odim
        if not r_min < r_max:
            raise ValueError(
                f"LRU: the ring must satisfy 0 <= r_min < r_max <= 1; got r_min={r_min}, "
                f"r_max={r_max}."
            )
        if max_phase > 2 * math.pi:
            raise ValueError(f"LRU: max_phase must be in (0, 2π]; got {max_phase}.")
        ring_key, b_key, c_key, d_key = jax.random.split(key, 4)
        tiny = jnp.finfo(jnp.float32).tiny  # no logarithm of zero

        # |λ|² uniform is λ uniform over the area of the ring.
        area, phase = jax.random.uniform(ring_key, (2, state_dim), jnp.float32, minval=tiny)
        square = jnp.clip(area * (r_max**2 - r_min**2) + r_min**2, tiny, MAX_MAGNITUDE**2)
        self.nu_log = jnp.log(-0.5 * jnp.log(square))
        self.theta_log = jnp.log(max_phase * phase)
        self.gamma_log = 0.5 * jnp.log1p(-square)

        b = jax.random.normal(b_key, (2, state_dim, idim), jnp.float32) / math.sqrt(2 * idim)
        c = jax.random.normal(c_key, (2, odim, state_dim), jnp.float32) / math.sqrt(state_dim)
        self.b_re, self.b_im = b
        self.c_re, self.c_im = c
        self.d = jax.random.normal(d_key, (odim,), jnp.float32) if odim == idim else None
        self.idim, self.odim, self.state_dim = idim, odim, state_dim

    def __call__(
        self,
        xs: Float[Array, "*batch time idim"],
        state: Planar | None = None,
        *,
        reset: Bool[Array, "*batch time"] | None = None,
        lengths: Int[Array, "*batch"] | None = None,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[Planar, Float[Array, "*batch time odim"]]:
        return self.scan_steps(xs, state, reset=reset, lengths=lengths, key=key)

    def step(
        self,
        x: Float[Array, "*batch idim"],
        state: Planar,
        *,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[Planar, Float[Array, "*batch odim"]]:
        return self.one_step(x, state, key)

    def discretise(self) -> tuple[Planar, Planar, Planar]:
        nu_log, theta_log, gamma_log = map(
            at_least_float32, (self.nu_log, self.theta_log, self.gamma_log)
        )
        magnitude = jnp.exp(-bounded_exp(nu_log))
        decay = limit_magnitude(polar(magnitude, bounded_exp(theta_log)))
        gamma = bounded_exp(gamma_log)[:, None]
        b = Planar(gamma * self.b_re, gamma * self.b_im)
        c = Planar(at_least_float32(self.c_re), at_least_float32(self.c_im))
        return decay, b, c
