"""Compile time grows neither with depth nor with length."""

import time

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from rnnscale import LRU, S5
from rnnscale.models import SequenceClassifier


def lowered(layer, depth, steps):
    def build(key):
        return SequenceClassifier(
            1, 10, make_layer=lambda key: layer(16, 32, key=key), dim=16, depth=depth, key=key
        )

    def loss(model, xs):
        return jnp.sum(model(xs)[1])

    model = eqx.filter_eval_shape(build, jax.random.key(0))
    xs = jax.ShapeDtypeStruct((2, steps, 1), jnp.float32)
    return jax.jit(jax.grad(loss)).lower(model, xs)


def seconds(layer, depth, steps):
    """The processor time of tracing, lowering and compiling: the better of two."""
    best = float("inf")
    for _ in range(2):
        jax.clear_caches()
        start = time.process_time()
        lowered(layer, depth, steps).compile()
        best = min(best, time.process_time() - start)
    return best


@pytest.mark.slow
@pytest.mark.parametrize("layer", [S5, LRU])
def test_compile_time(layer, record_property):
    base = seconds(layer, 2, 1024)
    ratios = {
        "24 blocks": seconds(layer, 24, 1024) / base,
        "64k steps": seconds(layer, 2, 65536) / base,
    }
    print(f"{layer.__name__}: {base:.2f} s; times as long: {ratios}")
    assert max(ratios.values()) < 1.5, ratios
