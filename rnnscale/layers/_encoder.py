"""`RNNEncoder`, which runs a cell over time, and what all encoders share."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import equinox as eqx
from jaxtyping import Array, Bool, Float, Int, Key

from rnnscale._base import CausalLayer, SequenceLayer, State, check_call, check_step
from rnnscale._checks import BatchShape, FloatDType, Size, check_arguments
from rnnscale._over_time import lengths_within, over_time
from rnnscale.cells import Cell, Parallel, check_cell, over_seq, time_loop
from rnnscale.layers._row_keys import fold_keys, row_keys


class Encoder(SequenceLayer):
    """A sequence layer whose last output can be read from its state."""

    @abstractmethod
    def output(self, state: State) -> Float[Array, "*batch odim"]:
        """The output of the step after which the state is `state`, in the dtype of the state."""


class RNNEncoder(Encoder, CausalLayer):
    """All hidden states of a cell along a sequence.

    ```python
    encoder = RNNEncoder(LongShortTermMemoryCell(idim=3, hdim=16, key=key))
    state, hs = encoder(jnp.zeros((4, 100, 3)))  # hs: (4, 100, 16)
    ```

    It runs on `rnnscale.cells.time_loop`: the input is multiplied before the loop, parameters get
    their gradients after it, and cells that are linear in their state run in parallel over time.
    With `parallel`, so do all other cells, by Newton's method.
    """

    cell: Cell
    idim: int = eqx.field(static=True)
    odim: int = eqx.field(static=True)
    remat: bool = eqx.field(static=True)
    chunk: int | None = eqx.field(static=True)
    parallel: Parallel = eqx.field(static=True)

    @check_arguments
    def __init__(
        self,
        cell: Cell,
        *,
        remat: bool = False,
        chunk: Size | None = None,
        parallel: Parallel = None,
    ):
        """**Arguments:**

        - `cell`: any cell.
        - `remat`: keep the state only at the borders of blocks of time, and compute the rest again
            in the backward pass: memory grows with the square root of the length, for about a third
            more arithmetic.
        - `chunk`: run on this many steps at a time, and run each of these chunks again in the
            backward pass. Under `jax.jit`, if only the state is used, the outputs of more than one
            chunk never exist together; about the square root of the length takes the least memory.
        - `parallel`: compute all steps at once by Newton's method, and one chunk after another if
            there is a `chunk`; see `time_loop`. A `step` stays one step. Default: one step after
            another.

        **Raises:** `TypeError` if an argument has another kind, `ValueError` if `chunk` is below 1.
        A call raises what `time_loop` does, for example if `parallel` does not suit the cell.
        """
        check_cell(cell)
        self.cell, self.remat, self.chunk, self.parallel = cell, remat, chunk, parallel
        self.idim, self.odim = cell.idim, cell.odim

    def __call__(
        self,
        xs: Float[Array, "*batch time idim"],
        state: State | None = None,
        *,
        reset: Bool[Array, "*batch time"] | None = None,
        lengths: Int[Array, "*batch"] | None = None,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[State, Float[Array, "*batch time odim"]]:
        def run(
            xs: Array, state: State, *, keys: Key[Array, "*batch"] | None, **timing: Any
        ) -> tuple[State, Array]:
            return time_loop(
                self.cell, xs, state, remat=self.remat, parallel=self.parallel, **timing
            )

        return call_in_chunks(self, run, self.chunk, xs, state, reset, lengths, key)

    def step(
        self,
        x: Float[Array, "*batch idim"],
        state: State,
        *,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[State, Float[Array, "*batch odim"]]:
        return self.cell(x, check_step(self, x, state, key))

    @check_arguments
    def init_state(self, batch_shape: BatchShape = (), dtype: FloatDType | None = None) -> State:
        return self.cell.init_state(batch_shape, dtype)

    def output(self, state: State) -> Float[Array, "*batch odim"]:
        return self.cell.output(state)

    def over_seq(self) -> str:
        return over_seq(self.cell, self.parallel)


def call_in_chunks(
    encoder: Encoder,
    run: Callable[..., tuple[Any, Any]],
    chunk: int | None,
    xs: Float[Array, "*batch time idim"],
    state: State | None,
    reset: Bool[Array, "*batch time"] | None,
    lengths: Int[Array, "*batch"] | None,
    key: Key[Array, "*#batch"] | None,
) -> tuple[Any, Any]:
    """`run(xs, state, reset=reset, lengths=lengths, keys=keys)`, which is the call of a causal
    encoder, on `chunk` steps at a time; on all steps if `chunk` is `None`. The `keys` are those of
    the rows, other ones in each chunk."""
    state, lengths = check_call(encoder, xs, state, reset, lengths, key)
    keys = row_keys(key, xs.shape[:-2])
    if chunk is None:
        return run(xs, state, reset=reset, lengths=lengths, keys=keys)

    def body(state: State, piece: tuple, start: Int[Array, ""]) -> tuple[State, Any]:
        xs, reset = piece
        valid = None if lengths is None else lengths_within(lengths, start, xs.shape[-2])
        piece_keys = None if keys is None else fold_keys(keys, start // chunk)
        return run(xs, state, reset=reset, lengths=valid, keys=piece_keys)

    return over_time(body, state, (xs, reset), steps=chunk, axis=xs.ndim - 2)
