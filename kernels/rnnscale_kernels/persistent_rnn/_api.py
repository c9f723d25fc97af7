"""The public function, with its checks and the canonical form of its arguments; `PERSISTENT`."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._checks import (
    check_implementation,
    check_real,
    check_reset,
    check_reverse,
    check_step,
    checked_lengths,
)
from .._operation import vary_alike
from .._sequential_op import SequentialOp
from ..linear_scan import cuts
from ._implementations import DISPATCH
from ._operation import operation
from ._pointwise import Step

type States = tuple[Float[Array, "*batch unit"], ...]


def persistent_rnn(
    step: Step,
    matrix: Float[Array, "gate unit unit"],
    drive: Float[Array, "*batch time gate unit"],
    h0: States,
    *,
    extras: Float[Array, "*batch time extra unit"] | None = None,
    fresh: States | None = None,
    reverse: bool = False,
    reset: Bool[Array, "*batch time"] | None = None,
    lengths: Int[Array, "*batch"] | None = None,
    implementation: str | None = None,
) -> tuple[Float[Array, "*batch time unit"], States]:
    """A recurrent network whose state enters each step through one matrix, which stays on chip.

    gates_t = drive_t + matrix h_{t-1},   (h_t, ...) = step((h_{t-1}, ...), gates_t, extras_t)

    A unit has one or more states. The first one, h, is the output, and is multiplied by the matrix
    with operands in the dtype of `drive` and sums in at least float32. The rest of a step is
    computed for each unit by itself, in the dtype of `h0`. For the backward pass, the gates before
    their nonlinearity and all states are kept in the dtype of `drive`.

    It can be differentiated to any order in forward and reverse mode, and works under `jax.jit`,
    `jax.vmap`, `jax.checkpoint` and `jax.shard_map`.

    ```python
    import jax.numpy as jnp
    from rnnscale_kernels import persistent_rnn

    def elman(before, gates, extras):
        return (jnp.tanh(gates),)

    drive = jnp.ones((3, 10, 1, 2))  # rows, steps, gates, units
    hs, (last,) = persistent_rnn(elman, jnp.eye(2)[None], drive, (jnp.zeros((3, 2)),))
    ```

    **Arguments:**

    - `step`: the rest of a step, `after = step(before, gates, extras)`, for one unit: `before` and
        `after` are tuples of vectors with one number each, `gates` and `extras` are vectors. It
        must be hashable: the program is compiled again for a step that is not equal.
    - `matrix`: the recurrent matrix of each gate.
    - `drive`: what is added to the products with `matrix`, such as W x_t + b.
    - `h0`: the states before the first step in processing order, in float32 or float64.
    - `extras`: other inputs of the step, to which no product is added, such as the candidate's
        part of the input of a GRU. Default: no such inputs.
    - `fresh`: the states after a reset. Default zero.
    - `reverse`: run from the last step to the first.
    - `reset`: true at t marks t as the first step of a segment in time order, in either
        direction: no state crosses from one segment into another. A reset stops infinities and
        NaN, in the gradient too.
    - `lengths`: the number of valid steps of each row, from 0 to `time`. The other steps leave the
        states as they were, whatever the inputs are there.
    - `implementation`: `None` takes the fastest for the device compiled for. A name takes that one
        or raises an error: `"mosaic_gpu"`, kernels for NVIDIA's Hopper GPUs, in bfloat16 and
        float16, for matrices that fit in the shared memory of eight multiprocessors; or
        `"sequential"`, a loop in plain XLA. `"mosaic_gpu_interpreted"` runs the kernels on a CPU,
        slowly.

    **Returns:**

    The pair `(h, last)`: the first state after every step, in the dtype of `drive`, and all states
    after the last one in processing order, in the dtype of `h0`.

    **Raises:** `TypeError` or `ValueError` if dtypes or shapes do not fit together;
    `NotImplementedError` if the implementation named cannot run there or take these arguments.

    Diamos et al., *Persistent RNNs: Stashing Recurrent Weights On-Chip*, ICML 2016.

    **Differs from the paper:** a cluster of multiprocessors holds the matrix, each in its shared
    memory, instead of the full GPU in its registers.
    """
    primals, static = _canonical(
        step, matrix, drive, h0, extras=extras,
        fresh=fresh, reverse=reverse, reset=reset, lengths=lengths, implementation=implementation,
    )  # fmt: skip
    public, _ = operation.forward(vary_alike(primals), **static)
    return public


def _canonical(
    step, matrix, drive, h0,
    *, extras=None, fresh=None, reverse=False, reset=None, lengths=None, implementation=None,
):  # fmt: skip
    """The field `canonical` of `SequentialOp`."""
    check_implementation(implementation, DISPATCH.names)
    check_reverse(reverse)
    check_step(step)
    check_real(matrix=matrix, drive=drive)
    if drive.ndim < 3 or drive.shape[-3] == 0:
        raise ValueError(
            "persistent_rnn: drive must be '*batch time gate unit' with one time step or more, got "
            f"shape {drive.shape}"
        )
    *batch, time, gates, units = drive.shape
    if matrix.shape != (gates, units, units):
        raise ValueError(
            f"persistent_rnn: matrix must be 'gate unit unit', here {(gates, units, units)}, got "
            f"shape {matrix.shape}"
        )
    if extras is None:
        extras = jnp.zeros((*batch, time, 0, units), drive.dtype)
    check_real(extras=extras)
    shape = extras.shape
    if len(shape) != drive.ndim or (*shape[:-2], shape[-1]) != (*batch, time, units):
        raise ValueError(
            f"persistent_rnn: extras must be '*batch time extra unit', got shape {shape} "
            f"with a drive of shape {drive.shape}"
        )
    fresh = jax.tree.map(jnp.zeros_like, h0) if fresh is None else fresh
    _check_states(h0, fresh, (*batch, units))
    check_reset(reset, (*batch, time))
    valid = None
    if lengths is not None:
        lengths = checked_lengths(lengths, tuple(batch), time)
        valid = jnp.arange(time) < lengths[..., None]
        reset = None if reset is None else reset & valid
    extras = jnp.asarray(extras, drive.dtype)
    _check_result(step, h0, drive, extras)
    h0, fresh = (tuple(map(jnp.asarray, x)) for x in (h0, fresh))
    start = cuts(reset, reverse=reverse)
    primals = jnp.asarray(matrix), jnp.asarray(drive), extras, h0, fresh, start, valid
    return primals, {"step": step, "reverse": reverse, "implementation": implementation}


PERSISTENT = SequentialOp(_canonical, operation)


def _check_states(h0, fresh, shape: tuple[int, ...]) -> None:
    for name, states in (("h0", h0), ("fresh", fresh)):
        if not isinstance(states, tuple) or len(states) != len(h0) or not states:
            raise TypeError(
                f"persistent_rnn: {name} must be a tuple with an array for each state of a unit, "
                f"got {type(states).__name__}"
            )
        check_real(**{f"{name}[{n}]": x for n, x in enumerate(states)})
    kinds = {(x.shape, str(x.dtype)) for x in (*h0, *fresh)}
    if len(kinds) != 1 or next(iter(kinds)) not in ((shape, "float32"), (shape, "float64")):
        raise ValueError(
            "persistent_rnn: the arrays of h0 and fresh must have the shape '*batch unit' of the "
            f"drive, here {shape}, and all be float32 or all float64; got {sorted(kinds)}"
        )


def _check_result(step: Step, h0, drive, extras) -> None:
    """Checks that the step maps the numbers of a unit to its states."""

    def numbers(count: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((count,), h0[0].dtype)

    before = tuple(numbers(1) for _ in h0)
    after = jax.eval_shape(step, before, numbers(drive.shape[-2]), numbers(extras.shape[-2]))
    kinds = [[(x.shape, x.dtype) for x in jax.tree.leaves(y)] for y in (before, after)]
    if not isinstance(after, tuple) or kinds[0] != kinds[1]:
        raise TypeError(
            "persistent_rnn: step must return states like those it receives; for states of "
            f"{before} it returned {after}"
        )
