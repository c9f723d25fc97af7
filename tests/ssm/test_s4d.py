"""Checks S4D beyond its suite in `rnnscale.verify`: several chunks, memory, initialisation."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from rnnscale.sharding import make_mesh
from rnnscale.ssm import S4D, _siso, hippo_legs
from rnnscale.verify._double import to_double
from rnnscale.verify._s4d import oracle

TIME = 23


@pytest.fixture
def short_chunks(monkeypatch):
    """Chunks of 4 steps and, since 23 is prime, one step of padding."""
    monkeypatch.setattr(_siso, "_CHUNK", 4)


def test_several_chunks_with_resets_and_lengths(short_chunks, key):
    """Each row equals the oracle on its valid steps. The resets lie within chunks, on their borders
    and beyond the length, and the lengths on both sides of a border."""
    layer = S4D(3, 6, key=key)
    lengths = [0, 1, 3, 4, 5, 16, 17, 22, 23]
    rng = np.random.default_rng(0)
    xs = rng.standard_normal((len(lengths), TIME, 3)).astype(np.float32)
    reset = rng.random((len(lengths), TIME)) < 0.2
    reset[:, [8, 11]] = True
    padded = np.where(np.arange(TIME)[:, None] < np.array(lengths)[:, None, None], xs, np.nan)
    start = jax.tree.map(jnp.ones_like, layer.init_state((len(lengths),)))
    run = jax.jit(
        lambda layer, state: layer(padded, state, reset=reset, lengths=jnp.array(lengths))
    )
    from_zero, from_one = run(layer, layer.init_state((len(lengths),))), run(layer, start)
    for row, length in enumerate(lengths):
        state, ys = jax.tree.map(lambda x, row=row: x[row], from_zero)
        assert not np.any(ys[length:])
        if length == 0:
            assert not np.any(state) and np.all(from_one[0].re[row] == 1)
            continue
        last, expected = oracle(*to_double((layer, xs[row, :length])), reset=reset[row])
        np.testing.assert_allclose(state.re + 1j * state.im, last, atol=1e-5)
        np.testing.assert_allclose(ys[:length], expected, atol=2e-5)
        # A given state lasts until the first reset.
        first = np.argmax(reset[row]) if reset[row, :length].any() else length
        changed = np.any(from_one[1][row] != ys, axis=-1)
        assert np.all(changed[:first]) and not np.any(changed[first:])


@pytest.mark.parametrize("time", [9, 100])
def test_a_mesh_may_split_any_number_of_steps(time, key):
    layer = S4D(2, 4, key=key)
    xs = jax.random.normal(key, (1, time, 2))
    expected = layer(xs)
    with jax.set_mesh(make_mesh(seq=8)):
        found = jax.jit(lambda xs: layer(xs))(xs)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


def test_nan_before_a_reset_stays_there(short_chunks, key):
    layer = S4D(3, 6, key=key)
    xs = np.ones((TIME, 3), np.float32)
    xs[5] = np.nan
    reset = np.arange(TIME) == 6
    state, ys = jax.jit(lambda layer: layer(xs, reset=reset))(layer)
    assert np.all(np.isnan(ys[5])) and np.all(np.isfinite(np.delete(ys, 5, axis=0)))
    assert np.all(np.isfinite(state.re))


def test_states_of_all_steps_are_never_held(key):
    batch, time, features, modes = 16, 1024, 16, 32
    layer = S4D(features, 2 * modes, key=key)
    xs = jax.ShapeDtypeStruct((batch, time, features), jnp.float32)
    reset = jax.ShapeDtypeStruct((batch, time), bool)

    def loss(layer, xs, reset):
        return jnp.sum(layer(xs, reset=reset)[1] ** 2)

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
    memory = gradient.lower(layer, xs, reset).compile().memory_analysis()
    assert memory is not None
    states = batch * time * features * modes * 2 * 4
    assert memory.temp_size_in_bytes < states / 4


def test_initial_statistics(key):
    layer = S4D(4096, 2, dt_min=1e-3, dt_max=1e-1, key=key)
    steps = np.log10(np.exp(np.asarray(layer.log_step)))
    assert -3 <= steps.min() < -2.99 and -1.01 < steps.max() <= -1
    assert steps.mean() == pytest.approx(-2, abs=0.05)
    assert jnp.mean(layer.c_re**2 + layer.c_im**2) == pytest.approx(1.0, rel=0.05)


def test_legs_starts_with_the_input_map_of_hippo(key):
    """The products of C with its own conjugate, without the random part, give the kernel
    b' exp(A t) b of the real system."""
    plain, legs = S4D(2, 16, key=key), S4D(2, 16, init="legs", key=key)

    def c(layer):
        return np.asarray(layer.c_re, np.float64) + 1j * np.asarray(layer.c_im)

    power = np.abs(c(legs) / c(plain)) ** 2
    a = np.asarray(legs.eigenvalues().re) + 1j * np.asarray(legs.eigenvalues().im)
    p, b = np.sqrt(np.arange(16) + 0.5), np.sqrt(2 * np.arange(16) + 1)
    for t in (0.0, 0.05, 0.3):
        expected = b @ scipy.linalg.expm(t * (hippo_legs(16) + np.outer(p, p))) @ b
        found = 2 * np.sum(power * np.exp(a * t), axis=-1).real
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("value", [-3e38, -20.0, 0.0, 3e38])
def test_gradient_is_finite_for_any_parameters(value, key):
    layer = S4D(1, 2, key=key)
    where = lambda m: [m.log_a_re, m.a_im, m.log_step]  # noqa: E731

    def total(parameters):
        decay, b, _ = eqx.tree_at(where, layer, parameters).discretise()
        return sum(jnp.sum(x) for x in (*decay, *b))

    parameters = [jnp.full((1, 1), value), jnp.full((1, 1), value), jnp.full((1,), value)]
    assert all(jnp.isfinite(leaf).all() for leaf in jax.jit(jax.grad(total))(parameters))
