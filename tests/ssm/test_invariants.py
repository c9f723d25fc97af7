"""The oracles in double precision, for variants that the suites of `rnnscale.verify` leave out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnscale import verify
from rnnscale.ssm import LRU, S5

LAYERS = {
    "LRU odim": lambda key: LRU(3, 7, 4, r_min=0.9, r_max=0.999, max_phase=0.3, key=key),
    "S5 blocks": lambda key: S5(3, 12, 4, blocks=3, c_init="complex_normal", key=key),
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


@pytest.mark.parametrize("state_dim", [2, 6, 64, 256])
def test_hippo_diagonalised(state_dim):
    for check in verify.hippo_diagonalised(state_dim):
        assert check.passed, check
