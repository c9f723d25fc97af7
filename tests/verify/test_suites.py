"""Runs every check of every class, as `rnnscale verify` does, and checks their trained leaves."""

import equinox as eqx
import jax
import numpy as np
import pytest

from rnnscale import verify
from rnnscale._fields import parameters

CELLS = {subject.name for subject in verify.CELLS}
OTHERS = [suite for suite in verify.SUITES if suite.name not in CELLS]
over_cells = pytest.mark.parametrize("subject", verify.CELLS, ids=lambda subject: subject.name)


def passed(checks):
    checks = list(checks)
    assert checks
    failed = [str(check) for check in checks if not check.passed]
    assert not failed, "\n".join(failed)


def test_every_cell_has_a_suite():
    assert {suite.name for suite in verify.SUITES} >= CELLS


@pytest.mark.parametrize("suite", OTHERS, ids=lambda suite: suite.name)
def test_suite(suite):
    passed(suite.run(jax.random.key(1)))


# The suite of a cell in two tests, the second of which only `make test-all` runs.


@over_cells
def test_cell_equals_its_oracle(subject):
    passed(verify.cell_matches_oracle(subject, jax.random.key(1)))


@pytest.mark.slow
@over_cells
def test_cell_keeps_the_laws(subject):
    passed(verify.cell_laws(subject, jax.random.key(1)))


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


# A NaN of theirs reaches earlier steps of its segment.
IN_CHUNKS = {
    *("S4D", "Mamba2", "LinearAttention", "GatedLinearAttention", "MLSTM"),
    "UpProjectedMLSTM",
    *("DeltaNet", "GatedDeltaNet", "DeltaProduct", "RWKV7"),
}


@pytest.mark.parametrize(
    ("name", "build"), verify.CAUSAL_LAYERS, ids=[name for name, _ in verify.CAUSAL_LAYERS]
)
def test_causal(name, build):
    """Later steps have no influence: NaN there stays there.

    Layers that multiply pairs of steps in a chunk by zero take a large number instead.
    """
    layer = jax.jit(build)(jax.random.key(1))
    xs = verify.sample_inputs(layer, (4, 10), jax.random.key(2))
    later = 1e3 if name in IN_CHUNKS else np.nan
    _, expected = eqx.filter_jit(layer)(xs)
    _, ys = eqx.filter_jit(layer)(xs.at[:, 5:].set(later))
    np.testing.assert_allclose(ys[:, :5], expected[:, :5], rtol=1e-5, atol=1e-6)
