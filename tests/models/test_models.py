"""Checks blocks, stacks, classifiers and language models."""

import functools
import time
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnscale import verify
from rnnscale.cells import GatedRecurrentUnitCell
from rnnscale.layers import LayerNorm, Linear, RMSNorm, RNNEncoder, fold_keys
from rnnscale.models import (
    FFN,
    GLU,
    Block,
    BlockStack,
    GatedFFN,
    HalfGLU,
    Identity,
    LanguageModel,
    Nonlinearity,
    SequenceClassifier,
)
from rnnscale.ssm import LRU, S5, BidirectionalS5

# These programs run once or twice, so optimising them is what would take the time.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@jit
def call(layer, xs):
    return layer(xs)


def make_layer(key):
    return LRU(5, 7, r_max=0.9, key=key)


def classifier(key, **kwargs):
    return SequenceClassifier(3, 4, make_layer=make_layer, dim=5, depth=2, key=key, **kwargs)


def language_model(key, **kwargs):
    return LanguageModel(11, make_layer=make_layer, dim=5, depth=2, key=key, **kwargs)


def zeros(build, key):
    """What `build` returns, with zeros in all arrays."""
    shapes = jax.eval_shape(build, key)
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize("axes", [(), (5,), (2, 5)])
def test_mixers(axes, getkey):
    x = jax.random.normal(getkey(), (*axes, 5))
    wide = np.asarray(x, np.float64)

    def linear(layer, x):
        return np.einsum("...i,oi->...o", x, layer.weight) + np.asarray(layer.bias)

    def glu_oracle(glu):
        return linear(glu.value, gelu(wide)) * sigmoid(linear(glu.gate, gelu(wide)))

    def ffn_oracle(ffn):
        inner = gelu(np.einsum("...i,mi->...m", wide, ffn.w_in) + np.asarray(ffn.b_in))
        return np.einsum("...m,om->...o", inner, ffn.w_out) + np.asarray(ffn.b_out)

    def gated_oracle(ffn, activation):
        gate, value = np.einsum("...i,gmi->g...m", wide, ffn.w_in)
        if ffn.b_in is not None:
            gate, value = gate + np.asarray(ffn.b_in[0]), value + np.asarray(ffn.b_in[1])
        y = np.einsum("...m,om->...o", activation(gate) * value, ffn.w_out)
        return y if ffn.b_out is None else y + np.asarray(ffn.b_out)

    swiglu = GatedFFN(5, use_bias=False, key=getkey())
    geglu = GatedFFN(5, hidden=3, odim=7, activation=jax.nn.gelu, key=getkey())
    biases = jnp.array([[1.0, 2, 3], [4, 5, 6]]), jnp.arange(7.0)
    geglu = eqx.tree_at(lambda m: (m.b_in, m.b_out), geglu, biases)
    glu, half, ffn = GLU(5, key=getkey()), HalfGLU(5, key=getkey()), FFN(5, key=getkey())
    narrow, wider = GLU(5, odim=2, key=getkey()), FFN(5, hidden=3, odim=7, key=getkey())
    for got, expected in (
        (glu(x), glu_oracle(glu)),
        (narrow(x), glu_oracle(narrow)),
        (half(x), gelu(wide) * sigmoid(linear(half.gate, gelu(wide)))),
        (ffn(x), ffn_oracle(ffn)),
        (wider(x), ffn_oracle(wider)),
        (swiglu(x), gated_oracle(swiglu, lambda x: x * sigmoid(x))),
        (geglu(x), gated_oracle(geglu, gelu)),
        (Nonlinearity(5, activation=jnp.tanh)(x), np.tanh(wide)),
        (Identity(5)(x), wide),
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
    assert ffn.w_in.shape == (20, 5) and FFN(5, hidden=3, key=getkey()).w_out.shape == (5, 3)
    assert swiglu.w_in.shape == (2, 15, 5) and geglu.w_out.shape == (7, 3)
    assert narrow(x).shape == (*axes, 2) and wider(x).shape == (*axes, 7)
    assert not np.allclose(glu.value.weight, glu.gate.weight)


def test_block_is_its_equation(getkey):
    def build(key):
        return Block(make_layer(key), make_norm=RMSNorm, make_mixer=GLU, key=key)

    block, xs = jit(build)(getkey()), jax.random.normal(getkey(), (2, 6, 5))
    _, ys = call(block, xs)
    expected = jit(lambda xs: xs + block.mixer(block.layer(block.norm(xs))[1]))(xs)
    np.testing.assert_allclose(ys, expected, rtol=1e-5, atol=1e-6)


def test_block_with_two_branches_is_its_equation(getkey):
    def build(key, **options):
        return Block(make_layer(key), make_norm=RMSNorm, make_mixer=GLU, key=key, **options)

    key, xs = getkey(), jax.random.normal(getkey(), (2, 6, 5))
    block = jit(lambda key: build(key, make_ffn=GatedFFN))(key)
    block = eqx.tree_at(lambda m: m.ffn_norm.scale, block, 2 * jnp.arange(5.0))
    _, ys = call(block, xs)
    _, first = call(jit(build)(key), xs)  # the parts of the first branch do not depend on make_ffn
    expected = jit(lambda zs: zs + block.ffn(block.ffn_norm(zs)))(first)
    np.testing.assert_allclose(ys, expected, rtol=1e-5, atol=1e-6)


def test_branches_draw_their_own_masks(key):
    block = zeros(
        lambda key: Block(
            make_layer(key),
            make_mixer=Identity,
            make_ffn=Nonlinearity,
            make_norm=lambda dim: LayerNorm(dim),
            dropout=0.5,
            key=key,
        ),
        key,
    )
    # Zero but for what makes the first branch add one, and the second about one.
    ones = np.ones(5, np.float32)
    block = eqx.tree_at(
        lambda m: (m.norm.bias, m.layer.d, m.ffn_norm.bias, m.dropout.rate),
        block,
        (ones, ones, ones, np.float32(0.5)),
    )
    _, ys = jit(lambda block: block(jnp.zeros((50, 5)), key=key))(block)
    second = 2 * gelu(1.0)
    kinds = np.unique(np.round(np.asarray(ys), 3))
    np.testing.assert_allclose(kinds, sorted([0, second, 2, 2 + second]), atol=1e-3)


def test_options_of_the_language_model(getkey):
    def build(key, **options):
        return language_model(key, **options, make_norm=RMSNorm)

    key, tokens = getkey(), jnp.array([[3, 1, 4, 1, 5, 9]])
    tied = jit(lambda key: build(key, make_head=None, embedding_scale=2.0, logit_cap=1.5))(key)
    weight = np.asarray(tied.embedding.weight)
    assert tied.head is None and abs(weight.std() - 0.5) < 0.2
    features = tied.norm(jit(tied.stack.__call__)(2 * jnp.asarray(weight)[tokens])[1])
    logits = np.asarray(features, np.float64) @ weight.T
    expected = 1.5 * np.tanh(logits / 1.5)
    state, got = call(tied, tokens)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    assert abs(got).max() < 1.5 < abs(logits).max()
    plain = jit(lambda key: build(key, make_head=partial(Linear, use_bias=False)))(key)
    assert plain.head.bias is None and call(plain, tokens)[1].shape == (1, 6, 11)
    with pytest.raises(TypeError, match="make_head must be Linear"):
        build(key, make_head=lambda dim, vocab, key: FFN(dim, odim=vocab, key=key))


def test_stack_is_its_blocks_in_a_row(getkey):
    stack = jit(lambda key: BlockStack(make_layer, 3, key=key))(getkey())
    xs = jax.random.normal(getkey(), (2, 6, 5))
    state, ys = call(stack, xs)
    expected = xs
    for depth in range(3):
        block = jax.tree.map(lambda leaf, depth=depth: np.asarray(leaf)[depth], stack.blocks)
        last, expected = call(block, expected)
        for got, one in zip(jax.tree.leaves(state), jax.tree.leaves(last), strict=True):
            np.testing.assert_allclose(got[depth], one, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ys, expected, rtol=1e-5, atol=1e-6)
    assert not np.allclose(stack.blocks.layer.b_re[0], stack.blocks.layer.b_re[1])


def gru_layer(key):
    return RNNEncoder(GatedRecurrentUnitCell(5, 5, key=key))


def test_a_pattern_changes_nothing_but_the_layout(getkey):
    """Blocks of one kind as a pattern of two with a rest: initial parameters, states, masks."""
    key, xs = getkey(), jax.random.normal(getkey(), (2, 6, 5))

    def run(make):
        stack = BlockStack(make, 5, dropout=0.5, key=key)
        state, ys = stack(xs, key=key)
        after, y = stack.step(xs[:, 0], state, key=key)
        parts = [stack.unstacked(each) for each in (stack.blocks, state, after)]
        return stack, state, eqx.filter(parts, eqx.is_array), ys, y

    _, _, *expected = jit(lambda: run(make_layer))()
    stack, state, *got = jit(lambda: run([make_layer, make_layer]))()
    assert verify.relative_error(jax.tree.leaves(got), jax.tree.leaves(expected)) < 1e-6
    assert [block.layer.b_re.shape[0] for block in stack.blocks] == [2, 2, 1]
    again = stack.stacked(stack.unstacked(state))
    assert jax.tree.structure(again) == jax.tree.structure(state)
    assert verify.relative_error(again, state) == 0


def test_a_pattern_is_its_layers_in_turn(getkey):
    def build(key):
        return BlockStack([make_layer, gru_layer, gru_layer], 4, key=key)

    stack, xs = jit(build)(getkey()), jax.random.normal(getkey(), (2, 6, 5))
    blocks = stack.unstacked(stack.blocks)
    kinds = [LRU, RNNEncoder, RNNEncoder, LRU]
    assert [type(block.layer) for block in blocks] == kinds
    expected = jit(lambda xs: functools.reduce(lambda xs, block: block(xs)[1], blocks, xs))(xs)
    np.testing.assert_allclose(call(stack, xs)[1], expected, rtol=1e-5, atol=1e-6)
    assert [type(layer) for layer in stack.layers] == kinds
    short = jax.eval_shape(lambda: BlockStack([make_layer, gru_layer], 1, key=getkey()))
    assert [type(layer) for layer in short.layers] == [LRU]
    with pytest.raises(TypeError, match="LRU takes no intervals"):
        stack(xs, intervals=jnp.ones((2, 6)))
    with pytest.raises(TypeError, match="BidirectionalS5 sees the tokens"):
        both = [make_layer, lambda key: BidirectionalS5(5, 8, key=key)]
        LanguageModel(11, make_layer=both, dim=5, depth=2, key=getkey())


def test_remat_changes_memory_only(getkey):
    key, xs = getkey(), jax.random.normal(getkey(), (2, 6, 5))

    def gradient(remat):
        build = jit(lambda key: BlockStack(make_layer, 3, dropout=0.5, remat=remat, key=key))
        stack = build(key)
        loss = jax.grad(lambda stack: jnp.sum(stack(xs, key=key)[1] ** 2))
        return jit(loss)(stack), "remat" in str(jax.make_jaxpr(loss)(stack))

    (plain, without), (rematted, with_it) = gradient(False), gradient(True)
    assert with_it and not without
    assert verify.relative_error(jax.tree.leaves(rematted), jax.tree.leaves(plain)) < 1e-5


@pytest.mark.parametrize(
    "build",
    [make_layer, lambda key: S5(5, 8, key=key), [make_layer, gru_layer]],
    ids=["LRU", "S5", "pattern"],
)
def test_program_does_not_grow_with_depth(build, key):
    def size(depth):
        stack = jax.eval_shape(lambda key: BlockStack(build, depth, key=key), key)
        xs = jax.ShapeDtypeStruct((2, 6, 5), jnp.float32)
        loss = jax.grad(lambda stack, xs: jnp.sum(stack(xs)[1] ** 2))
        return len(jax.jit(loss).lower(stack, xs).as_text().splitlines())

    def init_size(depth):
        init = jax.jit(lambda key: BlockStack(build, depth, key=key))
        return len(init.lower(key).as_text().splitlines())

    assert size(4) == size(24)
    assert init_size(4) == init_size(24)


def compile_seconds(depth, steps):
    """Processor time of tracing, lowering and compiling, the smaller of two measurements."""

    def build(key):
        return SequenceClassifier(
            1, 10, make_layer=lambda key: S5(16, 32, key=key), dim=16, depth=depth, key=key
        )

    def loss(model, xs):
        return jnp.sum(model(xs)[1])

    model = jax.eval_shape(build, jax.random.key(0))
    xs = jax.ShapeDtypeStruct((2, steps, 1), jnp.float32)
    measured = []
    for _ in range(2):
        jax.clear_caches()
        start = time.process_time()
        jax.jit(jax.grad(loss)).lower(model, xs).compile()
        measured.append(time.process_time() - start)
    return min(measured)


@pytest.mark.slow
def test_compile_time_grows_neither_with_depth_nor_with_length():
    base = compile_seconds(2, 1024)
    assert compile_seconds(24, 1024) < 1.5 * base
    assert compile_seconds(2, 65536) < 1.5 * base


@pytest.mark.parametrize("build", [classifier, language_model])
def test_row_keys(build, getkey):
    """A row's masks do not depend on the batch that it is in."""
    model = jit(lambda key: build(key, dropout=0.5))(getkey())
    xs = verify.sample_inputs(model, (4, 6), getkey())
    key = getkey()
    keys = fold_keys(key, jnp.arange(4))
    ys = jit(lambda model, xs, key: model(xs, key=key)[1])(model, xs, key)
    mapped = jit(lambda xs, keys: eqx.filter_vmap(lambda x, key: model(x, key=key)[1])(xs, keys))(
        xs, keys
    )
    np.testing.assert_allclose(mapped, ys, rtol=1e-5, atol=1e-6)
    rows = jit(lambda model, xs, keys: model(xs, key=keys)[1])(model, xs[::-1], keys[::-1])
    np.testing.assert_allclose(rows[::-1], ys, rtol=1e-5, atol=1e-6)
    assert not np.allclose(ys, call(model, xs)[1])


def test_blocks_draw_their_own_masks(key):
    def build(key):
        return BlockStack(make_layer, 8, make_mixer=Identity, dropout=0.5, key=key)

    # Zero but for what makes each block add one.
    ones = np.ones((8, 5), np.float32)
    stack = eqx.tree_at(
        lambda m: (m.blocks.norm.bias, m.blocks.layer.d, m.blocks.dropout.rate),
        zeros(build, key),
        (ones, ones, np.full(8, 0.5, np.float32)),
    )
    _, ys = jit(lambda stack: stack(jnp.zeros((50, 5)), key=key))(stack)
    # With dropout each adds 0 or 2 on its own; one mask for all would add 0 or 16.
    kinds = np.unique(np.asarray(ys))
    assert set(kinds) <= set(range(0, 17, 2)) and len(kinds) > 4


@pytest.mark.parametrize("pool", ["mean", "last"])
def test_pooling_is_of_valid_steps(pool, getkey):
    key = getkey()
    pooled, per_step = (
        jit(lambda key, name=name: classifier(key, pool=name))(key) for name in (pool, "none")
    )
    xs, lengths = jax.random.normal(getkey(), (3, 6, 3)), np.array([6, 1, 4])
    _, logits = jit(lambda model: model(xs, lengths=lengths))(pooled)
    _, steps = jit(lambda model: model(xs, lengths=lengths))(per_step)
    for row, length in enumerate(lengths):
        # The head is affine, so pooling commutes with it.
        valid = np.asarray(steps)[row, :length]
        expected = valid.mean(0) if pool == "mean" else valid[-1]
        np.testing.assert_allclose(logits[row], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pool", ["mean", "last"])
def test_empty_row_is_finite(pool, key):
    model = jit(lambda key: classifier(key, pool=pool))(key)
    xs, lengths = jnp.full((2, 4, 3), jnp.nan), jnp.array([0, 0])
    _, logits = jit(lambda model: model(xs, lengths=lengths))(model)
    np.testing.assert_allclose(logits, np.broadcast_to(model.head.bias, (2, 4)))


def test_mean_is_exact_in_bfloat16(key):
    """A sum of 4096 ones in bfloat16 stops at 256."""
    model = eqx.tree_at(
        lambda m: (m.norm.bias, m.head.weight),
        zeros(classifier, key),
        (np.ones(5, np.float32), np.full((4, 5), 0.2, np.float32)),
    )
    _, logits = jit(lambda model: model(jnp.zeros((4096, 3), jnp.bfloat16)))(model)
    np.testing.assert_allclose(logits.astype(jnp.float32), 1, rtol=1e-2)


def test_language_model_in_bfloat16(key):
    def run(key):
        model = language_model(key, dtype=jnp.bfloat16)
        state, logits = model(jnp.zeros((2, 6), jnp.int32))
        return model, state, logits, model.step(jnp.array([1, 2]), state)[1]

    model, state, logits, step = jax.eval_shape(run, key)
    assert logits.dtype == step.dtype == jnp.bfloat16 and logits.shape == (2, 6, 11)
    assert {leaf.dtype.name for leaf in jax.tree.leaves((model, state))} == {"float32"}


def test_bidirectional_has_no_step(key):
    def run(key):
        stack = BlockStack(lambda key: BidirectionalS5(5, 8, key=key), 2, key=key)
        assert not stack.causal
        return stack.step(jnp.zeros(5), stack.init_state())

    with pytest.raises(TypeError, match="BidirectionalS5 is not causal"):
        jax.eval_shape(run, key)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda key: classifier(key, pool="max"), ValueError, "mean, none; got 'max'"),
        (lambda key: classifier(key, dropout=1.0), ValueError, r"dropout must be in \[0, 1\)"),
        (
            lambda key: SequenceClassifier(3, 0, make_layer=make_layer, dim=5, depth=2, key=key),
            ValueError,
            "classes must be at least 1; got 0",
        ),
        (
            lambda key: SequenceClassifier(3, 4, make_layer=make_layer, dim=6, depth=2, key=key),
            ValueError,
            "layers of dim=6 features in and out; it made LRU with 5",
        ),
        (lambda key: BlockStack(make_layer, 0, key=key), ValueError, "depth must be at least 1"),
        (
            lambda key: Block(LRU(3, 4, 5, key=key), key=key),
            ValueError,
            "LRU has idim=3, odim=5",
        ),
        (
            lambda key: LanguageModel(
                9, make_layer=lambda key: BidirectionalS5(4, 4, key=key), dim=4, depth=1, key=key
            ),
            TypeError,
            "BidirectionalS5 sees the tokens to be predicted",
        ),
        (
            lambda key: classifier(key)(jnp.zeros((6, 4))),
            ValueError,
            r"SequenceClassifier takes .* 3 features; got shape \(6, 4\)",
        ),
        (
            lambda key: classifier(key)(jnp.zeros((6, 3), jnp.uint8)),
            TypeError,
            "SequenceClassifier .*floating; got uint8",
        ),
        (
            lambda key: classifier(key)(jnp.zeros((4, 6, 3)), key=jax.random.split(key, 3)),
            ValueError,
            r"shape \(4,\); got keys of shape \(3,\)",
        ),
        (
            lambda key: language_model(key)(jnp.zeros((2, 6))),
            TypeError,
            "integer tokens of shape .*; got float32",
        ),
        (
            lambda key: language_model(key)(jnp.array(3)),
            ValueError,
            r"tokens of shape \(\*batch, time\)",
        ),
    ],
)
def test_bad_arguments_and_inputs(build, error, message, key):
    with pytest.raises(error, match=message):
        jax.eval_shape(build, key)
