"""Steps of time that a device needs of its neighbour's part."""

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
    """`x` moved along time: what was at `t` is at `t + steps`.

    Over a mesh with `seq` above 1, each device sends its outermost steps to its neighbour: one
    collective-permute of so many steps, however long the sequence is. Where `seq` does not divide
    the sequence, every device has all of it.

    ```python
    from rnnscale.sharding import shift

    targets = shift(tokens, -1)      # the next token; the last of a row has none
    lengths = jnp.full((2,), 11)     # so it does not count
    ```

    **Arguments:**

    - `x`: numbers or booleans. Axes before that of time are the batch, the first of which runs over
        `data` and `fsdp`.
    - `steps`: by how many steps, later where positive, earlier where negative; no more than the
        steps that one device holds.
    - `time_axis`: the axis of time: -1 for tokens, -2 for features.
    - `edge`: what comes in at the border: a number, or an array of the shape of `x` with `|steps|`
        steps. By default zero.

    **Returns:** an array of the shape and dtype of `x`.

    **Raises:** `ValueError` where there is no such axis, or `steps` is more than a device holds;
    `TypeError` where `edge` has numbers that `x` can't hold.
    """
    x = jnp.asarray(x)
    edge = jnp.zeros((), x.dtype) if edge is None else edge
    if jnp.result_type(x, edge) != x.dtype:
        raise TypeError(f"edge must be of {x.dtype} as x is; got {jnp.result_type(edge)}")
    if not -x.ndim <= time_axis < x.ndim:
        raise ValueError(f"time_axis={time_axis} is no axis of an array of shape {x.shape}")
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
    ends: Shaped[Array, "*axes"],
    edge: Shaped[Array, "..."],
    *,
    parts_axis: int,
    later: bool = False,
) -> Shaped[Array, "*axes"]:
    """For each part of time, the `ends` of the part before it, and `edge` for the first one; with
    `later`, of the part after it, and `edge` for the last one.

    **Arguments:**

    - `ends`: "*batch parts ...".
    - `edge`: the same without the axis of parts.
    """
    edge = jnp.expand_dims(edge, parts_axis)
    parts = ends.shape[parts_axis]
    if parts == 1:
        return edge
    mesh = jax.sharding.get_abstract_mesh()
    leading = ("batch", *(None,) * (parts_axis - 1))[:parts_axis]
    trailing = (None,) * (ends.ndim - parts_axis - 1)
    whole = activation_spec((*leading, None, *trailing), edge.shape, mesh)
    split = activation_spec((*leading, "time", *trailing), ends.shape, mesh)

    pairs = [(i, i + 1) for i in range(parts - 1)]
    there, back = pairs, [(j, i) for i, j in pairs]
    if later:
        there, back = back, there

    def at_border() -> Array:
        return lax.axis_index(_SEQ) == (parts - 1 if later else 0)

    def forward(primals: tuple) -> tuple[tuple, tuple]:
        ends, edge = primals
        return (jnp.where(at_border(), edge, lax.ppermute(ends, _SEQ, there)),), ()

    def transpose(primals: tuple, outputs: tuple, cotangents: tuple) -> tuple:
        (g,) = cotangents
        if g is None:
            return None, None
        zero = jnp.zeros_like(g)
        sent = lax.ppermute(jnp.where(at_border(), zero, g), _SEQ, back)
        return sent, jnp.where(at_border(), g, zero)

    specs = Specs((split, whole), (split,), (), ((),))
    (received,) = differentiable_on_mesh(forward, transpose, (ends, edge), lambda _: specs)
    return received


def check_halo(owner: str, size: int, time: int, parts: int) -> None:
    """Raises where a part of time has fewer than `size` steps."""
    held = time // parts
    if size > held:
        split = f", split over {_SEQ}={parts}" if parts > 1 else ""
        raise ValueError(
            f"{owner} reaches over {size} steps, but a device holds {held} of the {time} steps"
            f"{split}: use longer sequences, or fewer devices on {_SEQ}"
        )
