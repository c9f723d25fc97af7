"""The recurrence of a running maximum that decays, which stabilises exponential gates."""

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from rnnscale.sharding._on_mesh import Specs, differentiable_on_mesh
from rnnscale.sharding._ops import missing_steps, pad_steps, split_axes
from rnnscale.sharding._rules import automatic_axes
from rnnscale.sharding._time_axis import TimeAxis
from rnnscale_kernels import check_reset, checked_lengths
from rnnscale_kernels.linear_scan import previous

type _Map = tuple[Array, Array, Array]
"""`(a, b, cut)`: the map from a state h to max(a + h, b), or to b where `cut` is true."""


def max_plus_scan(
    a: Float[Array, "*batch time heads"],
    b: Float[Array, "*batch time heads"],
    h0: Float[Array, "*batch heads"] | None = None,
    *,
    reset: Bool[Array, "*batch time"] | None = None,
    lengths: Int[Array, "*batch"] | None = None,
) -> tuple[Float[Array, "*batch time heads"], Float[Array, "*batch heads"]]:
    """The recurrence h_t = max(a_t + h_{t-1}, b_t), on the ambient mesh. It has no gradient.

    With the logarithms of a forget gate and of an input gate, h is the stabiliser of an mLSTM. The
    states *before* each step are returned. From these the caller computes
    `h = max(a + before, b)`, `a + before - h` and `b - h`, which then are at most 0 in floating
    point too.

    The leading batch axis is split over `data` and `fsdp`, heads over `tensor`, and time over
    `seq`, with one all-gather of two numbers for each row and head and a flag for each row.

    **Arguments:**

    - `a`, `b`: what is added to the state, and what it is compared with.
    - `h0`: the state before the first step. Zero if absent.
    - `reset`: true where a segment starts. The state before such a step is zero, whatever came
        before it.
    - `lengths`: the number of valid steps of each row, from 0 to `time`. The steps beyond keep the
        state.

    **Returns:** the pair `(before, last)`: the state before each step, and the state after each
    row's own last step, in at least float32.

    **Raises:** `TypeError` or `ValueError` if dtypes or shapes do not fit together; `ValueError` if
    there are fewer steps than devices of `seq`.
    """
    *batch, time, heads = a.shape
    if b.shape != a.shape:
        raise ValueError(f"max_plus_scan: a has shape {a.shape}, but b has shape {b.shape}")
    dtype = jnp.promote_types(jnp.result_type(a, b), jnp.float32)
    h0 = jnp.zeros((*batch, heads), dtype) if h0 is None else h0.astype(dtype)
    check_reset(reset, (*batch, time))
    reset = jnp.zeros((*batch, time), bool) if reset is None else reset
    if lengths is not None:
        valid = jnp.arange(time) < checked_lengths(lengths, tuple(batch), time)[..., None]
        a = jnp.where(valid[..., None], a, 0)
        b = jnp.where(valid[..., None], b, -jnp.inf)
        reset = reset & valid
    if time == 0:
        return a.astype(dtype), h0
    # A reset step starts from zero.
    b = jnp.where(reset[..., None], jnp.maximum(a, b), b)
    mesh = jax.sharding.get_abstract_mesh()
    if automatic_axes(mesh) and (missing := missing_steps(time, mesh)):
        a, reset = pad_steps(a, missing, axis=-2), pad_steps(reset, missing, axis=-1)
        b = pad_steps(b, missing, axis=-2, value=-jnp.inf)
    axis = TimeAxis.of_mesh(reverse=False)

    def forward(primals: tuple) -> tuple[tuple, tuple]:
        return _on_device(axis, *primals), ()

    def transpose(primals: tuple, outputs: tuple, cotangents: tuple) -> tuple:
        *arrays, _ = primals
        return (*map(jnp.zeros_like, arrays), None)

    def specs(mesh: AbstractMesh) -> Specs:
        row, seq, head = split_axes(a.shape, "heads", a.shape[-1:], mesh)
        steps, states = PartitionSpec(*row, seq, head), PartitionSpec(*row, head)
        return Specs(
            (steps, steps, states, PartitionSpec(*row, seq)), (steps, states), (), ((), ())
        )

    arrays = jax.lax.stop_gradient((a.astype(dtype), b.astype(dtype), h0, reset))
    before, last = differentiable_on_mesh(forward, transpose, arrays, specs)
    return before[..., :time, :], last


def _on_device(axis: TimeAxis, a: Array, b: Array, h0: Array, reset: Array) -> tuple[Array, Array]:
    """The states before the steps that a device holds, and the last one of all devices."""
    to_step = jax.lax.associative_scan(_compose, (a, b, reset[..., None]), axis=-2)
    # The map of all steps of each device, and from these the state that leaves each device.
    a, b, cut = (x[..., -1, :] for x in to_step)
    a, b, cut = axis.gather((a, b, cut.astype(a.dtype)))
    to_device = jax.lax.associative_scan(_compose, (a, b, cut > 0), axis=-2)
    leaving = _apply(to_device, h0)
    entering = axis.before(leaving, h0)
    before = previous(_apply(to_step, entering), entering, reset, reverse=False)
    return before, axis.end(leaving)


def _compose(first: _Map, second: _Map) -> _Map:
    (a, b, cut), (then_a, then_b, then_cut) = first, second
    return a + then_a, jnp.where(then_cut, then_b, jnp.maximum(then_a + b, then_b)), cut | then_cut


def _apply(maps: _Map, state: Array) -> Array:
    """The states "*batch time heads" to which the maps lead from one state "*batch heads"."""
    a, b, cut = maps
    return jnp.where(cut, b, jnp.maximum(a + state[..., None, :], b))
