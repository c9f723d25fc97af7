"""Norms of gradients against lag, for layers in which they are known."""

from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnscale
from rnnscale.analysis import gradient_norms, state_gradient_norms
from rnnscale.ssm import LRU, BidirectionalS5


def scalar(decay, getkey):
    """A cell with h = decay * h + x, whose output is h."""
    cell = rnnscale.IndRNNCell(1, 1, nonlinearity=lambda x: x, key=getkey())
    return eqx.tree_at(
        lambda c: (c.recurrent, c.input), cell, (jnp.array([decay]), jnp.ones((1, 1)))
    )


@pytest.mark.parametrize("norms", [gradient_norms, state_gradient_norms])
def test_one_unit_has_the_powers_of_its_decay(norms, getkey):
    """Also far below the square root of the smallest float32."""
    found = norms(scalar(0.5, getkey), jnp.ones((2, 111, 1)), key=getkey())
    np.testing.assert_allclose(found, 0.5 ** np.arange(111), rtol=1e-5)


def test_rotated_states_do_not_fade(getkey):
    cell = rnnscale.ExpRNNCell(2, 6, key=getkey())
    cell = eqx.tree_at(lambda c: c.bias, cell, jnp.zeros(6))
    xs = jax.random.normal(getkey(), (3, 40, 2))
    found = state_gradient_norms(cell, xs, key=getkey())
    np.testing.assert_allclose(found, np.ones(40), rtol=1e-5)
    # The gradient of the input also passes through the input matrix.
    found = gradient_norms(cell, xs, probes=500, key=getkey())
    expected = np.linalg.norm(cell.input) / np.sqrt(6)
    np.testing.assert_allclose(found, np.full(40, expected), rtol=0.05)


def test_the_lru_has_the_norms_of_its_kernel(getkey):
    """C diag(decay)^lag B of the paper, plus D at lag zero."""
    layer = LRU(3, 5, r_min=0.6, r_max=0.95, key=getkey())
    decay, b, c = (
        np.asarray(each.re, np.float64) + 1j * np.asarray(each.im) for each in layer.discretise()
    )
    assert layer.d is not None
    skip = np.diag(np.asarray(layer.d))
    lags = np.arange(30)
    kernels = [(c * decay**lag @ b).real + (lag == 0) * skip for lag in lags]
    expected = [np.linalg.norm(each) / np.sqrt(3) for each in kernels]
    xs = jax.random.normal(getkey(), (8, 30, 3))
    found = gradient_norms(layer, xs, probes=200, key=getkey())
    np.testing.assert_allclose(found, expected, rtol=0.05)
    found = state_gradient_norms(layer, xs, probes=200, key=getkey())
    powers = np.abs(decay)[None] ** (2 * lags[:, None])
    np.testing.assert_allclose(found, np.sqrt(powers.mean(axis=1)), rtol=0.05)


def test_they_are_means_over_rows(getkey):
    """The unit of one row is on, that of the other row is off."""
    cell = rnnscale.IndRNNCell(1, 1, key=getkey())
    cell = eqx.tree_at(lambda c: (c.recurrent, c.input), cell, (jnp.array([0.5]), jnp.ones((1, 1))))
    xs = jnp.stack([jnp.ones((9, 1)), -jnp.ones((9, 1))])
    found = gradient_norms(cell, xs, key=getkey())
    np.testing.assert_allclose(found, np.sqrt(0.5) * 0.5 ** np.arange(9), rtol=1e-5)


def test_from_another_state(getkey):
    """The gradient of an LSTM depends on its state."""
    cell = rnnscale.LongShortTermMemoryCell(1, 3, key=getkey())
    xs = jnp.ones((2, 2, 6, 1))  # any batch axes
    state = jax.tree.map(lambda x: x + 2, cell.init_state((2, 2)))
    key = getkey()
    for norms in (gradient_norms, state_gradient_norms):
        away, at_rest = norms(cell, xs, state, key=key), norms(cell, xs, key=key)
        assert away.shape == (6,) and not np.allclose(away, at_rest, rtol=1e-3)
        # Started from the state after the first half, it has the same gradients.
        half, _ = rnnscale.RNNEncoder(cell)(xs[..., :3, :])
        again = norms(cell, xs[..., 3:, :], half, key=key)
        np.testing.assert_allclose(again, norms(cell, xs, key=key)[:3], rtol=1e-4)


def test_layers_that_look_ahead(getkey):
    layer = BidirectionalS5(2, 4, key=getkey())
    xs = jax.random.normal(getkey(), (2, 12, 2))
    assert (gradient_norms(layer, xs, key=getkey()) > 0).all()
    with pytest.raises(TypeError, match="looks ahead"):
        state_gradient_norms(layer, xs, key=getkey())


def test_bad_arguments(getkey):
    cell = rnnscale.ElmanRNNCell(2, 4, key=getkey())
    for norms in (gradient_norms, state_gradient_norms):
        with pytest.raises(ValueError, match="probes must be at least 1; got 0"):
            norms(cell, jnp.zeros((5, 2)), probes=0, key=getkey())
        with pytest.raises(ValueError, match="one row and one step"):
            norms(cell, jnp.zeros((0, 5, 2)), key=getkey())
        with pytest.raises(ValueError, match="2 features"):
            norms(cell, jnp.zeros((5, 3)), key=getkey())
        with pytest.raises(ValueError, match="init_state"):
            norms(cell, jnp.zeros((5, 2)), jnp.zeros(3), key=getkey())
        with pytest.raises(TypeError, match="got .lstm."):
            norms(cast(Any, "lstm"), jnp.zeros((5, 2)), key=getkey())


def test_rows_of_a_stack_whose_state_has_its_blocks_in_front(getkey):
    """The mean square over rows is that of the rows, each with the probe of its own row."""
    layer = rnnscale.models.BlockStack(
        lambda key: rnnscale.RNNEncoder(rnnscale.ElmanRNNCell(3, 3, key=key)), 2, key=getkey()
    )
    xs = jax.random.normal(getkey(), (3, 5, 3))
    found = state_gradient_norms(layer, xs, probes=400, key=getkey())
    rows = [state_gradient_norms(layer, x, probes=400, key=getkey()) for x in xs]
    np.testing.assert_allclose(found, np.sqrt(np.mean(np.square(rows), axis=0)), rtol=0.1)
