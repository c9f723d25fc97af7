"""Halo exchange: the few time steps that a device needs from its neighbour's part of a sequence."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Shaped

from rnnscale.sharding._on_mesh import Specs, differentiable_on_mesh
from rnnscale.sharding._rules import activation_spec
from rnnscale.sharding._time import _SEQ, join_time, split_time, time_parts


def shift(
    x: Shaped[Array, "*axes"],
    steps: int,
    *,
    time_axis: int = -1,
    edge: ArrayLike | None = None,
) -> Shaped[Array, "*axes"]:
    """Shift `x` along time: what was at `t` is at `t + steps` afterwards.

    Over a mesh with `seq` above 1, each device sends `|steps|` steps to its neighbour, in one
    collective-permute. Its size does not depend on the length of the sequence.

    ```python
    from rnnscale.sharding import shift

    targets = shift(tokens, -1)      # the next token; the last token of a row has none
    lengths = jnp.full((2,), 11)     # so the last step does not count
    ```

    **Arguments:**

    - `x`: numbers or booleans. The axes before the time axis are batch axes, of which the first
        is split over `data` and `fsdp`.
    - `steps`: the number of steps, positive to a later time, negative to an earlier one; at most
        the number of steps that a device holds.
    - `time_axis`: the axis of time: -1 for tokens, -2 for features.
    - `edge`: the values shifted in at the border: a number, or an array of the shape of `x` with
        `|steps|` steps. Zero by default.

    **Returns:** an array with the shape and dtype of `x`.

    **Raises:** `ValueError` if `x` has no axis `time_axis`, or if a device holds fewer than
    `|steps|` steps; `TypeError` if the dtype of `x` can't represent `edge`.
    """
    x = jnp.asarray(x)
    edge = jnp.zeros((), x.dtype) if edge is None else edge
    if jnp.result_type(x, edge) != x.dtype:
        raise TypeError(f"edge must have the dtype of x, {x.dtype}; got {jnp.result_type(edge)}")
    if isinstance(edge, int) and jnp.issubdtype(x.dtype, jnp.integer):
        info = jnp.iinfo(x.dtype)
        if not info.min <= edge <= info.max:
            raise TypeError(f"edge must have the dtype of x, {x.dtype}; got {edge}")
    if not -x.ndim <= time_axis < x.ndim:
        raise ValueError(f"time_axis={time_axis} is not an axis of an array of shape {x.shape}")
    axis, size = time_axis % x.ndim, abs(steps)
    parts = time_parts(x.shape[axis])
    check_halo("shift", size, x.shape[axis], parts)
    if size == 0:
        return x
    edge = jnp.broadcast_to(
        jnp.asarray(edge, x.dtype), (*x.shape[:axis], size, *x.shape[axis + 1 :])
    )
    split = split_time(x, parts, time_axis=axis)
    within = axis + 1
    if steps > 0:
        rest, ends = jnp.split(split, [split.shape[within] - size], axis=within)
        pieces = [from_neighbour(ends, edge, parts_axis=axis), rest]
    else:
        ends, rest = jnp.split(split, [size], axis=within)
        pieces = [rest, from_neighbour(ends, edge, parts_axis=axis, later=True)]
    return join_time(jnp.concatenate(pieces, axis=within), time_axis=axis)


def from_neighbour(
    ends: Shaped[Array, "..."],
    edge: Shaped[Array, "..."],
    *,
    parts_axis: int,
    later: bool = False,
) -> Shaped[Array, "..."]:
    """For each part of time, the `ends` of its neighbour, by one collective-permute.

    **Arguments:**

    - `ends`: the steps at the border of each part, "*batch parts ...".
    - `edge`: the same without the axis of parts, for the part that has no neighbour.
    - `parts_axis`: the axis of parts in `ends`.
    - `later`: false takes from the part before, true from the part after in time.

    **Returns:** an array like `ends`.
    """
    edge = jnp.expand_dims(edge, parts_axis)
    parts = ends.shape[parts_axis]
    if parts == 1:
        return edge
    mesh = jax.sharding.get_abstract_mesh()
    leading = ("batch", *(None,) * (parts_axis - 1))[:parts_axis]
    trailing = (None,) * (ends.ndim - parts_axis - 1)
    unsplit = activation_spec((*leading, None, *trailing), edge.shape, mesh)
    split = activation_spec((*leading, "time", *trailing), ends.shape, mesh)

    # Pairs (source, destination) of the permutes in the forward and in the backward pass.
    to_next = [(i, i + 1) for i in range(parts - 1)]
    to_previous = [(i + 1, i) for i in range(parts - 1)]
    send, send_back = (to_previous, to_next) if later else (to_next, to_previous)

    def at_border() -> Array:
        return lax.axis_index(_SEQ) == (parts - 1 if later else 0)

    def forward(primals: tuple) -> tuple[tuple, tuple]:
        ends, edge = primals
        return (jnp.where(at_border(), edge, lax.ppermute(ends, _SEQ, send)),), ()

    def transpose(primals: tuple, outputs: tuple, cotangents: tuple) -> tuple:
        (g,) = cotangents
        if g is None:
            return None, None
        zero = jnp.zeros_like(g)
        g_ends = lax.ppermute(jnp.where(at_border(), zero, g), _SEQ, send_back)
        return g_ends, jnp.where(at_border(), g, zero)

    specs = Specs((split, unsplit), (split,), (), ((),))
    (received,) = differentiable_on_mesh(forward, transpose, (ends, edge), lambda _: specs)
    return received


def check_halo(owner: str, size: int, time: int, parts: int) -> None:
    """**Raises:** `ValueError`, naming `owner`, if a part of time has fewer than `size` steps."""
    held = time // parts
    if size > held:
        split = f", split over {_SEQ}={parts}" if parts > 1 else ""
        raise ValueError(
            f"{owner} reaches over {size} steps, but a device holds {held} of the {time} steps"
            f"{split}: use longer sequences, or fewer devices on {_SEQ}"
        )
