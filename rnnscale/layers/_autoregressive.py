"""`AutoregressiveRNN`, which continues sequences from its own output."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer, Key, PRNGKeyArray

from rnnscale._base import (
    State,
    Stepwise,
    check_features,
    check_tokens,
    zero_padding,
)
from rnnscale._checks import BatchShape, Count, FloatDType, NonNegative, Size, check_arguments
from rnnscale.layers._encoder import Encoder
from rnnscale.layers._feedback import draw_tokens, feed_back
from rnnscale.layers._linear import Linear
from rnnscale.layers._row_keys import row_keys
from rnnscale.layers._tokens import in_int32


class AutoregressiveRNN(Stepwise):
    """Predicts the next input at every step, and continues from its own predictions.

    Inputs are vectors of `idim` features, and the readout predicts the next vector; or they are
    integer tokens below `idim`, encoded one-hot, and the readout gives the logits of the next
    token. Any other integer is encoded as zeros.

    ```python
    model = AutoregressiveRNN(RNNEncoder(cell), key=key)
    state, predictions = model(xs)                         # at t, those for xs[..., t + 1, :]
    state, following = model.forecast(xs, steps=20)        # after xs, from its own outputs
    state, more = model.generate(tokens, steps=20, temperature=0.8, key=key)
    ```
    """

    encoder: Encoder
    readout: Linear

    @check_arguments
    def __init__(self, encoder: Encoder, *, key: PRNGKeyArray):
        """**Arguments:**

        - `encoder`: a causal encoder, for example `RNNEncoder` or a `DeepRNNEncoder` of those. Its
            `parallel` holds for known inputs. What follows them is computed step by step.
        - `key`: for the readout.

        **Raises:** `TypeError` if an argument has another kind, `ValueError` if the encoder looks
        ahead.
        """
        if not (isinstance(encoder, Stepwise) and encoder.causal):
            raise ValueError(
                "AutoregressiveRNN continues from its own output, but "
                f"{type(encoder).__name__} looks ahead: use a causal encoder."
            )
        self.encoder = encoder
        self.readout = Linear(encoder.odim, encoder.idim, key=key)

    @property
    def idim(self) -> int:
        """Features of the input, or the number of distinct tokens."""
        return self.encoder.idim

    @property
    def odim(self) -> int:
        """Features of the prediction, as many as `idim`."""
        return self.encoder.idim

    @property
    def causal(self) -> bool:
        return True

    def __call__(
        self,
        xs: Float[Array, "*batch time idim"] | Int[Array, "*batch time"],
        state: State | None = None,
        *,
        reset: Bool[Array, "*batch time"] | None = None,
        lengths: Int[Array, "*batch"] | None = None,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[State, Float[Array, "*batch time idim"]]:
        """Teacher forcing: `(state, predictions)`, as a call of a sequence layer."""
        xs = self._vectors(xs, rank=2)
        state, hs = self.encoder(xs, state, reset=reset, lengths=lengths, key=key)
        return state, zero_padding(self.readout(hs), lengths)

    def step(
        self,
        x: Float[Array, "*batch idim"] | Int[Array, "*batch"],
        state: State,
        *,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[State, Float[Array, "*batch idim"]]:
        encoder = cast(Stepwise, self.encoder)  # which `__init__` has checked
        state, h = encoder.step(self._vectors(x), state, key=key)
        return state, self.readout(h)

    @check_arguments
    def init_state(self, batch_shape: BatchShape = (), dtype: FloatDType | None = None) -> State:
        return self.encoder.init_state(batch_shape, dtype)

    @check_arguments
    def forecast(
        self,
        xs: Float[Array, "*batch time idim"],
        state: State | None = None,
        *,
        steps: Size,
        lengths: Int[Array, "*batch"] | None = None,
    ) -> tuple[State, Float[Array, "*batch steps idim"]]:
        """The values that follow `xs`, each predicted from the ones before it.

        **Arguments:**

        - `xs`: the known values, at least one step.
        - `state`: the state before them. Default zero.
        - `steps`: the number of values to predict, at least 1.
        - `lengths`: the number of known steps of each row. A row of length zero continues from
            `state`.

        **Returns:** `(state, ys)`: the state after all but the last value were read, and the
        values.

        **Raises:** `TypeError` if an argument has another kind; `ValueError` if `steps` is below 1
        or `xs` has no step, and what a call raises.
        """
        check_features(self, xs, self.idim, rank=2)
        state, y = self._read(xs, state, steps, lengths)
        return feed_back(self.step, state, y, steps)

    @check_arguments
    def generate(
        self,
        tokens: Integer[Array, "*batch time"],
        state: State | None = None,
        *,
        steps: Size,
        temperature: NonNegative | Float[Array, ""] = 1.0,
        top_k: Size | None = None,
        lengths: Int[Array, "*batch"] | None = None,
        drawn: Count | Int[Array, ""] = 0,
        key: Key[Array, "*#batch"],
    ) -> tuple[State, Int[Array, "*batch steps"]]:
        """Tokens that follow `tokens`, each drawn given the ones before it.

        **Arguments:**

        - `tokens`: the prompt, at least one step.
        - `state`: the state before it. Default zero.
        - `steps`: the number of tokens to draw, at least 1.
        - `temperature`: logits are divided by it, at least 0. At 0 the likeliest token is taken.
        - `top_k`: draw from the `top_k` likeliest tokens only, 1 to `idim`. `None` means all.
        - `lengths`: the number of tokens in each row's prompt. A row of length zero continues from
            `state`.
        - `drawn`: the number of tokens drawn with these keys before. With it, continuing from
            `(state, tokens[..., -1:])` gives what one call would have given.
        - `key`: one key, or one for each row. A row's draws depend on its own key only.

        **Returns:** `(state, tokens)`: the state after all but the last token were read, and the
        tokens. A token is -1 where logits are NaN.

        **Raises:** `TypeError` if an argument has another kind; `ValueError` if `steps` is below 1,
        the temperature is negative, `top_k` is out of range, or there is no prompt.
        """
        check_tokens(self, tokens, rank=1)
        keys: Any = row_keys(key, tokens.shape[:-1])
        state, logits = self._read(self._vectors(tokens, rank=2), state, steps, lengths)
        return draw_tokens(
            self.step,
            state,
            logits,
            steps,
            temperature=temperature,
            top_k=top_k,
            keys=keys,
            drawn=drawn,
        )

    def _read(
        self,
        xs: Float[Array, "*batch time idim"],
        state: State | None,
        steps: Size,
        lengths: Int[Array, "*batch"] | None,
    ) -> tuple[State, Float[Array, "*batch idim"]]:
        """The state after `xs`, and the prediction that follows."""
        if xs.shape[-2] == 0:
            raise ValueError(
                "AutoregressiveRNN: there is no step to continue from; give at least one."
            )
        state, _ = self.encoder(xs, state, lengths=lengths)
        return state, self.readout(self.encoder.output(state).astype(xs.dtype))

    def _vectors(self, xs: Array, rank: int = 1) -> Float[Array, "*axes idim"]:
        """Features as they are, tokens one-hot. Raises unless `xs` has at least `rank` axes, which
        for tokens do not include features."""
        if isinstance(xs, jax.Array | np.ndarray) and jnp.issubdtype(xs.dtype, jnp.integer):
            check_tokens(self, xs, rank - 1)
            return jax.nn.one_hot(in_int32(xs), self.idim, dtype=jnp.float32)
        check_features(self, xs, self.idim, rank)
        return xs
