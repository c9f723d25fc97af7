"""Checks of arguments that the public functions share. Each raises its error at the boundary."""

from collections.abc import Collection

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from ._planar import Planar


def check_planes(**arguments) -> None:
    """Checks that all arguments are real floating-point arrays, or all are `Planar`.

    `None` stands for an absent argument.

    **Raises:** `TypeError` if they are not; `ValueError` if two planes differ.
    """
    given = {name: x for name, x in arguments.items() if x is not None}
    for name, x in given.items():
        for plane in x if isinstance(x, Planar) else (x,):
            dtype = plane.dtype if isinstance(plane, (Array, np.ndarray, np.generic)) else None
            if dtype is None or not jnp.issubdtype(dtype, jnp.floating) or dtype.itemsize < 2:
                hint = (
                    "; give a complex array as Planar(x.real, x.imag)"
                    if dtype is not None and jnp.issubdtype(dtype, jnp.complexfloating)
                    else ""
                )
                got = type(plane).__name__ if dtype is None else dtype
                raise TypeError(f"{name} must hold floating-point arrays, got {got}{hint}")
        if isinstance(x, Planar) and (x.re.shape, x.re.dtype) != (x.im.shape, x.im.dtype):
            raise ValueError(
                f"the planes of {name} differ: {x.re.shape} {x.re.dtype} and "
                f"{x.im.shape} {x.im.dtype}"
            )
    kinds = {name: isinstance(x, Planar) for name, x in given.items()}
    if len(set(kinds.values())) > 1:
        named = ", ".join(f"{n} is {'Planar' if p else 'real'}" for n, p in kinds.items())
        raise TypeError(f"either all are real or all are Planar, but {named}")


def check_reset(reset, shape: tuple[int, ...]) -> None:
    """Checks that `reset` is `None`, or boolean and of this shape.

    **Raises:** `TypeError` or `ValueError` if it is not.
    """
    if reset is None:
        return
    if not isinstance(reset, (jax.Array, np.ndarray)):
        raise TypeError(f"reset must be a boolean array, got {type(reset).__name__}")
    if reset.dtype != jnp.bool_:
        raise TypeError(f"reset must be boolean, got {reset.dtype}")
    if reset.shape != shape:
        raise ValueError(f"reset has shape {reset.shape}, expected '*batch time', here {shape}")


def checked_lengths(lengths, batch_shape: tuple[int, ...], time: int) -> Array:
    """The number of valid steps in each row, as int32.

    Traced lengths have no value yet that could be checked, so they are clipped.

    **Raises:** `ValueError` unless they are integers of the shape of the batch, from 0 to `time`.
    """
    lengths = jnp.asarray(lengths)
    if not jnp.issubdtype(lengths.dtype, jnp.integer) or lengths.shape != batch_shape:
        raise ValueError(
            f"lengths must be integers of shape '*batch', {batch_shape}, got {lengths.dtype} of "
            f"shape {lengths.shape}"
        )
    if not isinstance(lengths, Tracer) and lengths.size:
        known = np.asarray(lengths)
        least, most = int(known.min()), int(known.max())
        if least < 0 or most > time:
            raise ValueError(f"lengths must be from 0 to the {time} steps, got {least} to {most}")
    return jnp.clip(lengths.astype(jnp.int32), 0, time)


def check_implementation(name: str | None, known: Collection[str]) -> None:
    """`name` is `None` or one of `known`."""
    if name is not None and name not in known:
        raise ValueError(f"implementation must be None or one of {sorted(known)}, got {name!r}")
