"""Checks S5 beyond its suite in `rnnscale.verify`: initialisation, blocks, ranges."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnscale import verify
from rnnscale.ssm import S5, BidirectionalS5, hippo_normal
from rnnscale.verify._ssm import ssm_matches_oracle


def test_variant_matches_oracle(key):
    layer = S5(3, 12, 4, blocks=3, c_init="complex_normal", key=key)
    for check in ssm_matches_oracle(layer, key):
        assert check.passed, check


@pytest.mark.parametrize("state_dim", [2, 6, 64, 256])
def test_hippo_diagonalised(state_dim):
    for check in verify.hippo_diagonalised(state_dim):
        assert check.passed, check


def test_half_the_states_with_negative_imaginary_parts(key):
    layer = S5(3, 24, blocks=3, key=key)
    eigenvalues, _ = hippo_normal(8)
    assert layer.lambda_im.shape == (12,)
    assert (layer.lambda_im < 0).all()
    np.testing.assert_allclose(layer.lambda_im, np.tile(eigenvalues.imag[:4], 3), rtol=1e-6)


def test_hippo_eigenvalues_are_those_of_the_matrix():
    eigenvalues, _ = hippo_normal(8)
    # The published formula of A + p p^T.
    index = np.arange(8)
    above = np.triu(np.sqrt(np.outer(index + 0.5, index + 0.5)), 1)
    found = np.linalg.eigvals(above - above.T - np.eye(8) / 2)
    np.testing.assert_allclose(np.sort(found.imag), eigenvalues.imag, atol=1e-12)


def test_initial_statistics(key):
    layer = S5(300, 64, 400, blocks=4, dt_min=1e-3, dt_max=1e-1, key=key)
    # V is unitary, so each B~ entry has the power of a Lecun-normal entry, 1 / state_dim, and
    # C~ twice that, from a real and an imaginary part.
    b_power = jnp.mean(layer.b_re**2 + layer.b_im**2)
    c_power = jnp.mean(layer.c_re**2 + layer.c_im**2)
    assert b_power == pytest.approx(1 / 64, rel=0.05)
    assert c_power == pytest.approx(2 / 64, rel=0.05)
    direct = S5(3, 64, 400, c_init="complex_normal", key=key)
    assert jnp.mean(direct.c_re**2 + direct.c_im**2) == pytest.approx(1.0, rel=0.05)


def test_steps_are_log_uniform_and_one_for_each_state(key):
    steps = np.log10(np.exp(np.asarray(S5(1, 4096, blocks=2048, key=key).log_step)))
    assert steps.shape == (2048,)
    assert -3 <= steps.min() < -2.99 and -1.01 < steps.max() <= -1
    assert steps.mean() == pytest.approx(-2, abs=0.05)


def test_blocks_of_b_do_not_mix(key):
    """B~ = V^H B block by block: as real input maps, every block is real in its own basis."""
    layer = S5(3, 24, blocks=3, key=key)
    _, vectors = hippo_normal(8)
    for block in range(3):
        rows = slice(4 * block, 4 * block + 4)
        half = np.asarray(layer.b_re[rows]) + 1j * np.asarray(layer.b_im[rows])
        both = np.concatenate([half, half[::-1].conj()])
        # eigh fixes each vector only up to a phase, so complete the basis from its own half.
        basis = np.concatenate([vectors[:, :4], vectors[:, :4][:, ::-1].conj()], axis=1)
        original = basis @ both
        np.testing.assert_allclose(original.imag, 0, atol=1e-6)
        np.testing.assert_allclose(basis.conj().T @ original.real, both, rtol=1e-4, atol=1e-6)


def test_eigenvalues_are_clipped_by_default(key):
    def decay(clip):
        layer = S5(1, 4, clip_eigenvalues=clip, key=key)
        layer = eqx.tree_at(lambda m: m.lambda_re, layer, jnp.array([3.0, -0.5]))
        decay, _, _ = layer.discretise()
        return np.hypot(*decay)

    clipped, free = decay(True), decay(False)
    assert clipped[0] < 1 < free[0]
    assert clipped[1] == free[1]


@pytest.mark.parametrize("discretisation", ["zoh", "bilinear"])
@pytest.mark.parametrize("value", [-3e38, -200.0, -20.0, 0.0, 20.0, 200.0, 3e38])
def test_gradient_is_finite_for_any_decay(discretisation, value, key):
    layer = S5(1, 4, discretisation=discretisation, key=key)
    where = lambda m: [m.lambda_re, m.lambda_im, m.log_step]  # noqa: E731

    def total(parameters):
        decay, _, _ = eqx.tree_at(where, layer, parameters).discretise()
        return jnp.sum(decay.re) + jnp.sum(decay.im)

    gradient = jax.grad(total)([jnp.full((2,), value)] * 3)
    assert all(jnp.isfinite(leaf).all() for leaf in gradient)


def test_step_rescale_is_a_leaf_and_compiles_once(key):
    layer = S5(2, 4, key=key)
    traces = 0

    @jax.jit
    def run(layer, xs):
        nonlocal traces
        traces += 1
        return layer(xs)[1]

    xs = jax.random.normal(key, (6, 2))
    one = run(layer, xs)
    two = run(eqx.tree_at(lambda m: m.step_rescale, layer, jnp.float32(2.0)), xs)
    assert traces == 1 and not np.allclose(one, two)


@pytest.mark.parametrize("build", [S5, BidirectionalS5])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"idim": 0}, "idim must be at least 1; got 0"),
        ({"state_dim": 7}, "multiple of 2 . blocks.*; got state_dim=7, blocks=1"),
        ({"state_dim": 8, "blocks": 3}, "got state_dim=8, blocks=3"),
        ({"state_dim": 9, "blocks": 3}, "got state_dim=9, blocks=3"),
        ({"blocks": 0}, "blocks must be at least 1; got 0"),
        ({"dt_min": 0.2}, "0 < dt_min <= dt_max; got dt_min=0.2, dt_max=0.1"),
        ({"dt_max": float("inf")}, "dt_max must be positive and finite; got inf"),
        ({"step_rescale": 0.0}, "step_rescale must be positive and finite; got 0.0"),
        ({"discretisation": "euler"}, "one of zoh, bilinear; got 'euler'"),
        ({"c_init": "zeros"}, "one of lecun, complex_normal; got 'zeros'"),
    ],
)
def test_bad_arguments(build, arguments, message, key):
    with pytest.raises(ValueError, match=message):
        build(**({"idim": 2, "state_dim": 8} | arguments), key=key)
