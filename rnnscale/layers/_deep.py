"""Encoders on top of one another."""

from collections.abc import Sequence

import equinox as eqx
from jaxtyping import Array, Bool, DTypeLike, Float, Int, Key

from rnnscale._base import State, Stepwise, check_size, has_step
from rnnscale.layers._bidirectional import check_parts
from rnnscale.layers._encoder import Encoder, call_in_chunks, check_encoder


class DeepRNNEncoder(Encoder, Stepwise):
    """Encoders in a row, of any kinds and sizes that meet. The state is the tuple of theirs.

    It has a `step` if all of them are causal.
    """

    encoders: tuple[Encoder, ...]
    chunk: int | None = eqx.field(static=True)

    def __init__(self, encoders: Sequence[Encoder], *, chunk: int | None = None):
        """**Arguments:**

        - `encoders`: from the input to the output, at least one.
        - `chunk`: run all of them on so many steps after so many, see `RNNEncoder`. Under
            `jax.jit`, where only the state is used, there are never outputs of any of them for more
            than one chunk. For causal encoders.

        **Raises:** `TypeError` if one is no encoder, `ValueError` if there is none, one takes
        inputs of another size than the one before it gives, or there is a `chunk` that is below 1
        or that an encoder looks beyond.
        """
        if not encoders:
            raise ValueError("DeepRNNEncoder: got no encoder; give at least one.")
        for encoder in encoders:
            check_encoder(DeepRNNEncoder, encoder)
        for i, (below, above) in enumerate(zip(encoders, encoders[1:], strict=False)):
            if below.odim != above.idim:
                raise ValueError(
                    f"DeepRNNEncoder: layer {i} gives {below.odim} features, but layer {i + 1} "
                    f"takes idim={above.idim}."
                )
        self.encoders, self.chunk = tuple(encoders), chunk
        if chunk is not None:
            check_size(DeepRNNEncoder, chunk=chunk)
            if not self.causal:
                raise ValueError(
                    f"DeepRNNEncoder: chunk={chunk} hands states from chunk to chunk, but an "
                    "encoder looks ahead: leave chunk out, or use causal encoders."
                )

    @property
    def causal(self) -> bool:
        return all(encoder.causal for encoder in self.encoders)

    @property
    def idim(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Features of the input."""
        return self.encoders[0].idim

    @property
    def odim(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Features of the output."""
        return self.encoders[-1].odim

    def __call__(
        self,
        xs: Float[Array, "*batch time idim"],
        state: tuple[State, ...] | None = None,
        *,
        reset: Bool[Array, "*batch time"] | None = None,
        lengths: Int[Array, "*batch"] | None = None,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[tuple[State, ...], Float[Array, "*batch time odim"]]:
        depth = len(self.encoders)
        before = None if state is None else check_parts(self, state, depth)
        return call_in_chunks(self, self._run, self.chunk, xs, before, reset, lengths)

    def _run(
        self,
        xs: Float[Array, "*batch time idim"],
        state: tuple[State, ...] | None,
        *,
        reset: Bool[Array, "*batch time"] | None,
        lengths: Int[Array, "*batch"] | None,
    ) -> tuple[tuple[State, ...], Float[Array, "*batch time odim"]]:
        before = (None,) * len(self.encoders) if state is None else state
        after = []
        for encoder, start in zip(self.encoders, before, strict=True):
            end, xs = encoder(xs, start, reset=reset, lengths=lengths)
            after.append(end)
        return tuple(after), xs

    def step(
        self,
        x: Float[Array, "*batch idim"],
        state: tuple[State, ...],
        *,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[tuple[State, ...], Float[Array, "*batch odim"]]:
        """One step of time. **Raises** `TypeError` if an encoder is not causal."""
        after = []
        parts = check_parts(self, state, len(self.encoders))
        for encoder, start in zip(self.encoders, parts, strict=True):
            if not has_step(encoder):
                raise TypeError(
                    "DeepRNNEncoder: an encoder looks ahead, so there is no single step."
                )
            end, x = encoder.step(x, start)
            after.append(end)
        return tuple(after), x

    def init_state(
        self, batch_shape: tuple[int, ...] = (), dtype: DTypeLike | None = None
    ) -> tuple[State, ...]:
        return tuple(encoder.init_state(batch_shape, dtype) for encoder in self.encoders)

    def output(self, state: tuple[State, ...]) -> Float[Array, "*batch odim"]:
        return self.encoders[-1].output(state[-1])
