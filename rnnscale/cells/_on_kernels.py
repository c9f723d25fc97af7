"""The choice of the op that runs the steps of a cell on devices with kernels for them.

This is the file to change for a kernel for more cells: write a function such as `elementwise_run`,
and return its result for the platforms for which its op has kernels.
"""

from collections.abc import Callable
from typing import Any

from jaxtyping import Array

from rnnscale._base import State
from rnnscale.cells._base import Cell
from rnnscale.cells._elementwise import elementwise_run
from rnnscale.cells._persistent import persistent_run


def runs_on_kernels(
    cell: Cell,
    xs: Array,
    state: State,
    reset: Array | None,
    lengths: Array | None,
    *,
    reverse: bool,
    remat: bool,
    implementation: str | None = None,
) -> dict[str, Callable[[], tuple[State, Array]]]:
    """For each platform with kernels for the steps of the cell, a function that runs it there by an
    op of `rnnscale_kernels` and returns the results of `time_loop`. Empty for most cells.

    The op chooses its implementation for the device compiled for, and logs it. If no kernel takes
    the arguments, the op runs in plain XLA. `implementation` names one instead.
    """
    call = cell, xs, state, reset, lengths
    options: Any = {"reverse": reverse, "remat": remat, "implementation": implementation}
    if (run := elementwise_run(*call, **options)) is not None:
        return {"cuda": run, "tpu": run}
    run = persistent_run(*call, **options)
    return {} if run is None else {"cuda": run}
