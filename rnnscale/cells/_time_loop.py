"""`time_loop`, which runs any cell over time: in parallel if it is linear in its state or with
`parallel`, otherwise step by step."""

from functools import partial
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from rnnscale import sharding
from rnnscale._base import State, check_call, state_dtype, zero_padding
from rnnscale._checks import check_arguments
from rnnscale._over_time import mesh_axes_of_time
from rnnscale.cells._base import Cell, LinearCell, compute_weights
from rnnscale.cells._contract import check_cell
from rnnscale.cells._newton import Certificate, Newton, suitable
from rnnscale.cells._on_kernels import runs_on_kernels
from rnnscale.cells._parallel_loop import ParallelLoop
from rnnscale.cells._step_loop import StepLoop

type Parallel = Newton | Literal["auto"] | None
"""How a nonlinear cell runs over time: by Newton's method, as suits the cell, or by steps."""


@check_arguments
def time_loop(
    cell: Cell,
    xs: Float[Array, "*batch time idim"],
    state: State | None = None,
    *,
    reset: Bool[Array, "*batch time"] | None = None,
    lengths: Int[Array, "*batch"] | None = None,
    reverse: bool = False,
    remat: bool = False,
    parallel: Newton | Literal["auto"] | None = None,
) -> tuple[State, Float[Array, "*batch time odim"]]:
    """Runs a cell over all steps of a sequence.

    A `LinearCell` runs in parallel over time, by `rnnscale.sharding.linear_scan`, which a mesh may
    split over `seq`. Any other cell runs step by step, or with `parallel` in parallel too. It can
    be differentiated in reverse mode only; over a mesh or with `parallel`, to first order only.

    **Arguments:**

    - `cell`: the cell, which runs along each row of the batch.
    - `xs`: the sequences.
    - `state`: the state before the first step, `cell.init_state(batch)` if `None`.
    - `reset`: true at `t` marks `t` as the first step of a segment in time order, in whichever
        direction the loop runs. A reset restores `cell.init_state(batch)`, never `state`.
    - `lengths`: the number of valid steps of each row, from 0 to `time`; traced ones cannot be
        checked and are clipped. The other steps leave the state as it was, and whatever `xs` holds
        there has no effect.
    - `reverse`: run from the last step to the first, each row within its own length.
    - `remat`: store only the states at the borders of blocks of about the square root of the
        length, and recompute everything else in the backward pass. Default false. With
        `parallel`, the states of all steps are stored in either case, and nothing else.
    - `parallel`: how a cell that is not a `LinearCell` runs. By default step by step. A `Newton`
        solves for all steps at once. `"auto"` takes the options that suit the cell, and runs step
        by step if none do. Results agree with those of the loop by steps up to the tolerance.

    **Returns:** `(state, ys)`: the state after the last step that was run, and the outputs, zero
    beyond `lengths`, in the dtype of `xs`.

    **Raises:** `TypeError` if `cell` is not a `Cell`, or its methods do not return what they have
    to; `ValueError` or `TypeError` if the features, the state, `reset` or `lengths` do not fit the
    cell and the sequences; `ValueError` if the ambient mesh has `seq` above 1 and the cell runs
    step by step.
    """
    run = _run(cell, xs, state, reset, lengths, reverse, remat, parallel)
    return run[:2]


@check_arguments
def certified_time_loop(
    cell: Cell,
    xs: Float[Array, "*batch time idim"],
    state: State | None = None,
    *,
    reset: Bool[Array, "*batch time"] | None = None,
    lengths: Int[Array, "*batch"] | None = None,
    reverse: bool = False,
    remat: bool = False,
    parallel: Newton | Literal["auto"] | None = "auto",
) -> tuple[State, Float[Array, "*batch time odim"], Certificate]:
    """`time_loop`, which also returns what Newton's method measured.

    ```python
    from rnnscale.cells import certified_time_loop

    state, ys, certificate = certified_time_loop(cell, xs)
    print(certificate.iterations, certificate.stepped)
    ```

    **Arguments:** those of `time_loop`, but `parallel` is `"auto"` by default.

    **Returns:** `(state, ys, certificate)`. A `LinearCell` and a cell that runs step by step have a
    residual of zero after no iterations.

    **Raises:** the errors of `time_loop`.
    """
    return _run(cell, xs, state, reset, lengths, reverse, remat, parallel)


def _run(
    cell: Cell,
    xs: Array,
    state: State | None,
    reset: Array | None,
    lengths: Array | None,
    reverse: bool,
    remat: bool,
    parallel: Parallel,
) -> tuple[State, Array, Certificate]:
    check_cell(cell)
    state, lengths = check_call(cell, xs, state, reset, lengths)
    xs = jnp.asarray(xs)
    batch_shape, time = xs.shape[:-2], xs.shape[-2]
    arguments = cell, zero_padding(xs, lengths), state, reset, lengths, reverse, remat
    newton = suitable(cell) if parallel == "auto" else parallel
    in_steps = 0
    if time == 0:
        state, ys = state, jnp.zeros((*batch_shape, 0, cell.odim), xs.dtype)
    elif isinstance(cell, LinearCell):
        state, ys = _linear(*arguments)
    elif newton is None:
        state, ys = _step_by_step(*arguments)
        in_steps = time if lengths is None else lengths
    else:
        return _by_newton(*arguments, newton)
    certificate = Certificate(
        jnp.zeros(batch_shape, state_dtype(xs.dtype)),
        jnp.zeros(batch_shape, jnp.int32),
        jnp.full(batch_shape, in_steps, jnp.int32),
    )
    return state, ys, certificate


