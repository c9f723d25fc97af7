"""Long sequences in pieces of time, so that memory grows with the square root of the length.

Everything that runs in pieces does it by one of the functions here: `over_time` for data, and
`over_equal_pieces` or `over_padded_pieces` for activations, whose gradient is needed.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int, PyTree

from rnnscale import sharding
from rnnscale._checks import Count, Size, check_arguments, shown
from rnnscale_kernels import vary_alike

# Steps in the pieces of a short sequence, few enough to stay in the cache of a processor.
_FEWEST_STEPS = 256


@check_arguments
def over_time(
    body: Callable[[Any, Any, Int[Array, ""]], tuple[Any, Any]],
    carry: PyTree[Array],
    xs: PyTree[Array],
    *,
    steps: Size,
    axis: Count,
) -> tuple[PyTree[Array], PyTree[Array]]:
    """`jax.lax.scan` over pieces of `steps` time steps; the last piece may be shorter.

    ```python
    from rnnscale import over_time

    def body(state, piece, start):
        return encoder(piece, state)

    state, hs = over_time(body, state, xs, steps=512, axis=1)  # xs: (batch, time, idim)
    ```

    The backward pass computes each piece again, from the carry that entered it. So it holds the
    carries at all borders and the activations of one piece: with `steps` of about the square root
    of the length, both grow with that root.

    A gradient with respect to `xs` itself is exact, but adds a pass over all of `xs` for each
    piece. Over a mesh, the gradients of what `body` closes over are summed over devices once for
    each piece.

    **Arguments:**

    - `body`: `body(carry, piece, start) -> (carry, ys)`. `piece` has the steps of `xs` from `start`
        on, and `ys` has as many. What `body` closes over is differentiated too.
    - `carry`: a PyTree whose structure, shapes and dtypes `body` keeps.
    - `xs`: arrays with time on `axis`.
    - `steps`: the steps in a piece, at least 1.
    - `axis`: the axis of time in every array of `xs` and `ys`, not negative.

    **Returns:** `(carry, ys)`, with the `ys` of all pieces concatenated.

    **Raises:** `TypeError` if an argument has another kind; `ValueError` if `steps` is below 1,
    arrays of `xs` differ in their steps, or the ambient mesh has `seq` above 1.
    """
    leaves = jax.tree.leaves(xs)
    for x in leaves:
        if not isinstance(x, jax.Array | np.ndarray) or x.ndim <= axis:
            raise ValueError(
                f"over_time: xs must be arrays with time on axis {axis}; got {shown(x)}."
            )
    times = {x.shape[axis] for x in leaves}
    if len(times) != 1:
        raise ValueError(
            f"over_time: all arrays must have the same number of steps, on axis {axis}; got "
            f"{sorted(times)}."
        )
    check_time_is_not_split("over_time")
    (time,) = times
    carry, xs = vary_alike((carry, xs))
    if time <= steps:
        return jax.checkpoint(body)(carry, xs, jnp.zeros((), jnp.int32))
    count, rest = divmod(time, steps)

    def run(carry: Any, start: Any, size: int) -> tuple[Any, Any]:
        piece = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, size, axis), xs)
        return body(carry, piece, start)

    # Inside a scan nothing can be merged with the recomputation, so no barrier is needed.
    run_full = jax.checkpoint(lambda carry, start: run(carry, start, steps), prevent_cse=False)
    carry, pieces = lax.scan(run_full, carry, steps * jnp.arange(count))
    ys = jax.tree.map(lambda y: _join(y, axis), pieces)
    if rest:
        run_rest = jax.checkpoint(lambda carry: run(carry, jnp.asarray(count * steps), rest))
        carry, last = run_rest(carry)
        ys = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis), ys, last)
    return carry, ys


def over_equal_pieces(
    body: Callable[[Any, Any], tuple[Any, Any]],
    carry: PyTree[Array],
    xs: PyTree[Array],
    *,
    steps: Size,
    axis: Count,
) -> tuple[PyTree[Array], PyTree[Array]]:
    """As `over_time`, with a gradient with respect to `xs` that adds no passes over `xs`.

    For that it makes a copy of `xs` in which the pieces are the leading axis.

    **Arguments:** those of `over_time`, but `steps` divides the length, and `body` gets no `start`.
    """

    def split(x: Array) -> Array:
        """From "*batch time ..." to "piece *batch step ..."."""
        *batch_shape, time = x.shape[: axis + 1]
        pieces = x.reshape(*batch_shape, time // steps, steps, *x.shape[axis + 1 :])
        return jnp.moveaxis(pieces, axis, 0)

    carry, pieces = vary_alike((carry, jax.tree.map(split, xs)))
    # `jax.checkpoint` hashes its function, which a bound method of a module with tracers cannot.
    run = jax.checkpoint(lambda carry, piece: body(carry, piece), prevent_cse=False)
    carry, ys = lax.scan(run, carry, pieces)
    return carry, jax.tree.map(lambda y: _join(y, axis), ys)


def over_padded_pieces(
    body: Callable[[Any, Any], tuple[Any, Any]],
    carry: PyTree[Array],
    xs: PyTree[Array],
    *,
    axis: Count,
) -> tuple[PyTree[Array], PyTree[Array]]:
    """As `over_equal_pieces`, with pieces of about the square root of the length, at least 256
    steps, so that short sequences are one piece.

    The last piece is padded with zeros. In steps whose arrays in `xs` are all zero, `body` must
    keep the carry; what it returns for these steps is cut off.
    """
    time = jax.tree.leaves(xs)[0].shape[axis]
    pieces = -(-time // max(_FEWEST_STEPS, math.isqrt(time)))
    steps = -(-time // pieces)
    missing = pieces * steps - time

    def padded(x: Array) -> Array:
        return jnp.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)])

    carry, ys = over_equal_pieces(body, carry, jax.tree.map(padded, xs), steps=steps, axis=axis)
    return carry, jax.tree.map(lambda y: lax.slice_in_dim(y, 0, time, axis=axis), ys)


def lengths_within(
    lengths: Int[Array, "*batch"], start: Int[Array, ""], steps: int
) -> Int[Array, "*batch"]:
    """The number of valid steps of each row in the piece of `steps` steps from `start` on."""
    return jnp.clip(lengths - start, 0, steps)


def mesh_axes_of_time() -> frozenset[str]:
    """The axes of the ambient mesh over which time is split."""
    mesh = jax.sharding.get_abstract_mesh()
    return sharding.automatic_axes(mesh).intersection(sharding.ACTIVATION_AXES["time"])


def check_time_is_not_split(owner: str) -> None:
    """Raises `ValueError` if the ambient mesh splits time over devices."""
    for name in mesh_axes_of_time():
        size = jax.sharding.get_abstract_mesh().shape[name]
        raise ValueError(
            f"{owner}: the mesh splits time over {name}={size}, but pieces of time run one after "
            f"another: make {name}=1, with those devices on data or fsdp, or leave the pieces out, "
            "since each device then holds only its part of the steps."
        )


def _join(ys: Array, axis: int) -> Array:
    """From "piece *batch step ..." to "*batch time ..."."""
    ys = jnp.moveaxis(ys, 0, axis)
    pieces, steps = ys.shape[axis : axis + 2]
    return ys.reshape(*ys.shape[:axis], pieces * steps, *ys.shape[axis + 2 :])
