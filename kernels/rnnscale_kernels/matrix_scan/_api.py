"""The public function, with its checks and the canonical form of its matrices; and `MATRIX`."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from .._checks import check_implementation, check_real, check_reverse
from .._operation import vary_alike
from .._recurrent_op import OpArguments
from ..linear_scan import Recurrence, check_steps, op_arguments, recurrent_op
from ._implementations import DISPATCH
from ._matrix import Matrix

_RECURRENCE = Recurrence(DISPATCH)


def matrix_scan(
    a: Float[Array, "*#batch time dim dim"] | Float[Array, "dim dim"],
    b: Float[Array, "*batch time dim"],
    h0: Float[Array, "*batch dim"] | None = None,
    *,
    reverse: bool = False,
    reset: Bool[Array, "*batch time"] | None = None,
    implementation: str | None = None,
) -> tuple[Float[Array, "*batch time dim"], Float[Array, "*batch dim"]]:
    """The linear recurrence h_t = A_t h_{t-1} + b_t with a dense matrix A_t.

    It has the derivatives of `linear_scan` and works under the same transformations. All but
    `"sequential"` multiply matrices with one another: `dim` cubed operations a step. It is meant
    for `dim` up to 64; larger ones are accepted.

    **Arguments:**

    - `a`: the matrices. Time-varying, "*#batch time dim dim" (any batch axis may have size 1), or
        time-invariant, "*#batch 1 dim dim" or "dim dim"; a time-invariant matrix is never copied
        along time. It may have a wider dtype than `b`.
    - `b`: the input of each step, with any number of leading batch axes.
    - `h0`: the state before the first step in processing order. Zero if absent.
    - `reverse`: run from the last step to the first, h_t = A_t h_{t+1} + b_t.
    - `reset`: true at t marks t as the first step of a segment in time order, in either
        direction: no state crosses from one segment into another. A reset restores zero, not
        `h0`, and stops infinities and NaN, in the gradient too.
    - `implementation`: as for `block_scan`, but there are no kernels.

    **Returns:**

    The pair `(h, h_last)`: all states, in the dtype of `b`, and the last one in processing order
    in the carry's dtype, which is at least float32.

    **Raises:** `TypeError` or `ValueError` if dtypes or shapes do not fit together.
    """
    arguments = _check(a, b, h0, reverse=reverse, reset=reset, implementation=implementation)
    primals, _ = MATRIX.canonical(vary_alike(arguments), reverse=reverse)
    return _RECURRENCE.scan(*primals, reverse=reverse, implementation=implementation)


def _check(a, b, h0=None, *, reverse=False, reset=None, implementation=None) -> OpArguments:
    check_implementation(implementation, DISPATCH.names)
    check_reverse(reverse)
    check_real(a=a, b=b, **({} if h0 is None else {"h0": h0}))
    a, b, h0 = jax.tree.map(jnp.asarray, (a, b, h0))
    check_steps("matrix_scan", b.shape, "*batch time dim")
    a = _canonical_matrix(a, b.shape)
    return op_arguments("matrix_scan", a, b, h0, reset, (*b.shape[:-2], b.shape[-1]))


MATRIX = recurrent_op(_RECURRENCE, _check)


def _canonical_matrix(a: Array, shape: tuple[int, ...]) -> Matrix:
    full = a.reshape((1,) * (len(shape) - 1) + a.shape) if a.ndim == 2 else a
    dim = shape[-1]
    fits = full.ndim == len(shape) + 1 and full.shape[-2:] == (dim, dim)
    if not fits or any(n not in (1, m) for n, m in zip(full.shape[:-2], shape[:-1], strict=True)):
        raise ValueError(
            f"matrix_scan: a has shape {a.shape}, but b of shape {shape} needs '*#batch time dim "
            f"dim', '*#batch 1 dim dim' or 'dim dim' with a dim of {dim}"
        )
    return Matrix.of(full)
