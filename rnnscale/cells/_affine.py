"""`AffineInputCell`, the base of cells whose input enters through a matrix and a bias."""

from typing import Any, NamedTuple, final

from jaxtyping import Array, Float

from rnnscale.cells._base import Cell, linear


class DenseWeights(NamedTuple):
    """One recurrent matrix, one input matrix and one bias. Gates lie one below the other."""

    recurrent: Float[Array, "gates hdim"]
    input: Float[Array, "gates idim"]
    bias: Float[Array, "gates"]


class AffineInputCell(Cell):
    r"""A cell whose input enters as $V x_t + b$ only.

    What a subclass returns from `weights()` has the fields `input`, of shape `(rows, idim)`, and
    `bias`, of shape `(rows,)`.
    """

    @final
    def drive(self, weights: Any, x: Float[Array, "*axes idim"]) -> Float[Array, "*axes rows"]:
        return linear(weights.input, x) + weights.bias
