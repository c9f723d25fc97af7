"""Whether Newton's method can compute the steps of a cell in parallel, and what it takes: measured
on sequences, with the bounds of `rnnscale.plan` on time and memory."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float

from rnnscale._base import State
from rnnscale._checks import check_arguments
from rnnscale._errors import UserError
from rnnscale.analysis._lyapunov import lyapunov_spectrum
from rnnscale.analysis._report import in_columns
from rnnscale.analysis._step import as_vector, check_recurrent
from rnnscale.cells import Cell, Certificate, LinearCell, Newton, certified_time_loop
from rnnscale.plan import HARDWARE, break_even, cell_cost, in_bytes, in_seconds

# States with more numbers have no dense Jacobian here: its memory grows with their square.
_LARGEST_DENSE = 64
# The most state variables of a unit that the scan of blocks takes.
_LARGEST_BLOCK = 4


@dataclass(frozen=True)
class ParallelMethod:
    """The cost of Newton's method with one kind of Jacobian.

    - `jacobian`: `"dense"`, `"block"` or `"diagonal"`.
    - `iterations`: the iterations of one solve, until every sequence converged or was given up. A
        `Certificate` counts two solves, for the states and for the growth of rounding errors; this
        is their mean, and over windows too.
    - `residual`: the largest relative residual when Newton's method ended.
    - `stepped`: the share of all steps that were computed one after another, because their sequence
        did not converge: 0 to 1.
    - `bytes`: memory of a gradient on these sequences, in addition to parameters and inputs.
    - `seconds`: a lower bound on the time of such a gradient, by `rnnscale.plan.cell_cost`.
    - `pays_from`: the least power of two of time steps from which it takes less time than the loop
        over time, by the bounds of `rnnscale.plan.break_even`; `None` if it takes more time at all
        lengths up to a million steps, or if a sequence did not converge.
    """

    jacobian: str
    iterations: int
    residual: float
    stepped: float
    bytes: int
    seconds: float
    pays_from: int | None


@dataclass(frozen=True)
class Parallelisable:
    """What `parallelisable` found.

    - `cell`: the name of the class.
    - `rows`, `time`: the number of sequences and of their steps.
    - `device`: the device that times are for.
    - `lyapunov`: the largest Lyapunov exponent of any sequence, in nats per step.
    - `loop_bytes`, `loop_seconds`: those of the loop over time, as in `ParallelMethod`.
    - `methods`: one entry for each kind of Jacobian that the cell can have.
    """

    cell: str
    rows: int
    time: int
    device: str
    lyapunov: float
    loop_bytes: int
    loop_seconds: float
    methods: tuple[ParallelMethod, ...]

    @property
    def best(self) -> ParallelMethod | None:
        """The method that needs the least time for these sequences, if all of them converged and it
        needs less than the loop over time."""
        faster = [x for x in self.methods if not x.stepped and x.seconds < self.loop_seconds]
        return min(faster, key=lambda each: each.seconds, default=None)

    @property
    def verdict(self) -> str:
        """What follows, in a sentence."""
        if self.best is not None:
            ratio = self.loop_seconds / self.best.seconds
            return (
                f'Newton("{self.best.jacobian}"): the bound on the loop over time is {ratio:.2g} '
                f"times as large on {self.device}."
            )
        if all(each.stepped for each in self.methods):
            chaos = ", since nearby states diverge" if self.lyapunov > 0 else ""
            return f"Newton's method does not converge here{chaos}: leave `parallel` out."
        return f"The loop over time needs less time on {self.device} for these sequences."

    def as_rows(self) -> list[dict[str, str]]:
        """The table, as text by the name of the column: the loop over time and the methods."""
        rows = [
            {
                "method": "loop over time",
                "iterations": "",
                "residual": "",
                "step by step": "",
                "memory": in_bytes(self.loop_bytes),
                "least time": in_seconds(self.loop_seconds),
                "pays from": "",
            }
        ]
        for each in self.methods:
            never = "not converged" if each.stepped else "never"
            rows.append(
                {
                    "method": each.jacobian,
                    "iterations": str(each.iterations),
                    "residual": f"{each.residual:.1e}",
                    "step by step": f"{100 * each.stepped:.0f} %",
                    "memory": in_bytes(each.bytes),
                    "least time": in_seconds(each.seconds),
                    "pays from": never if each.pays_from is None else f"{each.pays_from:,} steps",
                }
            )
        return rows

    def as_json(self) -> dict[str, Any]:
        """All figures. Numbers that JSON lacks, such as infinity, are `None`."""
        figures = dataclasses.asdict(self)
        figures["lyapunov"] = _finite(self.lyapunov)
        for each in figures["methods"]:
            each["residual"] = _finite(each["residual"])
        return figures

    def __str__(self) -> str:
        title = (
            f"{self.cell} on {self.rows} x {self.time:,} steps: largest Lyapunov exponent "
            f"{self.lyapunov:+.3f}"
        )
        rows = self.as_rows()
        table = [list(rows[0]), *(list(row.values()) for row in rows)]
        return "\n".join([title, *in_columns(table), self.verdict])


@check_arguments
def parallelisable(
    cell: Cell,
    xs: Float[Array, "*batch time idim"],
    state: State | None = None,
    *,
    newton: Newton | None = None,
    device: str = "h100",
) -> Parallelisable:
    """Measures whether the steps of a cell can be computed in parallel on sequences, by Newton's
    method with each kind of Jacobian, and from which length that pays on a device.

    Newton's method converges quickly if nearby states converge, that is, if the largest Lyapunov
    exponent is negative. If it is positive, long sequences do not converge, and `parallel` computes
    them step by step.

    ```python
    from rnnscale.analysis import parallelisable

    print(parallelisable(cell, xs))
    ```

    Gonzalez, Kozachkov, Zoltowski, Clarkson, Linderman, *Predictability Enables Parallelization of
    Nonlinear State Space Models*, NeurIPS 2025.

    **Arguments:**

    - `cell`: a cell that is not linear in its state, trained or not. Ask again after training:
        exponents and iterations change.
    - `xs`: typical sequences, with at least one step, of the length that you intend to use; the
        number of iterations may grow with it. All of them count as rows of one device.
    - `state`: the state before the first step, `init_state(batch)` by default.
    - `newton`: tolerance, number of iterations and window. Its `jacobian` is ignored.
    - `device`: a name of `rnnscale.plan.HARDWARE`, such as `"h100"`.

    **Returns:** the figures, whose `str` is a table. `"dense"` is left out if a state has more than
    64 numbers, and `"block"` if a unit has one state variable only, where it would be the diagonal.

    **Raises:** `ValueError` or `TypeError` if `xs` or the state does not fit the cell, if the cell
    is linear in its state, or if there is no such device.
    """
    xs, state = check_recurrent(cell, xs, state, rank=2)
    if device not in HARDWARE:
        known = ", ".join(HARDWARE)
        raise UserError(f"parallelisable: device must be one of {known}; got {device!r}")
    if isinstance(cell, LinearCell):
        raise UserError(
            f"parallelisable: {type(cell).__name__} is linear in its state, so its steps run in "
            "parallel already, by one linear_scan."
        )
    *batch, time, _ = xs.shape
    rows = math.prod(batch)
    if not rows or not time:
        raise UserError(
            f"parallelisable: xs must have at least one sequence of one step; got shape {xs.shape}"
        )
    options = Newton() if newton is None else newton
    exponents = lyapunov_spectrum(cell, xs, state, count=1, burn_in=time // 10)
    methods = []
    for jacobian in _kinds(cell):
        chosen = dataclasses.replace(options, jacobian=jacobian)
        certificate = _certificate(cell, xs, state, chosen)
        methods.append(_method(cell, rows, time, device, chosen, certificate))
    loop = cell_cost(cell, rows, time)
    return Parallelisable(
        type(cell).__name__,
        rows,
        time,
        device,
        float(exponents.max()),
        loop.peak_bytes,
        loop.bound(HARDWARE[device]).step,
        tuple(methods),
    )


def _kinds(cell: Cell) -> list[Any]:
    """The kinds of Jacobian to try."""
    leaves = jax.tree.leaves(eqx.filter(cell.init_state(), eqx.is_inexact_array))
    numbers = as_vector(cell.init_state())[0].size
    found = ["dense"] if numbers <= _LARGEST_DENSE else []
    are_planes = len({x.shape for x in leaves}) == 1 and leaves[0].ndim == 1
    if 1 < len(leaves) <= _LARGEST_BLOCK and are_planes:
        found.append("block")
    return [*found, "diagonal"]


@eqx.filter_jit
def _certificate(cell: Cell, xs: Array, state: State, newton: Newton) -> Certificate:
    return certified_time_loop(cell, xs, state, parallel=newton)[2]


def _method(
    cell: Cell, rows: int, time: int, device: str, newton: Newton, certificate: Certificate
) -> ParallelMethod:
    residual, iterations, stepped = (np.asarray(x) for x in certificate)
    windows = math.ceil(time / (newton.window or time))
    # A certificate counts two solves: for the states, and for the growth of rounding errors.
    each = max(1, math.ceil(int(iterations.max()) / (2 * windows)))
    share = float(stepped.sum()) / (rows * time)
    hardware = HARDWARE[device]
    cost = cell_cost(cell, rows, time, parallel=newton, iterations=each)
    return ParallelMethod(
        str(newton.jacobian),
        each,
        float(residual.max()),
        share,
        cost.peak_bytes,
        cost.bound(hardware).step,
        None if share else break_even(cell, rows, hardware, newton, each),
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
