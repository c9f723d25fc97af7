"""One step of every kind of model: what `export_step` exports."""

from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Int

from rnnscale._base import SequenceModel, State, Stepwise, at_least_float32, has_step, state_dtype
from rnnscale._errors import UserError
from rnnscale.cells import Cell
from rnnscale.layers import Embedding, RecurrentNetwork
from rnnscale.models import BlockStack, LanguageModel, SequenceClassifier


def stepwise(model: Any) -> Stepwise:
    """The model, or a module around it, that has a `step`. Its block stacks do not loop over depth,
    so that what a block computes from its weights alone can be folded into constants.

    **Raises:** `TypeError` if the model has no step; `UserError` if it is not causal.
    """
    if isinstance(model, SequenceModel) and not model.causal:
        raise UserError(
            f"export_step: {type(model).__name__} is not causal: it needs the full sequence, so "
            "there is no step to export"
        )
    if isinstance(model, Cell):
        raise TypeError(
            f"export_step takes no bare cell; give it RNNEncoder({type(model).__name__}(...)), "
            "which has a step over batches"
        )
    model = jax.tree.map(
        lambda part: _UnrolledStack(part) if isinstance(part, BlockStack) else part,
        model,
        is_leaf=lambda part: isinstance(part, BlockStack),
    )
    if isinstance(model, SequenceClassifier):
        return _ClassifierByStep(model)
    if isinstance(model, RecurrentNetwork):
        return _NetworkByStep(model)
    if not has_step(model):
        raise TypeError(
            "export_step takes a causal layer, a LanguageModel, a SequenceClassifier or a network "
            f"such as RNN; {type(model).__name__} has no step"
        )
    return model


def reads_tokens(model: Any) -> bool:
    """Whether the inputs of the model are integers, one at each step."""
    return isinstance(model, LanguageModel) or (
        isinstance(model, SequenceClassifier) and isinstance(model.encoder, Embedding)
    )


class _Causal(Stepwise):
    @property
    def causal(self) -> bool:
        return True


class _UnrolledStack(_Causal):
    """A stack, block by block."""

    stack: BlockStack

    @property
    def odim(self) -> int:
        return self.stack.odim

    def step(
        self,
        x: Float[Array, "*batch dim"],
        state: State,
        *,
        interval: Float[Array, "*batch"] | None = None,
        key: None = None,
    ) -> tuple[State, Float[Array, "*batch dim"]]:
        stack, states = self.stack, []
        for block, before in zip(
            stack.unstacked(stack.blocks), stack.unstacked(state), strict=True
        ):
            after, x = block.step(x, before, interval=interval)
            states.append(after)
        return stack.stacked(states), x

    def init_state(
        self, batch_shape: tuple[int, ...] = (), dtype: DTypeLike | None = None
    ) -> State:
        return self.stack.init_state(batch_shape, dtype)


class _NetworkByStep(_Causal):
    """At each step the readout of the network for the sequence that ends there."""

    network: RecurrentNetwork

    def step(
        self, x: Float[Array, "*batch idim"], state: State, *, key: None = None
    ) -> tuple[State, Float[Array, "*batch odim"]]:
        encoder = cast(Stepwise, self.network.encoder)  # it is causal, or there is no export
        state, h = encoder.step(x, state)
        return state, self.network.readout(h)

    def init_state(
        self, batch_shape: tuple[int, ...] = (), dtype: DTypeLike | None = None
    ) -> State:
        return self.network.init_state(batch_shape, dtype)


class _RunningMean(eqx.Module):
    """The mean of the features up to a step.

    The mean itself is updated, not a sum, which would grow. Steps are counted in float32, which
    stops at 2^24: from then on old features fade. An integer would overflow.
    """

    value: Float[Array, "*batch dim"]
    steps: Float[Array, "*batch"]

    def updated(self, features: Float[Array, "*batch dim"]) -> "_RunningMean":
        steps = self.steps + 1
        change = (at_least_float32(features) - self.value) / steps[..., None]
        return _RunningMean(self.value + change, steps)


class _ClassifierByStep(_Causal):
    """At each step the logits for the sequence that ends there; or those of the step, if the
    classifier labels steps."""

    model: SequenceClassifier

    def step(
        self,
        x: Float[Array, "*batch idim"] | Int[Array, "*batch"],
        state: tuple[State, _RunningMean | None],
        *,
        key: None = None,
    ) -> tuple[tuple[State, _RunningMean | None], Float[Array, "*batch classes"]]:
        model, (inner, mean) = self.model, state
        encode = model.encoder
        x = encode(x, model.dtype) if isinstance(encode, Embedding) else encode(x)
        inner, x = model.stack.step(x, inner)
        features = model.norm(x)
        if mean is not None:
            mean = mean.updated(features)
            features = mean.value.astype(features.dtype)
        return (inner, mean), model.head(features)

    def init_state(
        self, batch_shape: tuple[int, ...] = (), dtype: DTypeLike | None = None
    ) -> tuple[State, _RunningMean | None]:
        inner = self.model.init_state(batch_shape, dtype)
        if self.model.pool != "mean":
            return inner, None
        value = jnp.zeros((*batch_shape, self.model.stack.odim), state_dtype(dtype))
        return inner, _RunningMean(value, jnp.zeros(batch_shape, jnp.float32))
