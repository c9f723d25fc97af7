"""Nonlinear cells in parallel over time compared with the loop by steps, and what makes a row fail.

The loop by steps is compared with a plain `lax.scan` in `test_time_loop.py`.
"""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnscale import verify
from rnnscale.cells import (
    ClockWorkRNNCell,
    CoupledOscillatoryRNNCell,
    ElmanRNNCell,
    GatedRecurrentUnitCell,
    IndRNNCell,
    LongShortTermMemoryCell,
    Newton,
    UnitaryEvolutionRNNCell,
    certified_time_loop,
    time_loop,
)
from rnnscale.verify._double import to_double


def value_and_gradient(cell, xs, parallel, **options) -> tuple[Any, Any]:
    """Value and gradient by all floating arrays, and the certificate if it runs in parallel."""
    state = jax.tree.map(
        lambda x: x + 0.3 if eqx.is_inexact_array(x) else x,
        cell.init_state(xs.shape[:-2], xs.dtype),
    )
    moving, still = eqx.partition((cell, xs, state), eqx.is_inexact_array)

    @partial(jax.jit, static_argnums=1)
    def run(moving, parallel):
        def loss(moving):
            state, ys, certificate = certified_time_loop(
                *eqx.combine(moving, still), **options, parallel=parallel
            )
            floats = jax.tree.leaves(eqx.filter(state, eqx.is_inexact_array))
            weights = jnp.cos(jnp.arange(ys.size)).reshape(ys.shape)
            total = jnp.sum(weights * jnp.sin(ys)) + sum(jnp.sum(jnp.cos(x)) for x in floats)
            return total, ((state, ys), certificate)

        return jax.grad(loss, has_aux=True)(moving)

    gradient, (value, certificate) = run(moving, parallel)
    return (value, gradient), certificate


CELLS = {
    "elman": (lambda key: ElmanRNNCell(3, 5, key=key), "block"),
    "lstm": (lambda key: LongShortTermMemoryCell(3, 5, key=key), "diagonal"),
    "gru": (lambda key: GatedRecurrentUnitCell(3, 5, key=key), "block"),
    "cornn": (lambda key: CoupledOscillatoryRNNCell(3, 5, key=key), "block"),
    "indrnn": (lambda key: IndRNNCell(3, 5, nonlinearity=jnp.tanh, key=key), "block"),
    "clockwork": (lambda key: ClockWorkRNNCell(3, 6, periods=(1, 2, 5), key=key), "block"),
    "unitary": (lambda key: UnitaryEvolutionRNNCell(3, 4, key=key), "dense"),
}


@pytest.mark.parametrize("name", CELLS)
def test_equals_the_steps(name, getkey):
    """With resets and lengths, an odd length, in both directions."""
    build, jacobian = CELLS[name]
    reverse = name in ("gru", "cornn", "clockwork")
    with jax.enable_x64(True):
        cell = to_double(build(getkey()))
        xs = jax.random.normal(getkey(), (4, 63, 3), jnp.float64)
        options = {
            "reset": jax.random.bernoulli(getkey(), 0.1, (4, 63)),
            "lengths": jnp.array([63, 0, 5, 33]),
            "reverse": reverse,
        }
        expected, _ = value_and_gradient(cell, xs, None, **options)
        got, certificate = value_and_gradient(cell, xs, Newton(jacobian), **options)
        assert verify.relative_error(got, expected) < 1e-12
        # And it was not computed by steps.
        assert not np.any(certificate.stepped)
        assert np.max(certificate.iterations) > 1 and np.max(certificate.residual) < 1e-13


def test_time_loop_returns_the_same(getkey):
    cell, xs = GatedRecurrentUnitCell(3, 5, key=getkey()), jax.random.normal(getkey(), (2, 40, 3))
    *expected, _ = certified_time_loop(cell, xs)
    assert verify.relative_error(time_loop(cell, xs, parallel="auto"), tuple(expected)) == 0
