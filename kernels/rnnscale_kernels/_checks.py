"""Checks of arguments that the public functions share. Each raises its error at the boundary."""

from collections.abc import Collection, Hashable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from ._algebra import Planar


def check_real(**arguments) -> None:
    """Checks that all arguments are real floating-point arrays.

    **Raises:** `TypeError` if they are not.
    """
    for name, x in arguments.items():
        dtype = x.dtype if isinstance(x, (Array, np.ndarray, np.generic)) else None
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating) or dtype.itemsize < 2:
            hint = (
                "; give a complex array as Planar(x.real, x.imag)"
                if dtype is not None and jnp.issubdtype(dtype, jnp.complexfloating)
                else ""
            )
            got = type(x).__name__ if dtype is None else dtype
            raise TypeError(f"{name} must hold floating-point arrays, got {got}{hint}")


def check_planes(**arguments) -> None:
    """Checks that all arguments are real floating-point arrays, or all are `Planar`.

    **Raises:** `TypeError` if they are not; `ValueError` if two planes differ.
    """
    for name, x in arguments.items():
        for plane in x if isinstance(x, Planar) else (x,):
            check_real(**{name: plane})
        if isinstance(x, Planar) and (x.re.shape, x.re.dtype) != (x.im.shape, x.im.dtype):
            raise ValueError(
                f"the planes of {name} must have the same shape and dtype, got {x.re.shape} "
                f"{x.re.dtype} and {x.im.shape} {x.im.dtype}"
            )
    kinds = {name: isinstance(x, Planar) for name, x in arguments.items()}
    if len(set(kinds.values())) > 1:
        named = ", ".join(f"{n} is {'Planar' if p else 'real'}" for n, p in kinds.items())
        raise TypeError(f"{', '.join(kinds)} must all be real or all Planar, but {named}")


def check_step(step) -> None:
    """Checks that `step` can be a static argument of an operation.

    **Raises:** `TypeError` if it is not a function, or not hashable.
    """
    if not callable(step) or not isinstance(step, Hashable):
        raise TypeError(f"step must be a hashable function, got {type(step).__name__}")


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

    **Raises:** `TypeError` or `ValueError` unless they are integers of the shape of the batch, from
    0 to `time`.
    """
    # Not `jnp.asarray`, which would cut integers of more than 32 bits, and trace under `jax.jit`.
    given = lengths if isinstance(lengths, Array) else np.asarray(lengths)
    if not jnp.issubdtype(given.dtype, jnp.integer):
        raise TypeError(f"lengths must be integers, got {given.dtype}")
    if given.shape != batch_shape:
        raise ValueError(
            f"lengths must have the shape of the batch, {batch_shape}, got shape {given.shape}"
        )
    if not isinstance(given, Tracer) and given.size:
        known = np.asarray(given)
        least, most = int(known.min()), int(known.max())
        if least < 0 or most > time:
            raise ValueError(f"lengths must be from 0 to the {time} steps, got {least} to {most}")
    return jnp.clip(jnp.asarray(given, jnp.int32), 0, time)


def check_implementation(name: str | None, known: Collection[str]) -> None:
    """`name` is `None` or one of `known`."""
    if name is not None and (not isinstance(name, str) or name not in known):
        raise ValueError(f"implementation must be None or one of {sorted(known)}, got {name!r}")


def check_reverse(reverse: bool) -> None:
    """`reverse` is a bool, known when the function is traced."""
    if not isinstance(reverse, bool | np.bool_):
        raise TypeError(f"reverse must be True or False, got {type(reverse).__name__}")
