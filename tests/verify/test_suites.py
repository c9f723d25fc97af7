"""Every check of every class, as `rnnscale verify` runs them."""

import equinox as eqx
import jax
import numpy as np
import pytest

from rnnscale import verify
from rnnscale._fields import parameters

CELLS = {subject.name for subject in verify.CELLS}
SUITES = [
    pytest.param(suite, id=suite.name, marks=[pytest.mark.slow] if suite.name in CELLS else [])
    for suite in verify.SUITES
]


@pytest.mark.parametrize("suite", SUITES)
def test_suite(suite):
    checks = list(suite.run(jax.random.key(1)))
    assert checks
    failed = [str(check) for check in checks if not check.passed]
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize("subject", verify.CELLS, ids=lambda subject: subject.name)
def test_cell_equals_its_oracle(subject):
    """Of the suite of a cell, which is slow, what every `make test` checks."""
    for check in verify.cell_matches_oracle(subject, jax.random.key(1)):
        assert check.passed, check


BUILDERS = [
    *((subject.name, subject.build) for subject in verify.CELLS),
    *verify.LAYERS,
    *verify.MODELS,
    *verify.NETWORKS,
]


@pytest.mark.parametrize(("name", "build"), BUILDERS, ids=[name for name, _ in BUILDERS])
def test_trained_leaves_are_real_float32_arrays(name, build):
    found = parameters(jax.eval_shape(build, jax.random.key(0)))
    assert found
    assert {each.value.dtype.name for each in found if each.trainable} <= {"float32"}
    # Fixed permutations, masks and clocks are integers.
    assert {each.value.dtype.name for each in found} <= {"float32", "int32", "bool"}


@pytest.mark.parametrize(
    ("name", "build"), verify.CAUSAL_LAYERS, ids=[name for name, _ in verify.CAUSAL_LAYERS]
)
def test_causal(name, build):
    """What comes later has no influence: NaN there stays there.

    But in a chunk of linear attention pairs of steps are multiplied by zero.
    """
    layer = jax.jit(build)(jax.random.key(1))
    xs = verify.sample_inputs(layer, (4, 10), jax.random.key(2))
    later = 1e3 if name == "LinearAttention" else np.nan
    _, expected = eqx.filter_jit(layer)(xs)
    _, ys = eqx.filter_jit(layer)(xs.at[:, 5:].set(later))
    np.testing.assert_allclose(ys[:, :5], expected[:, :5], rtol=1e-5, atol=1e-6)
