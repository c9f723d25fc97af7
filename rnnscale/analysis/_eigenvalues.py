"""The eigenvalues of a layer's step, and the times over which its modes are forgotten."""

from typing import cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from rnnscale._base import State
from rnnscale._checks import check_arguments
from rnnscale._errors import UserError
from rnnscale.analysis._step import Recurrent, as_vector, check_recurrent, on_vectors, step_of
from rnnscale.ssm import S4D, S5, BidirectionalS5, DiagonalSSM, OscillatorySSM
from rnnscale_kernels import Planar


@check_arguments
def eigenvalues(
    layer: Recurrent, x: Float[Array, "idim"] | None = None, state: State | None = None
) -> Complex[np.ndarray, "units"]:
    r"""The eigenvalues of one step, that is of the Jacobian $\partial h_t / \partial h_{t-1}$.

    A mode whose magnitude is below one is forgotten; its angle is in radians per step. For `LRU`,
    `S4D`, `S5` and `BidirectionalS5` the eigenvalues are the layer's decays, in the order of its
    states and the same at every point; `S4D` and `S5` keep one of each conjugate pair, and so does
    the result. Each oscillator of a `LinOSS` or `DampedLinOSS` has one too, that with a positive
    imaginary part.
    Every other layer is linearised at a point. A complex unit of its state counts as two real ones,
    so the eigenvalues of a complex matrix come with their conjugates.

    ```python
    from rnnscale.analysis import eigenvalues

    abs(eigenvalues(layer)).max()              # an S5: below one
    eigenvalues(cell, jnp.ones(cell.idim))     # a cell, under an input
    ```

    The point matters: a relu that is off gives a row of zeros, and the modReLU of orthogonal cells
    is off at zero. `recurrent_matrix` has the matrix inside the nonlinearity.

    **Arguments:**

    - `layer`: a cell or a causal layer, or `BidirectionalS5`, whose two scans share their decays.
    - `x`: the input at the point, zero by default.
    - `state`: the state at the point, `layer.init_state()` by default.

    **Returns:** complex128, on the host. A layer that is not diagonal and has `n` real numbers in
    its state takes `n` derivatives, and memory for `n * n` numbers.

    **Raises:** `TypeError` if `layer` has no step; `ValueError` if `x` or the state does not fit
    the layer, or if the Jacobian is not finite.
    """
    diagonal = layer.forward if isinstance(layer, BidirectionalS5) else layer
    if isinstance(diagonal, DiagonalSSM):
        return _finite(layer, _on_host(diagonal.discretise()[0]))
    if isinstance(layer, OscillatorySSM):
        (zz, zy), (yz, yy) = jax.tree.map(np.float64, layer.discretise()[0])
        mean, square = (zz + yy) / 2, zz * yy - zy * yz
        # A double eigenvalue may have a negative root through rounding.
        return _finite(layer, mean + 1j * np.sqrt(np.maximum(square - mean**2, 0)))
    if x is not None and jnp.ndim(x) > 1:
        raise UserError(f"eigenvalues: x must be one input, (idim,); got shape {jnp.shape(x)}.")
    x, state = check_recurrent(layer, x, state, rank=1)
    jacobian = _finite(layer, np.asarray(_jacobian(layer, x, state), np.float64))
    return np.linalg.eigvals(jacobian).astype(np.complex128)


def _finite(layer: Recurrent, numbers: np.ndarray) -> np.ndarray:
    """The numbers, of the Jacobian or its eigenvalues. Raises if one is not finite."""
    if not np.isfinite(numbers).all():
        raise UserError(
            f"eigenvalues: the Jacobian of {type(layer).__name__} is not finite at this point: "
            "look for what is NaN or infinite in x, the state or the parameters."
        )
    return numbers


def continuous_eigenvalues(layer: S4D | S5 | BidirectionalS5) -> Complex[np.ndarray, "state"]:
    r"""The eigenvalues of an S4D or S5 in continuous time, as the layer uses them: if it clips
    eigenvalues, their real parts are at most $-10^{-4}$. They are per unit of the layer's time, in
    which a step of one state lasts $\Delta$ = `exp(log_step)`, times the `step_rescale` of an S5.

    **Returns:** complex128, one of each conjugate pair.

    **Raises:** `TypeError` if `layer` is not an `S4D`, `S5` or `BidirectionalS5`.
    """
    layer = layer.forward if isinstance(layer, BidirectionalS5) else layer
    if not isinstance(layer, S4D | S5):
        raise TypeError(
            "continuous_eigenvalues takes an S4D, S5 or BidirectionalS5; got "
            f"{type(layer).__name__}, which has no continuous time. Use eigenvalues."
        )
    return _on_host(layer.eigenvalues())


@check_arguments
def timescales(
    layer: Recurrent, x: Float[Array, "idim"] | None = None, state: State | None = None
) -> Float[np.ndarray, "units"]:
    r"""The number of steps in which each mode falls to $1/e$: $\tau = -1 / \log|\lambda|$ for the
    eigenvalues $\lambda$ of `eigenvalues`, in their order. The arguments are the same.

    **Returns:** float64, in steps: 0 for a mode that is gone after one step, infinite where
    $|\lambda| \ge 1$ and nothing is forgotten.
    """
    return timescales_of(eigenvalues(layer, x, state))


def timescales_of(found: Complex[np.ndarray, "units"]) -> Float[np.ndarray, "units"]:
    """The `timescales` of eigenvalues."""
    magnitude = np.abs(found)
    with np.errstate(divide="ignore"):
        return np.where(magnitude < 1, -1 / np.log(np.minimum(magnitude, 1)), np.inf)


def _on_host(x: Planar) -> Complex[np.ndarray, "state"]:
    return (np.asarray(x.re, np.float64) + 1j * np.asarray(x.im, np.float64)).ravel()


@eqx.filter_jit
def _jacobian(
    layer: Recurrent, x: Float[Array, "idim"], state: State
) -> Float[Array, "units units"]:
    with jax.default_matmul_precision("highest"):
        step = on_vectors(step_of(layer, x.dtype), x, state)
        return cast(Array, jax.jacfwd(step)(as_vector(state)[0]))
