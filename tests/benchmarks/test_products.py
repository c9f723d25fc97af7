"""The matrix products alone: as many as in the layer, and nothing else of it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from benchmarks import layers
from benchmarks._peers import LIBRARIES, OURS
from benchmarks._products import products


def program(run, layer, xs) -> str:
    """The program for the gradient of a sum of squares."""

    def loss(layer, xs):
        return jnp.sum(run(layer, xs) ** 2)

    gradient = eqx.filter_jit(eqx.filter_grad(lambda both: loss(*both)))
    return gradient.lower((layer, xs)).compile().compiled.as_text()


@pytest.mark.parametrize(
    "layer", ["LRU", "S5", "ElmanRNNCell", "LongShortTermMemoryCell", "GatedRecurrentUnitCell"]
)
def test_products_are_those_of_the_layer(layer):
    ours = layers.make_ours(layer, 32, 64, jax.random.key(0))
    xs = jnp.ones((2, 600, 32))
    own, alone = (program(run, ours, xs) for run in (LIBRARIES[OURS].run, products(ours)))
    assert alone.count(" dot(") == own.count(" dot(") > 0
    assert "tanh" not in alone and "logistic" not in alone


def test_cells_of_several_products_have_no_such_form():
    cho = layers.make_ours("ChoGatedRecurrentUnitCell", 4, 8, jax.random.key(0))
    assert products(cho) is None
