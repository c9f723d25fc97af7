"""What every cell must do: agree with its paper, and let the time loop differentiate it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import PRNGKeyArray
from numpy.typing import NDArray

from rnnscale.cells import Cell
from rnnscale.verify._check import Check

type Oracle = Callable[[Any, NDArray[np.float64], Any], tuple[Any, NDArray[np.float64]]]


@dataclass(frozen=True)
class CellSubject:
    """A cell, and how it is shown to be what its paper says.

    **Attributes:**

    - `name`: that of the class, with its variant.
    - `paper`: authors and year.
    - `build`: a small cell from a key.
    - `oracle`: `(cell, x, state)` to `(last state, outputs)` in double precision, for one sequence
        `x` of shape `(time, idim)`; states are those of the cell, as NumPy arrays.
    - `invariants`: the checks of what else the paper promises, from a key.
    """

    name: str
    paper: str
    build: Callable[[PRNGKeyArray], Cell]
    oracle: Oracle
    invariants: Callable[[PRNGKeyArray], list[Check]]
