"""S5, the simplified state-space layer, for regular and for irregular samples."""

import math
from typing import cast

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from rnnscale import sharding
from rnnscale._base import (
    TakesIntervals,
    at_least_float32,
    check_call,
    check_intervals,
    check_step,
    in_precision,
    zero_padding,
)
from rnnscale._checks import Positive, Size, check_arguments
from rnnscale._fields import parameter
from rnnscale._over_time import mesh_axes_of_time, over_padded_pieces
from rnnscale.ssm._base import DenseSSM
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
from rnnscale.ssm._hippo import OutputInit, half_of_hippo, input_map, output_map
from rnnscale_kernels import Planar


class S5(DenseSSM, TakesIntervals):
    r"""The simplified state-space layer: one multi-input, multi-output system.

    $$\dot x = \Lambda x + \tilde B u, \qquad y = 2\,\mathrm{Re}(\tilde C x) + d \odot u$$

    discretised with a step $\Delta$ for every state, by zero-order hold,
    $\bar\Lambda = e^{\Lambda\Delta}$, $\bar B = \Lambda^{-1}(\bar\Lambda - I)\tilde B$, or by the
    bilinear transform. $\Lambda$ starts as the eigenvalues of `blocks` HiPPO-N matrices of size
    `state_dim / blocks`, and $\tilde B$, $\tilde C$ as random maps in the basis of their
    eigenvectors. Eigenvalues come in conjugate pairs, of which one is kept: the layer has
    `state_dim / 2` complex states, and the factor 2 stands for the other half.

    Samples at irregular times come with their `intervals`: the step $\Delta$ at time $t$ is then
    the state's own times the interval between the sample $t$ and the one before.

    Smith, Warrington, Linderman, *Simplified State Space Layers for Sequence Modeling*, ICLR 2023.

    **Differs from the paper** and its published code:

    - Real parts of $\Lambda$ are held at or below $-10^{-4}$ by default (an option in that code).
      $|\bar\Lambda|$ is then held at or below $1 - 2^{-22}$, so that it stays below one in float32
      for any parameters.
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

    @check_arguments
    def __init__(
        self,
        idim: Size,
        state_dim: Size,
        odim: Size | None = None,
        *,
        blocks: Size = 1,
        dt_min: Positive = 1e-3,
        dt_max: Positive = 1e-1,
        discretisation: Discretisation = "zoh",
        step_rescale: Positive = 1.0,
        clip_eigenvalues: bool = True,
        c_init: OutputInit = "lecun",
        key: PRNGKeyArray,
    ):
        r"""**Arguments:**

        - `idim`: features of the input.
        - `state_dim`: the paper's $P$, twice the number of complex states; a multiple of
            `2 * blocks`.
        - `odim`: features of the output. Default `idim`.
        - `blocks`: the number of HiPPO-N matrices that $\Lambda$ starts from.
        - `dt_min`, `dt_max`: the steps start log-uniformly between them, `0 < dt_min <= dt_max`.
        - `discretisation`: `"zoh"` or `"bilinear"`.
        - `step_rescale`: multiplies every step, so that a trained layer runs on input sampled at
            another rate: 2 for every second sample. An array leaf that is not trained.
        - `clip_eigenvalues`: hold the real parts of $\Lambda$ at or below $-10^{-4}$.
        - `c_init`: `"lecun"` for a $C$ whose rows are Lecun-normal, of variance `1 / state_dim`,
            times the eigenvectors: what the authors' code calls `trunc_standard_normal`. (Their
            `lecun_normal` is smaller by the root of `odim`.) `"complex_normal"` for $\tilde C$
            drawn directly, of unit variance.
        - `key`: for the initial parameters.

        **Raises:** `ValueError` if a size, range or choice is invalid; `TypeError` if an argument
        is another kind of thing.
        """
        odim = idim if odim is None else odim
        if state_dim % (2 * blocks):
            raise ValueError(
                f"S5: state_dim must be a multiple of 2 * blocks, because every block holds "
                f"conjugate pairs; got state_dim={state_dim}, blocks={blocks}."
            )
        if dt_min > dt_max:
            raise ValueError(
                f"S5: the steps must satisfy 0 < dt_min <= dt_max; got dt_min={dt_min}, "
                f"dt_max={dt_max}."
            )
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
        self.b_re, self.b_im = input_map(b_key, idim, state_dim, vectors)
        self.c_re, self.c_im = output_map(c_key, odim, state_dim, vectors, c_init)
        self.d = jax.random.normal(d_key, (odim,), jnp.float32) if odim == idim else None
        self.step_rescale = jnp.asarray(step_rescale, jnp.float32)
        self.idim, self.odim, self.state_dim = idim, odim, state_dim
        self.discretisation, self.clip_eigenvalues = discretisation, clip_eigenvalues

    def __call__(
        self,
        xs: Float[Array, "*batch time idim"],
        state: Planar | None = None,
        *,
        reset: Bool[Array, "*batch time"] | None = None,
        lengths: Int[Array, "*batch"] | None = None,
        intervals: Float[Array, "*batch time"] | None = None,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[Planar, Float[Array, "*batch time odim"]]:
        """**Arguments:** those of a sequence layer, and

        - `intervals`: the time between each step and the one before, in units of the layer's own
            step, at least 0. `None` means ones. After an interval of zero the state is unchanged,
            whatever the input.

        Decays are computed for about the square root of the length at a time, at least 256 steps,
        and again in the backward pass. If the mesh splits time, each device computes those of its
        own steps at once. If not, every piece sums outputs over `tensor`, and gradients over the
        batch, on its own.

        **Raises:** in addition, `ValueError` or `TypeError` if `intervals` are not real numbers
        with the shape of batch and time, or are known and negative or NaN.
        """
        if intervals is None:
            return self.scan_steps(xs, state, reset=reset, lengths=lengths, key=key)
        carried, lengths = check_call(self, xs, state, reset, lengths, key, intervals)
        batch_shape, time = xs.shape[:-2], xs.shape[-2]
        intervals = _not_negative(jnp.asarray(intervals, carried.dtype))
        if time == 0:
            return carried, jnp.zeros((*batch_shape, 0, self.odim), xs.dtype)
        if lengths is not None:
            valid = jnp.arange(time) < lengths[..., None]
            # After an interval of zero the state is unchanged.
            intervals = jnp.where(valid, intervals, 0)
            reset = None if reset is None else reset & valid
        xs = zero_padding(xs, lengths)
        wide = in_precision(self, xs.dtype)
        run = wide._scan_intervals if mesh_axes_of_time() else wide._scan_intervals_in_pieces
        carried, ys = run(carried, (xs, intervals, reset))
        return carried, zero_padding(self.add_skip(xs, ys), lengths)

    def step(
        self,
        x: Float[Array, "*batch idim"],
        state: Planar,
        *,
        interval: Float[Array, "*batch"] | None = None,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[Planar, Float[Array, "*batch odim"]]:
        """One step of time, `interval` after the one before; see `intervals` of a call."""
        if interval is None:
            return self.one_step(x, state, key)
        state = check_step(self, x, state, key)
        check_intervals("interval", interval, x.shape[:-1])
        interval = _not_negative(jnp.asarray(interval, state.dtype))
        wide = in_precision(self, x.dtype)
        decay, drive = wide._decay_and_drive(x, interval)
        state = Planar(*(h + u for h, u in zip(multiply(decay, state), drive, strict=True)))
        return state, self.add_skip(x, wide._read(state).astype(x.dtype))

    def discretise(self) -> tuple[Planar, Planar, Planar]:
        decay, gain = self._decay_and_gain(jnp.ones((), jnp.float32))
        b = multiply(Planar(gain.re[:, None], gain.im[:, None]), Planar(self.b_re, self.b_im))
        c = scale(Planar(at_least_float32(self.c_re), at_least_float32(self.c_im)), 2.0)
        return decay, b, c

    def eigenvalues(self) -> Planar:
        """The eigenvalues in continuous time, clipped if the layer clips them."""
        re, im = at_least_float32(self.lambda_re), at_least_float32(self.lambda_im)
        return Planar(jnp.minimum(re, LARGEST_REAL_PART) if self.clip_eigenvalues else re, im)

    def _decay_and_gain(self, interval: Float[Array, "*axes"]) -> tuple[Planar, Planar]:
        """The decay and the gain of a step after `interval`, "*axes state"."""
        step = self.step_rescale * bounded_exp(at_least_float32(self.log_step))
        transform = zero_order_hold if self.discretisation == "zoh" else bilinear
        interval = interval[..., None]
        decay, gain = transform(self.eigenvalues(), step * interval)
        if self.clip_eigenvalues:
            # An interval of zero leaves the state as it is, so its decay of one is not limited.
            limited = limit_magnitude(decay)
            decay = jax.tree.map(lambda x, y: jnp.where(interval > 0, x, y), limited, decay)
        return decay, gain

    def _decay_and_drive(
        self, u: Float[Array, "*axes idim"], interval: Float[Array, "*axes"]
    ) -> tuple[Planar, Planar]:
        """The decay of a step after `interval`, and what its input adds to the state."""
        decay, gain = self._decay_and_gain(interval)
        u = u.astype(decay.dtype)
        return decay, multiply(gain, Planar(u @ self.b_re.T, u @ self.b_im.T))

    def _read(self, h: Planar) -> Float[Array, "*axes odim"]:
        return 2 * (h.re @ self.c_re.T - h.im @ self.c_im.T)

    def _scan_intervals(
        self, state: Planar, inputs: tuple[Array, Array, Array | None]
    ) -> tuple[Planar, Float[Array, "*batch time odim"]]:
        """All steps of `inputs`, which are `(xs, intervals, reset)`."""
        xs, intervals, reset = inputs
        decay, drive = self._decay_and_drive(xs, intervals)
        hs, last = sharding.linear_scan(decay, drive, state, reset=reset)
        return cast(Planar, last), self._read(cast(Planar, hs)).astype(xs.dtype)

    def _scan_intervals_in_pieces(
        self, state: Planar, inputs: tuple[Array, Array, Array | None]
    ) -> tuple[Planar, Float[Array, "*batch time odim"]]:
        """As `_scan_intervals`, without ever holding the decays of all steps."""
        # Padded with intervals of zero, after which the state is unchanged.
        return over_padded_pieces(self._scan_intervals, state, inputs, axis=inputs[1].ndim - 1)


def _not_negative(intervals: Float[Array, "*axes"]) -> Float[Array, "*axes"]:
    """`intervals` with zero in the place of negative ones, which are not known when traced."""
    # Unlike a maximum, it has the derivative of positive intervals at zero too.
    return jnp.where(intervals < 0, 0, intervals)
