"""The recurrent layers inside a model, each with the inputs that reach it."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import equinox as eqx
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
from rnnscale.models._block import Block
from rnnscale.models._classifier import SequenceClassifier
from rnnscale.models._language_model import LanguageModel
from rnnscale.models._stack import BlockStack


class LayerWithInputs(NamedTuple):
    """A recurrent layer of a model and the inputs that it gets there.

    - `name`: its place in the model; `"layer 0"` is next to the input.
    - `layer`: the layer, with its own parameters even if the model stacks those of all layers.
    - `xs`: its inputs, "*batch time idim".
    """

    name: str
    layer: SequenceLayer
    xs: Float[Array, "*batch time idim"]


def recurrent_layers(model: Any, xs: Array) -> list[LayerWithInputs]:
    """The recurrent layers of a model, from the input to the output, with the inputs that they get
    when the model reads `xs` from a zero state and without dropout.

    **Arguments:**

    - `model`: a `RecurrentNetwork` such as `RNN` or `DeepRNN`, a `SequenceClassifier`, a
        `LanguageModel`, or a block or layer by itself.
    - `xs`: the inputs of the model. Every step counts: there is no padding.

    **Returns:** one entry for each layer. A bidirectional encoder has two, for its two cells; the
    inputs of the second are in the order in which it reads them.

    **Raises:** `TypeError` if `model` is of another kind.
    """
    return [
        LayerWithInputs(f"layer {i}{suffix}", layer, inputs)
        for i, (outer, outer_xs) in enumerate(layers_with_inputs(model, xs))
        for suffix, layer, inputs in _directions(outer, outer_xs)
    ]


def layers_with_inputs(
    model: Any, xs: Array, **timing: Array | None
) -> list[tuple[SequenceLayer, Array]]:
    """As `recurrent_layers`, with both directions of an encoder as one layer.

    - `timing`: `reset` and `lengths`, as of a call. Inputs beyond `lengths` may have any value.
    """
    match model:
        case LanguageModel():
            return layers_with_inputs(model.stack, model.embedding(xs, model.dtype), **timing)
        case SequenceClassifier(encoder=Embedding() as embedding):
            return layers_with_inputs(model.stack, embedding(xs, model.dtype), **timing)
        case SequenceClassifier():
            return layers_with_inputs(model.stack, model.encoder(xs), **timing)
        case BlockStack():
            return _layers_in_turn(model.unstacked(model.blocks), xs, timing)
        case RecurrentNetwork():
            return layers_with_inputs(model.encoder, xs, **timing)
        case Block():
            return layers_with_inputs(model.layer, model.norm(xs), **timing)
        case DeepRNNEncoder():
            return _layers_in_turn(model.encoders, xs, timing)
        case SequenceLayer():
            return [(model, jnp.asarray(xs))]
    raise TypeError(
        f"recurrent_layers knows the models of rnnscale.layers and rnnscale.models; got "
        f"{type(model).__name__}. Pass its recurrent layers one by one."
    )


def _layers_in_turn(
    parts: Iterable[SequenceLayer], xs: Array, timing: dict[str, Array | None]
) -> list[tuple[SequenceLayer, Array]]:
    """The layers of parts that read the outputs of one another."""
    found = []
    for part in parts:
        found += layers_with_inputs(part, xs, **timing)
        _, xs = _call(part, xs, timing)
    return found


def _directions(layer: SequenceLayer, xs: Array) -> list[tuple[str, SequenceLayer, Array]]:
    """The suffix of the name, the layer and its inputs, for each direction of a layer."""
    if isinstance(layer, BidirectionalRNNEncoder):
        return [
            (" forward", RNNEncoder(layer.forward, parallel=layer.parallel), xs),
            (
                " backward",
                RNNEncoder(layer.backward, parallel=layer.parallel),
                jnp.flip(xs, axis=-2),
            ),
        ]
    return [("", layer, xs)]


@eqx.filter_jit
def _call(layer: SequenceLayer, xs: Array, timing: dict[str, Array | None]) -> tuple[Any, Array]:
    return layer(xs, **timing)
