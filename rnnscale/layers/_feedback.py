"""The loops in which a model reads its own output, for values and for tokens."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from rnnscale._base import State
from rnnscale._checks import Count, NonNegative, Size, check_arguments
from rnnscale.layers._row_keys import fold_keys


def feed_back(
    step: Callable[[Array, State], tuple[State, Array]],
    state: State,
    y: Float[Array, "*batch dim"],
    steps: int,
) -> tuple[State, Float[Array, "*batch steps dim"]]:
    """`y` and the outputs that follow if each is the next input: `(state, ys)`.

    **Arguments:**

    - `step`: from `(input, state)` to `(state, output)`.
    - `state`: the state after the step whose output was `y`.
    - `steps`: the number of outputs, including `y`, at least 1.
    """

    def advance(carry: tuple, _: None) -> tuple[tuple, Array]:
        state, y = carry
        state, y = step(y, state)
        return (state, y), y

    (state, _), ys = jax.lax.scan(advance, (state, y), length=steps - 1)
    return state, jnp.moveaxis(jnp.concatenate([y[None], ys]), 0, -2)


@check_arguments
def draw_tokens(
    step: Callable[[Array, State], tuple[State, Array]],
    state: State,
    logits: Float[Array, "*batch vocab"],
    steps: Size,
    *,
    temperature: NonNegative | Float[Array, ""] = 1.0,
    top_k: Size | None = None,
    keys: Key[Array, "*batch"],
    drawn: Count | Int[Array, ""] = 0,
) -> tuple[State, Int[Array, "*batch steps"]]:
    """Tokens, each drawn given the ones before it.

    The memory is that of one state and of the tokens.

    **Arguments:**

    - `step`: from `(token, state)` to `(state, logits)`.
    - `state`, `logits`: the state after the prompt, and the logits of the first token to draw.
    - `steps`, `temperature`, `top_k`: see `rnnscale.models.generate`.
    - `keys`: one for each row. Draw number `i` uses `jax.random.fold_in(key, i)`.
    - `drawn`: the number of the first draw.

    **Returns:** `(state, tokens)`: the state after all but the last token were read, and the
    tokens. A token is -1 where logits are NaN.

    **Raises:** `TypeError` if an argument has another kind, `ValueError` if a number is out of
    range.
    """
    vocab = logits.shape[-1]
    if top_k is not None and top_k > vocab:
        raise ValueError(f"top_k must be 1 to {vocab}, the number of tokens; got {top_k}.")

    def draw(logits: Array, number: Int[Array, ""]) -> Int[Array, "*batch"]:
        logits = logits.astype(jnp.float32)
        # The index of the largest sum of logit and Gumbel noise is a draw from the softmax.
        noise = temperature * _gumbel(fold_keys(keys, number), vocab)
        if top_k is None:
            token = jnp.argmax(logits + noise, axis=-1)
        else:
            likeliest, tokens = jax.lax.top_k(logits, top_k)
            noise = jnp.take_along_axis(noise, tokens, axis=-1)
            choice = jnp.argmax(likeliest + noise, axis=-1, keepdims=True)
            token = jnp.take_along_axis(tokens, choice, axis=-1)[..., 0]
        return jnp.where(jnp.isnan(logits).any(axis=-1), -1, token)

    def advance(carry: tuple, number: Int[Array, ""]) -> tuple[tuple, Array]:
        state, token = carry
        state, logits = step(token, state)
        token = draw(logits, number)
        return (state, token), token

    numbers = drawn + jnp.arange(steps)
    first = draw(logits, numbers[0])
    (state, _), rest = jax.lax.scan(advance, (state, first), numbers[1:])
    return state, jnp.moveaxis(jnp.concatenate([first[None], rest]), 0, -1)


def _gumbel(keys: Key[Array, "*batch"], size: int) -> Float[Array, "*batch size"]:
    flat = jax.vmap(lambda key: jax.random.gumbel(key, (size,), jnp.float32))(keys.reshape(-1))
    return flat.reshape(*keys.shape, size)
