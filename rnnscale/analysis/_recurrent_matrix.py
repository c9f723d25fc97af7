"""The recurrent matrix of a cell, found by tracing its step: cells do not name it."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Float

from rnnscale.cells import Cell, IndRNNCell, affine, compute_weights, identity, linear
from rnnscale.layers import ModularRNN


def recurrent_matrix(cell: Cell) -> Float[np.ndarray, "units units"] | None:
    r"""The recurrent matrix of a cell as its equations use it: $W$ of `ElmanRNNCell`, $e^A$ of
    `ExpRNNCell`, $P \Theta P^T$ of `NonNormalRNNCell`, $M = W - W^T - \gamma I$ of
    `AntiSymmetricRNNCell`.

    ```python
    import numpy as np
    from rnnscale.analysis import recurrent_matrix

    np.linalg.eigvals(recurrent_matrix(ExpRNNCell(1, 8, key=key)))  # on the unit circle
    ```

    For `UnitaryEvolutionRNNCell` it is the real form, with the real plane above the imaginary one,
    so its eigenvalues are those of $W$ and their conjugates. For `IndRNNCell` it is diagonal.

    **Returns:** the matrix in float32, on the host; `None` if the cell has no such matrix, or
    several, such as those of gates or of modules. `eigenvalues` linearises the step of any cell.

    **Raises:** `TypeError` if `cell` is not a `Cell`.
    """
    if not isinstance(cell, Cell):
        raise TypeError(f"recurrent_matrix takes a rnnscale.cells.Cell; got {type(cell).__name__}.")
    if isinstance(cell, ModularRNN):
        return None  # messages between modules are not a part of the matrices of the modules
    if isinstance(cell, IndRNNCell):
        return np.diag(np.asarray(cell.recurrent, np.float32))
    matrices: list[jax.Array] = []

    def record(plus: Any, weight: Any, h: Any) -> Any:
        vector, unravel = ravel_pytree(h)
        if weight is not identity:
            column = lambda each: ravel_pytree(linear(weight, unravel(each)))[0]  # noqa: E731
            matrices.append(jax.vmap(column, out_axes=1)(jnp.eye(vector.size, dtype=vector.dtype)))
        return affine(plus, weight, h)

    def trace(cell: Cell) -> list[jax.Array]:
        matrices.clear()
        weights = compute_weights(cell, jnp.float32)
        with jax.default_matmul_precision("highest"):
            drive = cell.drive(weights, jnp.zeros(cell.idim))
            cell.advance(weights, drive, cell.init_state(), record)
        return list(matrices)

    found = eqx.filter_jit(trace)(cell)
    is_one = len(found) == 1 and found[0].shape[0] == found[0].shape[1]
    return np.asarray(found[0]) if is_one else None
