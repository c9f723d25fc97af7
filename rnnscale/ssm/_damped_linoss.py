"""D-LinOSS, oscillatory state-space layers with learned damping."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from rnnscale._base import at_least_float32
from rnnscale._checks import Fraction, NonNegative, Size, check_arguments
from rnnscale._fields import parameter
from rnnscale.ssm._oscillators import (
    Matrix,
    OscillatorySSM,
    implicit_explicit,
    step_length,
    uniform_planes,
)


class DampedLinOSS(OscillatorySSM):
    r"""D-LinOSS, the linear oscillatory state-space layer with learned damping.

    $$y'' = -A \odot y - G \odot y' + B u, \qquad o = \mathrm{Re}(C y) + d \odot u, \qquad
      G = \mathrm{relu}(g), \qquad \Delta = \sigma(\delta)$$

    with $B$ and $C$ complex, $z = y'$ and the forcing $b_t = B u_t$, discretised with the damping
    implicit and the spring explicit:

    $$z_t = z_{t-1} + \Delta (-A y_{t-1} - G z_t + b_t), \qquad y_t = y_{t-1} + \Delta z_t$$

    $A$ is $a$, clipped to the interval from $(s - 1)^2 / \Delta^2$ to $(s + 1)^2 / \Delta^2$ with
    $s = \sqrt{1 + \Delta G}$, in which the eigenvalues are a complex pair. Their magnitude is
    $1 / s$ for every $A$: the damping sets how long an oscillator remembers, and $A$ its frequency.
    Every pair within the unit circle is possible. Without damping this is LinOSS with
    `discretisation="imex"`.

    The eigenvalues start on a ring: $|\lambda|^2$ uniform between the squares of `r_min` and
    `r_max`, and angles uniform between `theta_min` and `theta_max`, from which $A$ and $G$ follow
    (`damping_and_stiffness`). $\delta$ starts normal with the standard deviation `step_std`; $B$,
    $C$ and $d$ start as in `LinOSS`. The state is `OscillatorState(z, y)`, where both are `Planar`
    and at least float32.

    Boyer, Rusch, Rus, *Learning to Dissipate Energy in Oscillatory State-Space Models*, 2025.

    **Differs from the paper** and its published code:

    - The upper end of the interval is multiplied by $1 - 2^{-20}$. At the end itself, -1 is a
      double eigenvalue, and rounding would move it out of the unit circle.
    - $\Delta$ is at least $10^{-6}$, and $G$ at most $10^{18}$. The code has no such limits, but
      computes the ends of the interval with a $\Delta$ of at least $10^{-3}$.
    - With `odim != idim` there is no skip term, and `d` is `None`.

    As in the published code, the gradient of an $a$ outside of the interval is zero.
    """

    a: Float[Array, "state"] = parameter(group="recurrence")
    g: Float[Array, "state"] = parameter(group="recurrence")
    step_logit: Float[Array, "state"] = parameter(group="recurrence")
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
        r_min: Fraction = 0.9,
        r_max: Fraction = 1.0,
        theta_min: NonNegative = 0.0,
        theta_max: NonNegative = math.pi,
        step_std: NonNegative = 0.5,
        key: PRNGKeyArray,
    ):
        r"""**Arguments:**

        - `idim`: features of the input.
        - `state_dim`: oscillators.
        - `odim`: features of the output. Default `idim`.
        - `r_min`, `r_max`: the ring of the initial eigenvalues, `0 < r_min <= r_max <= 1`.
        - `theta_min`, `theta_max`: the range of their angles in radians per step,
            `0 <= theta_min <= theta_max <= π`.
        - `step_std`: the standard deviation of the initial $\delta$.
        - `key`: for the initial parameters.

        **Raises:** `ValueError` if a size is below 1 or a range is invalid; `TypeError` if an
        argument is another kind of thing.
        """
        odim = idim if odim is None else odim
        if not r_min <= r_max:
            raise ValueError(
                "DampedLinOSS: the ring must satisfy 0 < r_min <= r_max <= 1; got "
                f"r_min={r_min}, r_max={r_max}."
            )
        if not theta_min <= theta_max <= math.pi:
            raise ValueError(
                "DampedLinOSS: the angles must satisfy 0 <= theta_min <= theta_max <= π; got "
                f"theta_min={theta_min}, theta_max={theta_max}."
            )
        ring_key, step_key, b_key, c_key, d_key = jax.random.split(key, 5)
        # |λ|² uniform is λ uniform over the area of the ring.
        area, turn = jax.random.uniform(ring_key, (2, state_dim), jnp.float32)
        radius = jnp.sqrt(area * (r_max**2 - r_min**2) + r_min**2)
        angle = turn * (theta_max - theta_min) + theta_min
        self.step_logit = step_std * jax.random.normal(step_key, (state_dim,), jnp.float32)
        g, self.a = damping_and_stiffness(radius, angle, step_length(self.step_logit))
        # At exactly zero relu has no derivative, and an undamped oscillator would remain so.
        self.g = jnp.maximum(g, jnp.finfo(jnp.float32).tiny)
        self.b_re, self.b_im = uniform_planes(b_key, (state_dim, idim))
        self.c_re, self.c_im = uniform_planes(c_key, (odim, state_dim))
        self.d = jax.random.normal(d_key, (odim,), jnp.float32) if odim == idim else None
        self.idim, self.odim, self.state_dim = idim, odim, state_dim

    def discretise(self) -> tuple[Matrix[Float[Array, "state"]], Float[Array, "state"]]:
        step = step_length(self.step_logit)
        return implicit_explicit(self.a, at_least_float32(self.g), step), step


def damping_and_stiffness(
    radius: Float[Array, "*n"], angle: Float[Array, "*n"], step: Float[Array, "*n"]
) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    r"""`(G, A)` for which the eigenvalues of `DampedLinOSS` are $r e^{\pm i \theta}$:

    $$G = \frac{s^2 - 1}{\Delta}, \qquad A = \frac{(s - 1)^2 + 4 s \sin^2(\theta / 2)}{\Delta^2},
      \qquad s = 1 / r$$
    """
    s = 1 / radius
    g = (s - 1) * (s + 1) / step
    return g, ((s - 1) ** 2 + 4 * s * jnp.sin(angle / 2) ** 2) / step**2
