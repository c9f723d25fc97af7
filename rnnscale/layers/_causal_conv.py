"""`CausalConv`, a short convolution over time, also over a mesh that splits time."""

import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from rnnscale import sharding
from rnnscale._base import (
    CausalLayer,
    at_least_float32,
    check_call,
    check_step,
    state_dtype,
    zero_padding,
)
from rnnscale._checks import BatchShape, FloatDType, Size, Width, check_arguments
from rnnscale._fields import parameter


class CausalConv(CausalLayer):
    r"""A weighted sum of the last `width` values of each feature:

    $$y_t = \sum_{j=0}^{w-1} W_j \odot x_{t-j} + b$$

    H3, Hyena, Griffin and Mamba have such a layer before the recurrence. Values before a reset
    count as zero. The state is the last `width - 1` inputs, at least float32.

    Over a mesh that splits time, each device sends its last `width - 1` inputs to the next, in one
    collective-permute for sequences of any length. If `seq` does not divide the length, every
    device computes all steps.

    The weights start uniform within $\pm 1 / \sqrt{w}$, the bias at zero.
    """

    weight: Float[Array, "idim width"] = parameter()
    bias: Float[Array, "idim"] | None = parameter(group="bias")
    idim: int = eqx.field(static=True)
    odim: int = eqx.field(static=True)
    width: int = eqx.field(static=True)

    @check_arguments
    def __init__(self, idim: Size, width: Width = 4, *, use_bias: bool = True, key: PRNGKeyArray):
        """**Arguments:**

        - `idim`: features of the input, and of the output.
        - `width`: the number of steps that an output depends on, including its own; at least 2.
            Time and memory grow with it.
        - `use_bias`: whether there is a bias.
        - `key`: for the initial weights.

        **Raises:** `TypeError` if an argument has another kind, `ValueError` if `idim` is below 1
        or `width` below 2.
        """
        bound = 1 / math.sqrt(width)
        self.weight = jax.random.uniform(key, (idim, width), jnp.float32, -bound, bound)
        self.bias = jnp.zeros((idim,), jnp.float32) if use_bias else None
        self.idim = self.odim = idim
        self.width = width

    def __call__(
        self,
        xs: Float[Array, "*batch time idim"],
        state: Float[Array, "*batch past idim"] | None = None,
        *,
        reset: Bool[Array, "*batch time"] | None = None,
        lengths: Int[Array, "*batch"] | None = None,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[Float[Array, "*batch past idim"], Float[Array, "*batch time idim"]]:
        past, lengths = check_call(self, xs, state, reset, lengths, key)
        batch_shape, time = xs.shape[:-2], xs.shape[-2]
        xs = zero_padding(xs, lengths)
        if time == 0:
            return past, xs
        rank, size = len(batch_shape), self.width - 1
        parts = sharding.time_parts(time)
        if parts > 1:
            sharding.check_halo("CausalConv", size, time, parts)
        if reset is None:
            reset = jnp.zeros((*batch_shape, time), bool)
        xs = sharding.split_time(xs, parts, time_axis=rank)
        # Steps before a part belong to the part's segment 0.
        segments = jnp.cumsum(sharding.split_time(reset, parts, time_axis=rank), axis=-1)
        segments = jnp.pad(segments, [(0, 0)] * (rank + 1) + [(size, 0)])

        # For the next part, only steps after this part's last reset count.
        ends = _of_last_segment(xs[..., -size:, :], segments[..., size:][..., -size:])
        before = sharding.from_neighbour(ends, past.astype(xs.dtype), parts_axis=rank)
        xs = jnp.concatenate([before, xs], axis=-2)

        gathered = sharding.gathered(self)
        ys = jax.checkpoint(_convolve)(gathered.weight, gathered.bias, xs, segments)
        last = _at_ends(xs, segments, size, lengths)
        ys = zero_padding(sharding.join_time(ys, time_axis=rank), lengths)
        return last.astype(past.dtype), ys

    def step(
        self,
        x: Float[Array, "*batch idim"],
        state: Float[Array, "*batch past idim"],
        *,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[Float[Array, "*batch past idim"], Float[Array, "*batch idim"]]:
        state = check_step(self, x, state, key)
        xs = jnp.concatenate([state, x[..., None, :].astype(state.dtype)], axis=-2)
        y = _weighted_sum(self.weight, self.bias, list(jnp.moveaxis(xs.astype(x.dtype), -2, 0)))
        return xs[..., 1:, :], y

    @check_arguments
    def init_state(
        self, batch_shape: BatchShape = (), dtype: FloatDType | None = None
    ) -> Float[Array, "*batch past idim"]:
        return jnp.zeros((*batch_shape, self.width - 1, self.idim), state_dtype(dtype))


def _convolve(
    weight: Float[Array, "idim width"],
    bias: Float[Array, "idim"] | None,
    xs: Float[Array, "*rows past_and_time idim"],
    segments: Int[Array, "*rows past_and_time"],
) -> Float[Array, "*rows time idim"]:
    width = weight.shape[-1]
    time = xs.shape[-2] - (width - 1)
    own = segments[..., width - 1 :]

    def shifted(start: int) -> Array:
        # A `where`, not a product: values before a reset may be NaN.
        same = segments[..., start : start + time] == own
        return jnp.where(same[..., None], xs[..., start : start + time, :], 0)

    return _weighted_sum(weight, bias, [shifted(start) for start in range(width)])


def _weighted_sum(
    weight: Float[Array, "idim width"],
    bias: Float[Array, "idim"] | None,
    values: list[Float[Array, "*axes idim"]],
) -> Float[Array, "*axes idim"]:
    """The sum of `values`, oldest first; the last column of `weight` belongs to the oldest."""
    dtype = values[0].dtype
    columns = at_least_float32(weight.astype(dtype)).T[::-1]
    terms = [column * at_least_float32(x) for column, x in zip(columns, values, strict=True)]
    if bias is not None:
        terms.insert(0, at_least_float32(bias.astype(dtype)))
    return functools.reduce(jnp.add, terms).astype(dtype)


def _of_last_segment(
    xs: Float[Array, "*rows time idim"], segments: Int[Array, "*rows time"]
) -> Float[Array, "*rows time idim"]:
    return jnp.where((segments == segments[..., -1:])[..., None], xs, 0)


def _at_ends(
    xs: Float[Array, "*batch parts past_and_time idim"],
    segments: Int[Array, "*batch parts past_and_time"],
    size: int,
    lengths: Int[Array, "*batch"] | None,
) -> Float[Array, "*batch past idim"]:
    """The `size` steps before each row's end, with zeros for steps of earlier segments."""
    *batch_shape, parts, steps, idim = xs.shape
    time = steps - size
    part: Array | int = parts - 1
    if lengths is None:
        xs, segments = xs[..., -size:, :], segments[..., -size:]
    else:
        part = jnp.maximum(lengths - 1, 0) // time
        # `take_step` reads them from that part only.
        steps = (lengths - part * time)[..., None, None] + jnp.arange(size)
        segments = jnp.take_along_axis(segments, steps, axis=-1)
        xs = jnp.take_along_axis(xs, steps[..., None], axis=-2)
    ends = _of_last_segment(xs, segments).reshape(*batch_shape, parts, size * idim)
    return sharding.take_step(ends, part).reshape(*batch_shape, size, idim)
