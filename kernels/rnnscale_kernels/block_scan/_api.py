"""The public function, with its checks and the canonical form of its blocks; and `BLOCK`."""

from typing import Any

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from .._checks import check_implementation, check_real, check_reverse
from .._operation import vary_alike
from .._recurrent_op import OpArguments
from ..linear_scan import Recurrence, check_steps, op_arguments, recurrent_op
from ._block import Block, Vector
from ._implementations import DISPATCH

type Planes = tuple[Float[Array, "*batch time channel"], ...]
type PlaneStates = tuple[Float[Array, "*batch channel"], ...]
type Blocks = tuple[tuple[_Plane, ...], ...]
type _Plane = Float[Array, "*#batch time channel"] | Float[Array, " channel"]

_MOST = 4
_RECURRENCE = Recurrence(DISPATCH)


def block_scan(
    a: Blocks,
    b: Planes,
    h0: PlaneStates | None = None,
    *,
    reverse: bool = False,
    reset: Bool[Array, "*batch time"] | None = None,
    implementation: str | None = None,
) -> tuple[Planes, PlaneStates]:
    """The linear recurrence h_t = A_t h_{t-1} + b_t with a small block A_t for each channel.

    A state has k planes, such as the position and the velocity of an oscillator, and A_t mixes the
    planes of each channel by a k x k block. Channels do not see one another. A complex
    `linear_scan` is the case of the blocks ((re, -im), (im, re)). It has the derivatives of
    `linear_scan` and works under the same transformations.

    **Arguments:**

    - `a`: the blocks, as a tuple of k rows, each a tuple of k planes. Each plane is time-varying,
        of the shape of the planes of `b` (any batch axis may have size 1), or time-invariant, of
        shape "*#batch 1 channel" or "channel". If all planes are time-invariant, no block is copied
        along time. They may have a wider dtype than `b`.
    - `b`: the input of each step, as a tuple of k planes of equal shape and dtype, with any number
        of leading batch axes; k is 1 to 4.
    - `h0`: the state before the first step in processing order, a tuple of k planes. Zero if
        absent.
    - `reverse`: run from the last step to the first, h_t = A_t h_{t+1} + b_t.
    - `reset`: true at t marks t as the first step of a segment in time order, in either
        direction: no state crosses from one segment into another. A reset restores zero, not
        `h0`, and stops infinities and NaN, in the gradient too.
    - `implementation`: `None` takes the fastest for the device compiled for. A name takes that one
        or raises an error: `"mosaic_gpu"` and `"mosaic_tpu"`, as for `linear_scan`; and in plain
        XLA, for every platform and dtype, `"sequential"`, `"chunked"` and `"associative"`. The last
        two, and the kernels on GPUs that split time, multiply the blocks of many steps with one
        another: if norms are well above 1, such a product overflows, even if all states are zero.

    **Returns:**

    The pair `(h, h_last)`, two tuples of k planes: all states, in the dtype of `b`, and the last
    one in processing order in the carry's dtype, which is at least float32.

    **Raises:** `TypeError` or `ValueError` if dtypes or shapes do not fit together;
    `NotImplementedError` if the implementation named cannot run there or take these arguments.
    """
    arguments = _check(a, b, h0, reverse=reverse, reset=reset, implementation=implementation)
    primals, _ = BLOCK.canonical(vary_alike(arguments), reverse=reverse)
    h, h_last = _RECURRENCE.scan(*primals, reverse=reverse, implementation=implementation)
    return tuple(h), tuple(h_last)


def _check(a, b, h0=None, *, reverse=False, reset=None, implementation=None) -> OpArguments:
    check_implementation(implementation, DISPATCH.names)
    check_reverse(reverse)
    b = _vector("b", b)
    a = _block(a, len(b))
    h0 = None if h0 is None else _vector("h0", h0, len(b))
    check_steps("block_scan", b.shape, "*batch time channel")
    a = _canonical_block(a, b.shape)
    return op_arguments("block_scan", a, b, h0, reset, (*b.shape[:-2], b.shape[-1]))


BLOCK = recurrent_op(_RECURRENCE, _check)


def _vector(name: str, planes: Any, size: int | None = None) -> Vector:
    if not isinstance(planes, tuple | list):
        raise TypeError(
            f"block_scan: {name} must be a tuple of planes, got {type(planes).__name__}"
        )
    sizes = range(1, _MOST + 1) if size is None else (size,)
    if len(planes) not in sizes:
        expected = f"1 to {_MOST} planes" if size is None else f"as many planes as b, {size}"
        raise ValueError(f"block_scan: {name} must have {expected}, got {len(planes)}")
    check_real(**{f"{name}[{i}]": plane for i, plane in enumerate(planes)})
    vector = Vector(jnp.asarray(plane) for plane in planes)
    if len({(plane.shape, plane.dtype) for plane in vector}) > 1:
        listed = ", ".join(f"{plane.shape} {plane.dtype}" for plane in vector)
        raise ValueError(
            f"block_scan: the planes of {name} must have the same shape and dtype, got {listed}"
        )
    return vector


def _block(a: Any, size: int) -> tuple[tuple[Array, ...], ...]:
    rows = isinstance(a, tuple | list) and all(isinstance(row, tuple | list) for row in a)
    if not rows or [len(row) for row in a] != [size] * size:
        got = f"rows of {[len(row) for row in a]}" if rows else type(a).__name__
        raise (ValueError if rows else TypeError)(
            f"block_scan: a must be a tuple of {size} rows of {size} planes, since b has {size} "
            f"planes, got {got}"
        )
    planes = {f"a[{i}][{j}]": x for i, row in enumerate(a) for j, x in enumerate(row)}
    check_real(**planes)
    return tuple(tuple(jnp.asarray(x) for x in row) for row in a)


def _canonical_block(a: tuple[tuple[Array, ...], ...], shape: tuple[int, ...]) -> Block:
    """The planes with all axes, in one shape and dtype."""
    planes = []
    for i, row in enumerate(a):
        for j, x in enumerate(row):
            full = x.reshape((1,) * (len(shape) - 1) + x.shape) if x.ndim == 1 else x
            fits = full.ndim == len(shape) and full.shape[-1] == shape[-1]
            if not fits or any(
                n not in (1, m) for n, m in zip(full.shape[:-1], shape[:-1], strict=True)
            ):
                raise ValueError(
                    f"block_scan: a[{i}][{j}] has shape {x.shape}, but planes of b of shape "
                    f"{shape} need the same, '*#batch 1 channel' or 'channel' with {shape[-1]} "
                    "channels"
                )
            planes.append(full)
    dtype = jnp.result_type(*(x.dtype for x in planes))
    common = jnp.broadcast_shapes(*(x.shape for x in planes))
    planes = [jnp.broadcast_to(x, common).astype(dtype) for x in planes]
    return Block(tuple(tuple(planes[i : i + len(a)]) for i in range(0, len(planes), len(a))))
