"""The certificates of a model are those of its cells on the inputs that reach them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnscale
from rnnscale.cells import Newton, certified_time_loop
from rnnscale.models import Block, SequenceClassifier, certificates


def assert_equal(found: Any, expected: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_the_cells_that_run_by_newtons_method_have_one(getkey):
    """Below is one that would be linear, and the first is a cell without `parallel`."""
    lower = rnnscale.GatedRecurrentUnitCell(2, 3, key=getkey())
    linear = rnnscale.MinGRUCell(3, 3, key=getkey())
    upper = rnnscale.GatedRecurrentUnitCell(3, 4, key=getkey())
    newton = Newton("dense")
    encoder = rnnscale.DeepRNNEncoder(
        [
            rnnscale.RNNEncoder(lower),
            rnnscale.RNNEncoder(linear, parallel="auto"),
            rnnscale.RNNEncoder(upper, parallel=newton),
        ]
    )
    xs = jax.random.normal(getkey(), (2, 6, 2))
    found = certificates(encoder, xs)
    assert list(found) == ["layer 2"]
    _, (_, inputs, _) = encoder.layer_outputs(xs)
    assert_equal(found["layer 2"], certified_time_loop(upper, inputs, parallel=newton)[-1])


def test_both_directions_have_one_and_padding_has_no_effect(getkey):
    forward, backward = (rnnscale.ElmanRNNCell(2, 3, key=getkey()) for _ in range(2))
    newton, lengths = Newton("diagonal"), jnp.array([6, 4])
    model = rnnscale.BidirectionalRNN(forward, backward, 4, parallel=newton, key=getkey())
    xs = jax.random.normal(getkey(), (2, 6, 2)).at[1, 4:].set(jnp.nan)
    found = certificates(model, xs, lengths=lengths)
    for name, cell, reverse in (("forward", forward, False), ("backward", backward, True)):
        *_, expected = certified_time_loop(
            cell, xs, lengths=lengths, reverse=reverse, parallel=newton
        )
        assert_equal(found[f"layer 0 {name}"], expected)
        assert np.all(np.isfinite(expected.residual)) and not np.any(expected.stepped)


def test_cells_in_blocks_have_one_each(getkey):
    """Under jit, as training calls it."""

    def make_layer(key: jax.Array) -> rnnscale.RNNEncoder:
        return rnnscale.RNNEncoder(rnnscale.ElmanRNNCell(4, 4, key=key), parallel="auto")

    model = SequenceClassifier(2, 3, make_layer=make_layer, dim=4, depth=2, key=getkey())
    found = jax.jit(certificates)(model, jax.random.normal(getkey(), (2, 6, 2)))
    assert list(found) == ["layer 0", "layer 1"]
    for each in found.values():
        assert each.residual.shape == (2,) and np.all(each.iterations >= 1)


def test_encoders_in_encoders_and_a_block_by_itself(getkey):
    lower, upper = (rnnscale.ElmanRNNCell(4, 4, key=getkey()) for _ in range(2))
    deep = rnnscale.DeepRNNEncoder(
        [rnnscale.RNNEncoder(each, parallel="auto") for each in (lower, upper)]
    )
    xs = jax.random.normal(getkey(), (2, 6, 4))
    alone = certificates(deep, xs)
    assert list(alone) == ["layer 0", "layer 1"]
    assert_equal(certificates(rnnscale.DeepRNNEncoder([deep]), xs), alone)
    block = Block(deep, key=getkey())
    assert_equal(certificates(block, xs), certificates(deep, block.norm(xs)))


def test_another_kind_of_model():
    with pytest.raises(TypeError, match="got dict"):
        certificates({}, jnp.zeros((1, 2, 3)))
