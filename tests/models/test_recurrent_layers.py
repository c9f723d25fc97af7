"""The recurrent layers found in models get the inputs that they get when the model runs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnscale
from rnnscale.models import LanguageModel, SequenceClassifier, recurrent_layers
from rnnscale.ssm import LRU


def test_a_stack_of_blocks(getkey):
    """Run one by one, as blocks are defined, the layers give the output of the stack."""
    model = SequenceClassifier(
        2, 3, make_layer=lambda key: LRU(4, 5, key=key), dim=4, depth=3, pool="none", key=getkey()
    )
    xs = jax.random.normal(getkey(), (2, 7, 2))
    found = recurrent_layers(model, xs)
    assert [each.name for each in found] == ["layer 0", "layer 1", "layer 2"]
    residual = model.encoder(xs)
    stacked: Any = model.stack.blocks.layer
    for depth, (_, layer, inputs) in enumerate(found):
        assert isinstance(layer, LRU) and (layer.nu_log == stacked.nu_log[depth]).all()
        take = lambda x, depth=depth: x[depth]  # noqa: E731
        norm, mixer = (
            jax.tree.map(take, part) for part in (model.stack.blocks.norm, model.stack.blocks.mixer)
        )
        np.testing.assert_allclose(inputs, norm(residual), atol=1e-5)
        residual = residual + mixer(layer(inputs)[1])
    np.testing.assert_allclose(model.head(model.norm(residual)), model(xs)[1], atol=1e-5)


def test_tokens(getkey):
    model = LanguageModel(
        11, make_layer=lambda key: LRU(4, 5, key=key), dim=4, depth=2, key=getkey()
    )
    tokens = jnp.array([[1, 2, 10]])
    first, second = recurrent_layers(model, tokens)
    one_block = jax.tree.map(lambda x: x[0], model.stack.blocks.norm)
    np.testing.assert_allclose(first.xs, one_block(model.embedding.weight[tokens]), atol=1e-5)
    assert second.xs.shape == (1, 3, 4)


def test_a_deep_network(getkey):
    lower = rnnscale.LongShortTermMemoryCell(2, 3, key=getkey())
    upper = rnnscale.ElmanRNNCell(3, 4, key=getkey())
    xs = jax.random.normal(getkey(), (2, 6, 2))
    first, second = recurrent_layers(rnnscale.DeepRNN([lower, upper], 5, key=getkey()), xs)
    for found, cell in ((first.layer, lower), (second.layer, upper)):
        assert isinstance(found, rnnscale.RNNEncoder) and found.cell is cell
    np.testing.assert_allclose(second.xs, rnnscale.RNNEncoder(lower)(xs)[1], atol=1e-6)


def test_both_directions(getkey):
    one, other = (rnnscale.ElmanRNNCell(2, 3, key=getkey()) for _ in range(2))
    xs = jax.random.normal(getkey(), (2, 6, 2))
    model = rnnscale.BidirectionalRNN(one, other, 4, key=getkey())
    forward, backward = recurrent_layers(model, xs)
    assert (forward.name, backward.name) == ("layer 0 forward", "layer 0 backward")
    both = jnp.concatenate(
        [forward.layer(forward.xs)[1], backward.layer(backward.xs)[1][:, ::-1]], axis=-1
    )
    np.testing.assert_allclose(model.encoder(xs)[1], both, atol=1e-6)


def test_another_kind_of_model():
    with pytest.raises(TypeError, match="got dict"):
        recurrent_layers({}, jnp.zeros((1, 2, 3)))
