"""Checks that `recurrent_layers` finds the layers inside models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnscale
from rnnscale.analysis import recurrent_layers
from rnnscale.models import LanguageModel, SequenceClassifier
from rnnscale.ssm import LRU


def test_of_a_stack_that_is_compiled_as_one(getkey):
    """Run one by one, as blocks are defined, they give what the stack gives."""
    model = SequenceClassifier(
        2, 3, make_layer=lambda key: LRU(4, 5, key=key), dim=4, depth=3, pool="none", key=getkey()
    )
    xs = jax.random.normal(getkey(), (2, 7, 2))
    found = recurrent_layers(model, xs)
    assert [each.name for each in found] == ["layer 0", "layer 1", "layer 2"]
    residual = model.encoder(xs)
    for depth, (_, layer, inputs) in enumerate(found):
        assert (layer.nu_log == model.stack.blocks.layer.nu_log[depth]).all()
        take = lambda x, depth=depth: x[depth]  # noqa: E731
        norm, mixer = (
            jax.tree.map(take, part) for part in (model.stack.blocks.norm, model.stack.blocks.mixer)
        )
        np.testing.assert_allclose(inputs, norm(residual), atol=1e-5)
        residual = residual + mixer(layer(inputs)[1])
    np.testing.assert_allclose(model.head(model.norm(residual)), model(xs)[1], atol=1e-5)


def test_of_tokens(getkey):
    model = LanguageModel(
        11, make_layer=lambda key: LRU(4, 5, key=key), dim=4, depth=2, key=getkey()
    )
    tokens = jnp.array([[1, 2, 10]])
    first, second = recurrent_layers(model, tokens)
    one_block = jax.tree.map(lambda x: x[0], model.stack.blocks.norm)
    np.testing.assert_allclose(first.xs, one_block(model.embedding.weight[tokens]), atol=1e-5)
    assert second.xs.shape == (1, 3, 4)


def test_of_cells_on_top_of_one_another(getkey):
    lower = rnnscale.LongShortTermMemoryCell(2, 3, key=getkey())
    upper = rnnscale.ElmanRNNCell(3, 4, key=getkey())
    xs = jax.random.normal(getkey(), (2, 6, 2))
    first, second = recurrent_layers(rnnscale.DeepRNN([lower, upper], 5, key=getkey()), xs)
    assert first.layer.cell is lower and second.layer.cell is upper
    np.testing.assert_allclose(second.xs, rnnscale.RNNEncoder(lower)(xs)[1], atol=1e-6)


def test_of_both_directions(getkey):
    cells = [rnnscale.ElmanRNNCell(2, 3, key=getkey()) for _ in range(2)]
    xs = jax.random.normal(getkey(), (2, 6, 2))
    model = rnnscale.BidirectionalRNN(*cells, 4, key=getkey())
    forward, backward = recurrent_layers(model, xs)
    assert (forward.name, backward.name) == ("layer 0 forward", "layer 0 backward")
    both = jnp.concatenate(
        [forward.layer(forward.xs)[1], backward.layer(backward.xs)[1][:, ::-1]], axis=-1
    )
    np.testing.assert_allclose(model.encoder(xs)[1], both, atol=1e-6)


def test_of_something_else():
    with pytest.raises(TypeError, match="got dict"):
        recurrent_layers({}, jnp.zeros((1, 2, 3)))
