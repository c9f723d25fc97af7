"""`Newton`, the options with which a nonlinear cell runs in parallel over time, and `Certificate`,
which says how well it converged."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Int

from rnnscale._checks import Positive, Size, check_arguments
from rnnscale.cells._base import Cell, JacobianKind
from rnnscale.cells._jacobian import floating_state

# The largest number of state values for which `auto` takes the full Jacobian: an iteration
# multiplies matrices of this size. With 64 values and 8 rows, even the bound of an H100 on that is
# above the loop over time (`python -m benchmarks parallel_bounds`).
_SMALL = 32


@dataclass(frozen=True, init=False)
class Newton:
    r"""Options of Newton's method on a complete sequence: how a nonlinear cell runs in parallel
    over time.

    The states $h_1, \dots, h_T$ are the unknowns of $h_t = f(h_{t-1}, x_t)$. From a guess, each
    iteration measures the residual $r_t = f(h_{t-1}, x_t) - h_t$ of all steps at once, and corrects
    the states by $\delta$, the solution of a *linear* recurrence, which runs in parallel over time.
    A correction that is larger than the state, and larger than one, is clipped.

    $$\delta_t = A_t \delta_{t-1} + r_t, \qquad h_t \leftarrow h_t + \delta_t$$

    $A_t$ is the Jacobian of the step, or a part of it. The part changes how fast the iteration
    converges, but not its result. A row of the batch passes if its residual, its last correction
    and its rounding errors are below a tolerance. Rounding errors obey a linear recurrence with the
    Jacobian, and grow if the row is chaotic. A row that does not pass is computed step by step,
    from its first step.

    ```python
    from rnnscale.cells import Newton, time_loop

    state, ys = time_loop(cell, xs, parallel=Newton("block", window=1024))
    ```

    Lim, Zhu, Selfridge, Kasim, *Parallelizing Non-Linear Sequential Models over the Sequence
    Length*, ICLR 2024; with a diagonal: Gonzalez, Warrington, Smith, Linderman, *Towards Scalable
    and Stable Parallelization of Nonlinear RNNs*, NeurIPS 2024.

    **Differs from the papers:** they stop after a fixed number of iterations or at a small
    correction, without a check of the result. Their gradient uses the part $A_t$ in place of the
    Jacobian. Here it uses the full Jacobian at the states that were found. Corrections are
    clipped here.
    """

    scope: ClassVar[str] = "newton_or_steps"
    """The name scope in which a program chooses between the solution, if all rows passed, and the
    loop by steps. Profilers show it, and plans count the first."""

    jacobian: JacobianKind | None
    tolerance: float | None
    max_iterations: int
    window: int | None

    @check_arguments
    def __init__(
        self,
        jacobian: JacobianKind | None = None,
        *,
        tolerance: Positive | None = None,
        max_iterations: Size = 64,
        window: Size | None = None,
    ):
        r"""**Arguments:**

        - `jacobian`: what $A_t$ is. `"dense"`: the full Jacobian, for few units; an iteration
            takes of the order of $n^3$ operations a step for n values of the state. `"block"`: for
            each unit the block between its own state variables, such as position and velocity.
            `"diagonal"`: the diagonal. By default `"block"` if the units of the cell do not see one
            another, otherwise `"dense"` up to 32 state values, and above that the class attribute
            `jacobian` of the cell.
        - `tolerance`: the largest residual and the largest last correction, relative to the states,
            with which a row passes. The default is 64 times the machine epsilon of the input's
            dtype, about 8e-6 in float32, and twice the epsilon in 16 bits.
        - `max_iterations`: a row that has not passed after this number of iterations is computed
            step by step. Rows that stop getting closer are given up earlier.
        - `window`: number of steps that are solved together, by default all. Windows are solved one
            after another, each from the last state of the one before it. Shorter windows converge
            more easily, and need memory for the Jacobians of fewer steps.

        **Raises:** `TypeError` if an argument has another kind, `ValueError` if it is out of range.
        """
        for name, value in (
            ("jacobian", jacobian),
            ("tolerance", tolerance),
            ("max_iterations", max_iterations),
            ("window", window),
        ):
            object.__setattr__(self, name, value)


class Certificate(NamedTuple):
    """What the parallel loop measured, for each row of the batch.

    - `residual`: the largest residual of any step when Newton's method ended, relative to the
        states. In rows that were then computed step by step it may be large; it does not describe
        their result.
    - `iterations`: the number of linear recurrences that were solved for the row in all windows,
        including those for the rounding errors.
    - `stepped`: the number of steps that were computed one after another: 0 if the row passed,
        otherwise all of its steps.
    """

    residual: Float[Array, "*batch"]
    iterations: Int[Array, "*batch"]
    stepped: Int[Array, "*batch"]


def suitable(cell: Cell) -> Newton | None:
    """What `parallel="auto"` means for a cell; `None` means step by step."""
    kind = suitable_jacobian(cell)
    return None if kind == "dense" and _values(cell) > _SMALL else Newton(kind)


def suitable_jacobian(cell: Cell) -> JacobianKind:
    """The part of the Jacobian that Newton's method needs for a cell.

    The full Jacobian if it is small: many cells for which a part is enough at initialisation need
    more of it after training.
    """
    if cell.unit_axis == "state":
        return "block"
    return "dense" if _values(cell) <= _SMALL else cell.jacobian


def _values(cell: Cell) -> int:
    return sum(x.size for x in floating_state(cell))


def default_tolerance(dtype: DTypeLike) -> float:
    """The tolerance for sequences of this dtype."""
    info = jnp.finfo(dtype)
    # In 16 bits 64 times epsilon would be too much: half of a state in bfloat16.
    return (64 if info.bits > 16 else 2) * float(info.eps)
