"""A cell, lifted over time."""

from abc import abstractmethod
from typing import Any

import equinox as eqx
from jaxtyping import Array, Bool, DTypeLike, Float, Int, Key

from rnnscale._base import CausalLayer, SequenceLayer, State
from rnnscale.cells import Cell, time_loop


class Encoder(SequenceLayer):
    """A sequence layer whose last output can be read from its state."""

    @abstractmethod
    def output(self, state: State) -> Float[Array, "*batch odim"]:
        """The output at the step that `state` came from, in the dtype of the state."""


class RNNEncoder(Encoder, CausalLayer):
    """All hidden states of a cell along a sequence.

    ```python
    encoder = RNNEncoder(LongShortTermMemoryCell(idim=3, hdim=16, key=key))
    state, hs = encoder(jnp.zeros((4, 100, 3)))  # hs: (4, 100, 16)
    ```

    It runs on `rnnscale.cells.time_loop`: the input is multiplied before the loop, parameters get
    their gradients after it, and cells that are linear in their state run in parallel over time.
    """

    cell: Cell
    remat: bool = eqx.field(static=True)

    def __init__(self, cell: Cell, *, remat: bool = False):
        """**Arguments:**

        - `cell`: any cell.
        - `remat`: in the backward pass, compute again what happens between every so many steps:
            memory grows with the square root of the length, for about a third more arithmetic.

        **Raises:** `TypeError` if `cell` is none.
        """
        check_cell(RNNEncoder, cell)
        self.cell, self.remat = cell, remat

    @property
    def idim(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Features of the input."""
        return self.cell.idim

    @property
    def odim(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Features of the output."""
        return self.cell.odim

    def __call__(
        self,
        xs: Float[Array, "*batch time idim"],
        state: State | None = None,
        *,
        reset: Bool[Array, "*batch time"] | None = None,
        lengths: Int[Array, "*batch"] | None = None,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[State, Float[Array, "*batch time odim"]]:
        return time_loop(self.cell, xs, state, reset=reset, lengths=lengths, remat=self.remat)

    def step(
        self,
        x: Float[Array, "*batch idim"],
        state: State,
        *,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[State, Float[Array, "*batch odim"]]:
        return self.cell(x, state)

    def init_state(
        self, batch_shape: tuple[int, ...] = (), dtype: DTypeLike | None = None
    ) -> State:
        return self.cell.init_state(batch_shape, dtype)

    def output(self, state: State) -> Float[Array, "*batch odim"]:
        return self.cell.output(state)


def check_cell(owner: type, cell: Any) -> None:
    """Raises unless `cell` is one."""
    if not isinstance(cell, Cell):
        raise TypeError(f"{owner.__name__} takes a rnnscale.cells.Cell; got {type(cell).__name__}.")


def check_encoder(owner: type, encoder: Any) -> None:
    """Raises unless `encoder` is one."""
    if not isinstance(encoder, Encoder):
        raise TypeError(
            f"{owner.__name__} takes encoders, such as RNNEncoder(cell); got "
            f"{type(encoder).__name__}."
        )
