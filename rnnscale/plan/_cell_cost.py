"""The cost of a cell over time on one device, step by step or by Newton's method; and the length
from which the bound on Newton's method is lower."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp

from rnnscale._checks import Size, check_arguments
from rnnscale.cells import Cell, Newton, time_loop
from rnnscale.plan._bound import Bound
from rnnscale.plan._hardware import Hardware
from rnnscale.plan._jaxpr import flops, peak_bytes
from rnnscale.plan._kernels import kernels

type CellDtype = Literal["float32", "bfloat16"]

# `break_even` tries powers of two up to this one. It traces sequences of one and of two units of
# length, which are windows if there are any. Costs are linear in the length, so these give all.
_LARGEST, _UNIT = 20, 1024


@dataclass(frozen=True)
class CellCost:
    """The cost of a cell over a batch of sequences, on one device.

    - `flops`: operations of matrix products and recurrences.
    - `chain`, `moved_bytes`: see `Kernels`.
    - `peak_bytes`: the most bytes in use at any time, in addition to parameters and inputs.
    """

    flops: int
    chain: int
    moved_bytes: int
    peak_bytes: int

    def bound(self, hardware: Hardware, dtype: str = "float32") -> Bound:
        """The least time on a device."""
        return Bound(
            self.flops / hardware.flops[dtype],
            self.moved_bytes / hardware.memory_bandwidth,
            0.0,
            self.chain * hardware.launch,
        )


@check_arguments
def cell_cost(
    cell: Cell,
    batch: Size,
    length: Size,
    *,
    parallel: Newton | None = None,
    iterations: Size | None = None,
    gradient: bool = True,
    dtype: CellDtype = "float32",
) -> CellCost:
    """The cost of `time_loop`, counted in its trace. Nothing is compiled or run.

    ```python
    from rnnscale.plan import HARDWARE, cell_cost

    cost = cell_cost(cell, batch=1, length=65536)
    cost.bound(HARDWARE["h100"]).step  # seconds, at least
    ```

    **Arguments:**

    - `cell`: the cell; only the shapes of its arrays matter.
    - `batch`, `length`: the number of sequences and of their steps.
    - `parallel`: Newton's method; `None` for one step after another.
    - `iterations`: the iterations of one solve by Newton's method, in each window. A gradient has
        three solves: for the states, for the growth of rounding errors, and for the backward pass.
        All rows are taken to pass, so that none is computed step by step.
    - `gradient`: whether to count the gradient of the outputs by parameters and inputs too.
    - `dtype`: of the inputs.

    **Raises:** `ValueError` if `parallel` is given without `iterations`, or does not suit the cell.
    """
    arrays, static = eqx.partition(cell, eqx.is_array)
    floating, others = eqx.partition(arrays, eqx.is_inexact_array)

    def run(floating: Any, others: Any, xs: Any) -> Any:
        whole = eqx.combine(floating, others, static)
        return time_loop(whole, xs, parallel=parallel)

    def loss(floating: Any, xs: Any, others: Any) -> Any:
        _, ys = run(floating, others, xs)
        return jnp.sum(ys.astype(jnp.float32))

    shapes = jax.eval_shape(lambda x: x, (floating, others))
    xs = jax.ShapeDtypeStruct((batch, length, cell.idim), dtype)
    if gradient:
        traced = jax.make_jaxpr(jax.grad(loss, (0, 1)))(shapes[0], xs, shapes[1])
    else:
        traced = jax.make_jaxpr(run)(*shapes, xs)
    found = kernels(traced.jaxpr, iterations)
    return CellCost(
        flops(traced.jaxpr, iterations),
        found.chain,
        found.moved_bytes,
        peak_bytes(traced.jaxpr),
    )


def break_even(
    cell: Cell, batch: int, hardware: Hardware, parallel: Newton, iterations: int
) -> int | None:
    """The least power of two of time steps from which the bound on Newton's method stays below that
    on the loop over time, for a gradient in float32; at least a window, if there are windows.
    `None` if it stays above at all lengths up to a million steps.

    Both are lower bounds, and the loop is that of XLA: one kernel for all steps would have no
    launches to wait for.

    **Arguments:** as in `cell_cost`.
    """
    unit = parallel.window or _UNIT
    loop, newton = (
        [cell_cost(cell, batch, n * unit, **options).bound(hardware) for n in (1, 2)]
        for options in ({}, {"parallel": parallel, "iterations": iterations})
    )

    def least(bounds: list[Bound], length: int) -> float:
        # Each time is linear in the number of units.
        first, second = map(dataclasses.astuple, bounds)
        steps = length / unit - 1
        return max(a + steps * (b - a) for a, b in zip(first, second, strict=True))

    found = None
    for length in sorted((2**power for power in range(_LARGEST + 1)), reverse=True):
        if least(newton, length) >= least(loop, length) or length < (parallel.window or 1):
            break
        found = length
    return found
