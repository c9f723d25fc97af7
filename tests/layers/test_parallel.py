"""`parallel`, by which encoders and networks compute all steps at once: the same numbers as without
it, in every network, in chunks, and in both directions."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnscale import (
    RNN,
    BidirectionalRNN,
    BidirectionalRNNEncoder,
    CoupledOscillatoryRNNCell,
    DeepBidirectionalRNN,
    DeepRNN,
    ElmanRNNCell,
    GatedRecurrentUnitCell,
    MinGRUCell,
    RNNEncoder,
)
from rnnscale.cells import Newton

ROWS, TIME = 3, 12


def elman(idim: int, key: jax.Array) -> ElmanRNNCell:
    return ElmanRNNCell(idim, 4, key=key)


def gru(idim: int, key: jax.Array) -> GatedRecurrentUnitCell:
    return GatedRecurrentUnitCell(idim, 4, key=key)


def cornn(idim: int, key: jax.Array) -> CoupledOscillatoryRNNCell:
    return CoupledOscillatoryRNNCell(idim, 4, dt=0.1, gamma=1.0, epsilon=1.0, key=key)


def both_ways(key: jax.Array, **option: Any) -> BidirectionalRNN:
    return BidirectionalRNN(elman(2, key), cornn(2, key), 1, key=key, **option)


def in_chunks(key: jax.Array, **option: Any) -> DeepRNN:
    """The upper cell is linear."""
    cells = [gru(2, key), MinGRUCell(4, 4, key=key)]
    return DeepRNN(cells, 1, chunk=4, remat=True, key=key, **option)


@pytest.mark.parametrize("make", [both_ways, in_chunks])
def test_a_network_computes_the_same_with_all_steps_at_once(
    make: Callable[..., Any], getkey: Callable, quick_compilation
):
    """Outputs and gradients, with resets and lengths; and it does not take the steps."""
    key, xs = getkey(), jax.random.normal(getkey(), (ROWS, TIME, 2))
    timing = {
        "lengths": jnp.array([TIME, 6, 0]),
        "reset": jnp.zeros((ROWS, TIME), bool).at[0, 5].set(True),
    }

    @jax.jit
    def run(model: Any, xs: jax.Array) -> Any:
        def total(model: Any, xs: jax.Array) -> Any:
            y, hs = model(xs, **timing)
            return jnp.sum(jnp.sin(y)) + jnp.sum(jnp.sin(2 * hs)), (y, hs)

        return jax.grad(total, argnums=(0, 1), has_aux=True)(model, xs)

    parallel, steps = (make(key, **option) for option in ({"parallel": "auto"}, {}))
    for found, expected in zip(
        *map(jax.tree.leaves, (run(parallel, xs), run(steps, xs))), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4)
    iterates = ["while[" in str(jax.make_jaxpr(model)(xs)) for model in (parallel, steps)]
    assert iterates == [True, False]


def test_every_network_hands_it_to_its_encoders(getkey: Callable):
    key, newton = getkey(), Newton("diagonal")
    networks: list[Any] = [
        RNN(gru(2, key), 1, parallel=newton, key=key),
        DeepRNN([gru(2, key), gru(4, key)], 1, parallel=newton, key=key),
        DeepBidirectionalRNN([(gru(2, key), gru(2, key))], 1, parallel=newton, key=key),
    ]
    is_encoder = lambda x: isinstance(x, RNNEncoder | BidirectionalRNNEncoder)  # noqa: E731
    encoders = [each for each in jax.tree.leaves(networks, is_leaf=is_encoder) if is_encoder(each)]
    assert [each.parallel for each in encoders] == [newton] * 4


def test_it_is_static(getkey: Callable):
    """Not an array, and part of what a compiled program is kept for."""
    cell = gru(2, getkey())
    encoder, same, other = (
        RNNEncoder(cell, parallel=Newton(jacobian)) for jacobian in ("dense", "dense", "diagonal")
    )
    assert eqx.tree_equal(encoder, same)
    assert jax.tree.structure(encoder) != jax.tree.structure(other)
    assert len(jax.tree.leaves(encoder)) == len(jax.tree.leaves(RNNEncoder(cell)))


@pytest.mark.parametrize(
    ("parallel", "message"),
    [
        ("fast", "parallel must be a rnnscale.cells.Newton or one of auto or None; got 'fast'"),
        (True, "parallel must be a rnnscale.cells.Newton or one of auto or None; got True"),
    ],
)
def test_other_values_are_refused(parallel: Any, message: str, getkey: Callable):
    for make in (
        lambda: RNNEncoder(gru(2, getkey()), parallel=parallel),
        lambda: DeepBidirectionalRNN(
            [(gru(2, getkey()), gru(2, getkey()))], 1, parallel=parallel, key=getkey()
        ),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            make()
