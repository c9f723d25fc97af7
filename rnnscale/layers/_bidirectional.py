"""`BidirectionalRNNEncoder`, two cells in opposite directions of time."""

from functools import partial

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from rnnscale._base import State, check_call
from rnnscale._checks import BatchShape, FloatDType, check_arguments
from rnnscale.cells import Cell, Parallel, check_cell, over_seq, time_loop
from rnnscale.layers._encoder import Encoder


class BidirectionalRNNEncoder(Encoder):
    """The hidden states of one cell forwards in time and of another backwards, concatenated.

    The backward cell starts from each sequence's own last step. The state is the pair `(forward,
    backward)`: the first after a sequence's last step, the second after its first. The cells may be
    of different kinds and sizes.

    Schuster, Paliwal, *Bidirectional Recurrent Neural Networks*, IEEE Transactions on Signal
    Processing 1997.
    """

    forward: Cell
    backward: Cell
    idim: int = eqx.field(static=True)
    odim: int = eqx.field(static=True)
    remat: bool = eqx.field(static=True)
    parallel: Parallel = eqx.field(static=True)

    @check_arguments
    def __init__(
        self,
        forward: Cell,
        backward: Cell,
        *,
        remat: bool = False,
        parallel: Parallel = None,
    ):
        """**Arguments:**

        - `forward`, `backward`: cells with the same `idim`.
        - `remat`, `parallel`: see `RNNEncoder`.

        **Raises:** `TypeError` if an argument has another kind, `ValueError` if their `idim`
        differs.
        """
        check_cell(forward)
        check_cell(backward)
        if forward.idim != backward.idim:
            raise ValueError(
                "BidirectionalRNNEncoder: both cells take the same input, but forward has "
                f"idim={forward.idim} and backward idim={backward.idim}."
            )
        self.forward, self.backward = forward, backward
        self.remat, self.parallel = remat, parallel
        self.idim, self.odim = forward.idim, forward.odim + backward.odim

    @property
    def causal(self) -> bool:
        return False

    def __call__(
        self,
        xs: Float[Array, "*batch time idim"],
        state: tuple[State, State] | None = None,
        *,
        reset: Bool[Array, "*batch time"] | None = None,
        lengths: Int[Array, "*batch"] | None = None,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[tuple[State, State], Float[Array, "*batch time odim"]]:
        (start, end), lengths = check_call(self, xs, state, reset, lengths, key)
        run = partial(
            time_loop, reset=reset, lengths=lengths, remat=self.remat, parallel=self.parallel
        )
        end_state, forwards = run(self.forward, xs, start)
        start_state, backwards = run(self.backward, xs, end, reverse=True)
        return (end_state, start_state), jnp.concatenate([forwards, backwards], axis=-1)

    @check_arguments
    def init_state(
        self, batch_shape: BatchShape = (), dtype: FloatDType | None = None
    ) -> tuple[State, State]:
        return (
            self.forward.init_state(batch_shape, dtype),
            self.backward.init_state(batch_shape, dtype),
        )

    def output(self, state: tuple[State, State]) -> Float[Array, "*batch odim"]:
        """The forward cell's output at the last step and the backward cell's at the first."""
        outputs = self.forward.output(state[0]), self.backward.output(state[1])
        return jnp.concatenate(outputs, axis=-1)

    def over_seq(self) -> str:
        forward, backward = (over_seq(x, self.parallel) for x in (self.forward, self.backward))
        return forward if forward == backward else f"{forward}; backwards, {backward}"
