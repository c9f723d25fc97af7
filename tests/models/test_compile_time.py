"""Compile time grows neither with depth nor with length."""

import time

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from rnnscale import S5
from rnnscale.models import SequenceClassifier


def lowered(depth, steps):
    def build(key):
        return SequenceClassifier(
            1, 10, make_layer=lambda key: S5(16, 32, key=key), dim=16, depth=depth, key=key
        )

    def loss(model, xs):
        return jnp.sum(model(xs)[1])

    model = eqx.filter_eval_shape(build, jax.random.key(0))
    xs = jax.ShapeDtypeStruct((2, steps, 1), jnp.float32)
    return jax.jit(jax.grad(loss)).lower(model, xs)


def seconds(depth, steps):
    """Processor time of tracing, lowering and compiling, the smaller of two measurements."""
    best = float("inf")
    for _ in range(2):
        jax.clear_caches()
        start = time.process_time()
        lowered(depth, steps).compile()
        best = min(best, time.process_time() - start)
    return best


@pytest.mark.slow
def test_compile_time():
    base = seconds(2, 1024)
    ratios = {"24 blocks": seconds(24, 1024) / base, "64k steps": seconds(2, 65536) / base}
    print(f"{base:.2f} s; times as long: {ratios}")
    assert max(ratios.values()) < 1.5, ratios
