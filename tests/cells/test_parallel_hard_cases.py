"""Drawn cases that are hard for the parallel loop: it falls back, and is never wrong.

`pytest --hypothesis-profile=thorough` draws 500 for each cell.
"""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st

from rnnscale.cells import (
    CoupledOscillatoryRNNCell,
    ElmanRNNCell,
    GatedRecurrentUnitCell,
    LongShortTermMemoryCell,
    Newton,
    certified_time_loop,
)
from rnnscale.verify._double import to_double

ROWS, TIME, IDIM = 3, 19, 2
CELLS: dict[str, tuple[Any, bool]] = {
    "elman": (ElmanRNNCell, False),
    "gru": (GatedRecurrentUnitCell, True),
    "lstm": (LongShortTermMemoryCell, False),
    "cornn": (CoupledOscillatoryRNNCell, True),
}
# Three windows, the last of which is not full.
NEWTON = Newton(window=7)


@functools.cache
def program(reverse: bool, parallel: Newton | None):
    """Value, gradient by everything, and certificate."""

    @eqx.filter_jit
    @functools.partial(eqx.filter_grad, has_aux=True)
    def run(moving, still, reset, lengths):
        state, ys, certificate = certified_time_loop(
            *eqx.combine(moving, still),
            reset=reset,
            lengths=lengths,
            reverse=reverse,
            parallel=parallel,
        )
        ends = sum(jnp.sum(jnp.cos(x)) for x in jax.tree.leaves(state))
        weights = jnp.cos(jnp.arange(ys.size)).reshape(ys.shape)
        return jnp.sum(weights * jnp.sin(ys)) + ends, ((state, ys), certificate)

    def value_and_gradient(*arguments):
        gradient, (value, certificate) = jax.device_get(run(*arguments))
        return (value, gradient), certificate

    return value_and_gradient


def error(got, expected) -> float:
    """The largest of a tree, relative to the largest entry of the array, at least to one: the
    derivative of a saturated unit is all rounding. NaN if anything is."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True)
    return np.max([np.max(np.abs(x - y)) / max(np.max(np.abs(y)), 1) for x, y in pairs])


def hard_case(draw, cell, random):
    """A cell with other recurrent weights, sequences with rubbish in their padding, a state."""
    gain = draw(st.sampled_from([0.3, 1.0, 2.0, 3.0]))
    cell = eqx.tree_at(
        lambda cell: cell.recurrent, cell, gain * random.standard_normal(cell.recurrent.shape)
    )
    border = st.sampled_from([0, 1, 6, 7, 8, TIME - 1, TIME])
    lengths = np.array(draw(st.lists(border, min_size=ROWS, max_size=ROWS)))
    xs = draw(st.sampled_from([0.1, 1.0, 5.0])) * random.standard_normal((ROWS, TIME, IDIM))
    padding = np.arange(TIME) >= lengths[:, None]
    xs[padding] = draw(st.sampled_from([np.nan, np.inf, -np.inf, 1e300]))
    reset = random.random((ROWS, TIME)) < draw(st.sampled_from([0.0, 0.1, 1.0]))
    reset[:, draw(st.lists(st.sampled_from([0, 6, 7, 13, 14, TIME - 1])))] = True
    size = draw(st.sampled_from([0.3, 1e3]))
    state = jax.tree.map(
        lambda x: size * random.standard_normal(x.shape), jax.device_get(cell.init_state((ROWS,)))
    )
    return cell, xs, state, reset, lengths


@pytest.mark.parametrize("name", CELLS)
@given(data=st.data(), seed=st.integers(0, 2**31))
def test_never_a_wrong_number(name, data, seed):
    """In float64, against the loop by steps, whose own check is in `test_time_loop.py`."""
    make, reverse = CELLS[name]
    with jax.enable_x64(True):
        cell = to_double(make(IDIM, 4, key=jax.random.key(0)))
        *arguments, reset, lengths = hard_case(data.draw, cell, np.random.default_rng(seed))
        moving, still = eqx.partition(tuple(arguments), eqx.is_inexact_array)
        expected, _ = program(reverse, None)(moving, still, reset, lengths)
        got, certificate = program(reverse, NEWTON)(moving, still, reset, lengths)
    assert error(got[0], expected[0]) < 1e-10
    # Units of 1000 beside units of 1 are exact to the former.
    assert error(got[1], expected[1]) < 1e-8
    # Nothing else than the certificate says whether Newton's method has found the states.
    assert np.all((certificate.residual <= 64 * np.finfo(float).eps) | (certificate.stepped > 0))
