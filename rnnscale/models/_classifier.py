"""`SequenceClassifier`, which labels sequences or their steps."""

from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from rnnscale import sharding
from rnnscale._base import (
    State,
    TakesIntervals,
    at_least_float32,
    check_features,
    check_tokens,
    checked_state,
    checked_timing,
    zero_padding,
)
from rnnscale._checks import BatchShape, FloatDType, Rate, Size, check_arguments
from rnnscale._over_time import lengths_within, over_time
from rnnscale.layers import Embedding, LayerNorm, Linear, fold_keys, row_keys
from rnnscale.models._mixers import HalfGLU, Pointwise
from rnnscale.models._parts import make_part
from rnnscale.models._stack import BlockStack, MakeLayers, check_width, noncausal_layers

type Pooling = Literal["last", "mean", "none"]


class SequenceClassifier(TakesIntervals):
    """Encoder, blocks, norm, pooling over time, linear head.

    ```python
    model = SequenceClassifier(
        1, 10, make_layer=lambda key: S5(64, 64, key=key), dim=64, depth=4, key=key
    )
    state, logits = model(xs)         # xs: (batch, time, 1), logits: (batch, 10)
    ```

    With `make_encoder=Embedding` it takes integer tokens of shape `(batch, time)`.

    **Differs from the S5 and LRU code:** a norm follows the last block, because the residual
    stream grows with depth.
    """

    encoder: Linear | Embedding
    stack: BlockStack
    norm: Pointwise
    head: Linear
    idim: int = eqx.field(static=True)
    classes: int = eqx.field(static=True)
    pool: Pooling = eqx.field(static=True)
    chunk: int | None = eqx.field(static=True)
    dtype: jnp.dtype = eqx.field(static=True)

    @check_arguments
    def __init__(
        self,
        idim: Size,
        classes: Size,
        *,
        make_layer: MakeLayers,
        dim: Size,
        depth: Size,
        make_encoder: Callable[..., Linear | Embedding] = Linear,
        make_mixer: Callable[..., Pointwise] = HalfGLU,
        make_ffn: Callable[..., Pointwise] | None = None,
        make_norm: Callable[..., Pointwise] = LayerNorm,
        dropout: Rate = 0.0,
        pool: Pooling = "mean",
        remat: bool = False,
        chunk: Size | None = None,
        dtype: FloatDType = jnp.float32,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `idim`: features of the input, or the number of tokens.
        - `classes`: the number of labels.
        - `make_layer`: from a key to a sequence layer with `dim` features in and out; or a list of
            such functions, see `BlockStack`.
        - `dim`: features of the blocks.
        - `depth`: the number of blocks.
        - `make_encoder`: `Linear` for features, `Embedding` for tokens.
        - `make_mixer`, `make_ffn`, `make_norm`, `dropout`: see `rnnscale.models.Block`; the last
            norm is also made by `make_norm`.
        - `pool`: the `"mean"` over the valid steps, the `"last"` valid step, or `"none"`, which
            gives a label for each step.
        - `remat`: see `BlockStack`.
        - `chunk`: run up to the pooling on this many steps at a time, handing the state on. The
            backward pass computes each chunk again, so only the activations of one chunk exist at a
            time; about the square root of the length takes the least memory. Dropout masks differ
            from those without chunks. For causal layers, on a mesh that does not split time.
        - `dtype`: the compute dtype for tokens. Features are computed in their own.
        - `key`: for the initial parameters.

        **Raises:** see `Block`; and `ValueError` if a size is below 1, the layer does not have
        `dim` features, `pool` is invalid, or a `chunk` is given for a layer that is not causal.
        """
        encoder_key, stack_key, head_key = jax.random.split(key, 3)
        self.encoder = make_part(
            "SequenceClassifier", "make_encoder", make_encoder, idim, dim, key=encoder_key
        )
        if not isinstance(self.encoder, Linear | Embedding):
            raise TypeError(
                "SequenceClassifier: make_encoder must be Linear for features, or Embedding for "
                f"tokens; it made {type(self.encoder).__name__}."
            )
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
        check_width(SequenceClassifier, dim, self.stack)
        self.norm = make_norm(dim)
        self.head = Linear(dim, classes, key=head_key)
        if chunk is not None and not self.causal:
            raise ValueError(
                f"SequenceClassifier: chunk={chunk} hands a state from chunk to chunk, but "
                f"{noncausal_layers(self.stack)} needs the full sequence: leave chunk "
                "out, or use a causal layer."
            )
        self.idim, self.classes, self.pool, self.chunk = idim, classes, pool, chunk
        self.dtype = jnp.dtype(dtype)

    @property
    def causal(self) -> bool:
        return self.stack.causal

    def __call__(
        self,
        xs: Float[Array, "*batch time idim"] | Int[Array, "*batch time"],
        state: State | None = None,
        *,
        reset: Bool[Array, "*batch time"] | None = None,
        lengths: Int[Array, "*batch"] | None = None,
        intervals: Float[Array, "*batch time"] | None = None,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[State, Float[Array, "*batch classes"] | Float[Array, "*batch time classes"]]:
        """**Arguments:** those of `TakesIntervals`, with `xs` of features or tokens.

        **Returns:** `(state, logits)`. The logits have no time axis unless `pool` is `"none"`. For
        a row of length zero, they are those of a zero feature vector.
        """
        steps = self._batch_and_time(xs)
        lengths = checked_timing(steps, reset, lengths, key, intervals)
        keys = row_keys(key, steps[:-1])
        inputs = xs, reset, intervals
        if self.chunk is None:
            state, features = self._features(inputs, state, lengths, keys)
            outputs = self._outputs(features, lengths, None if lengths is None else lengths - 1)
        else:
            state, outputs = self._in_pieces(self.chunk, inputs, state, lengths, keys)
        if self.pool == "none":
            return state, outputs
        if self.pool == "mean":
            count = jnp.asarray(steps[-1] if lengths is None else lengths, outputs.dtype)
            outputs = outputs / jnp.maximum(count, 1)[..., None]
        return state, self.head(outputs.astype(self._compute_dtype(xs)))

    @property
    def reads_tokens(self) -> bool:
        """Whether the inputs are integer tokens, "*batch time", not features."""
        return isinstance(self.encoder, Embedding)

    def _batch_and_time(self, xs: Array) -> tuple[int, ...]:
        """The shape of "*batch time". Raises if `xs` has another rank or number of features."""
        if not self.reads_tokens:
            check_features(self, xs, self.idim, rank=2)
            return xs.shape[:-1]
        check_tokens(self, xs, rank=1)
        return xs.shape

    def _compute_dtype(self, xs: Array) -> jnp.dtype:
        return self.dtype if self.reads_tokens else xs.dtype

    def _features(
        self,
        inputs: tuple[Array, Array | None, Array | None],
        state: State | None,
        lengths: Int[Array, "*batch"] | None,
        keys: Key[Array, "*batch"] | None,
    ) -> tuple[State, Float[Array, "*batch time dim"]]:
        """What is pooled, zero beyond `lengths`. `inputs` are `(xs, reset, intervals)`."""
        xs, reset, intervals = inputs
        if isinstance(self.encoder, Linear):
            xs = self.encoder(zero_padding(xs, lengths))
        else:
            xs = zero_padding(self.encoder(xs, self.dtype), lengths)
        state, xs = self.stack(
            xs, state, reset=reset, lengths=lengths, intervals=intervals, key=keys
        )
        return state, zero_padding(self.norm(xs), lengths)

    def _outputs(
        self,
        features: Float[Array, "*batch time dim"],
        lengths: Int[Array, "*batch"] | None,
        last: Int[Array, "*batch"] | None,
    ) -> Float[Array, "*batch time classes"] | Float[Array, "*batch dim"]:
        """The logits of each step, or the sum over time that pooling divides by the steps.

        `last` is the index of each row's last step, which may lie outside these `features`: such a
        row adds zero. `None` means the last of these.
        """
        if self.pool == "none":
            return zero_padding(self.head(features), lengths)
        if self.pool == "mean" or features.shape[-2] == 0:
            # A sum over time in bfloat16 would lose the later steps.
            return jnp.sum(at_least_float32(features), axis=-2)
        steps = features.shape[-2]
        if last is None:
            return at_least_float32(sharding.take_step(features, steps - 1))
        found = sharding.take_step(features, jnp.clip(last, 0, steps - 1))
        inside = (last >= 0) & (last < steps)
        return jnp.where(inside[..., None], at_least_float32(found), 0)

    def _in_pieces(
        self,
        chunk: int,
        inputs: tuple[Array, Array | None, Array | None],
        state: State | None,
        lengths: Int[Array, "*batch"] | None,
        keys: Key[Array, "*batch"] | None,
    ) -> tuple[State, Float[Array, "*batch time classes"] | Float[Array, "*batch dim"]]:
        """The last state and the `_outputs` of all steps, from `chunk` steps at a time."""
        *batch_shape, time = self._batch_and_time(inputs[0])
        dtype = self._compute_dtype(inputs[0])
        state = checked_state(self, state, tuple(batch_shape), dtype)
        ends = jnp.full(batch_shape, time) if lengths is None else lengths

        def run(carry: tuple, piece: tuple, start: Int[Array, ""]) -> tuple[tuple, Any]:
            state, pooled = carry
            steps = self._batch_and_time(piece[0])[-1]
            valid = None if lengths is None else lengths_within(lengths, start, steps)
            piece_keys = None if keys is None else fold_keys(keys, start // chunk)
            state, features = self._features(piece, state, valid, piece_keys)
            outputs = self._outputs(features, valid, ends - 1 - start)
            if self.pool == "none":
                return (state, pooled), outputs
            return (state, pooled + outputs), None

        pooled = jnp.zeros((*batch_shape, self.stack.odim), jnp.promote_types(dtype, jnp.float32))
        (state, pooled), logits = over_time(
            run, (state, pooled), inputs, steps=chunk, axis=len(batch_shape)
        )
        return state, logits if self.pool == "none" else pooled

    @check_arguments
    def init_state(self, batch_shape: BatchShape = (), dtype: FloatDType | None = None) -> State:
        if dtype is None and self.reads_tokens:
            dtype = self.dtype
        return self.stack.init_state(batch_shape, dtype)
