"""The simplified state-space layer S5."""

import math
from typing import Any, Literal, NamedTuple, cast, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray
from numpy.typing import NDArray

from rnnscale import sharding
from rnnscale._base import (
    TakesIntervals,
    at_least_float32,
    check_features,
    check_size,
    checked_state,
    zero_padding,
)
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
from rnnscale_kernels import Planar, check_reset, checked_lengths, vary_alike

type OutputInit = Literal["lecun", "complex_normal"]

_LARGEST_REAL_PART = -1e-4
_EXACT = jax.lax.Precision.HIGHEST

# The fewest steps that share a decay array, where steps differ in length.
_CHUNK = 256


class _Steps(NamedTuple):
    u: Float[Array, "*batch time idim"]
    interval: Float[Array, "*batch time"]
    reset: Bool[Array, "*batch time"] | None


class S5(DiagonalSSM, TakesIntervals):
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

        - `intervals`: the time between each step's input and the one before, in units of the
            layer's own step, at least 0. Ones are what `None` means; after zero the state is what
            it was, whatever the input.

        Decays are made for about the square root of the length at a time, at least 256 steps, and
        again in the backward pass. Over a mesh that splits time, they are made at once, each device
        those of its own part; otherwise each of these pieces adds up outputs over `tensor`, and
        gradients over the batch, on its own.

        **Raises:** besides, `ValueError` or `TypeError` where `intervals` are not real numbers of
        the shape of batch and time, or are known and negative.
        """
        if intervals is None:
            return super().__call__(xs, state, reset=reset, lengths=lengths, key=key)
        check_features(self, xs, self.idim, rank=2)
        batch_shape, time = xs.shape[:-2], xs.shape[-2]
        carried = self.init_state(batch_shape, xs.dtype) if state is None else state
        carried = checked_state(self, carried, batch_shape, xs.dtype)
        check_reset(reset, (*batch_shape, time))
        intervals = _with_shape(intervals, (*batch_shape, time))
        if time == 0:
            return carried, jnp.zeros((*batch_shape, 0, self.odim), xs.dtype)
        if lengths is not None:
            lengths = checked_lengths(lengths, batch_shape, time)
            valid = jnp.arange(time) < lengths[..., None]
            # After no time the state is what it was.
            intervals = jnp.where(valid, intervals, 0)
            reset = None if reset is None else reset & valid
        xs = zero_padding(xs, lengths)
        mesh = jax.sharding.get_abstract_mesh()
        time_is_split = sharding.automatic_axes(mesh).intersection(sharding.ACTIVATION_AXES["time"])
        run = self._run if time_is_split else self._run_in_chunks
        carried, ys = run(carried, _Steps(xs, _not_negative(intervals), reset))
        return carried, zero_padding(self._skip(xs, ys), lengths)

    def step(
        self,
        x: Float[Array, "*batch idim"],
        state: Planar,
        *,
        interval: Float[Array, "*batch"] | None = None,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[Planar, Float[Array, "*batch odim"]]:
        """One step of time, after an `interval` as a call has them."""
        if interval is None:
            return super().step(x, state, key=key)
        check_features(self, x, self.idim)
        state = checked_state(self, state, x.shape[:-1], x.dtype)
        interval = _not_negative(_with_shape(interval, x.shape[:-1]))
        decay, drive = self._drive(x, interval)
        state = Planar(*(h + u for h, u in zip(multiply(decay, state), drive, strict=True)))
        return state, self._skip(x, self._output(state).astype(x.dtype))

    def discretise(self) -> tuple[Planar, Planar, Planar]:
        decay, gain = self._discretise(jnp.ones((), jnp.float32))
        b = multiply(Planar(gain.re[:, None], gain.im[:, None]), Planar(self.b_re, self.b_im))
        c = scale(Planar(at_least_float32(self.c_re), at_least_float32(self.c_im)), 2)
        return decay, b, c

    def _discretise(self, interval: Float[Array, "*axes"]) -> tuple[Planar, Planar]:
        """The decay and the gain, "*axes state", of a step after such an interval."""
        eigenvalue = Planar(at_least_float32(self.lambda_re), at_least_float32(self.lambda_im))
        if self.clip_eigenvalues:
            eigenvalue = eigenvalue._replace(re=jnp.minimum(eigenvalue.re, _LARGEST_REAL_PART))
        step = self.step_rescale * bounded_exp(at_least_float32(self.log_step))
        transform = zero_order_hold if self.discretisation == "zoh" else bilinear
        decay, gain = transform(eigenvalue, step * interval[..., None])
        if self.clip_eigenvalues:
            decay = limit_magnitude(decay)
        return decay, gain

    def _drive(
        self, u: Float[Array, "*axes idim"], interval: Float[Array, "*axes"]
    ) -> tuple[Planar, Planar]:
        """The decay of a step, and what its input adds to the state."""
        decay, gain = self._discretise(interval)
        # The largest decay below one is for steps that take time.
        moves = interval[..., None] > 0
        decay = Planar(jnp.where(moves, decay.re, 1), jnp.where(moves, decay.im, 0))
        u = u.astype(decay.dtype)
        return decay, multiply(gain, Planar(u @ self.b_re.T, u @ self.b_im.T))

    def _output(self, h: Planar) -> Float[Array, "*axes odim"]:
        return 2 * (h.re @ self.c_re.T - h.im @ self.c_im.T)

    def _run(self, state: Planar, steps: _Steps) -> tuple[Planar, Float[Array, "*batch time odim"]]:
        decay, drive = self._drive(steps.u, steps.interval)
        hs, last = sharding.linear_scan(decay, drive, state, reset=steps.reset)
        return cast(Planar, last), self._output(cast(Planar, hs)).astype(steps.u.dtype)

    def _run_in_chunks(
        self, state: Planar, steps: _Steps
    ) -> tuple[Planar, Float[Array, "*batch time odim"]]:
        *batch_shape, time = steps.interval.shape
        rank, chunks = len(batch_shape), -(-time // max(_CHUNK, math.isqrt(time)))
        chunk = -(-time // chunks)
        missing = chunks * chunk - time

        def to_chunks(x: Array) -> Array:
            # Filled up with intervals of zero, after which the state is what it was.
            x = jnp.pad(x, [(0, missing) if axis == rank else (0, 0) for axis in range(x.ndim)])
            x = x.reshape(*batch_shape, chunks, chunk, *x.shape[rank + 1 :])
            return jnp.moveaxis(x, rank, 0)

        state, steps = vary_alike((state, jax.tree.map(to_chunks, steps)))
        # Inside a scan nothing can be merged with the recomputation, so no barrier is needed.
        run = jax.checkpoint(lambda state, steps: self._run(state, steps), prevent_cse=False)
        state, ys = lax.scan(run, state, steps)
        ys = jnp.moveaxis(ys, 0, rank).reshape(*batch_shape, time + missing, self.odim)
        return state, ys[..., :time, :]


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


def _with_shape(intervals: Any, shape: tuple[int, ...]) -> Float[Array, "*axes"]:
    """Intervals, at least float32. Raises unless they are real numbers of that shape."""
    intervals = jnp.asarray(intervals)
    if not jnp.issubdtype(intervals.dtype, jnp.floating):
        raise TypeError(f"S5: intervals must be real numbers; got {intervals.dtype}.")
    if intervals.shape != shape:
        raise ValueError(
            f"S5: intervals must be one a step, of shape {shape}; got shape {intervals.shape}."
        )
    return at_least_float32(intervals)


def _not_negative(intervals: Float[Array, "*axes"]) -> Float[Array, "*axes"]:
    """Raises where one is known to be negative; those that nobody knows are clipped."""
    if not isinstance(intervals, Tracer) and np.any(np.asarray(intervals) < 0):
        least = np.nanmin(np.asarray(intervals))
        raise ValueError(
            f"S5: intervals are times from step to step and at least 0; got {least}. Of times of "
            "sorted steps they are the differences."
        )
    return jnp.maximum(intervals, 0)


def _check_choice(name: str, value: str, choices: Any) -> None:
    allowed = get_args(choices.__value__)
    if value not in allowed:
        raise ValueError(f"S5: {name} must be one of {', '.join(allowed)}; got {value!r}.")
