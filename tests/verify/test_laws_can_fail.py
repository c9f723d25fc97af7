"""Layers and cells with one defect each, which a law or the oracle must notice; and `Check`."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import PRNGKeyArray

from rnnscale import ElmanRNNCell, verify
from rnnscale._base import CausalLayer
from rnnscale.ssm import LRU
from rnnscale.verify import Check, relative_error


class Broken(CausalLayer):
    """An LRU with one defect."""

    lru: LRU
    defect: str = eqx.field(static=True)
    idim: int = eqx.field(static=True)
    odim: int = eqx.field(static=True)

    def __call__(self, xs, state=None, *, reset=None, lengths=None, key=None):
        if self.defect == "ignores the state":
            state = None
        if self.defect == "ignores resets":
            reset = None
        if self.defect == "ignores lengths":
            lengths = None
        if self.defect == "mixes rows" and xs.ndim > 2:
            xs = xs + jnp.mean(xs, axis=0)
        if self.defect == "fixed weights":
            return jax.lax.stop_gradient(self.lru)(xs, state, reset=reset, lengths=lengths)
        state, ys = self.lru(xs, state, reset=reset, lengths=lengths)
        if self.defect == "NaN in the padding" and lengths is not None:
            valid = jnp.arange(xs.shape[-2]) < jnp.asarray(lengths)[..., None]
            ys = jnp.where(valid[..., None], ys, jnp.nan)
        if self.defect == "wide":
            ys = ys.astype(jnp.float32)
        if self.defect == "low state":
            state = jax.tree.map(lambda x: x.astype(jnp.float16), state)
        return state, ys

    def step(self, x, state, *, key=None):
        state, y = self.lru.step(x, state)
        return state, 2 * y if self.defect == "another step" else y

    def init_state(self, batch_shape=(), dtype=None):
        return self.lru.init_state(batch_shape, dtype)


LAWS = {
    "another step": verify.step_equals_call,
    "ignores the state": lambda layer, xs: verify.chunks_equal_one_call(layer, xs, 4),
    "ignores resets": lambda layer, xs: verify.reset_equals_fresh(layer, xs, 4),
    "ignores lengths": lambda layer, xs: verify.padding_is_inert(layer, xs, [8, 3]),
    "NaN in the padding": lambda layer, xs: verify.padding_is_inert(layer, xs, [8, 3]),
    "mixes rows": verify.batching_agrees,
    "low state": verify.state_is_stable,
    "wide": verify.bfloat16_keeps_dtypes,
    "fixed weights": verify.gradient_reaches_parameters,
}


@pytest.mark.parametrize("defect", LAWS)
def test_law_notices(defect, key):
    layer = Broken(lru=LRU(3, 4, key=key), defect=defect, idim=3, odim=3)
    xs = jax.random.normal(key, (2, 8, 3))
    check = LAWS[defect](layer, xs)
    assert not check.passed, check


class DeafElman(ElmanRNNCell):
    """Right in value, wrong in gradient."""

    def __init__(self, *, key: PRNGKeyArray):
        super().__init__(3, 5, key=key)

    def weights(self):
        return jax.lax.stop_gradient(self)


def elman_checks(build, key) -> list[bool]:
    """Whether a cell passes the float32, float64 and gradient checks of Elman's oracle."""
    (elman,) = (subject for subject in verify.CELLS if subject.name == "ElmanRNNCell")
    checks = verify.cell_matches_oracle(replace(elman, build=build), key)
    return [check.passed for check in checks]


def test_an_oracle_notices_another_equation(key):
    build = lambda key: ElmanRNNCell(3, 5, nonlinearity=jnp.arctan, key=key)  # noqa: E731
    assert elman_checks(build, key) == [False, False, False]


def test_an_oracle_notices_a_gradient(key):
    assert elman_checks(lambda key: DeafElman(key=key), key) == [True, True, False]


def test_nan_fails():
    assert Check("a", 1.0, 1.0).passed
    assert not Check("a", 1.1, 1.0).passed
    assert not Check("a", float("nan"), 1.0).passed


def test_str_says_what_failed():
    assert str(Check("law", 2.0, 1.0)) == "law: 2 (at most 1) FAILED"


def test_relative_error_is_per_leaf():
    got, expected = {"a": np.array([1.0, 2.0]), "b": 10.0}, {"a": np.array([1.0, 2.2]), "b": 11.0}
    assert relative_error(got, expected) == pytest.approx(0.2 / 2.2)


@pytest.mark.parametrize(
    ("got", "expected"),
    [((1.0,), [1.0]), (np.ones(2), np.ones((2, 1))), (np.array([np.nan]), np.ones(1))],
    ids=["structure", "shape", "NaN"],
)
def test_relative_error_is_infinite(got, expected):
    assert relative_error(got, expected) == float("inf")
