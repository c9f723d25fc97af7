"""The simplified state-space layer S5."""

import math
from typing import Any, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from numpy.typing import NDArray

from rnnscale._base import at_least_float32, check_size
from rnnscale._fields import parameter
from rnnscale.ssm._base import DiagonalSSM
from rnnscale.ssm._discretise import (
    Discretisation,
    bilinear,
    bounded_exp,
    limit_magnitude,
    multiply,
    scale,
    zero_order_hold,
)
from rnnscale.ssm._hippo import hippo_normal
from rnnscale_kernels import Planar

type OutputInit = Literal["lecun", "complex_normal"]

_LARGEST_REAL_PART = -1e-4
_EXACT = jax.lax.Precision.HIGHEST


class S5(DiagonalSSM):
    r"""The simplified state-space layer: one multi-input, multi-output system.

    $$\dot x = \Lambda x + \tilde B u, \qquad y = 2\,\mathrm{Re}(\tilde C x) + d \odot u$$

    discretised with a step $\Delta$ for every state, by zero-order hold,
    $\bar\Lambda = e^{\Lambda\Delta}$, $\bar B = \Lambda^{-1}(\bar\Lambda - I)\tilde B$, or by the
    bilinear transform. $\Lambda$ starts as the eigenvalues of `blocks` HiPPO-N matrices of size
    `state_dim / blocks`, and $\tilde B$, $\tilde C$ as random maps in the basis of their
    eigenvectors. Eigenvalues come in conjugate pairs, of which one is kept: the layer has
    `state_dim / 2` complex states, and the factor 2 stands for the other half.

    Smith, Warrington, Linderman, *Simplified State Space Layers for Sequence Modeling*, ICLR 2023.

    **Differs from the paper** and its published code:

    - Real parts of $\Lambda$ are held at or below $-10^{-4}$ by default (an option there), and
      then $|\bar\Lambda|$ at or below $1 - 2^{-22}$, so that it stays below one in float32 for any
      parameters.
    - With `odim != idim` there is no skip term, and `d` is `None`.
    """

    lambda_re: Float[Array, "state"] = parameter(group="recurrence")
    lambda_im: Float[Array, "state"] = parameter(group="recurrence")
    log_step: Float[Array, "state"] = parameter(group="recurrence")
    b_re: Float[Array, "state idim"] = parameter(group="recurrence")
    b_im: Float[Array, "state idim"] = parameter(group="recurrence")
    c_re: Float[Array, "odim state"] = parameter()
    c_im: Float[Array, "odim state"] = parameter()
    d: Float[Array, "odim"] | None = parameter(group="bias")
    step_rescale: Float[Array, ""] = parameter(trainable=False)
    idim: int = eqx.field(static=True)
    odim: int = eqx.field(static=True)
    state_dim: int = eqx.field(static=True)
    discretisation: Discretisation = eqx.field(static=True)
    clip_eigenvalues: bool = eqx.field(static=True)

    def __init__(
        self,
        idim: int,
        state_dim: int,
        odim: int | None = None,
        *,
        blocks: int = 1,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        discretisation: Discretisation = "zoh",
        step_rescale: float = 1.0,
        clip_eigenvalues: bool = True,
        c_init: OutputInit = "lecun",
        key: PRNGKeyArray,
    ):
        r"""**Arguments:**

        - `idim`: features of the input.
        - `state_dim`: the paper's $P$, twice the number of complex states; `blocks` must divide it
            into even parts.
        - `odim`: features of the output, `idim` by default.
        - `blocks`: how many HiPPO-N matrices $\Lambda$ starts from.
        - `dt_min`, `dt_max`: the steps start log-uniformly between them, `0 < dt_min <= dt_max`.
        - `discretisation`: `"zoh"` or `"bilinear"`.
        - `step_rescale`: multiplies every step, so that a trained layer runs on input sampled at
            another rate: 2 for every second sample. An array leaf that is not trained.
        - `clip_eigenvalues`: hold the real parts of $\Lambda$ at or below $-10^{-4}$.
        - `c_init`: `"lecun"` for a Lecun-normal $C$ times the eigenvectors, `"complex_normal"` for
            $\tilde C$ drawn directly, of unit variance.
        - `key`: for the initial parameters.

        **Raises:** `ValueError` where a size or range is none of these.
        """
        odim = idim if odim is None else odim
        check_size(S5, idim=idim, state_dim=state_dim, odim=odim, blocks=blocks)
        if state_dim % (2 * blocks):
            raise ValueError(
                f"S5: state_dim must be a multiple of 2 * blocks, because every block holds "
                f"conjugate pairs; got state_dim={state_dim}, blocks={blocks}."
            )
        if not 0 < dt_min <= dt_max:
            raise ValueError(
                f"S5: the steps must satisfy 0 < dt_min <= dt_max; got dt_min={dt_min}, "
                f"dt_max={dt_max}."
            )
        if not step_rescale > 0:
            raise ValueError(f"S5: step_rescale must be positive; got {step_rescale}.")
        _check_choice("discretisation", discretisation, Discretisation)
        _check_choice("c_init", c_init, OutputInit)
        step_key, b_key, c_key, d_key = jax.random.split(key, 4)

        eigenvalues, vectors = half_of_hippo(state_dim // blocks)
        self.lambda_re = jnp.tile(jnp.asarray(eigenvalues.real, jnp.float32), blocks)
        self.lambda_im = jnp.tile(jnp.asarray(eigenvalues.imag, jnp.float32), blocks)
        self.log_step = jax.random.uniform(
            step_key,
            (state_dim // 2,),
            jnp.float32,
            minval=math.log(dt_min),
            maxval=math.log(dt_max),
        )
        self.b_re, self.b_im = _input_map(b_key, idim, state_dim, vectors)
        self.c_re, self.c_im = output_map(c_key, odim, state_dim, vectors, c_init)
        self.d = jax.random.normal(d_key, (odim,), jnp.float32) if odim == idim else None
        self.step_rescale = jnp.asarray(step_rescale, jnp.float32)
        self.idim, self.odim, self.state_dim = idim, odim, state_dim
        self.discretisation, self.clip_eigenvalues = discretisation, clip_eigenvalues

    def discretise(self) -> tuple[Planar, Planar, Planar]:
        eigenvalue = Planar(at_least_float32(self.lambda_re), at_least_float32(self.lambda_im))
        if self.clip_eigenvalues:
            eigenvalue = eigenvalue._replace(re=jnp.minimum(eigenvalue.re, _LARGEST_REAL_PART))
        step = self.step_rescale * bounded_exp(at_least_float32(self.log_step))
        transform = zero_order_hold if self.discretisation == "zoh" else bilinear
        decay, gain = transform(eigenvalue, step)
        if self.clip_eigenvalues:
            decay = limit_magnitude(decay)
        b = multiply(Planar(gain.re[:, None], gain.im[:, None]), Planar(self.b_re, self.b_im))
        c = scale(Planar(at_least_float32(self.c_re), at_least_float32(self.c_im)), 2)
        return decay, b, c


def output_map(
    key: PRNGKeyArray, odim: int, state_dim: int, vectors: NDArray[np.complex128], init: OutputInit
) -> tuple[Float[Array, "odim state"], Float[Array, "odim state"]]:
    """An initial C̃ = C V, as two planes: C random complex, V block-diagonal."""
    if init == "complex_normal":
        re, im = jax.random.normal(key, (2, odim, state_dim // 2), jnp.float32) * math.sqrt(0.5)
        return re, im
    # Lecun normal of each row: the variance is one over all of state_dim.
    lecun = jax.nn.initializers.lecun_normal(in_axis=-1, out_axis=-2, batch_axis=0)
    re, im = lecun(key, (2, odim, state_dim), jnp.float32)

    def times(c: Float[Array, "odim full"], v: NDArray[np.floating]) -> Float[Array, "odim state"]:
        blocks = c.reshape(odim, -1, v.shape[0])
        product = jnp.einsum("obr,rs->obs", blocks, jnp.asarray(v, jnp.float32), precision=_EXACT)
        return product.reshape(odim, state_dim // 2)

    return (
        times(re, vectors.real) - times(im, vectors.imag),
        times(re, vectors.imag) + times(im, vectors.real),
    )


def half_of_hippo(block_dim: int) -> tuple[NDArray[np.complex128], NDArray[np.complex128]]:
    """Eigenvalues of HiPPO-N with negative imaginary parts, and their vectors as columns."""
    eigenvalues, vectors = hippo_normal(block_dim)
    return eigenvalues[: block_dim // 2], vectors[:, : block_dim // 2]


def _input_map(
    key: PRNGKeyArray, idim: int, state_dim: int, vectors: NDArray[np.complex128]
) -> tuple[Float[Array, "state idim"], Float[Array, "state idim"]]:
    """An initial B̃ = Vᴴ B, as two planes: B random real, V block-diagonal."""
    b = jax.nn.initializers.lecun_normal()(key, (state_dim, idim), jnp.float32)
    blocks = b.reshape(-1, vectors.shape[0], idim)

    def times(v: NDArray[np.floating]) -> Float[Array, "state idim"]:
        product = jnp.einsum("rs,bri->bsi", jnp.asarray(v, jnp.float32), blocks, precision=_EXACT)
        return product.reshape(state_dim // 2, idim)

    return times(vectors.real), times(-vectors.imag)


def _check_choice(name: str, value: str, choices: Any) -> None:
    allowed = get_args(choices.__value__)
    if value not in allowed:
        raise ValueError(f"S5: {name} must be one of {', '.join(allowed)}; got {value!r}.")
