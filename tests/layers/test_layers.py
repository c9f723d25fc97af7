"""Checks the linear map, the norms and the embedding, for any leading axes."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnscale.layers import Embedding, LayerNorm, Linear, RMSNorm, layer_norm, rms_norm

AXES = [(), (5,), (2, 5), (3, 2, 5)]


@pytest.mark.parametrize("axes", AXES)
def test_linear_for_any_rank(axes, getkey):
    layer = Linear(5, 3, key=getkey())
    layer = eqx.tree_at(lambda m: m.bias, layer, jnp.arange(3.0))
    x = jax.random.normal(getkey(), (*axes, 5))
    expected = np.einsum("...i,oi->...o", np.float64(x), np.float64(layer.weight)) + np.arange(3)
    np.testing.assert_allclose(layer(x), expected, rtol=1e-5, atol=1e-6)


def test_linear_start(key):
    layer = Linear(400, 300, key=key)
    assert layer.weight.std() == pytest.approx(400**-0.5, rel=0.02)
    assert layer.bias is not None and not layer.bias.any()
    assert Linear(4, 3, use_bias=False, key=key).bias is None


@pytest.mark.parametrize("axes", AXES)
def test_norms(axes, getkey):
    x = 3 * jax.random.normal(getkey(), (*axes, 5)) + 2
    wide = np.float64(x)
    scale, bias = jnp.arange(1.0, 6.0), jnp.arange(5.0)
    layer_norm = eqx.tree_at(lambda m: (m.scale, m.bias), LayerNorm(5, epsilon=1e-3), (scale, bias))
    rms_norm = eqx.tree_at(lambda m: m.scale, RMSNorm(5, epsilon=1e-3), scale)
    centred = wide - wide.mean(-1, keepdims=True)
    expected = centred / np.sqrt(wide.var(-1, keepdims=True) + 1e-3) * scale + bias
    np.testing.assert_allclose(layer_norm(x), expected, rtol=1e-4, atol=1e-5)
    expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-3) * scale
    np.testing.assert_allclose(rms_norm(x), expected, rtol=1e-4, atol=1e-5)


def test_norms_with_parameters_for_each_head(getkey):
    x, scale, bias = (jax.random.normal(getkey(), s) for s in ((2, 7, 3, 5), (3, 5), (3, 5)))
    layer_normed, rms_normed = layer_norm(x, scale, bias), rms_norm(x, scale)
    for head in range(3):
        norm = eqx.tree_at(lambda m: (m.scale, m.bias), LayerNorm(5), (scale[head], bias[head]))
        np.testing.assert_allclose(layer_normed[..., head, :], norm(x[..., head, :]), rtol=1e-6)
        norm = eqx.tree_at(lambda m: m.scale, RMSNorm(5), scale[head])
        np.testing.assert_allclose(rms_normed[..., head, :], norm(x[..., head, :]), rtol=1e-6)


@pytest.mark.parametrize("norm", [LayerNorm, RMSNorm])
def test_norms_compute_in_float32(norm, key):
    x = (jax.random.normal(key, (7, 64)) + 30).astype(jnp.bfloat16)
    y = norm(64)(x)
    assert y.dtype == jnp.bfloat16
    exact = norm(64)(x.astype(jnp.float32))
    np.testing.assert_allclose(y.astype(jnp.float32), exact, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("norm", [LayerNorm, RMSNorm])
def test_norm_of_zero_has_a_finite_gradient(norm):
    layer = norm(4)
    assert jnp.isfinite(jax.grad(lambda x: jnp.sum(layer(x)))(jnp.zeros(4))).all()


def test_embedding(key):
    layer = Embedding(7, 3, key=key)
    tokens = jnp.array([[0, 6], [3, 3]])
    np.testing.assert_array_equal(layer(tokens), np.asarray(layer.weight)[np.asarray(tokens)])
    assert layer(tokens, jnp.bfloat16).dtype == jnp.bfloat16
    assert layer(jnp.array(6, jnp.uint8)).shape == (3,)
    large = Embedding(300, 3, key=key)  # more tokens than the dtype holds
    np.testing.assert_array_equal(large(jnp.array(255, jnp.uint8)), large.weight[255])


@pytest.mark.parametrize("token", [-1, 7, 100])
def test_embedding_shows_tokens_that_are_none(token, key):
    assert jnp.isnan(Embedding(7, 3, key=key)(jnp.array(token))).all()


def test_embedding_shows_tokens_that_int32_does_not_hold(key):
    layer = Embedding(7, 3, key=key)
    assert jnp.isnan(layer(jnp.array([2**32 - 1, 2**31], jnp.uint32))).all()
    with jax.enable_x64(True):
        assert jnp.isnan(layer(jnp.array([2**32, 2**32 - 1, -(2**32)], jnp.int64))).all()


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (lambda key: Linear(5, 3, key=key), "Linear"),
        (lambda key: LayerNorm(5), "LayerNorm"),
        (lambda key: RMSNorm(5), "RMSNorm"),
    ],
)
def test_wrong_features(layer, name, key):
    # As many rows as features: the mistake that a missing check turns into wrong numbers.
    with pytest.raises(ValueError, match=rf"{name} takes .* 5 features; got shape \(5, 4\)"):
        layer(key)(jnp.zeros((5, 4)))
    with pytest.raises(TypeError, match=f"{name} .*floating; got int32"):
        layer(key)(jnp.zeros((4, 5), jnp.int32))


def test_wrong_tokens(key):
    with pytest.raises(
        TypeError, match="Embedding: tokens must be an array Int.*; got an array float32"
    ):
        Embedding(7, 3, key=key)(jnp.zeros(3))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda key: Linear(0, 3, key=key), "Linear: idim must be at least 1; got 0"),
        (lambda key: Linear(3, -2, key=key), "Linear: odim must be at least 1; got -2"),
        (lambda key: LayerNorm(0), "LayerNorm: dim"),
        (lambda key: RMSNorm(0), "RMSNorm: dim"),
        (lambda key: LayerNorm(5, epsilon=0.0), "LayerNorm: epsilon must be positive"),
        (lambda key: RMSNorm(5, epsilon=0.0), "RMSNorm: epsilon must be positive"),
        (lambda key: Embedding(0, 3, key=key), "Embedding: vocab"),
    ],
)
def test_wrong_sizes(build, message, key):
    with pytest.raises(ValueError, match=message):
        build(key)
