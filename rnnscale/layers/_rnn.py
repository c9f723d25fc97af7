"""Recurrent networks, which are an encoder and a linear readout."""

import equinox as eqx
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from rnnscale._base import SequenceModel, State
from rnnscale._checks import BatchShape, FloatDType, NonEmpty, Rate, Size, check_arguments
from rnnscale.cells import Cell, Parallel
from rnnscale.layers._bidirectional import BidirectionalRNNEncoder
from rnnscale.layers._deep import DeepRNNEncoder
from rnnscale.layers._dropout import Dropout
from rnnscale.layers._encoder import Encoder, RNNEncoder
from rnnscale.layers._linear import Linear
from rnnscale.layers._row_keys import fold_keys, row_keys

# As the number of an encoder, more than any stack has.
_READOUT = 2**31 - 1


class RecurrentNetwork(SequenceModel):
    """An encoder and a linear readout of its last state, with dropout before it.

    ```python
    rnn = RNN(cell, odim=3, key=key)
    y, hs = rnn(xs)                  # one output for each sequence, and all hidden states
    ys = rnn.readout(hs)             # an output for each step
    state, hs = rnn.encoder(xs)      # with the state to continue from
    ```
    """

    encoder: eqx.AbstractVar[Encoder]
    dropout: eqx.AbstractVar[Dropout | None]
    readout: eqx.AbstractVar[Linear]

    def __call__(
        self,
        xs: Float[Array, "*batch time idim"],
        state: State | None = None,
        *,
        reset: Bool[Array, "*batch time"] | None = None,
        lengths: Int[Array, "*batch"] | None = None,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[Float[Array, "*batch odim"], Float[Array, "*batch time hdim"]]:
        """**Arguments:** those of a sequence layer.

        **Returns:** `(y, hs)`: the readout of each row's last state, and the outputs of the
        encoder. For a row of length zero, `y` is the readout of the state it started from.
        """
        state, hs = self.encoder(xs, state, reset=reset, lengths=lengths, key=key)
        return self._read_last(state, xs, key), hs

    @check_arguments
    def outputs(
        self,
        xs: Float[Array, "*batch time idim"],
        state: State | None = None,
        *,
        per_step: bool,
        reset: Bool[Array, "*batch time"] | None = None,
        lengths: Int[Array, "*batch"] | None = None,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[State, Float[Array, "*batch time odim"] | Float[Array, "*batch odim"]]:
        """The last state and the readout, as a loss needs them.

        **Arguments:** those of a sequence layer, and

        - `per_step`: read out the hidden state at every step instead of the last state only.

        **Returns:** `(state, outputs)`, the state to continue from and the readout.
        """
        state, hs = self.encoder(xs, state, reset=reset, lengths=lengths, key=key)
        if not per_step:
            return state, self._read_last(state, xs, key)
        if self.dropout is not None:
            hs = self.dropout(hs, key=_readout_keys(key, xs))
        return state, self.readout(hs)

    def _read_last(
        self,
        state: State,
        xs: Float[Array, "*batch time idim"],
        key: Key[Array, "*#batch"] | None,
    ) -> Float[Array, "*batch odim"]:
        h = self.encoder.output(state).astype(xs.dtype)
        if self.dropout is not None:
            h = self.dropout.step(h, key=_readout_keys(key, xs))
        return self.readout(h)

    @property
    def causal(self) -> bool:
        return self.encoder.causal

    @property
    def idim(self) -> int:
        """Features of the input."""
        return self.encoder.idim

    @property
    def odim(self) -> int:
        """Features of the output."""
        return self.readout.odim

    @check_arguments
    def init_state(self, batch_shape: BatchShape = (), dtype: FloatDType | None = None) -> State:
        return self.encoder.init_state(batch_shape, dtype)


def _readout_keys(
    key: Key[Array, "*#batch"] | None, xs: Float[Array, "*batch time idim"]
) -> Key[Array, "*batch"] | None:
    """Keys of the rows that no encoder uses: those fold in the number of an encoder."""
    keys = row_keys(key, xs.shape[:-2])
    return None if keys is None else fold_keys(keys, _READOUT)


class RNN(RecurrentNetwork):
    """One cell over time, and a linear readout of its last state.

    ```python
    rnn = RNN(cell=ElmanRNNCell(idim=1, hdim=16, key=key), odim=1, key=key)
    y, hs = rnn(jnp.zeros((64, 100, 1)))    # y: (64, 1), hs: (64, 100, 16)
    ```
    """

    encoder: RNNEncoder
    dropout: Dropout | None
    readout: Linear

    @check_arguments
    def __init__(
        self,
        cell: Cell,
        odim: Size,
        *,
        dropout: Rate = 0.0,
        remat: bool = False,
        chunk: Size | None = None,
        parallel: Parallel = None,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `cell`: any cell.
        - `odim`: features of the readout.
        - `dropout`: the rate, in `[0, 1)`, of dropout on what the readout reads. It acts if a call
            gets a `key`; the states that a call returns are never dropped.
        - `remat`, `chunk`, `parallel`: see `RNNEncoder`.
        - `key`: for the readout.

        **Raises:** see `RNNEncoder` and `Linear`.
        """
        self.encoder = RNNEncoder(cell, remat=remat, chunk=chunk, parallel=parallel)
        self.dropout = Dropout(dropout) if dropout else None
        self.readout = Linear(self.encoder.odim, odim, key=key)


class BidirectionalRNN(RecurrentNetwork):
    """Two cells in opposite directions of time, and a linear readout of their last states: the
    forward cell's after a sequence's last step, and the backward cell's after its first."""

    encoder: BidirectionalRNNEncoder
    dropout: Dropout | None
    readout: Linear

    @check_arguments
    def __init__(
        self,
        forward: Cell,
        backward: Cell,
        odim: Size,
        *,
        dropout: Rate = 0.0,
        remat: bool = False,
        parallel: Parallel = None,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `forward`, `backward`: cells with the same `idim`.
        - `odim`, `dropout`, `remat`, `parallel`, `key`: see `RNN`.

        **Raises:** see `BidirectionalRNNEncoder` and `Linear`.
        """
        self.encoder = BidirectionalRNNEncoder(forward, backward, remat=remat, parallel=parallel)
        self.dropout = Dropout(dropout) if dropout else None
        self.readout = Linear(self.encoder.odim, odim, key=key)


class DeepRNN(RecurrentNetwork):
    """Cells on top of one another, each on the outputs of the one below, and a linear readout of
    the topmost one's last state. The cells may be of different kinds."""

    encoder: DeepRNNEncoder
    dropout: Dropout | None
    readout: Linear

    @check_arguments
    def __init__(
        self,
        cells: NonEmpty[Cell],
        odim: Size,
        *,
        dropout: Rate = 0.0,
        remat: bool = False,
        chunk: Size | None = None,
        parallel: Parallel = None,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `cells`: from the input to the output, each with the `idim` that the one below gives.
        - `odim`, `remat`, `parallel`, `key`: see `RNN`.
        - `dropout`: the rate of dropout on what the readout and each upper layer read, as in
            Zaremba et al., *Recurrent neural network regularization*, 2014.
        - `chunk`: see `DeepRNNEncoder`.

        **Raises:** see `DeepRNNEncoder` and `Linear`.
        """
        encoders = [RNNEncoder(cell, remat=remat, parallel=parallel) for cell in cells]
        self.encoder = DeepRNNEncoder(encoders, dropout=dropout, chunk=chunk)
        self.dropout = Dropout(dropout) if dropout else None
        self.readout = Linear(self.encoder.odim, odim, key=key)


class DeepBidirectionalRNN(RecurrentNetwork):
    """Pairs of cells on top of one another, each pair on the outputs of both cells below, and a
    linear readout of the last states of the topmost pair."""

    encoder: DeepRNNEncoder
    dropout: Dropout | None
    readout: Linear

    @check_arguments
    def __init__(
        self,
        cells: NonEmpty[tuple[Cell, Cell]],
        odim: Size,
        *,
        dropout: Rate = 0.0,
        remat: bool = False,
        parallel: Parallel = None,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `cells`: pairs `(forward, backward)` from the input to the output, each taking what the
            pair below gives: `forward.odim + backward.odim` features.
        - `odim`, `remat`, `parallel`, `key`: see `RNN`.
        - `dropout`: the rate of dropout on what the readout and each upper layer read, as in
            Zaremba et al., *Recurrent neural network regularization*, 2014.

        **Raises:** see `DeepRNNEncoder` and `Linear`.
        """
        self.encoder = DeepRNNEncoder(
            [BidirectionalRNNEncoder(*pair, remat=remat, parallel=parallel) for pair in cells],
            dropout=dropout,
        )
        self.dropout = Dropout(dropout) if dropout else None
        self.readout = Linear(self.encoder.odim, odim, key=key)
