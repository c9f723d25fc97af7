"""The spectral radius of a matrix, and cells whose weights are those of a reservoir."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from numpy.typing import NDArray

from rnnscale._fields import Parameter, map_parameters
from rnnscale.cells import Cell

# Up to this size all eigenvalues take less time than ARPACK.
_DENSE = 200

# The eigenvalues of a random matrix are crowded at the rim. Asked for one of them, ARPACK often
# returns another that is up to a percent smaller, without an error; among this many the largest is
# found, and the basis must be some times larger.
_EIGENVALUES, _BASIS = 8, 96


def as_reservoir[Reservoir: Cell](
    cell: Reservoir,
    *,
    spectral_radius: float,
    input_scale: float = 1.0,
    bias_scale: float = 0.0,
    density: float = 0.1,
    input_density: float = 0.1,
    key: PRNGKeyArray,
) -> Reservoir:
    r"""The cell with weights of an echo state network.

    - Recurrent matrices, of the axes `hdim hdim`, have normal entries, scaled so that the largest
      magnitude of an eigenvalue is the spectral radius. Parameters of the group `recurrence`, which
      are no matrices but stand for one, stay as they are.
    - Input matrices, `hdim idim`, have the entries `±input_scale`, with equal odds.
    - Biases, `hdim` of the group `bias`, have the entries `±bias_scale`.

    Entries of the matrices are zero but for a random fraction, the density. Of several matrices in
    one array, such as those of gates, each is drawn and scaled on its own. The radius is that of
    the matrices that the cell holds; a cell that makes others of them, such as
    `AntiSymmetricRNNCell`, has another one.

    It runs on the host, not inside `jax.jit`. The eigenvalues of large matrices are those of
    ARPACK, which multiplies by the matrix and never decomposes it.

    **Arguments:**

    - `cell`: any cell that has a recurrent matrix.
    - `spectral_radius`: positive. Below one, or a little above where inputs are large, the state
        forgets where it started.
    - `input_scale`, `bias_scale`: at least 0.
    - `density`, `input_density`: of the recurrent and of the input matrices, in `(0, 1]`.
    - `key`: for the entries.

    **Returns:** a cell with float32 weights, else the same.

    **Raises:** `TypeError` if `cell` is none; `ValueError` where a number is out of its range, the
    cell has no recurrent matrix, or so few entries were drawn that a matrix cannot be scaled or no
    input gets in; `RuntimeError` if ARPACK does not converge.

    Jaeger, *The "Echo State" Approach to Analysing and Training Recurrent Neural Networks*, GMD
    Report 148, 2001; Lukoševičius, *A Practical Guide to Applying Echo State Networks*, 2012.
    """
    if not isinstance(cell, Cell):
        raise TypeError(f"as_reservoir takes a rnnscale.cells.Cell; got {type(cell).__name__}.")
    for name, value in (("input_scale", input_scale), ("bias_scale", bias_scale)):
        if not 0 <= value < np.inf:
            raise ValueError(f"as_reservoir: {name} must be at least 0; got {value}.")
    for name, value in (("density", density), ("input_density", input_density)):
        if not 0 < value <= 1:
            raise ValueError(f"as_reservoir: {name} must be in (0, 1]; got {value}.")
    if not 0 < spectral_radius < np.inf:
        raise ValueError(f"as_reservoir: spectral_radius must be positive; got {spectral_radius}.")
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
                    f"as_reservoir: of {each.path}, {shape}, no entry was drawn at the density "
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
            "could be set. Use the cell as it is: ReservoirComputer takes any."
        )
    return reservoir


def spectral_radius(matrix: Float[Array, "n n"] | NDArray[np.floating]) -> float:
    """The largest magnitude of an eigenvalue, in float64.

    It runs on the host. Of large matrices it is found by ARPACK, from a fixed start, and with zeros
    left out where most entries are zero; in rare cases that is the second largest, smaller by less
    than a percent.

    **Arguments:**

    - `matrix`: square.

    **Raises:** `ValueError` if it is not square, `RuntimeError` if ARPACK does not converge.
    """
    matrix = np.asarray(matrix, np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"spectral_radius takes a square matrix; got shape {matrix.shape}.")
    size = len(matrix)
    if size <= _DENSE:
        return float(np.max(np.abs(np.linalg.eigvals(matrix))))
    # Not with `import rnnscale`: it takes as long as all the rest of that.
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
    # Rounding gives nilpotent matrices eigenvalues that are not quite zero.
    if found <= 1e-3 * np.max(np.abs(matrix)):
        raise ValueError(
            f"as_reservoir: a matrix of {path}, {matrix.shape}, has no eigenvalue but zero: so few "
            "entries were drawn that no unit feeds back. Raise density, or use another key."
        )
    return matrix * (radius / found)


def _signs(random: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    return random.choice([-1.0, 1.0], shape)
