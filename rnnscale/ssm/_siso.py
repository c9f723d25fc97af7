"""Many single-input, single-output diagonal systems at once, in chunks of time.

Features have states of their own, so the states of all steps would take `modes` times the memory of
the inputs. Here only those at the borders of chunks are held: with chunks of about twice as many
steps as there are modes, they take as much memory as the inputs.
"""

import math
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from rnnscale import sharding
from rnnscale._base import state_dtype
from rnnscale.ssm._discretise import multiply
from rnnscale_kernels import Planar

_EXACT = lax.Precision.HIGHEST

# The most steps in a chunk; half of it with resets, where lags are computed one after another.
# Longer chunks have fewer states at borders, but need more products (`python -m benchmarks s4d`).
_CHUNK = 64


def scan_features(
    u: Float[Array, "*batch time idim"],
    decay: Planar,
    b: Planar,
    c: Planar,
    h0: Planar,
    *,
    reset: Bool[Array, "*batch time"] | None = None,
    lengths: Int[Array, "*batch"] | None = None,
) -> tuple[Planar, Float[Array, "*batch time idim"]]:
    r"""$h_t = \bar\lambda \odot h_{t-1} + \bar b\, u_t$, $y_t = \mathrm{Re} \sum_n c_n h_{t,n}$ for
    each feature on its own.

    In a chunk, with $K_l = \mathrm{Re} \sum_n c_n \bar\lambda_n^l \bar b_n$,

    $$y_t = \sum_{s \le t} K_{t-s} u_s + \mathrm{Re} \sum_n c_n \bar\lambda_n^{t+1} h_n$$

    for the state $h$ that enters it. Those states are a linear recurrence over the chunks, which
    `rnnscale.sharding.linear_scan` runs, also over a mesh that splits time.

    **Arguments:**

    - `u`: the inputs, zero beyond `lengths`; at least one step.
    - `decay`, `b`, `c`: "idim modes".
    - `h0`: the state before the first step, "*batch idim modes".
    - `reset`, `lengths`: as in a call of a sequence layer.

    **Returns:** `(last state, outputs)`; the outputs have the dtype of `u`.
    """
    *batch, time, idim = u.shape
    rank = len(batch)
    count, size = _chunks(time, _CHUNK if reset is None else _CHUNK // 2)
    if count * size > time and lengths is None:
        lengths = jnp.full(batch, time)
    start = None
    if reset is not None:
        valid = True if lengths is None else jnp.arange(time) < lengths[..., None]
        start = _split(reset & valid, count, size, rank)
    u = _split(u, count, size, rank)
    decays = _powers(decay, size)

    # 1. The states at the borders: what a chunk adds to the state, and the scan over the chunks.
    inputs = multiply(jax.tree.map(lambda x: x[size - 1 :: -1], decays), b)
    added = _flat(_added(u, inputs, start))
    cut = None if start is None else jnp.any(start, axis=-1)
    whole = _flat(jax.tree.map(lambda x: x[size], decays))
    leaving, last = sharding.linear_scan(whole, added, _flat(h0), reset=cut)
    leaving, last = cast(Planar, leaving), cast(Planar, last)
    entering = Planar(
        *(
            sharding.shift(h, 1, time_axis=-2, edge=edge[..., None, :])
            for h, edge in zip(leaving, _flat(h0), strict=True)
        )
    )
    if lengths is None:
        last = _unflat(last, idim)
    else:
        last = _state_at(lengths, u, start, entering, inputs, decays)

    # 2. The outputs, from the state that enters the chunk and from its inputs.
    outputs = multiply(jax.tree.map(lambda x: x[1:], decays), c)
    ys = _read(_unflat(entering, idim), outputs, u.dtype)
    if start is not None:
        ys = jnp.where((jnp.cumsum(start, axis=-1) == 0)[..., None], ys, 0)
    kernel = _kernel(decays, multiply(b, c), size)
    ys = ys + (_convolve(kernel, u) if start is None else _convolve_segments(kernel, u, start))
    ys = sharding.join_time(ys.astype(u.dtype), time_axis=rank)
    return last, lax.slice_in_dim(ys, 0, time, axis=rank)


def _chunks(time: int, longest: int) -> tuple[int, int]:
    """The number of chunks, and their steps. All devices of `seq` have equally many chunks."""
    missing = sharding.TimeAxis.of_mesh(reverse=False).missing_steps(time)
    parts = sharding.time_parts(time + missing)
    steps = -(-time // parts)
    fewest = -(-steps // longest)
    # Chunks that divide the steps need no padding.
    dividing = (n for n in range(fewest, 3 * fewest + 1) if steps % n == 0)
    count = next(dividing, fewest)
    return parts * count, -(-steps // count)


def _split(x: Array, count: int, size: int, axis: int) -> Array:
    """From "*batch time ..." to "*batch chunk step ...", padded with zeros."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, count * size - x.shape[axis])
    return sharding.split_time(jnp.pad(x, widths), count, time_axis=axis)


def _powers(decay: Planar, most: int) -> Planar:
    """The decay to the powers 0 to `most`, "power idim modes": products of the powers below `radix`
    and of multiples of it, so that rounding errors grow with the root of the power."""
    radix = math.isqrt(most) + 1

    def first(x: Planar) -> list[Planar]:
        found = [Planar(jnp.ones_like(x.re), jnp.zeros_like(x.im)), x]
        while len(found) <= radix:
            found.append(multiply(found[-1], x))
        return found

    def stack(xs: list[Planar]) -> Planar:
        return jax.tree.map(lambda *x: jnp.stack(x), *xs)

    ones = first(decay)
    low, high = stack(ones[:radix]), stack(first(ones[radix]))
    products = multiply(jax.tree.map(lambda x: x[:, None], high), low)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[: most + 1], products)


def _added(
    u: Float[Array, "*rows step idim"], inputs: Planar, start: Bool[Array, "*rows step"] | None
) -> Planar:
    """What the inputs of a chunk add to the state at its end, "*rows idim modes"."""
    if start is not None:
        later = jnp.flip(jnp.cumsum(jnp.flip(start, -1), axis=-1), -1) - start
        u = jnp.where((later == 0)[..., None], u, 0)
    weights = jnp.stack(inputs, axis=-2)
    sums = _product("...sh,shpm->...hpm", u, weights, u.dtype)
    return Planar(sums[..., 0, :], sums[..., 1, :])


def _read(h: Planar, outputs: Planar, dtype: Any) -> Float[Array, "*rows step idim"]:
    """What the state that enters a chunk adds to its outputs."""
    weights = jnp.stack([outputs.re, -outputs.im], axis=-2)
    return _product("...hpm,thpm->...th", jnp.stack(h, axis=-2), weights, dtype)


def _kernel(decays: Planar, gain: Planar, size: int) -> Float[Array, "step idim"]:
    """The response to an impulse."""
    powers = jax.tree.map(lambda x: x[:size], decays)
    re, im = (
        jnp.einsum("lhm,hm->lh", power, each, precision=_EXACT)
        for power, each in zip(powers, gain, strict=True)
    )
    return re - im


def _convolve(
    kernel: Float[Array, "step idim"], u: Float[Array, "*rows step idim"]
) -> Float[Array, "*rows step idim"]:
    steps = np.arange(kernel.shape[0])
    lag = steps[:, None] - steps
    weights = jnp.where((lag >= 0)[..., None], kernel[np.maximum(lag, 0)], 0)
    return _product("...sh,tsh->...th", u, weights, u.dtype)


def _convolve_segments(
    kernel: Float[Array, "step idim"],
    u: Float[Array, "*rows step idim"],
    start: Bool[Array, "*rows step"],
) -> Float[Array, "*rows step idim"]:
    """As `_convolve`, within segments: one lag after another, and nothing of earlier segments."""
    wide = state_dtype(u.dtype)
    kernel = kernel.astype(u.dtype).astype(wide)
    steps = jnp.arange(u.shape[-2])
    first = lax.cummax(jnp.where(start, steps, 0), axis=start.ndim - 1)
    age = steps - first

    def add(total: Array, lag: Array) -> tuple[Array, None]:
        # A `where`, not a product: inputs before a reset may be NaN.
        past = jnp.where((lag <= age)[..., None], jnp.roll(u, lag, axis=-2), 0)
        return total + kernel[lag] * past.astype(wide), None

    # Without the checkpoint, the inputs of every lag would be kept for the backward pass.
    add = jax.checkpoint(add, prevent_cse=False)
    return lax.scan(add, jnp.zeros(u.shape, wide), steps)[0]


def _state_at(
    lengths: Int[Array, "*batch"],
    u: Float[Array, "*batch chunk step idim"],
    start: Bool[Array, "*batch chunk step"] | None,
    entering: Planar,
    inputs: Planar,
    decays: Planar,
) -> Planar:
    """The state after `lengths` steps of each row, from the one that enters the last chunk."""
    *batch, count, size, idim = u.shape
    chunk = jnp.maximum(lengths - 1, 0) // size
    steps = lengths - chunk * size
    # The steps of that chunk, moved so that the last one comes last.
    source = jnp.arange(size) - (size - steps)[..., None]

    def of_chunk(x: Array) -> Array:
        steps = x.reshape(*batch, count, size * x.shape[-1])
        x = sharding.take_step(steps, chunk).reshape(*batch, size, x.shape[-1])
        x = jnp.take_along_axis(x, jnp.maximum(source, 0)[..., None], axis=-2)
        return jnp.where((source >= 0)[..., None], x, 0)

    begins = None if start is None else of_chunk(start[..., None].astype(jnp.int32))[..., 0] > 0
    h = _unflat(jax.tree.map(lambda x: sharding.take_step(x, chunk), entering), idim)
    h = multiply(jax.tree.map(lambda x: x[steps], decays), h)
    if begins is not None:
        goes_on = ~jnp.any(begins, axis=-1)[..., None, None]
        h = jax.tree.map(lambda x: jnp.where(goes_on, x, 0), h)
    return jax.tree.map(jnp.add, h, _added(of_chunk(u), inputs, begins))


def _product(axes: str, x: Array, weights: Array, dtype: Any) -> Array:
    """The product of factors in `dtype`, in float32 at least."""
    wide = state_dtype(dtype)
    return jnp.einsum(axes, x.astype(dtype), weights.astype(dtype), preferred_element_type=wide)


def _flat(h: Planar) -> Planar:
    """From "*rows idim modes" to "*rows state"."""
    return jax.tree.map(lambda x: x.reshape(*x.shape[:-2], math.prod(x.shape[-2:])), h)


def _unflat(h: Planar, idim: int) -> Planar:
    return jax.tree.map(lambda x: x.reshape(*x.shape[:-1], idim, x.shape[-1] // idim), h)
