"""A loop over time in pieces, that keeps for the gradient what enters each of them and no more."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int, PyTree

from rnnscale import sharding
from rnnscale_kernels import vary_alike


def over_time(
    body: Callable[[Any, Any, Int[Array, ""]], tuple[Any, Any]],
    carry: PyTree[Array],
    xs: PyTree[Array],
    *,
    steps: int,
    axis: int,
) -> tuple[PyTree[Array], PyTree[Array]]:
    """`jax.lax.scan` over pieces of `steps` time steps; a shorter rest is the last piece.

    ```python
    from rnnscale.layers import over_time

    def body(state, piece, start):
        return encoder(piece, state)

    state, hs = over_time(body, state, xs, steps=512, axis=1)  # xs: (batch, time, idim)
    ```

    The backward pass computes each piece again, from the carry that entered it. So what it needs at
    a time are the carries at the borders and the insides of one piece: with `steps` of about the
    square root of the length, both grow with that root.

    A gradient by `xs` itself is exact, but adds a pass over all of `xs` for each piece. Over a mesh
    the gradients of what `body` closes over are added up over devices once a piece.

    **Arguments:**

    - `body`: `body(carry, piece, start) -> (carry, ys)`; `piece` has the steps of `xs` from `start`
        on, `ys` as many. What it closes over is differentiated too.
    - `carry`: its structure, shapes and dtypes stay the same.
    - `xs`: arrays with time on `axis`.
    - `steps`: of a piece, at least 1.
    - `axis`: the axis of time in every array of `xs` and `ys`, not negative.

    **Returns:** `(carry, ys)`, the `ys` of all pieces one after another.

    **Raises:** `ValueError` where `steps` is below 1, arrays of `xs` differ in their steps, or the
    ambient mesh has `seq` above 1.
    """
    if steps < 1:
        raise ValueError(f"over_time: steps must be at least 1; got {steps}.")
    times = {x.shape[axis] for x in jax.tree.leaves(xs)}
    if len(times) != 1:
        raise ValueError(
            f"over_time: all arrays must have the same number of steps, on axis {axis}; got "
            f"{sorted(times)}."
        )
    check_time_is_whole("over_time")
    (time,) = times
    carry, xs = vary_alike((carry, xs))
    if time <= steps:
        return jax.checkpoint(body)(carry, xs, jnp.zeros((), jnp.int32))
    count, rest = divmod(time, steps)

    def run(carry: Any, start: Any, size: int) -> tuple[Any, Any]:
        piece = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, size, axis), xs)
        return body(carry, piece, start)

    # Inside a scan nothing can be merged with the recomputation, so no barrier is needed.
    one = jax.checkpoint(lambda carry, start: run(carry, start, steps), prevent_cse=False)
    carry, whole = lax.scan(one, carry, steps * jnp.arange(count))
    ys = jax.tree.map(lambda y: _join(y, axis), whole)
    if rest:
        last = jax.checkpoint(lambda carry: run(carry, jnp.asarray(count * steps), rest))
        carry, end = last(carry)
        ys = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis), ys, end)
    return carry, ys


def check_time_is_whole(owner: str) -> None:
    """Raises where the ambient mesh splits time over devices."""
    mesh = jax.sharding.get_abstract_mesh()
    for name in sharding.automatic_axes(mesh).intersection(sharding.ACTIVATION_AXES["time"]):
        raise ValueError(
            f"{owner}: the mesh splits time over {name}={mesh.shape[name]}, but pieces of time are "
            f"done one after another: make {name}=1, with those devices on data or fsdp, or leave "
            "the pieces out, since each device holds only its part of the steps then."
        )


def _join(ys: Array, axis: int) -> Array:
    """From "piece *batch step ..." to "*batch time ..."."""
    ys = jnp.moveaxis(ys, 0, axis)
    pieces, steps = ys.shape[axis : axis + 2]
    return ys.reshape(*ys.shape[:axis], pieces * steps, *ys.shape[axis + 2 :])
