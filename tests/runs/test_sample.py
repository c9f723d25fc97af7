"""The text that a model of bytes writes during its training."""

import jax
import jax.numpy as jnp

from rnnscale import LRU
from rnnscale.models import LanguageModel, generate
from rnnscale.runs._sample import Writer
from rnnscale.sharding import make_mesh, sharded_init

STEPS = 24


def make_model(key: jax.Array) -> LanguageModel:
    model = LanguageModel(256, make_layer=lambda key: LRU(8, 8, key=key), dim=8, depth=2, key=key)
    # Sure of its bytes, so that rounding does not decide which one is drawn.
    return jax.tree.map(lambda x: 3 * x, model)


def expected_text() -> str:
    key = jax.random.key(0)
    draw = jax.jit(lambda model, start: generate(model, start, steps=STEPS, key=key)[1])
    tokens = draw(make_model(key), jnp.zeros((1, 1), jnp.int32))[0]
    return bytes(tokens.tolist()).split(b"\0")[0].decode("utf-8", "replace")


def test_a_model_of_nan_writes_nothing():
    """So the run goes on, and says that it has diverged."""
    mesh = make_mesh(data=8)
    with jax.set_mesh(mesh):
        model = sharded_init(make_model, jax.random.key(0), mesh)
        assert Writer(mesh, STEPS, seed=0)(jax.tree.map(lambda x: jnp.nan * x, model)) == ""


def test_the_text_is_that_of_generate_on_a_mesh():
    mesh = make_mesh(data=2, seq=2, tensor=2)
    with jax.set_mesh(mesh):
        model = sharded_init(make_model, jax.random.key(0), mesh)
        text = Writer(mesh, STEPS, seed=0)(model)
    assert text == expected_text() and len(text) > 4
