"""LinOSS, linear oscillatory state-space layers."""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from rnnscale._checks import Size, check_arguments
from rnnscale._fields import parameter
from rnnscale.ssm._oscillators import (
    Matrix,
    OscillatorySSM,
    implicit,
    implicit_explicit,
    step_length,
    uniform_planes,
)

type OscillatorDiscretisation = Literal["im", "imex"]


class LinOSS(OscillatorySSM):
    r"""Linear oscillatory state-space layer: harmonic oscillators, driven by the input.

    $$y'' = -A \odot y + B u, \qquad o = \mathrm{Re}(C y) + d \odot u, \qquad
      A = \mathrm{relu}(a), \qquad \Delta = \sigma(\delta)$$

    with $B$ and $C$ complex. With $z = y'$ and the forcing $b_t = B u_t$, `"im"` is the implicit
    scheme

    $$z_t = z_{t-1} + \Delta (-A y_t + b_t), \qquad y_t = y_{t-1} + \Delta z_t$$

    which forgets: its eigenvalues have the magnitude $(1 + \Delta^2 A)^{-1/2}$, which ties the
    decay to the frequency. `"imex"` takes $y_{t-1}$ in place of $y_t$ in the first equation. It
    conserves volume and forgets nothing: the eigenvalues have magnitude one. An oscillator with
    $A = 0$ integrates twice, so its states grow with time in both.

    The state is `OscillatorState(z, y)`, where both are `Planar` and at least float32.

    The real and imaginary parts of $B$ start uniform in $\pm 1 / \sqrt{m}$ for `m = idim`, those of
    $C$ in $\pm 1 / \sqrt{n}$ for `n = state_dim`; $a$ and $\delta$ uniform between 0 and 1, and $d$
    normal with standard deviation 1.

    Rusch, Rus, *Oscillatory State-Space Models*, ICLR 2025.

    **Differs from the paper** and its published code:

    - With `"imex"`, $A$ is at most $(1 - 2^{-20})\,4 / \Delta^2$; above that an oscillator would be
      unstable. The code has no upper bound. As $\Delta < 1$, this changes only an $A$ of about 4 or
      more.
    - $\Delta$ is at least $10^{-6}$.
    - The block of the paper has batch norms and two dropouts; see `Block`, which gives the rest of
      it with `make_mixer=GLU`.
    - With `odim != idim` there is no skip term, and `d` is `None`.
    """

    a: Float[Array, "state"] = parameter(group="recurrence")
    step_logit: Float[Array, "state"] = parameter(group="recurrence")
    b_re: Float[Array, "state idim"] = parameter(group="recurrence")
    b_im: Float[Array, "state idim"] = parameter(group="recurrence")
    c_re: Float[Array, "odim state"] = parameter()
    c_im: Float[Array, "odim state"] = parameter()
    d: Float[Array, "odim"] | None = parameter(group="bias")
    idim: int = eqx.field(static=True)
    odim: int = eqx.field(static=True)
    state_dim: int = eqx.field(static=True)
    discretisation: OscillatorDiscretisation = eqx.field(static=True)

    @check_arguments
    def __init__(
        self,
        idim: Size,
        state_dim: Size,
        odim: Size | None = None,
        *,
        discretisation: OscillatorDiscretisation = "im",
        key: PRNGKeyArray,
    ):
        r"""**Arguments:**

        - `idim`: features of the input.
        - `state_dim`: oscillators.
        - `odim`: features of the output. Default `idim`.
        - `discretisation`: `"im"` or `"imex"`.
        - `key`: for the initial parameters.

        **Raises:** `ValueError` if a size is below 1 or the discretisation is unknown; `TypeError`
        if an argument is another kind of thing.
        """
        odim = idim if odim is None else odim
        a_key, step_key, b_key, c_key, d_key = jax.random.split(key, 5)
        self.a = jax.random.uniform(a_key, (state_dim,), jnp.float32)
        self.step_logit = jax.random.uniform(step_key, (state_dim,), jnp.float32)
        self.b_re, self.b_im = uniform_planes(b_key, (state_dim, idim))
        self.c_re, self.c_im = uniform_planes(c_key, (odim, state_dim))
        self.d = jax.random.normal(d_key, (odim,), jnp.float32) if odim == idim else None
        self.idim, self.odim, self.state_dim = idim, odim, state_dim
        self.discretisation = discretisation

    def discretise(self) -> tuple[Matrix[Float[Array, "state"]], Float[Array, "state"]]:
        step = step_length(self.step_logit)
        if self.discretisation == "im":
            return implicit(self.a, step), step
        return implicit_explicit(self.a, 0.0, step), step
