"""A sentence for `sharding.describe`: how a cell runs on a mesh that splits time over devices."""

from rnnscale._checks import check_arguments
from rnnscale.cells._base import Cell, LinearCell
from rnnscale.cells._newton import Newton, suitable, suitable_jacobian
from rnnscale.cells._time_loop import Parallel


@check_arguments
def over_seq(cell: Cell, parallel: Parallel = None) -> str:
    """How `time_loop` runs a cell on a mesh that splits time over `seq`, as a sentence.

    **Arguments:** as in `time_loop`.
    """
    name = type(cell).__name__
    if isinstance(cell, LinearCell):
        return f"{name} is linear in its state: one all-gather in each pass"
    newton = suitable(cell) if parallel == "auto" else parallel
    if not isinstance(newton, Newton):
        unsuited = ", which parallel='auto' leaves so" if parallel == "auto" else ""
        return f"{name} takes its steps one after another{unsuited}: it refuses seq above 1"
    return (
        f"{name} is solved by Newton's method ({newton.jacobian or suitable_jacobian(cell)}): one "
        "all-gather in each iteration; rows that do not pass take their steps one after another, "
        "from device to device"
    )
