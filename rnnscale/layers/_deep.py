"""`DeepRNNEncoder`, encoders on top of one another."""

from typing import Any

import equinox as eqx
from jaxtyping import Array, Bool, Float, Int, Key

from rnnscale._base import State, Stepwise, check_step, has_step
from rnnscale._checks import BatchShape, FloatDType, NonEmpty, Rate, Size, check_arguments
from rnnscale.layers._dropout import Dropout
from rnnscale.layers._encoder import Encoder, call_in_chunks
from rnnscale.layers._row_keys import fold_keys, row_keys


class DeepRNNEncoder(Encoder, Stepwise):
    """Encoders in a row, each on the outputs of the one before. The state is a tuple of theirs.

    The encoders may be of different kinds and sizes. It is causal if all of them are.
    """

    encoders: tuple[Encoder, ...]
    dropout: Dropout | None
    idim: int = eqx.field(static=True)
    odim: int = eqx.field(static=True)
    chunk: int | None = eqx.field(static=True)

    @check_arguments
    def __init__(
        self, encoders: NonEmpty[Encoder], *, dropout: Rate = 0.0, chunk: Size | None = None
    ):
        """**Arguments:**

        - `encoders`: from the input to the output, at least one.
        - `dropout`: the rate, in `[0, 1)`, of dropout between the encoders: on what each but the
            first reads, not along time. It acts if a call gets a `key`.
        - `chunk`: run all of them on this many steps at a time; see `RNNEncoder`. Under `jax.jit`,
            if only the state is used, the outputs of more than one chunk never exist together.
            Dropout masks differ from those without chunks. For causal encoders.

        **Raises:** `TypeError` if an argument has another kind; `ValueError` if there is no
        encoder, if one takes another number of features than the one before it gives, if `dropout`
        is out of range, or if `chunk` is below 1 or given for encoders that are not causal.
        """
        for i, (below, above) in enumerate(zip(encoders, encoders[1:], strict=False)):
            if below.odim != above.idim:
                raise ValueError(
                    f"DeepRNNEncoder: layer {i} gives {below.odim} features, but layer {i + 1} "
                    f"takes idim={above.idim}."
                )
        self.encoders, self.chunk = tuple(encoders), chunk
        self.dropout = Dropout(dropout) if dropout else None
        self.idim, self.odim = encoders[0].idim, encoders[-1].odim
        if chunk is not None and not self.causal:
            raise ValueError(
                f"DeepRNNEncoder: chunk={chunk} hands states from chunk to chunk, but an encoder "
                "looks ahead: leave chunk out, or use causal encoders."
            )

    @property
    def causal(self) -> bool:
        return all(encoder.causal for encoder in self.encoders)

    def __call__(
        self,
        xs: Float[Array, "*batch time idim"],
        state: tuple[State, ...] | None = None,
        *,
        reset: Bool[Array, "*batch time"] | None = None,
        lengths: Int[Array, "*batch"] | None = None,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[tuple[State, ...], Float[Array, "*batch time odim"]]:
        return call_in_chunks(self, self._run_top, self.chunk, xs, state, reset, lengths, key)

    def layer_outputs(
        self,
        xs: Float[Array, "*batch time idim"],
        state: tuple[State, ...] | None = None,
        *,
        reset: Bool[Array, "*batch time"] | None = None,
        lengths: Int[Array, "*batch"] | None = None,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[tuple[State, ...], tuple[Float[Array, "*batch time _"], ...]]:
        """The outputs of every encoder. A call returns those of the last one only.

        ```python
        cells = [LongShortTermMemoryCell(1, 8, key=key), ElmanRNNCell(8, 4, key=key)]
        deep = DeepRNN(cells, odim=3, key=key)
        state, (below, above) = deep.encoder.layer_outputs(xs)
        y = deep.readout(deep.encoder.output(state))
        ```

        **Arguments:** those of a call.

        **Returns:** `(state, outputs)`, where `outputs[i]` is an array "*batch time odim" of the
        encoder `i`.
        """
        return call_in_chunks(self, self._run, self.chunk, xs, state, reset, lengths, key)

    def _run(
        self,
        xs: Float[Array, "*batch time idim"],
        state: tuple[State, ...],
        *,
        reset: Bool[Array, "*batch time"] | None,
        lengths: Int[Array, "*batch"] | None,
        keys: Key[Array, "*batch"] | None,
    ) -> tuple[tuple[State, ...], tuple[Array, ...]]:
        after, outputs = [], []
        for i, (encoder, start) in enumerate(zip(self.encoders, state, strict=True)):
            own = None if keys is None else fold_keys(keys, i)
            if self.dropout is not None and i > 0:
                xs = self.dropout(xs, key=own)
            end, xs = encoder(xs, start, reset=reset, lengths=lengths, key=own)
            after.append(end)
            outputs.append(xs)
        return tuple(after), tuple(outputs)

    def _run_top(
        self, xs: Float[Array, "*batch time idim"], state: tuple[State, ...], **timing: Any
    ) -> tuple[tuple[State, ...], Float[Array, "*batch time odim"]]:
        state, outputs = self._run(xs, state, **timing)
        return state, outputs[-1]

    def step(
        self,
        x: Float[Array, "*batch idim"],
        state: tuple[State, ...],
        *,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[tuple[State, ...], Float[Array, "*batch odim"]]:
        """One step of time. **Raises** `TypeError` if an encoder is not causal."""
        state, after = check_step(self, x, state, key), []
        keys = row_keys(key, x.shape[:-1])
        for i, (encoder, start) in enumerate(zip(self.encoders, state, strict=True)):
            own = None if keys is None else fold_keys(keys, i)
            if not has_step(encoder):
                raise TypeError(
                    "DeepRNNEncoder: an encoder looks ahead, so there is no single step."
                )
            if self.dropout is not None and i > 0:
                x = self.dropout.step(x, key=own)
            end, x = encoder.step(x, start, key=own)
            after.append(end)
        return tuple(after), x

    @check_arguments
    def init_state(
        self, batch_shape: BatchShape = (), dtype: FloatDType | None = None
    ) -> tuple[State, ...]:
        return tuple(encoder.init_state(batch_shape, dtype) for encoder in self.encoders)

    def output(self, state: tuple[State, ...]) -> Float[Array, "*batch odim"]:
        return self.encoders[-1].output(state[-1])
