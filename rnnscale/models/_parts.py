"""The parts of a block that users hand in as functions: what makes them, and what they return."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rnnscale._base import SequenceModel
from rnnscale._checks import are_keys, shown
from rnnscale._contract import blame, shapes, trace
from rnnscale.cells import Cell

_PAGE = '"Blocks" in rnnscale/models/README.md'


def make_part(
    owner: str, name: str, make: Callable[..., Any], *arguments: Any, **named: Any
) -> Any:
    """`make(*arguments, **named)`.

    **Raises:** `TypeError` if `make` is not a function, but for example a layer; and whatever it
    raises, with a note that says how it was called.
    """
    if isinstance(make, SequenceModel | Cell) or not callable(make):
        raise TypeError(
            f"{owner}: {name} must be a function that makes a part, such as LayerNorm or lambda "
            f"key: S5(64, 64, key=key); got an object of class {type(make).__name__}. See {_PAGE}."
        )
    written = [_written(each) for each in arguments]
    written += [f"{each}={_written(value)}" for each, value in named.items()]
    with blame(f"{name}({', '.join(written)})", _PAGE):
        return make(*arguments, **named)


def _written(argument: Any) -> str:
    return "key" if are_keys(argument) else shown(argument)


def check_pointwise(owner: str, name: str, part: Any, dim: int) -> None:
    """Raises unless `part` is a function that returns arrays of the shape of its input."""
    if not callable(part):
        raise TypeError(
            f"{owner}: {name} must make a function of arrays; it made {type(part).__name__}. "
            f"See {_PAGE}."
        )
    x = jax.ShapeDtypeStruct((2, 3, dim), jnp.float32)
    with blame(f"what {name} made", _PAGE):
        y = trace(lambda part, x: part(x), part, x)
    if not isinstance(y, jax.ShapeDtypeStruct) or y.shape != x.shape:
        raise ValueError(
            f"{owner}: what {name} made must return arrays of the shape of its input, {x.shape}; "
            f"got {shapes(y)}. See {_PAGE}."
        )
