"""The time axis as parts, one for each device of `seq`: splitting, joining, taking single steps."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Int, Shaped

from rnnscale._checks import Count, check_arguments
from rnnscale.sharding._rules import ACTIVATION_AXES, automatic_axes, constrain, warn_once

(_SEQ,) = ACTIVATION_AXES["time"]


@check_arguments
def time_parts(time: Count) -> int:
    """The number of parts into which the ambient mesh splits `time` steps: the size of `seq`, or 1
    without a mesh. It is also 1, with a warning, if `seq` does not divide `time`."""
    mesh = jax.sharding.get_abstract_mesh()
    parts = mesh.shape[_SEQ] if _SEQ in automatic_axes(mesh) else 1
    if time > 0 and time % parts == 0:
        return parts
    if time > 1:
        warn_once(
            f"a sequence of {time} steps can't be split evenly over {_SEQ}={parts}, so every "
            "device computes all of it: pad sequences beforehand, as rnnscale.tasks.pad_time does"
        )
    return 1


def split_time(x: Shaped[Array, "..."], parts: int, *, time_axis: int) -> Shaped[Array, "..."]:
    """Reshape "*batch time ..." to "*batch parts steps ...". The parts then are like rows:
    computations within a part need no communication."""
    steps = x.shape[time_axis] // parts
    shape = (*x.shape[:time_axis], parts, steps, *x.shape[time_axis + 1 :])
    return _constrain_time(x.reshape(shape), time_axis=time_axis)


def join_time(x: Shaped[Array, "..."], *, time_axis: int) -> Shaped[Array, "..."]:
    """Reshape "*batch parts steps ..." to "*batch time ...". The parts are on axis `time_axis`."""
    parts, steps = x.shape[time_axis : time_axis + 2]
    shape = (*x.shape[:time_axis], parts * steps, *x.shape[time_axis + 2 :])
    return _constrain_time(x.reshape(shape), time_axis=time_axis)


def _constrain_time(x: Shaped[Array, "*axes"], *, time_axis: int) -> Shaped[Array, "*axes"]:
    """Constrain the layout of an activation: its leading axis is the batch, `time_axis` is time.
    Those after it, such as heads or the units of a layer, stay as they are."""
    leading = ("batch", *(None,) * (time_axis - 1))[:time_axis]
    trailing = (PartitionSpec.UNCONSTRAINED,) * (x.ndim - time_axis - 1)
    return constrain(x, *leading, "time", *trailing)


def take_step(
    xs: Shaped[Array, "*batch time dim"], index: Int[Array, "*#batch"] | int
) -> Shaped[Array, "*batch dim"]:
    """One step of each row. If the mesh splits time, this is one sum over `seq` of a single step.

    **Arguments:**

    - `xs`: the sequences, of numbers.
    - `index`: the step to take, from 0 to `time - 1`, for each row or for all.
    """
    time = xs.shape[-2]
    if time_parts(time) == 1 and isinstance(index, int):
        return xs[..., index, :]
    index = jnp.broadcast_to(index, xs.shape[:-2])
    if time_parts(time) == 1:
        return jnp.take_along_axis(xs, index[..., None, None], axis=-2)[..., 0, :]
    here = jnp.arange(time) == index[..., None]
    return jnp.sum(jnp.where(here[..., None], xs, 0), axis=-2, dtype=xs.dtype)
