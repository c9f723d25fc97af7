"""What the papers promise, and the double-precision oracles."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnscale import verify
from rnnscale.ssm import LRU, S5, BidirectionalS5

LAYERS = {
    "LRU": lambda key: LRU(3, 7, key=key),
    "LRU odim": lambda key: LRU(3, 7, 4, r_min=0.9, r_max=0.999, max_phase=0.3, key=key),
    "S5": lambda key: S5(3, 12, key=key),
    "S5 blocks": lambda key: S5(3, 12, 4, blocks=3, c_init="complex_normal", key=key),
    "S5 bilinear": lambda key: S5(3, 12, discretisation="bilinear", step_rescale=0.5, key=key),
    "BidirectionalS5": lambda key: BidirectionalS5(3, 12, blocks=2, key=key),
}
over_layers = pytest.mark.parametrize("build", LAYERS.values(), ids=LAYERS)


@over_layers
def test_matches_oracle(build, getkey):
    xs = jax.random.normal(getkey(), (151, 3))
    reset = np.zeros(151, bool)
    reset[[5, 6, 70]] = True
    check = verify.matches_oracle(build(getkey()), xs, reset)
    assert check.passed, check


@over_layers
def test_float64_and_gradient(build, getkey):
    layer = build(getkey())
    with jax.enable_x64(True):
        layer = jax.tree.map(lambda x: np.asarray(x, np.float64), layer)
        xs = jax.random.normal(getkey(), (37, 3), jnp.float64)
        for check in (
            verify.matches_oracle(layer, xs, bound=1e-10),
            verify.gradient_matches_oracle(layer, xs, getkey()),
        ):
            assert check.passed, check


@pytest.mark.parametrize(
    "layer",
    [
        lambda key: LRU(1, 2, key=key),
        lambda key: S5(1, 2, key=key),
        lambda key: S5(1, 2, discretisation="bilinear", key=key),
    ],
    ids=["LRU", "zoh", "bilinear"],
)
def test_decay_below_one(layer, key):
    check = verify.decay_below_one(layer(key))
    assert check.passed, check


@pytest.mark.parametrize(
    "check",
    [
        verify.ring_is_uniform,
        verify.white_noise_power,
        verify.s5_kernel_is_hippo,
        verify.hippo_decay_rate,
        verify.bilinear_approaches_zoh,
        verify.step_rescale_follows_rate,
    ],
    ids=lambda check: check.__name__,
)
def test_invariant(check, key):
    outcome = check(key)
    for each in outcome if isinstance(outcome, list) else [outcome]:
        assert each.passed, each


@pytest.mark.parametrize("state_dim", [2, 6, 64, 256])
def test_hippo_diagonalised(state_dim):
    for check in verify.hippo_diagonalised(state_dim):
        assert check.passed, check


def test_flip_law(getkey):
    layer = BidirectionalS5(3, 8, key=getkey())
    xs = jax.random.normal(getkey(), (2, 9, 3))
    check = verify.flip_law(layer, _mirrored(layer), xs)
    assert check.passed, check
    assert not verify.flip_law(layer, layer, xs).passed


def _mirrored(layer):
    return eqx.tree_at(
        lambda m: (m.forward.c_re, m.forward.c_im, m.c_backward_re, m.c_backward_im),
        layer,
        (layer.c_backward_re, layer.c_backward_im, layer.forward.c_re, layer.forward.c_im),
    )
