"""A time axis as the parts of it that the devices of `seq` hold."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped

from rnnscale.sharding._rules import ACTIVATION_AXES, automatic_axes, constrain, warn_once

(_SEQ,) = ACTIVATION_AXES["time"]


def time_parts(time: int) -> int:
    """In how many parts the ambient mesh splits so many time steps: the size of `seq`; 1 without
    a mesh, and, with a warning, where that size does not divide them."""
    mesh = jax.sharding.get_abstract_mesh()
    parts = mesh.shape[_SEQ] if _SEQ in automatic_axes(mesh) else 1
    if time > 0 and time % parts == 0:
        return parts
    if time > 1:
        warn_once(
            f"a sequence of {time} steps can't be split evenly over {_SEQ}={parts}: every device "
            "computes all of it; pad it before, as rnnscale.tasks.pad_time does"
        )
    return 1


def split_time(x: Shaped[Array, "..."], parts: int, *, time_axis: int) -> Shaped[Array, "..."]:
    """From "*batch time ..." to "*batch parts steps ...". Parts are rows of their own then, and
    what is done within them needs no communication."""
    steps = x.shape[time_axis] // parts
    shape = (*x.shape[:time_axis], parts, steps, *x.shape[time_axis + 1 :])
    return constrain_time(x.reshape(shape), time_axis=time_axis)


def join_time(x: Shaped[Array, "..."], *, time_axis: int) -> Shaped[Array, "..."]:
    """From "*batch parts steps ...", with the parts on `time_axis`, to "*batch time ..."."""
    shape = (*x.shape[:time_axis], -1, *x.shape[time_axis + 2 :])
    return constrain_time(x.reshape(shape), time_axis=time_axis)


def constrain_time(x: Shaped[Array, "*axes"], *, time_axis: int) -> Shaped[Array, "*axes"]:
    """`constrain` with the leading axis as `batch`, unless it is the one of time."""
    leading = ("batch", *(None,) * (time_axis - 1))[:time_axis]
    return constrain(x, *leading, "time", *(None,) * (x.ndim - time_axis - 1))


def take_step(
    xs: Shaped[Array, "*batch time dim"], index: Int[Array, "*#batch"] | int
) -> Shaped[Array, "*batch dim"]:
    """Each row at its own step. Where a mesh splits time, one sum over `seq` of the rows' size.

    **Arguments:**

    - `xs`: the sequences, numbers.
    - `index`: the step of each row, or of all, from 0 to `time - 1`.
    """
    time = xs.shape[-2]
    if time_parts(time) == 1 and isinstance(index, int):
        return xs[..., index, :]
    index = jnp.broadcast_to(index, xs.shape[:-2])
    if time_parts(time) == 1:
        return jnp.take_along_axis(xs, index[..., None, None], axis=-2)[..., 0, :]
    here = jnp.arange(time) == index[..., None]
    return jnp.sum(jnp.where(here[..., None], xs, 0), axis=-2, dtype=xs.dtype)
