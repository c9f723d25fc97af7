"""Models that run in chunks of time, and that hand intervals to their layers."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnscale import verify
from rnnscale.models import Block, Identity, LanguageModel, SequenceClassifier
from rnnscale.ssm import LRU, S5, BidirectionalS5


def s5(key):
    return S5(5, 8, key=key)


def lru(key):
    return LRU(5, 4, key=key)


def classifier(key, make_layer=lru, **options):
    return SequenceClassifier(3, 4, make_layer=make_layer, dim=5, depth=2, key=key, **options)


@pytest.mark.parametrize("pool", ["mean", "last", "none"])
def test_chunks_give_the_same_numbers(pool, getkey):
    key, xs = getkey(), jax.random.normal(getkey(), (3, 11, 3))
    options = {
        "reset": jax.random.bernoulli(getkey(), 0.2, (3, 11)),
        "lengths": jnp.array([11, 0, 6]),
    }

    @jax.jit
    def run(model, xs, options):
        return model(xs, **options)

    expected, chunks = (run(classifier(key, pool=pool, chunk=chunk), xs, options)
                     for chunk in (None, 4))  # fmt: skip
    assert verify.relative_error(chunks, expected) < 1e-5


def test_chunks_give_the_same_gradient(getkey):
    key, xs = getkey(), jax.random.normal(getkey(), (3, 12, 3))
    options = {"intervals": jnp.full((3, 12), 0.7)}

    @jax.jit
    @jax.grad
    def gradient(model, xs, options):
        return jnp.sum(jnp.sin(model(xs, **options)[1]))

    expected, chunks = (
        jax.tree.leaves(gradient(classifier(key, s5, pool="last", chunk=chunk), xs, options))
        for chunk in (None, 4)
    )
    assert verify.relative_error(chunks, expected) < 1e-5


def test_chunks_draw_their_own_masks(key):
    def build(key):
        return classifier(key, pool="none", chunk=4, make_mixer=Identity, dropout=0.5)

    # Zero but for what makes each logit depend on the masks of its own step only.
    zero = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(build, key))
    rng = np.random.default_rng(0)
    model = eqx.tree_at(
        lambda m: [
            m.stack.blocks.norm.bias,
            m.stack.blocks.layer.d,
            m.stack.blocks.dropout.rate,
            m.norm.scale,
            m.head.weight,
        ],
        zero,
        [
            *(np.ones((2, 5), np.float32),) * 2,
            np.full(2, 0.5, np.float32),
            np.ones(5, np.float32),
            rng.normal(size=(4, 5)).astype(np.float32),
        ],
    )
    _, logits = jax.jit(lambda model: model(jnp.ones((2, 8, 3)), key=key))(model)
    chunks = np.asarray(logits).reshape(4, -1)
    assert len({tuple(np.round(chunk, 3)) for chunk in chunks}) == 4


def test_chunks_need_a_causal_layer(key):
    def build(key):
        return classifier(key, lambda key: BidirectionalS5(5, 8, key=key), chunk=4)

    with pytest.raises(ValueError, match="chunk=4 hands .* BidirectionalS5 needs the full"):
        jax.eval_shape(build, key)
    with pytest.raises(ValueError, match="chunk must be at least 1; got 0"):
        jax.eval_shape(lambda key: classifier(key, chunk=0), key)


def test_intervals_reach_every_block(getkey):
    """Steps of a model at another rate are those of one whose layers have other steps."""

    def build(rate):
        return lambda key: LanguageModel(
            7,
            make_layer=lambda key: S5(5, 8, step_rescale=rate, key=key),
            dim=5,
            depth=2,
            key=key,
        )

    key = getkey()
    slow, fast = (jax.jit(build(rate))(key) for rate in (1.0, 3.0))
    tokens = jax.random.randint(getkey(), (2, 6), 0, 7)
    expected = jax.jit(lambda model: model(tokens))(fast)
    got = jax.jit(lambda model: model(tokens, intervals=jnp.full((2, 6), 3.0)))(slow)
    assert verify.relative_error(got, expected) < 1e-5

    @jax.jit
    def fold(model):
        def step(state, token):
            return model.step(token, state, interval=jnp.full(2, 3.0))

        state, ys = jax.lax.scan(step, model.init_state((2,)), tokens.T)
        return state, jnp.moveaxis(ys, 0, 1)

    assert verify.relative_error(fold(slow), expected) < 1e-5


@pytest.mark.parametrize(
    "build",
    [lambda key: Block(LRU(3, 4, key=key), key=key), classifier],
    ids=["Block", "SequenceClassifier"],
)
def test_a_layer_that_takes_no_intervals(build, key):
    xs = jnp.zeros((2, 6, 3))
    with pytest.raises(TypeError, match="LRU takes no intervals"):
        jax.eval_shape(lambda key: build(key)(xs, intervals=jnp.ones((2, 6))), key)


def test_a_step_of_a_layer_that_takes_no_interval(key):
    block = Block(LRU(3, 4, key=key), key=key)
    with pytest.raises(TypeError, match="LRU takes no interval:"):
        block.step(jnp.zeros((2, 3)), block.init_state((2,)), interval=jnp.ones(2))
