"""Reservoir weights: cells with random matrices that have a given spectral radius."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray
from numpy.typing import ArrayLike, NDArray

from rnnscale._checks import Fraction, NonNegative, Positive, check_arguments
from rnnscale._fields import Parameter, map_parameters
from rnnscale.cells import Cell

# Up to this size, computing all eigenvalues is faster than ARPACK.
_DENSE = 200

# The largest eigenvalues of a random matrix are close to one another. If ARPACK computes only one,
# it often returns another that is up to a percent smaller, without an error. Among this many, the
# largest is found; the basis has to be several times as large.
_EIGENVALUES, _BASIS = 8, 96


@check_arguments
def as_reservoir[Reservoir: Cell](
    cell: Reservoir,
    *,
    spectral_radius: Positive,
    input_scale: NonNegative = 1.0,
    bias_scale: NonNegative = 0.0,
    density: Fraction = 0.1,
    input_density: Fraction = 0.1,
    key: PRNGKeyArray,
) -> Reservoir:
    r"""The cell with the random weights of an echo state network.

    - Recurrent matrices, with the axes `hdim hdim`, get normal entries, scaled so that the largest
      magnitude of an eigenvalue is the spectral radius. Parameters of the group `recurrence`, which
      represent a matrix in another form, do not change.
    - Input matrices, `hdim idim`, get the entries `±input_scale`, with equal probability.
    - Biases, `hdim` of the group `bias`, get the entries `±bias_scale`.

    Only a random fraction of the entries of a matrix, its density, is not zero. If one array holds
    several matrices, such as those of gates, each is drawn and scaled on its own. The radius is
    that of the stored matrices; a cell that computes its recurrent matrix from them, such as
    `AntiSymmetricRNNCell`, has another one.

    It runs on the host, not inside `jax.jit`. The eigenvalues of large matrices are computed by
    ARPACK, which only multiplies by the matrix.

    **Arguments:**

    - `cell`: any cell that has a recurrent matrix.
    - `spectral_radius`: positive. Below one, or slightly above if inputs are large, the state
        forgets its initial value.
    - `input_scale`, `bias_scale`: at least 0.
    - `density`, `input_density`: those of the recurrent and of the input matrices, in `(0, 1]`.
    - `key`: for the entries.

    **Returns:** the cell with new float32 weights.

    **Raises:** `TypeError` if an argument has another kind; `ValueError` if a number is out of
    range, the cell has no recurrent matrix, or so few entries were drawn that a matrix cannot be
    scaled or no input reaches the cell; `RuntimeError` if ARPACK does not converge.

    Jaeger, *The "Echo State" Approach to Analysing and Training Recurrent Neural Networks*, GMD
    Report 148, 2001; Lukoševičius, *A Practical Guide to Applying Echo State Networks*, 2012.
    """
    random = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    recurrent = []

    def redraw(each: Parameter) -> Array:
        shape = each.value.shape
        if _is_recurrent(each):
            recurrent.append(each.path)
            matrices = random.standard_normal(shape) * (random.random(shape) < density)
            stack = matrices.reshape(-1, *shape[-2:])
            drawn = np.stack([_scaled(matrix, spectral_radius, each.path) for matrix in stack])
        elif each.axes[-2:] == ("hdim", "idim"):
            drawn = _signs(random, shape) * (random.random(shape) < input_density)
            if not drawn.any():
                raise ValueError(
                    f"as_reservoir: every entry of {each.path}, {shape}, is zero at input_density="
                    f"{input_density}: raise it, or use another key."
                )
            drawn = input_scale * drawn
        elif each.axes[-1:] == ("hdim",) and each.group == "bias":
            drawn = bias_scale * _signs(random, shape)
        else:
            return each.value
        return jnp.asarray(drawn.reshape(shape), jnp.float32)

    reservoir = map_parameters(redraw, cell)
    if not recurrent:
        raise ValueError(
            f"as_reservoir: {type(cell).__name__} has no recurrent matrix whose spectral radius "
            "could be set. Use the cell unchanged: ReservoirComputer takes any cell."
        )
    return reservoir


@check_arguments
def spectral_radius(matrix: ArrayLike) -> float:
    """The largest magnitude of an eigenvalue, in float64.

    It runs on the host. For large matrices it is computed by ARPACK, from a fixed start, with a
    sparse matrix if most entries are zero; in rare cases ARPACK finds the second largest magnitude,
    which is smaller by less than a percent.

    **Arguments:**

    - `matrix`: real and square, `n n`.

    **Raises:** `TypeError` if an argument has another kind; `ValueError` if the matrix is not
    square; `RuntimeError` if ARPACK does not converge.
    """
    matrix = np.asarray(matrix, np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"spectral_radius takes a square matrix; got shape {matrix.shape}.")
    if not matrix.any():
        return 0.0  # ARPACK refuses it
    size = len(matrix)
    if size <= _DENSE:
        return float(np.max(np.abs(np.linalg.eigvals(matrix))))
    # Not imported with `rnnscale`, because it takes as long as all the rest.
    import scipy.sparse
    import scipy.sparse.linalg

    sparse = np.count_nonzero(matrix) < matrix.size / 4
    operator = scipy.sparse.csr_array(matrix) if sparse else matrix
    start = np.random.default_rng(0).standard_normal(size)
    for basis in (_BASIS, min(3 * _BASIS, size)):
        try:
            found = scipy.sparse.linalg.eigs(
                operator, k=_EIGENVALUES, ncv=basis, v0=start, return_eigenvectors=False
            )
        except scipy.sparse.linalg.ArpackNoConvergence as error:
            failure = error
        else:
            return float(np.max(np.abs(found)))
    raise RuntimeError(
        f"spectral_radius: ARPACK found no eigenvalues of a matrix of shape {matrix.shape} with "
        f"{basis} vectors. Scale it by numpy.linalg.eigvals, which takes long but always ends."
    ) from failure


def _is_recurrent(each: Parameter) -> bool:
    return each.axes[-2:] == ("hdim", "hdim") and each.group == "weight"


def _scaled(matrix: NDArray[np.float64], radius: float, path: str) -> NDArray[np.float64]:
    found = spectral_radius(matrix)
    # Because of rounding, the computed eigenvalues of nilpotent matrices are not exactly zero.
    if found <= 1e-3 * np.max(np.abs(matrix)):
        raise ValueError(
            f"as_reservoir: a matrix of {path}, {matrix.shape}, has no eigenvalue but zero: so few "
            "entries were drawn that no unit feeds back. Raise density, or use another key."
        )
    return matrix * (radius / found)


def _signs(random: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    return random.choice([-1.0, 1.0], shape)
