"""`Check` and `relative_error`: what passes, and what is infinitely wrong."""

import numpy as np
import pytest

from rnnscale.verify import Check, relative_error


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
