"""The forms of arrays around the fused kernel: public, in device memory, and as threads hold them.

In device memory states are "row segment planes state". The states of a program, "planes lane", are
one block of the states of its segments, side by side, with one state for each of the 128 threads.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .._algebra import cast, conjugate
from ._mosaic_gpu_plan import LANES, TILE, WIDTH, Plan, Segments, padded_time, padded_width
from ._recurrence import stack, unstack


class System(NamedTuple):
    """h_t = decay h_{t-1} + into x_t, y_t = out h_t, with planes stacked and widths padded.

    - `decay`: "planes state".
    - `into`: "input planes state".
    - `out`: "planes state output".
    """

    decay: Any
    into: Any
    out: Any

    @classmethod
    def of(cls, decay, b, c, states: int, dtype) -> "System":
        """The system with these maps, with `states` states."""
        (state, inputs), (outputs, _) = b.shape, c.shape
        extra_states = 0, states - state
        extra_inputs, extra_outputs = ((0, -n % WIDTH) for n in (inputs, outputs))
        into = jnp.moveaxis(stack(b, 0), -1, 0).astype(dtype)
        # Re(C h) = C_re h_re - C_im h_im: the planes of the conjugate.
        out = jnp.swapaxes(stack(conjugate(c), 0), -1, -2).astype(dtype)
        return cls(
            jnp.pad(stack(decay, 0).astype(jnp.float32), [(0, 0), extra_states]),
            jnp.pad(into, [extra_inputs, (0, 0), extra_states]),
            jnp.pad(out, [(0, 0), extra_states, extra_outputs]),
        )

    @classmethod
    def adjoint_of(cls, decay, b, c, states: int, dtype) -> "System":
        """The system of the cotangents of the states, which takes cotangents of y to those of u."""
        b, c = (jax.tree.map(jnp.transpose, conjugate(x)) for x in (b, c))
        return cls.of(conjugate(decay), c, b, states, dtype)


def fold_state(plan: Segments, x, leading: int = 0):
    """A public state, "*leading *batch state", as "row *leading planes state"."""
    x = stack(x, -2).astype(jnp.float32)
    *shape, planes, state = x.shape
    x = x.reshape(*shape[:leading], plan.rows, planes, state)
    x = jnp.moveaxis(x, leading, 0)
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, plan.states - state)])


def unfold_state(plan: Segments, x, like):
    """The inverse, for `x` "*leading row planes state"."""
    *batch, state = like.shape
    x = x[..., :state].reshape(*x.shape[:-3], *batch, plan.planes, state)
    return cast(unstack(x, -2), like.dtype)


def by_segment(plan: Segments, x):
    """ "row time" as "row segment step"."""
    padding = plan.segments * plan.length - plan.steps
    return jnp.pad(x, [(0, 0), (0, padding)]).reshape(plan.rows, plan.segments, plan.length)


def padded_sequence(x):
    """ "row time width", padded to sizes that TMA takes."""
    _, steps, width = x.shape
    padding = (0, padded_time(steps) - steps), (0, padded_width(width) - width)
    return jnp.pad(x, [(0, 0), *padding])


def to_lanes(plan: Plan, x):
    """States in device memory as threads hold them: "program block planes lane"."""
    x = _fill_places(plan, x.reshape(-1, *x.shape[2:]))
    x = x.reshape(plan.programs, plan.group, plan.planes, plan.blocks, plan.block)
    return x.transpose(0, 3, 2, 1, 4).reshape(plan.programs, plan.blocks, plan.planes, LANES)


def from_lanes(plan: Plan, x):
    """The inverse of `to_lanes`."""
    x = x.reshape(plan.programs, plan.blocks, plan.planes, plan.group, plan.block)
    x = x.transpose(0, 3, 2, 1, 4).reshape(-1, plan.planes, plan.states)
    shape = (plan.rows, plan.segments, plan.planes, plan.states)
    return x[: plan.rows * plan.segments].reshape(shape)


def by_block(plan: Plan, x):
    """The last two axes, "planes state", as one axis, with an axis for the blocks in front."""
    x = x.reshape(*x.shape[:-1], plan.blocks, plan.block)
    x = jnp.moveaxis(x, -2, 0)
    return x.reshape(*x.shape[:-2], plan.planes * plan.block)


def cut_bits(plan: Plan, cut):
    """Cuts as threads take them, 32 steps in a word: "program tile word lane"."""
    bits = _fill_places(plan, by_segment(plan, cut).reshape(-1, plan.length))
    shape = (plan.programs, plan.group, plan.tiles, TILE // 32, 32)
    bits = bits.reshape(shape).astype(jnp.uint32)
    words = jnp.sum(bits << jnp.arange(32, dtype=jnp.uint32), -1, dtype=jnp.uint32)
    words = lax.bitcast_convert_type(jnp.moveaxis(words, 1, -1), jnp.int32)
    return jnp.repeat(words, plan.block, axis=-1)


def last_in_segments(plan: Plan, last):
    """For every place of a segment, the index of the step `last` of its row, "row", within the
    segment; -1 if it is not in the segment."""
    step = last[:, None] - plan.length * jnp.arange(plan.segments)
    step = jnp.where((step >= 0) & (step < plan.length), step, -1).reshape(-1)
    return _fill_places(plan, step.astype(jnp.int32), -1)


def _fill_places(plan: Plan, x, value=0):
    """ "segment ..." with an entry for every place of a segment in the programs."""
    padding = [(0, plan.vacant)] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x, padding, constant_values=value)
