"""Checks the LRU beyond its suite in `rnnscale.verify`: initialisation, ranges, bad arguments."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnscale.ssm import LRU
from rnnscale.verify._ssm import ssm_matches_oracle


def test_variant_matches_oracle(key):
    layer = LRU(3, 7, 4, r_min=0.9, r_max=0.999, max_phase=0.3, key=key)
    for check in ssm_matches_oracle(layer, key):
        assert check.passed, check


def test_initial_statistics(key):
    layer = LRU(200, 300, 200, key=key)
    assert layer.b_re.std() == pytest.approx((2 * 200) ** -0.5, rel=0.02)
    assert layer.b_im.std() == pytest.approx((2 * 200) ** -0.5, rel=0.02)
    assert layer.c_re.std() == pytest.approx(300**-0.5, rel=0.02)
    assert layer.c_im.std() == pytest.approx(300**-0.5, rel=0.02)
    assert not np.allclose(layer.b_re, layer.b_im)
    assert not np.allclose(layer.c_re, layer.c_im)
    magnitude = np.exp(-np.exp(np.float64(layer.nu_log)))
    gamma = np.exp(np.float64(layer.gamma_log))
    np.testing.assert_allclose(gamma, np.sqrt(1 - magnitude**2), rtol=1e-4)


@pytest.mark.parametrize("ring", [(0.9, 1.0), (0.0, 1e-6), (0.999999, 1.0)])
def test_initialisation_is_finite_at_the_edges(ring, key):
    r_min, r_max = ring
    layer = LRU(1, 4096, r_min=r_min, r_max=r_max, key=key)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(layer))


@pytest.mark.parametrize("value", [-200.0, -15.3, 0.0, 50.0, 3e38])
def test_gradient_is_finite_for_any_decay(value, key):
    layer = LRU(1, 4, key=key)
    where = lambda m: [m.nu_log, m.theta_log]  # noqa: E731

    def total(parameters):
        decay, b, _ = eqx.tree_at(where, layer, parameters).discretise()
        return sum(jnp.sum(plane) for plane in (*decay, *b))

    gradient = jax.grad(total)([jnp.full((4,), value)] * 2)
    assert all(jnp.isfinite(leaf).all() for leaf in gradient)


def test_skip_term_needs_equal_sizes(key):
    skip = LRU(3, 4, key=key).d
    assert skip is not None and skip.shape == (3,)
    assert LRU(3, 4, 5, key=key).d is None


def test_initialises_inside_jit(key):
    eager, jitted = LRU(3, 4, key=key), jax.jit(lambda key: LRU(3, 4, key=key))(key)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), eager, jitted)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"idim": 0}, "idim must be at least 1; got 0"),
        ({"state_dim": -1}, "state_dim must be at least 1; got -1"),
        ({"odim": 0}, "odim must be at least 1; got 0"),
        ({"r_min": 0.9, "r_max": 0.5}, "0 <= r_min < r_max <= 1; got r_min=0.9, r_max=0.5"),
        ({"r_max": 1.1}, r"r_max must be in \[0, 1\]; got 1.1"),
        ({"max_phase": 7.0}, "max_phase must be in .*; got 7.0"),
    ],
)
def test_bad_arguments(arguments, message, key):
    with pytest.raises(ValueError, match=message):
        LRU(**({"idim": 2, "state_dim": 4} | arguments), key=key)


def test_bad_inputs(key):
    layer = LRU(3, 4, key=key)
    with pytest.raises(ValueError, match="LRU takes an array .* with 3 features; got shape"):
        layer(jnp.zeros((7, 4)))
    with pytest.raises(ValueError, match=r"\(\*batch, time, features\)"):
        layer(jnp.zeros(3))
    with pytest.raises(ValueError, match=r"\(\*batch, features\) with 3 features"):
        layer.step(jnp.zeros(4), layer.init_state())
    with pytest.raises(TypeError, match="must be floating; got int32"):
        layer(jnp.zeros((7, 3), jnp.int32))
