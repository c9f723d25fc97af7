"""The forms of arrays around the fused kernels for TPUs: public, and as programs see them.

The columns of a *lane block* are one plane of 128 states: lane block `planes q + p` is plane p of
block q of the states. The width of a matrix is the number of columns of all lane blocks.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._algebra import as_number, conjugate, power
from ._mosaic_tpu_plan import LANES, STREAMS, Plan
from ._recurrence import stack, unstack


class Given(NamedTuple):
    """What a kernel reads: arrays in the call, references to blocks of them in the kernel.

    - `x`: the input, "row time input".
    - `into`, `out`: the maps, "input width" and "width output"; `out` may be `None`.
    - `decay`: "lane_block 1 128"; `jump`: its power by the steps of a stream, or `None` if each
        stream is a row.
    - `start`: for each plane, the states that enter the rows, "group row state"; in the backward
        kernel, those that enter the pieces, "piece group row state".
    - `cut`: see `_cut_words`; or `None`.
    - `last`: a step of each row, "group 1 row", none if it is negative; or a Python integer for
        all rows.
    - `g`, `g_last`: the cotangents of the output, "row time output", and of the states at the step
        `last`, for each plane "group row state".
    """

    x: Any
    into: Any
    out: Any
    decay: Any
    jump: Any
    start: Any
    cut: Any
    last: Any
    g: Any = None
    g_last: Any = None


def given_of(plan: Plan, x, decay, b, c, start, cut, last) -> Given:
    """The arguments of a kernel for h_t = decay h_{t-1} + b x_t, y_t = Re(c h_t).

    `x` and `cut` may have any batch axes, `start` and `last` have their final forms; `c` may be
    `None`.
    """
    cut = None if cut is None else cut.reshape(plan.rows, -1)
    jump = None if plan.parts == 1 else power(decay, plan.length)
    return Given(
        x=fold_rows(plan, x),
        into=to_columns(plan, b).astype(x.dtype),
        # Re(c h) = c_re h_re - c_im h_im: the planes of the conjugate.
        out=None if c is None else to_columns(plan, transposed(conjugate(c))).T.astype(x.dtype),
        decay=_by_lane_block(plan, decay),
        jump=None if jump is None else _by_lane_block(plan, jump),
        start=start,
        cut=None if cut is None else _cut_words(plan, cut),
        last=last,
    )


def transposed(x):
    """The transpose of a matrix, plane by plane."""
    return jax.tree.map(jnp.transpose, x)


def fold_rows(plan: Plan, x):
    """A sequence, "*batch time width", with one axis of rows."""
    return x.reshape(plan.rows, *x.shape[-2:])


def fold_state(plan: Plan, x, leading: int = 0) -> list:
    """A public state, "*leading *batch state", plane by plane as "*leading group row state"."""

    def fold(x):
        x = jnp.pad(x.astype(jnp.float32), [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % LANES)])
        return x.reshape(*x.shape[:leading], plan.groups, plan.group, plan.states)

    return [fold(plane) for plane in jax.tree.leaves(x)]


def unfold_state(planes: list, like, leading: int = 0):
    """The inverse, with the batch axes, the number of states and the dtype of `like`."""
    *batch, state = like.shape

    def unfold(x):
        return x.reshape(*x.shape[:leading], *batch, -1)[..., :state].astype(like.dtype)

    return as_number([unfold(plane) for plane in planes])


def to_columns(plan: Plan, matrix):
    """A matrix "state other" as "other width"."""
    x = stack(matrix, 0)
    planes, state, other = x.shape
    x = jnp.pad(x, [(0, 0), (0, plan.states - state), (0, 0)])
    x = x.reshape(planes, plan.blocks, LANES, other)
    return x.transpose(3, 1, 0, 2).reshape(other, plan.width)


def from_columns(plan: Plan, x, state: int):
    """The inverse of `to_columns`, transposed: "other state"."""
    x = x.reshape(-1, plan.blocks, plan.planes, LANES).transpose(2, 0, 1, 3)
    return unstack(x.reshape(plan.planes, -1, plan.states)[..., :state], 0)


def last_steps(plan: Plan, lengths):
    """The last step of each row, as `Given` has it."""
    if lengths is None:
        return plan.steps - 1
    return lengths.reshape(plan.groups, 1, plan.group).astype(jnp.int32) - 1


def _by_lane_block(plan: Plan, decay):
    return to_columns(plan, jax.tree.map(lambda x: x.astype(jnp.float32)[:, None], decay)).reshape(
        -1, 1, LANES
    )


def _cut_words(plan: Plan, cut):
    """Cuts, "row time", as "group piece 1 word".

    There is a word for each step of a stream, with a bit for each stream that is cut there. One
    more word has a bit for each stream that is cut anywhere. Steps beyond the end are cut, so that
    no state grows there.
    """
    beyond = plan.tiles * plan.tile - plan.steps
    cut = jnp.pad(cut, [(0, 0), (0, beyond)], constant_values=True)
    cut = cut.reshape(plan.groups, plan.group, -1, plan.piece).swapaxes(1, 2)
    cut = cut.reshape(plan.groups, -1, STREAMS, plan.length)
    cut = jnp.concatenate([cut, jnp.any(cut, -1, keepdims=True)], -1)
    bits = cut.astype(jnp.int32) << jnp.arange(STREAMS, dtype=jnp.int32)[:, None]
    return jnp.sum(bits, 2, keepdims=True, dtype=jnp.int32)
