"""What a single step of each model is."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Int

from rnnscale._base import State, at_least_float32, state_dtype
from rnnscale._errors import UserError
from rnnscale.cells import Cell
from rnnscale.layers import Embedding, RecurrentNetwork
from rnnscale.models import BlockStack, LanguageModel, SequenceClassifier


def stepwise(model: Any) -> Any:
    """The model, or a module around it, with `step` and `init_state`, and without loops over depth:
    what each block makes of its weights can then be made beforehand."""
    if not getattr(model, "causal", True):
        raise UserError(
            f"export_step: {type(model).__name__} is not causal, it needs the whole sequence, so "
            "there is no step to export"
        )
    model = jax.tree.map(
        lambda part: _Unrolled(part) if isinstance(part, BlockStack) else part,
        model,
        is_leaf=lambda part: isinstance(part, BlockStack),
    )
    if isinstance(model, SequenceClassifier):
        return _ClassifierSoFar(model)
    if isinstance(model, RecurrentNetwork):
        return _NetworkSoFar(model)
    if isinstance(model, Cell):
        raise TypeError(
            f"export_step takes no bare cell; give it RNNEncoder({type(model).__name__}(...)), "
            "which has a step over batches"
        )
    if not (hasattr(model, "step") and hasattr(model, "init_state")):
        raise TypeError(
            "export_step takes a causal layer, a LanguageModel, a SequenceClassifier or a network "
            f"such as RNN; {type(model).__name__} has no step and init_state"
        )
    return model


def reads_tokens(model: Any) -> bool:
    """Whether its inputs are integers, one a step."""
    return isinstance(model, LanguageModel) or (
        isinstance(model, SequenceClassifier) and isinstance(model.encoder, Embedding)
    )


class _Unrolled(eqx.Module):
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
        arrays, static = eqx.partition(self.stack.blocks, eqx.is_array)
        states = []
        for depth in range(self.stack.depth):
            block, before = _entry((arrays, state), depth)
            after, x = eqx.combine(block, static).step(x, before, interval=interval)
            states.append(after)
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states), x

    def init_state(self, batch_shape: tuple[int, ...], dtype: DTypeLike | None) -> State:
        return self.stack.init_state(batch_shape, dtype)


def _entry(tree: Any, depth: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[depth], tree)


class _NetworkSoFar(eqx.Module):
    """At each step what the network gives for a sequence that ends there."""

    network: RecurrentNetwork

    def step(
        self, x: Float[Array, "*batch idim"], state: State
    ) -> tuple[State, Float[Array, "*batch odim"]]:
        encoder: Any = self.network.encoder
        state, h = encoder.step(x, state)
        return state, self.network.readout(h)

    def init_state(self, batch_shape: tuple[int, ...], dtype: DTypeLike | None) -> State:
        return self.network.init_state(batch_shape, dtype)


class _Mean(eqx.Module):
    """Of the features up to now. It is moved on rather than summed up, so that it doesn't grow.
    Steps are counted in float32, which stops at 2^24: from there on old ones fade, where an integer
    would run over."""

    value: Float[Array, "*batch dim"]
    steps: Float[Array, "*batch"]

    def moved(self, features: Float[Array, "*batch dim"]) -> "_Mean":
        steps = self.steps + 1
        change = (at_least_float32(features) - self.value) / steps[..., None]
        return _Mean(self.value + change, steps)


class _ClassifierSoFar(eqx.Module):
    """At each step the logits of a sequence that ends there, or of the step where the classifier
    labels steps."""

    model: SequenceClassifier

    def step(
        self, x: Float[Array, "*batch idim"] | Int[Array, "*batch"], state: tuple[State, Any]
    ) -> tuple[tuple[State, Any], Float[Array, "*batch classes"]]:
        model, (inner, mean) = self.model, state
        encode = model.encoder
        x = encode(x, model.dtype) if isinstance(encode, Embedding) else encode(x)
        inner, x = model.stack.step(x, inner)
        features = model.norm(x)
        if mean is not None:
            mean = mean.moved(features)
            features = mean.value.astype(features.dtype)
        return (inner, mean), model.head(features)

    def init_state(
        self, batch_shape: tuple[int, ...], dtype: DTypeLike | None
    ) -> tuple[State, Any]:
        inner = self.model.init_state(batch_shape, dtype)
        if self.model.pool != "mean":
            return inner, None
        value = jnp.zeros((*batch_shape, self.model.stack.odim), state_dtype(dtype))
        return inner, _Mean(value, jnp.zeros(batch_shape, jnp.float32))
