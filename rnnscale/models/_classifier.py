"""Labels for sequences, or for their steps."""

from collections.abc import Callable
from typing import Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float, Int, Key, PRNGKeyArray

from rnnscale import sharding
from rnnscale._base import (
    SequenceLayer,
    State,
    at_least_float32,
    check_features,
    check_size,
    zero_padding,
)
from rnnscale.layers import LayerNorm, Linear
from rnnscale.models._mixers import HalfGLU, Pointwise
from rnnscale.models._stack import BlockStack, check_width

type Pool = Literal["last", "mean", "none"]


class SequenceClassifier(eqx.Module):
    """Encoder, blocks, norm, pooling over time, linear head.

    ```python
    model = SequenceClassifier(
        1, 10, make_layer=lambda key: S5(64, 64, key=key), dim=64, depth=4, key=key
    )
    state, logits = model(xs)         # xs: (batch, time, 1), logits: (batch, 10)
    ```

    **Differs from the S5 and LRU code:** a norm follows the last block, because the residual
    stream grows with depth.
    """

    encoder: Linear
    stack: BlockStack
    norm: Pointwise
    head: Linear
    idim: int = eqx.field(static=True)
    classes: int = eqx.field(static=True)
    pool: Pool = eqx.field(static=True)

    def __init__(
        self,
        idim: int,
        classes: int,
        *,
        make_layer: Callable[[PRNGKeyArray], SequenceLayer],
        dim: int,
        depth: int,
        make_mixer: Callable[..., Pointwise] = HalfGLU,
        make_norm: Callable[..., Pointwise] = LayerNorm,
        dropout: float = 0.0,
        pool: Pool = "mean",
        remat: bool = False,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `idim`: features of the input.
        - `classes`: number of labels.
        - `make_layer`: makes a sequence layer of `dim` features in and out from a key.
        - `dim`: the width of the blocks.
        - `depth`: how many blocks.
        - `make_mixer`, `make_norm`, `dropout`: see `rnnscale.models.Block`; `make_norm` makes the
            last norm too.
        - `pool`: `"mean"` over the valid steps, the `"last"` valid one, or `"none"`: a label for
            each step.
        - `remat`: see `BlockStack`.
        - `key`: for the initial parameters.

        **Raises:** `ValueError` where a size is none, the layer isn't `dim` wide, or `pool` is
        none of these.
        """
        check_size(SequenceClassifier, idim=idim, classes=classes, dim=dim)
        if pool not in get_args(Pool.__value__):
            raise ValueError(
                "SequenceClassifier: pool must be one of "
                f"{', '.join(get_args(Pool.__value__))}; got {pool!r}."
            )
        encoder_key, stack_key, head_key = jax.random.split(key, 3)
        self.encoder = Linear(idim, dim, key=encoder_key)
        self.stack = BlockStack(
            make_layer,
            depth,
            make_mixer=make_mixer,
            make_norm=make_norm,
            dropout=dropout,
            remat=remat,
            key=stack_key,
        )
        check_width(SequenceClassifier, dim, self.stack)
        self.norm = make_norm(dim)
        self.head = Linear(dim, classes, key=head_key)
        self.idim, self.classes, self.pool = idim, classes, pool

    def __call__(
        self,
        xs: Float[Array, "*batch time idim"],
        state: State | None = None,
        *,
        reset: Bool[Array, "*batch time"] | None = None,
        lengths: Int[Array, "*batch"] | None = None,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[State, Float[Array, "*batch classes"] | Float[Array, "*batch time classes"]]:
        """As a sequence layer; the logits have no time axis unless `pool` is `"none"`.

        A row of length zero has the logits of a zero feature vector.
        """
        check_features(self, xs, self.idim, rank=2)
        xs = zero_padding(xs, lengths)
        state, xs = self.stack(self.encoder(xs), state, reset=reset, lengths=lengths, key=key)
        xs = zero_padding(self.norm(xs), lengths)
        if self.pool == "mean":
            xs = _mean(xs, lengths)
        elif self.pool == "last":
            xs = _last(xs, lengths)
        logits = self.head(xs)
        return state, logits if self.pool != "none" else zero_padding(logits, lengths)

    def init_state(
        self, batch_shape: tuple[int, ...] = (), dtype: DTypeLike | None = None
    ) -> State:
        return self.stack.init_state(batch_shape, dtype)


def _mean(
    xs: Float[Array, "*batch time dim"], lengths: Int[Array, "*batch"] | None
) -> Float[Array, "*batch dim"]:
    # A sum over time in bfloat16 would lose the later steps.
    total = jnp.sum(at_least_float32(xs), axis=-2)
    steps = jnp.asarray(xs.shape[-2] if lengths is None else lengths, total.dtype)
    return (total / jnp.maximum(steps, 1)[..., None]).astype(xs.dtype)


def _last(
    xs: Float[Array, "*batch time dim"], lengths: Int[Array, "*batch"] | None
) -> Float[Array, "*batch dim"]:
    if lengths is None:
        return sharding.take_step(xs, xs.shape[-2] - 1)
    # Padded steps are zero, so where there is no last step its features are zero too.
    return sharding.take_step(xs, jnp.maximum(jnp.asarray(lengths, jnp.int32) - 1, 0))
