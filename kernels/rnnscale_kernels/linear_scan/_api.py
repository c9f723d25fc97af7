"""The public function, with its checks and the canonical form of its decay; and `SCAN`."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from .._algebra import Planar
from .._checks import check_implementation, check_planes, check_reverse
from .._operation import vary_alike
from .._recurrent_op import OpArguments
from ._implementations import DISPATCH
from ._operation import Recurrence, time_invariant
from ._recurrent_op import check_steps, op_arguments, recurrent_op

RECURRENCE = Recurrence(DISPATCH)


def linear_scan(
    a: Float[Array, "*#batch time channel"] | Float[Array, " channel"] | Planar,
    b: Float[Array, "*batch time channel"] | Planar,
    h0: Float[Array, "*batch channel"] | Planar | None = None,
    *,
    reverse: bool = False,
    reset: Bool[Array, "*batch time"] | None = None,
    implementation: str | None = None,
) -> tuple[Float[Array, "*batch time channel"] | Planar, Float[Array, "*batch channel"] | Planar]:
    """The diagonal linear recurrence h_t = a_t h_{t-1} + b_t.

    It can be differentiated to any order in forward and reverse mode, and works under `jax.jit`,
    `jax.vmap` (which folds into the batch), `jax.checkpoint` and `jax.shard_map`. It knows no
    mesh: XLA gathers sharded arrays as it sees fit. `rnnscale.sharding.linear_scan` does know it.

    **Arguments:**

    - `a`: the decay. Time-varying, of the shape of `b` (any batch axis may have size 1), or
        time-invariant, of shape "*#batch 1 channel" or "channel"; a time-invariant decay is never
        copied along time. It may have a wider dtype than `b`.
    - `b`: the input of each step, with any number of leading batch axes. It is real, or a `Planar`
        pair for complex numbers; `a`, `b` and `h0` are all real or all `Planar`.
    - `h0`: the state before the first step in processing order. Zero if absent.
    - `reverse`: run from the last step to the first, h_t = a_t h_{t+1} + b_t.
    - `reset`: true at t marks t as the first step of a segment in time order, in either
        direction: no state crosses from one segment into another. A reset restores zero, not
        `h0`, and stops infinities and NaN, in the gradient too.
    - `implementation`: `None` takes the fastest for the device compiled for. A name takes that one
        or raises an error: `"mosaic_gpu"` (NVIDIA GPUs of compute capability 9 and 10), `"triton"`
        (from 8.0 on), `"mosaic_tpu"`, and in plain XLA, for every platform and dtype,
        `"sequential"`, `"chunked"` and `"associative"`. The kernels take `a` and `b` in float32 and
        bfloat16, on GPUs in float16 too, and carry in float32. `"mosaic_gpu_interpreted"` and the
        like run a kernel on a CPU, slowly. `"chunked"`, `"associative"` and the kernels on GPUs
        that split time multiply decays over many steps. For magnitudes well above 1 such a product
        overflows, even if all states are zero.

    **Returns:**

    The pair `(h, h_last)`: all states, in the dtype of `b`, and the last one in processing order
    in the carry's dtype, which is at least float32.

    **Raises:** `TypeError` or `ValueError` if dtypes or shapes do not fit together;
    `NotImplementedError` if the implementation named cannot run there or take these arguments.
    """
    arguments = _check(a, b, h0, reverse=reverse, reset=reset, implementation=implementation)
    primals, _ = SCAN.canonical(vary_alike(arguments), reverse=reverse)
    return RECURRENCE.scan(*primals, reverse=reverse, implementation=implementation)


def _check(a, b, h0=None, *, reverse=False, reset=None, implementation=None) -> OpArguments:
    check_implementation(implementation, DISPATCH.names)
    check_reverse(reverse)
    check_planes(a=a, b=b, **({} if h0 is None else {"h0": h0}))
    a, b, h0 = jax.tree.map(jnp.asarray, (a, b, h0))
    check_steps("linear_scan", b.shape, "*batch time channel")
    a = _canonical_decay(a, b.shape)
    return op_arguments("linear_scan", a, b, h0, reset, (*b.shape[:-2], b.shape[-1]))


SCAN = recurrent_op(RECURRENCE, _check)


def _canonical_decay(a, shape: tuple[int, ...]):
    if a.ndim == 1:
        a = time_invariant(a, len(shape))
    fits = a.ndim == len(shape) and a.shape[-1] == shape[-1]
    if not fits or any(n not in (1, m) for n, m in zip(a.shape[:-1], shape[:-1], strict=True)):
        raise ValueError(
            f"linear_scan: a has shape {a.shape}, but b of shape {shape} needs the same, "
            f"'*#batch 1 channel' or 'channel' with {shape[-1]} channels"
        )
    return a
