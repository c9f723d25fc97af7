"""Eigenvalues of a recurrence, and the times over which it forgets."""

from typing import cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from rnnscale._base import SequenceLayer, State, check_features, checked_state
from rnnscale._errors import UserError
from rnnscale.analysis._step import Recurrent, as_vector, on_vectors, step_of
from rnnscale.cells import Cell
from rnnscale.ssm import S5, BidirectionalS5, DiagonalSSM

# Where `S5` holds the real parts of its eigenvalues unless it is told not to.
_LARGEST_REAL_PART = -1e-4


def eigenvalues(
    layer: Recurrent, x: Float[Array, "idim"] | None = None, state: State | None = None
) -> Complex[np.ndarray, "units"]:
    r"""The eigenvalues of a step: those of the Jacobian $\partial h_t / \partial h_{t-1}$.

    Magnitudes below one are modes that are forgotten, and angles are radians a step. Of `LRU`, `S5`
    and `BidirectionalS5` they are the decays, in their order, whatever the point; `S5` keeps one of
    each conjugate pair, and so this has one. Of everything else the step is linearised at a point.
    A state of complex units counts as twice as many real ones, so every eigenvalue of a complex
    matrix comes with its conjugate.

    ```python
    from rnnscale.analysis import eigenvalues

    abs(eigenvalues(layer)).max()              # an S5: below one
    eigenvalues(cell, jnp.ones(cell.idim))     # a cell, under an input
    ```

    The point matters: a relu that is off has a row of zeros, and the modReLU of orthogonal cells is
    off at zero. See `recurrent_matrix` for the matrix in front of the nonlinearity.

    **Arguments:**

    - `layer`: a cell or a causal layer, or `BidirectionalS5`, both of whose scans have these
        decays.
    - `x`: the input at the point, zero by default.
    - `state`: the state at the point, `layer.init_state()` by default.

    **Returns:** complex128, on the host. For `n` real entries of the state it takes `n` derivatives
    and memory for `n * n` numbers, unless the layer is diagonal.

    **Raises:** `TypeError` where there is no step, `ValueError` where the input or the state is not
    of the layer's shape, or the Jacobian is not finite.
    """
    diagonal = layer.forward if isinstance(layer, BidirectionalS5) else layer
    if isinstance(diagonal, DiagonalSSM):
        decay = diagonal.discretise()[0]
        return np.asarray(decay.re, np.float64) + 1j * np.asarray(decay.im, np.float64)
    if not isinstance(layer, Cell | SequenceLayer):
        step_of(layer, jnp.float32)  # raises
    x = jnp.zeros(layer.idim) if x is None else jnp.asarray(x)
    check_features(layer, x, layer.idim)
    if x.ndim != 1:
        raise UserError(
            f"eigenvalues: x is one input, of shape ({layer.idim},); got shape {x.shape}."
        )
    state = layer.init_state((), x.dtype) if state is None else state
    state = checked_state(layer, state, (), x.dtype)
    jacobian = np.asarray(_jacobian(layer, x, state), np.float64)
    if not np.isfinite(jacobian).all():
        raise UserError(
            f"eigenvalues: the Jacobian of {type(layer).__name__} is not finite at this point: "
            "look for what is NaN or infinite in x, the state or the parameters."
        )
    return np.linalg.eigvals(jacobian).astype(np.complex128)


def continuous_eigenvalues(layer: S5 | BidirectionalS5) -> Complex[np.ndarray, "state"]:
    r"""$\Lambda$ of an S5: the eigenvalues in continuous time, as they are used, with real parts
    held at or below $-10^{-4}$ where the layer holds them. Per unit of the layer's time, of which a
    state's step $\Delta$ is `step_rescale * exp(log_step)`.

    **Returns:** complex128, one of each conjugate pair.

    **Raises:** `TypeError` for another layer.
    """
    layer = layer.forward if isinstance(layer, BidirectionalS5) else layer
    if not isinstance(layer, S5):
        raise TypeError(
            f"continuous_eigenvalues takes an S5 or BidirectionalS5; got {type(layer).__name__}, "
            "which has no continuous time. Use eigenvalues."
        )
    real = np.asarray(layer.lambda_re, np.float64)
    if layer.clip_eigenvalues:
        real = np.minimum(real, _LARGEST_REAL_PART)
    return real + 1j * np.asarray(layer.lambda_im, np.float64)


def timescales(
    layer: Recurrent, x: Float[Array, "idim"] | None = None, state: State | None = None
) -> Float[np.ndarray, "units"]:
    r"""The steps in which each mode falls to $1/e$: $\tau = -1 / \log|\lambda|$ for the eigenvalues
    of `eigenvalues`, in their order, with its arguments.

    **Returns:** float64, in steps; 0 for a mode that is gone after one step, infinite where
    $|\lambda| \ge 1$ and nothing is forgotten.
    """
    magnitude = np.abs(eigenvalues(layer, x, state))
    with np.errstate(divide="ignore"):
        return np.where(magnitude < 1, -1 / np.log(np.minimum(magnitude, 1)), np.inf)


@eqx.filter_jit
def _jacobian(
    layer: Recurrent, x: Float[Array, "idim"], state: State
) -> Float[Array, "units units"]:
    with jax.default_matmul_precision("highest"):
        step = on_vectors(step_of(layer, x.dtype), x, state)
        return cast(Array, jax.jacfwd(step)(as_vector(state)[0]))
