"""`generate`, text from a language model."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Integer, Key

from rnnscale._base import State
from rnnscale._checks import Count, NonNegative, Size, check_arguments
from rnnscale._over_time import lengths_within, over_time
from rnnscale.layers import draw_tokens, row_keys


@check_arguments
def generate(
    model: Any,
    tokens: Integer[Array, "*batch time"],
    state: State | None = None,
    *,
    steps: Size,
    temperature: NonNegative | Float[Array, ""] = 1.0,
    top_k: Size | None = None,
    lengths: Int[Array, "*batch"] | None = None,
    chunk: Size = 1024,
    drawn: Count | Int[Array, ""] = 0,
    key: Key[Array, "*#batch"],
) -> tuple[State, Int[Array, "*batch steps"]]:
    """Tokens that follow `tokens`, each drawn given the ones before it.

    Only the state is handed from token to token, so memory does not grow with the prompt or with
    `steps`, except for the tokens themselves.

    ```python
    state, more = generate(model, tokens, steps=100, temperature=0.8, top_k=40, key=key)
    text = jnp.concatenate([tokens, more], axis=-1)
    # 100 more, the same as from one call with steps=200.
    state, more = generate(
        model, more[..., -1:], state, steps=100, temperature=0.8, top_k=40, drawn=100, key=key
    )
    ```

    **Arguments:**

    - `model`: a `LanguageModel`, or another model with the same call, `step` and `init_state`.
    - `tokens`: the prompts, at least one token each.
    - `state`: the state before them. Default zero.
    - `steps`: the number of tokens to draw, at least 1.
    - `temperature`: logits are divided by it, at least 0. At 0 the likeliest token is taken.
    - `top_k`: draw from the `top_k` likeliest tokens only, at least 1. `None` means all.
    - `lengths`: the number of tokens in each row's prompt, at least 1. Default all.
    - `chunk`: read the prompts this many tokens at a time, at least 1.
    - `drawn`: the number of tokens drawn with these keys before.
    - `key`: one key, or one for each row. A row's draws depend on its own key only.

    **Returns:** `(state, tokens)`: the state after all but the last token were read, and the
    tokens. A token is -1 where the model's logits are NaN, as they are after a token that is not
    in its vocabulary.

    **Raises:** `TypeError` if an argument has another kind, `ValueError` if a number is out of
    range or a prompt is empty.
    """
    time = tokens.shape[-1]
    if time == 0:
        raise ValueError("there is no token to continue from; give at least one in each row.")
    if lengths is None:
        lengths = jnp.full(tokens.shape[:-1], time)
    elif not isinstance(lengths, Tracer):
        given = np.asarray(lengths)
        if not ((given >= 1) & (given <= time)).all():
            raise ValueError(f"lengths must be 1 to {time}, the steps of `tokens`; got {given}.")
    keys: Any = row_keys(key, tokens.shape[:-1])
    state, logits = _read(model, tokens, state, lengths, chunk)
    return draw_tokens(
        model.step,
        state,
        logits,
        steps,
        temperature=temperature,
        top_k=top_k,
        keys=keys,
        drawn=drawn,
    )


def _read(
    model: Any,
    tokens: Int[Array, "*batch time"],
    state: State | None,
    lengths: Int[Array, "*batch"],
    chunk: int,
) -> tuple[State, Float[Array, "*batch vocab"]]:
    """The state after the prompts, and the logits of the tokens that follow them."""

    def read(carry: tuple, piece: Array, start: Int[Array, ""]) -> tuple[tuple, None]:
        state, last = carry
        valid = lengths_within(lengths, start, piece.shape[-1])
        state, logits = model(piece, state, lengths=valid)
        end = jnp.maximum(valid - 1, 0)[..., None, None]
        ending = jnp.take_along_axis(logits, end, axis=-2)[..., 0, :]
        return (state, jnp.where((valid > 0)[..., None], ending, last)), None

    if state is None:
        state = model.init_state(tokens.shape[:-1])
    if tokens.shape[-1] == 1:
        # So that continuing gives bit for bit what one call would have given.
        return model.step(tokens[..., 0], state)
    _, first = jax.eval_shape(lambda: model.step(tokens[..., 0], state))
    last = jnp.zeros(first.shape, first.dtype)
    (state, last), _ = over_time(read, (state, last), tokens, steps=chunk, axis=tokens.ndim - 1)
    return state, last
