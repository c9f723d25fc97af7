"""The public function, with its checks and the canonical form of its arguments; `ELEMENTWISE`."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

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

type Weights = PyTree[Float[Array, ""] | Float[Array, " channel"]]
type States = PyTree[Float[Array, "*batch channel"]]
type Sequences = PyTree[Float[Array, "*batch time channel"]]


def elementwise_scan(
    step: Callable[[Any, Any, Any], Any],
    weights: Weights,
    inputs: Sequences,
    h0: States,
    *,
    fresh: States | None = None,
    reverse: bool = False,
    reset: Bool[Array, "*batch time"] | None = None,
    lengths: Int[Array, "*batch"] | None = None,
    returned: Sequence[int] | None = None,
    implementation: str | None = None,
) -> tuple[Sequences, States]:
    """A recurrence h_t = step(weights, h_{t-1}, x_t) whose channels do not see one another.

    It can be differentiated to any order in forward and reverse mode, and works under `jax.jit`,
    `jax.vmap` (which folds into the batch), `jax.checkpoint` and `jax.shard_map`. The backward pass
    recomputes every step from the state before it, so nothing but the states is kept.

    ```python
    import jax.numpy as jnp
    from rnnscale_kernels import elementwise_scan

    def leaky(weights, h, x):
        return h + weights * (jnp.tanh(x) - h)

    rate = jnp.array([0.1, 0.5])
    states, last = elementwise_scan(leaky, rate, jnp.ones((3, 10, 2)), jnp.zeros((3, 2)))
    ```

    **Arguments:**

    - `step`: one step of time, elementwise: a channel of the result depends on the same channel of
        the arguments only. It receives trees with the structure of `weights`, `h0` and `inputs`,
        whose arrays hold some of the channels in the dtype of `h0`, and returns a state. It must
        be hashable: the program is compiled again for a step that is not equal.
    - `weights`: a tree of arrays that are the same at all steps: one number, or one for each
        channel.
    - `inputs`: the input of each step, a tree of arrays of one shape and dtype.
    - `h0`: the state before the first step in processing order, a tree of arrays in float32 or
        float64.
    - `fresh`: the state after a reset. Default zero.
    - `reverse`: run from the last step to the first.
    - `reset`: true at t marks t as the first step of a segment in time order, in either
        direction: no state crosses from one segment into another. A reset stops infinities and
        NaN, in the gradient too.
    - `lengths`: the number of valid steps of each row, from 0 to `time`. The other steps leave the
        state as it was, whatever the inputs are there.
    - `returned`: the indices of the arrays of the state that are returned at all steps, in the
        order of `jax.tree.leaves`. Default all. The backward pass reads cotangents of these only.
    - `implementation`: `None` takes the fastest for the device compiled for. A name takes that one
        or raises an error: `"mosaic_gpu"` (NVIDIA GPUs of compute capability 9 and 10),
        `"mosaic_tpu"`, or `"sequential"`, a loop in plain XLA. The kernels take 16-bit and 32-bit
        inputs and carry in float32. `"mosaic_gpu_interpreted"` and `"mosaic_tpu_interpreted"` run
        a kernel on a CPU, slowly.

    **Returns:**

    The pair `(h, h_last)`: all states, in the dtype of the inputs, with `None` for arrays that are
    not `returned`, and the last one in processing order, in the dtype of `h0`.

    **Raises:** `TypeError` or `ValueError` if dtypes, shapes or structures do not fit together;
    `NotImplementedError` if the implementation named cannot run there or take these arguments.
    """
    primals, static = _canonical(
        step, weights, inputs, h0,
        fresh=fresh, reverse=reverse, reset=reset, lengths=lengths, returned=returned,
        implementation=implementation,
    )  # fmt: skip
    public, _ = operation.forward(vary_alike(primals), **static)
    return public


def _canonical(
    step, weights, inputs, h0,
    *, fresh=None, reverse=False, reset=None, lengths=None, returned=None, implementation=None,
):  # fmt: skip
    """The field `canonical` of `SequentialOp`."""
    check_implementation(implementation, DISPATCH.names)
    check_reverse(reverse)
    check_step(step)
    trees = {"weights": weights, "inputs": inputs, "h0": h0, "fresh": fresh}
    for name, tree in trees.items():
        for leaf in jax.tree.leaves(tree):
            check_real(**{name: leaf})
    shape = _check_sequences(inputs)
    *batch, time, channels = shape
    if fresh is None:
        fresh = jax.tree.map(jnp.zeros_like, h0)
    dtype = _check_states(h0, fresh, (*batch, channels))
    check_reset(reset, shape[:-1])
    if lengths is not None:
        lengths = checked_lengths(lengths, tuple(batch), time)
        valid = jnp.arange(time) < lengths[..., None]
        reset = None if reset is None else reset & valid
    weights = jax.tree.map(lambda w: _for_each_channel(w, shape, dtype), weights)
    inputs, h0, fresh = jax.tree.map(jnp.asarray, (inputs, h0, fresh))
    _check_result(step, weights, inputs, h0)
    primals = weights, inputs, h0, fresh, cuts(reset, reverse=reverse), lengths
    return primals, {
        "step": step,
        "reverse": reverse,
        "returned": _returned(returned, len(jax.tree.leaves(h0))),
        "implementation": implementation,
    }


ELEMENTWISE = SequentialOp(_canonical, operation)


def _check_sequences(inputs) -> tuple[int, ...]:
    """The shape "*batch time channel" of all inputs."""
    kinds = {(x.shape, str(x.dtype)) for x in jax.tree.leaves(inputs)}
    if len(kinds) != 1:
        raise ValueError(
            "elementwise_scan: inputs must be one or more arrays of one shape and dtype, got "
            f"{sorted(kinds) or 'none'}"
        )
    ((shape, _),) = kinds
    if len(shape) < 2 or shape[-2] == 0:
        raise ValueError(
            "elementwise_scan: inputs must be '*batch time channel' with one time step or more, "
            f"got shape {shape}"
        )
    return shape


def _check_states(h0, fresh, shape: tuple[int, ...]):
    """The dtype of all arrays of the state."""
    structures = [jax.tree.structure(x) for x in (h0, fresh)]
    if structures[0] != structures[1]:
        raise ValueError(
            f"elementwise_scan: fresh must have the structure of h0, {structures[0]}, got "
            f"{structures[1]}"
        )
    kinds = {(x.shape, str(x.dtype)) for x in jax.tree.leaves((h0, fresh))}
    if len(kinds) != 1 or next(iter(kinds)) not in ((shape, "float32"), (shape, "float64")):
        raise ValueError(
            "elementwise_scan: the arrays of h0 and fresh must have the shape '*batch channel' of "
            f"the inputs, here {shape}, and all be float32 or all float64; got {sorted(kinds)}"
        )
    return jax.tree.leaves(h0)[0].dtype


def _returned(indices: Sequence[int] | None, count: int) -> tuple[int, ...]:
    if indices is None:
        return tuple(range(count))
    if not isinstance(indices, Sequence) or not set(indices) <= set(range(count)):
        raise ValueError(
            f"elementwise_scan: returned must be indices of the {count} arrays of the state, from "
            f"0 on; got {indices}"
        )
    return tuple(sorted(set(indices)))


def _for_each_channel(weight, shape: tuple[int, ...], dtype):
    """A weight in the canonical form, with one number for each channel."""
    channels = shape[-1]
    if weight.shape not in ((), (channels,)):
        raise ValueError(
            f"elementwise_scan: a weight has shape {weight.shape}, but inputs of shape {shape} "
            f"need one number or one for each of the {channels} channels"
        )
    weight = jnp.broadcast_to(jnp.asarray(weight, dtype), (channels,))
    return weight.reshape((1,) * (len(shape) - 2) + (channels,))


def _check_result(step, weights, inputs, h0) -> None:
    """Checks that the step maps numbers of a channel to a state."""
    numbers = jax.tree.map(
        lambda _: jax.ShapeDtypeStruct((1,), jax.tree.leaves(h0)[0].dtype), (weights, h0, inputs)
    )
    expected, got = numbers[1], jax.eval_shape(step, *numbers)
    kinds = [
        (jax.tree.structure(x), [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(x)])
        for x in (expected, got)
    ]
    if kinds[0] != kinds[1]:
        raise TypeError(
            "elementwise_scan: step must return a state like the one it receives; for a state of "
            f"{expected} it returned {got}"
        )
