"""Every law for every layer and model in the lists, on small odd sizes."""

import equinox as eqx
import jax
import pytest

from rnnscale import verify

BATCH, TIME, CUT = 4, 10, 5
LENGTHS = [10, 5, 0, 5]

PER_STEP_MODELS = [
    (name, build) for name, build in verify.MODELS if not name.endswith(("mean", "last"))
]


@pytest.fixture(scope="module")
def subject():
    """The layer of a builder and inputs for it, made once a module: compiling takes the time."""
    made = {}

    def make(name, build):
        if name not in made:
            # Drawing parameters is the largest program of all, and its speed is no matter.
            init = jax.jit(build, compiler_options={"xla_backend_optimization_level": 0})
            layer = init(jax.random.key(1))
            made[name] = layer, verify.sample_inputs(layer, (BATCH, TIME), jax.random.key(2))
        return made[name]

    return make


def over(subjects):
    return pytest.mark.parametrize(("name", "build"), subjects, ids=[name for name, _ in subjects])


@over(verify.CAUSAL_LAYERS + verify.MODELS[-1:])
def test_step_equals_call(subject, name, build):
    layer, xs = subject(name, build)
    check = verify.step_equals_call(layer, xs)
    assert check.passed, check


@over(verify.CAUSAL_LAYERS + verify.MODELS[-1:])
def test_cut_equals_whole(subject, name, build):
    layer, xs = subject(name, build)
    check = verify.cut_equals_whole(layer, xs, CUT)
    assert check.passed, check


@over(verify.LAYERS + PER_STEP_MODELS)
def test_reset_equals_fresh(subject, name, build):
    layer, xs = subject(name, build)
    check = verify.reset_equals_fresh(layer, xs, CUT)
    assert check.passed, check


@over(verify.LAYERS + verify.MODELS)
def test_padding(subject, name, build):
    layer, xs = subject(name, build)
    check = verify.padding_is_inert(layer, xs, LENGTHS)
    assert check.passed, check


@over(verify.LAYERS + verify.MODELS[:1] + verify.MODELS[-1:])
def test_gradient(subject, name, build):
    layer, xs = subject(name, build)
    for check in (
        verify.padding_spares_gradient(layer, xs, LENGTHS),
        verify.gradient_reaches_parameters(layer, xs),
    ):
        assert check.passed, check


@over(verify.LAYERS + verify.MODELS)
def test_state_is_stable(subject, name, build):
    layer, xs = subject(name, build)
    check = verify.state_is_stable(layer, xs)
    assert check.passed, check


@over(verify.LAYERS)
def test_batching_agrees(subject, name, build):
    layer, xs = subject(name, build)
    check = verify.batching_agrees(layer, xs)
    assert check.passed, check


@over(verify.LAYERS + verify.MODELS[:1])
def test_bfloat16(subject, name, build):
    layer, xs = subject(name, build)
    check = verify.bfloat16_keeps_dtypes(layer, xs)
    assert check.passed, check


@over(verify.LAYERS + verify.MODELS)
def test_leaves_are_real_float32_arrays(name, build):
    leaves = jax.tree.leaves(jax.eval_shape(build, jax.random.key(0)))
    assert leaves and {leaf.dtype.name for leaf in leaves} == {"float32"}


@over(verify.CAUSAL_LAYERS)
def test_causal(subject, name, build):
    """What comes later has no influence: NaN there stays there."""
    layer, xs = subject(name, build)
    _, ys = eqx.filter_jit(layer)(xs.at[:, CUT:].set(jax.numpy.nan))
    assert jax.numpy.isfinite(ys[:, :CUT]).all()
