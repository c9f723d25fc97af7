"""`check_cell`, which traces one step of a cell as the loop over time runs it.

A file of its own because the loop and every class that takes a cell call it.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from rnnscale._checks import CELL_PAGE
from rnnscale._contract import (
    blame,
    check_output,
    check_sizes,
    check_state,
    shapes,
    trace,
)
from rnnscale.cells._base import Cell, LinearCell, affine, compute_weights
from rnnscale.cells._layout import lay_out

_HINT = "It may use the arrays of `weights`, and not those of `self`, which has none there. "
_STEPS, _ROWS = 3, 2


def check_cell(cell: Cell) -> None:
    """Raises unless the stages of `cell` return what the loop over time needs.

    **Raises:** `ValueError` or `TypeError` if a stage returns something else than it has to; and
    whatever its methods raise, with a note that says what was called.
    """
    name = type(cell).__name__
    check_sizes(name, CELL_PAGE, idim=cell.idim, hdim=cell.hdim, odim=cell.odim)
    trace(_run_stages, cell, jax.ShapeDtypeStruct((_STEPS, _ROWS, cell.idim), jnp.float32))


def _run_stages(cell: Any, xs: jax.Array) -> None:
    name = type(cell).__name__
    with blame(f"{name}.weights()", CELL_PAGE):
        weights = compute_weights(cell, xs.dtype)
    with blame(f"{name}.init_state(({_ROWS},))", CELL_PAGE):
        before = cell.init_state((_ROWS,), xs.dtype)
    if any(jnp.shape(leaf)[:1] != (_ROWS,) for leaf in jax.tree.leaves(before)):
        raise ValueError(
            f"{name}.init_state(({_ROWS},)) must return arrays whose leading axes are ({_ROWS},); "
            f"got {shapes(before)}. See {CELL_PAGE}."
        )
    if not isinstance(cell, LinearCell):
        # As in the loop by steps: matrices in its layout, and no arrays in the cell itself.
        weights = lay_out(weights)
        _, cell = eqx.partition(cell, eqx.is_array)
    with blame(f"{name}.drive(weights, x)", CELL_PAGE, _HINT):
        drive = cell.drive(weights, xs)
    _check_drive(cell, drive)
    drive = jax.tree.map(lambda leaf: leaf[0], drive)
    called = f"{name}.advance(weights, drive, state, affine)"
    with blame(called, CELL_PAGE, _HINT):
        after = cell.advance(weights, drive, before, affine)
    check_state(called, after, before, CELL_PAGE)
    called = f"{name}.output(state)"
    with blame(called, CELL_PAGE, _HINT):
        y = cell.output(after)
    check_output(called, y, (_ROWS, cell.odim), CELL_PAGE)


def _check_drive(cell: Cell, drive: Any) -> None:
    called = f"{type(cell).__name__}.drive(weights, x)"
    if isinstance(cell, LinearCell) and not (isinstance(drive, tuple) and len(drive) == 2):
        raise TypeError(
            f"{called} must return the pair (a, b) of h = a * h + b; got {shapes(drive)}. "
            f"See {CELL_PAGE}."
        )
    for leaf in jax.tree.leaves(drive):
        if jnp.shape(leaf)[:2] != (_STEPS, _ROWS):
            raise ValueError(
                f"{called} must return arrays with the leading axes of its input, "
                f"{(_STEPS, _ROWS)}; got shape {jnp.shape(leaf)}. What is the same at all steps "
                f"belongs to `weights`. See {CELL_PAGE}."
            )
