"""`LanguageModel`, which predicts the next token from those before it."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from rnnscale._base import (
    State,
    Stepwise,
    TakesIntervals,
    at_least_float32,
    check_tokens,
    checked_timing,
    zero_padding,
)
from rnnscale._checks import BatchShape, FloatDType, Positive, Rate, Size, check_arguments
from rnnscale.layers import Embedding, LayerNorm, Linear
from rnnscale.models._mixers import HalfGLU, Pointwise
from rnnscale.models._parts import make_part
from rnnscale.models._stack import BlockStack, MakeLayers, check_width, noncausal_layers


class LanguageModel(Stepwise, TakesIntervals):
    r"""Embedding, blocks, norm, linear head over the vocabulary.

    ```python
    model = LanguageModel(
        256, make_layer=lambda key: LRU(128, 256, key=key), dim=128, depth=4, key=key
    )
    state, logits = model(tokens)     # tokens: (batch, time), logits: (batch, time, 256)
    state, logits = model.step(jnp.argmax(logits[:, -1], axis=-1), state)
    ```
    """

    embedding: Embedding
    stack: BlockStack
    norm: Pointwise
    head: Linear | None
    vocab: int = eqx.field(static=True)
    logit_cap: float | None = eqx.field(static=True)
    dtype: jnp.dtype = eqx.field(static=True)

    @check_arguments
    def __init__(
        self,
        vocab: Size,
        *,
        make_layer: MakeLayers,
        dim: Size,
        depth: Size,
        make_mixer: Callable[..., Pointwise] = HalfGLU,
        make_ffn: Callable[..., Pointwise] | None = None,
        make_norm: Callable[..., Pointwise] = LayerNorm,
        make_head: Callable[..., Linear] | None = Linear,
        embedding_scale: Positive = 1.0,
        logit_cap: Positive | None = None,
        dropout: Rate = 0.0,
        remat: bool = False,
        dtype: FloatDType = jnp.float32,
        key: PRNGKeyArray,
    ):
        r"""**Arguments:**

        - `vocab`: the number of tokens.
        - `make_layer`: from a key to a causal layer with `dim` features in and out; or a list of
            such functions, see `BlockStack`.
        - `dim`: features of the blocks.
        - `depth`: the number of blocks.
        - `make_mixer`, `make_ffn`, `make_norm`, `dropout`: see `rnnscale.models.Block`; the last
            norm is also made by `make_norm`.
        - `make_head`: called as `make_head(dim, vocab, key=key)`. `None` ties the head to the
            embedding: logits are the products of the features with the tokens' vectors.
        - `embedding_scale`: the factor of the embedding, $\sqrt{\mathrm{dim}}$ in models that tie
            the head to it; see `Embedding`.
        - `logit_cap`: keeps logits between `-logit_cap` and `logit_cap`, by
            $c \tanh(\mathrm{logits} / c)$. Default: no cap.
        - `remat`: see `BlockStack`.
        - `dtype`: the compute dtype.
        - `key`: for the initial parameters.

        **Raises:** see `Block`; `ValueError` if a size is below 1 or the layer does not have `dim`
        features; `TypeError` if it is not causal, since it would see the token that it has to
        predict.
        """
        embedding_key, stack_key, head_key = jax.random.split(key, 3)
        self.embedding = Embedding(vocab, dim, scale=embedding_scale, key=embedding_key)
        self.stack = BlockStack(
            make_layer,
            depth,
            make_mixer=make_mixer,
            make_ffn=make_ffn,
            make_norm=make_norm,
            dropout=dropout,
            remat=remat,
            key=stack_key,
        )
        check_width(LanguageModel, dim, self.stack)
        if not self.stack.causal:
            raise TypeError(
                "LanguageModel: make_layer must make causal layers; "
                f"{noncausal_layers(self.stack)} sees the tokens to be predicted."
            )
        self.norm = make_norm(dim)
        self.head = None
        if make_head is not None:
            self.head = make_part("LanguageModel", "make_head", make_head, dim, vocab, key=head_key)
            if not isinstance(self.head, Linear):
                raise TypeError(
                    "LanguageModel: make_head must be Linear, or make one of dim features in and "
                    f"vocab out; it made {type(self.head).__name__}."
                )
        self.vocab, self.dtype, self.logit_cap = vocab, jnp.dtype(dtype), logit_cap

    @property
    def causal(self) -> bool:
        return True

    def __call__(
        self,
        tokens: Int[Array, "*batch time"],
        state: State | None = None,
        *,
        reset: Bool[Array, "*batch time"] | None = None,
        lengths: Int[Array, "*batch"] | None = None,
        intervals: Float[Array, "*batch time"] | None = None,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[State, Float[Array, "*batch time vocab"]]:
        check_tokens(self, tokens, rank=1)
        lengths = checked_timing(tokens.shape, reset, lengths, key, intervals)
        xs = zero_padding(self.embedding(tokens, self.dtype), lengths)
        state, xs = self.stack(
            xs, state, reset=reset, lengths=lengths, intervals=intervals, key=key
        )
        return state, zero_padding(self._logits(xs), lengths)

    def step(
        self,
        token: Int[Array, "*batch"],
        state: State,
        *,
        interval: Float[Array, "*batch"] | None = None,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[State, Float[Array, "*batch vocab"]]:
        check_tokens(self, token)
        x = self.embedding(token, self.dtype)
        state, x = self.stack.step(x, state, interval=interval, key=key)
        return state, self._logits(x)

    def _logits(self, x: Float[Array, "*axes dim"]) -> Float[Array, "*axes vocab"]:
        x = self.norm(x)
        if self.head is None:
            logits = x @ self.embedding.weight.astype(x.dtype).T
        else:
            logits = self.head(x)
        if self.logit_cap is None:
            return logits
        capped = self.logit_cap * jnp.tanh(at_least_float32(logits) / self.logit_cap)
        return capped.astype(logits.dtype)

    @check_arguments
    def init_state(self, batch_shape: BatchShape = (), dtype: FloatDType | None = None) -> State:
        return self.stack.init_state(batch_shape, self.dtype if dtype is None else dtype)