def time_loop_by(
    cell: Cell, xs: Array, state: State, implementation: str | None
) -> tuple[State, Array]:
    """`time_loop` of a nonlinear cell by the implementation named, for benchmarks and checks."""
    return _step_by_step(cell, xs, state, None, None, False, False, implementation)


def _linear(
    cell: Cell,
    xs: Array,
    state: Any,
    reset: Array | None,
    lengths: Array | None,
    reverse: bool,
    remat: bool,
) -> tuple[State, Array]:
    def run(cell: Cell, xs: Array, state: Any) -> tuple[Any, Array]:
        decay, drive = cell.drive(compute_weights(cell, xs.dtype), xs)
        hs, state = sharding.linear_scan(
            decay, drive, state, reset=reset, lengths=lengths, reverse=reverse
        )
        return state, zero_padding(cell.output(hs).astype(xs.dtype), lengths)

    return (eqx.filter_checkpoint(run) if remat else run)(cell, xs, state)


def _step_by_step(
    cell: Cell,
    xs: Array,
    state: State,
    reset: Array | None,
    lengths: Array | None,
    reverse: bool,
    remat: bool,
    implementation: str | None = None,
) -> tuple[State, Array]:
    """Runs the loop, or an op whose kernels run the steps of the cell.

    `implementation` names one of them on any platform: "loop", or an implementation of the op.
    """
    _check_time_is_unsplit(cell)

    def by_loop() -> tuple[State, Array]:
        loop, primals = _steps(cell, xs, state, reset, lengths, reverse, remat)
        primals = primals[:-1]
        return sharding.differentiable_on_mesh(
            loop.forward, loop.transpose, primals, partial(loop.specs, primals), value=loop.value
        )

    # The choice is made when a program is lowered, for the platform that it is compiled for. On a
    # CPU the loop is faster: what it computes in a block of steps stays in the cache.
    if implementation == "loop":
        return by_loop()
    runs = runs_on_kernels(
        cell, xs, state, reset, lengths,
        reverse=reverse, remat=remat, implementation=implementation,
    )  # fmt: skip
    if implementation is not None:
        if not runs:
            raise NotImplementedError(
                f"time_loop_by(implementation={implementation!r}): no kernels run the steps of a "
                f"{type(cell).__name__} for {xs.dtype} inputs; 'loop' does"
            )
        return next(iter(runs.values()))()
    return lax.platform_dependent(**runs, default=by_loop) if runs else by_loop()


def _by_newton(
    cell: Cell,
    xs: Array,
    state: State,
    reset: Array | None,
    lengths: Array | None,
    reverse: bool,
    remat: bool,
    newton: Newton,
) -> tuple[State, Array, Certificate]:
    time = xs.shape[-2]
    axis = sharding.TimeAxis.of_mesh(reverse=reverse)
    if missing := axis.missing_steps(time):
        # Steps beyond the lengths of their rows change nothing.
        lengths = jnp.full(xs.shape[:-2], time) if lengths is None else lengths
        xs = jnp.pad(xs, [*[(0, 0)] * (xs.ndim - 2), (0, missing), (0, 0)])
        if reset is not None:
            reset = jnp.pad(reset, [*[(0, 0)] * (reset.ndim - 1), (0, missing)])
    steps, primals = _steps(cell, xs, state, reset, lengths, reverse, remat)
    loop = ParallelLoop.of(newton, cell, steps, axis, xs.dtype)
    state, ys, outcome = sharding.differentiable_on_mesh(
        loop.forward, loop.transpose, primals, partial(loop.specs, primals), value=loop.value
    )
    stepped = jnp.where(outcome.passed, 0, time if lengths is None else lengths)
    certificate = Certificate(outcome.residual, outcome.iterations, stepped.astype(jnp.int32))
    return state, ys[..., :time, :], certificate


def _steps(
    cell: Cell,
    xs: Array,
    state: State,
    reset: Array | None,
    lengths: Array | None,
    reverse: bool,
    remat: bool,
) -> tuple[StepLoop, tuple]:
    """The loop by steps, with its primals and the resets within the lengths."""
    valid = None
    if lengths is not None:
        valid = jnp.arange(xs.shape[-2]) < lengths[..., None]
        reset = None if reset is None else reset & valid
    start = reset
    if reset is not None and reverse:
        # Backwards, a segment starts before the first step of the one that follows it in time.
        start = jnp.concatenate([reset[..., 1:], jnp.zeros_like(reset[..., :1])], axis=-1)
    batch_shape, time = xs.shape[:-2], xs.shape[-2]
    cell = sharding.gathered(cell)
    fresh = None if reset is None else cell.init_state(batch_shape, xs.dtype)
    primals = compute_weights(cell, xs.dtype), xs, state, fresh, start, valid, reset
    _, equations = eqx.partition(cell, eqx.is_array)
    return StepLoop(equations, time, len(batch_shape), reverse, remat), primals


def _check_time_is_unsplit(cell: Cell) -> None:
    for axis in mesh_axes_of_time():
        size = jax.sharding.get_abstract_mesh().shape[axis]
        if suitable(cell) is None:
            advice = "pass a Newton as parallel, if its method converges for this cell"
        else:
            advice = 'pass parallel="auto", with which devices solve for all steps at once'
        raise ValueError(
            f"the mesh splits time over {axis}={size}, but {type(cell).__name__} takes its steps "
            f"one after another: {advice}; or set {axis}=1 and put those devices on data or fsdp, "
            "or use a layer that is linear in its state: S5, LRU, LinearAttention, or RNNEncoder "
            "of MinGRUCell, MinLSTMCell or RGLRUCell"
        )
