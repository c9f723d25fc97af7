"""The recurrent layers inside a model, each with what reaches it."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rnnscale._base import SequenceLayer
from rnnscale.layers import (
    BidirectionalRNNEncoder,
    DeepRNNEncoder,
    Embedding,
    RecurrentNetwork,
    RNNEncoder,
)
from rnnscale.models import BlockStack, LanguageModel, SequenceClassifier


class Recurrence(NamedTuple):
    """A recurrent layer of a model.

    - `name`: where it is: `"layer 0"` is next to the input.
    - `layer`: the layer, with parameters of its own where the model has those of all in one array.
    - `xs`: its inputs, "*batch time idim".
    """

    name: str
    layer: SequenceLayer
    xs: Float[Array, "*batch time idim"]


def recurrences(model: Any, xs: Array) -> list[Recurrence]:
    """The recurrent layers of a model, from the input to the output, and the inputs that they have
    when the model is given `xs`, from a zero state and without dropout.

    **Arguments:**

    - `model`: a `RecurrentNetwork` such as `RNN` or `DeepRNN`, a `SequenceClassifier`, a
        `LanguageModel`, or a layer that is one.
    - `xs`: as the model takes them, all steps of which are valid.

    **Returns:** one for each layer; two for a bidirectional encoder, of which the second has its
    inputs in the order in which it reads them.

    **Raises:** `TypeError` for another kind of model.
    """
    return [
        Recurrence(name if suffix is None else f"{name} {suffix}", layer, inputs)
        for i, (whole, reaching) in enumerate(_layers(model, xs))
        for name in [f"layer {i}"]
        for suffix, layer, inputs in _directions(whole, reaching)
    ]


def _layers(model: Any, xs: Array) -> list[tuple[SequenceLayer, Array]]:
    match model:
        case LanguageModel():
            return _of_stack(model.stack, model.embedding(xs, model.dtype))
        case SequenceClassifier():
            encoder: Any = model.encoder
            takes_tokens = isinstance(encoder, Embedding)
            return _of_stack(model.stack, encoder(xs, model.dtype) if takes_tokens else encoder(xs))
        case BlockStack():
            return _of_stack(model, xs)
        case RecurrentNetwork():
            return _layers(model.encoder, xs)
        case DeepRNNEncoder():
            found = []
            for encoder in model.encoders:
                found.append((encoder, xs))
                _, xs = _call(encoder, xs)
            return found
        case SequenceLayer():
            return [(model, jnp.asarray(xs))]
    raise TypeError(
        f"recurrences knows the models of rnnscale.layers and rnnscale.models; got "
        f"{type(model).__name__}. Give its recurrent layers one by one."
    )


def _of_stack(stack: BlockStack, xs: Array) -> list[tuple[SequenceLayer, Array]]:
    arrays, static = eqx.partition(stack.blocks, eqx.is_array)
    found = []
    for depth in range(stack.depth):
        block = eqx.combine(jax.tree.map(lambda x, depth=depth: x[depth], arrays), static)
        found.append((block.layer, block.norm(xs)))
        _, xs = _call(block, xs)
    return found


def _directions(layer: SequenceLayer, xs: Array) -> list[tuple[str | None, SequenceLayer, Array]]:
    if isinstance(layer, BidirectionalRNNEncoder):
        backwards = jnp.flip(xs, axis=-2)
        return [
            ("forward", RNNEncoder(layer.forward), xs),
            ("backward", RNNEncoder(layer.backward), backwards),
        ]
    return [(None, layer, xs)]


@eqx.filter_jit
def _call(layer: SequenceLayer, xs: Array) -> tuple[Any, Array]:
    return layer(xs)
