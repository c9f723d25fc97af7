"""The constraint of IndRNN: it holds exactly, and changes no other parameter."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rnnscale import trainable
from rnnscale.cells import ElmanRNNCell, IndRNNCell
from rnnscale.training import indrnn_constraint

LIMIT = 2 ** (1 / 100)


class Model(eqx.Module):
    layers: list[IndRNNCell]
    head: ElmanRNNCell


def make_model(key):
    keys = jax.random.split(key, 3)
    return Model(
        [IndRNNCell(3, 40, recurrent_range=(-LIMIT, LIMIT), key=k) for k in keys[:2]],
        ElmanRNNCell(40, 5, key=keys[2]),
    )


def largest(model):
    return max(np.max(np.abs(np.float64(cell.recurrent))) for cell in model.layers)


@pytest.mark.parametrize("jit", [True, False])
def test_holds_after_optimiser_steps(jit, getkey):
    model = make_model(getkey())
    optimiser = optax.chain(optax.adam(0.1), indrnn_constraint(LIMIT))
    params, fixed = eqx.partition(model, trainable(model))
    state = optimiser.init(params)

    def step(optimiser, params, state, key) -> tuple[Any, Any]:
        grads = jax.tree.map(lambda p: jax.random.normal(key, p.shape), params)
        updates, state = optimiser.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    if jit:
        step = jax.jit(step, static_argnums=0)
    free = optax.adam(0.1)
    unconstrained, free_state = params, free.init(params)
    for _ in range(5):
        key = getkey()
        params, state = step(optimiser, params, state, key)
        unconstrained, free_state = step(free, unconstrained, free_state, key)
        assert largest(eqx.combine(params, fixed)) <= LIMIT
    assert largest(unconstrained) > LIMIT + 0.1
    # Where nothing is constrained, it changes nothing.
    for got, expected in zip(params.layers, unconstrained.layers, strict=True):
        np.testing.assert_allclose(got.input, expected.input, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        params.head.recurrent, unconstrained.head.recurrent, rtol=1e-5, atol=1e-6
    )
    assert np.max(np.abs(params.head.recurrent)) > 0.5


@pytest.mark.parametrize("jit", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_is_exact_for_any_rounding(dtype, jit, key):
    p_key, u_key, size_key = jax.random.split(key, 3)
    size = jnp.exp2(jax.random.uniform(size_key, (2, 20000), minval=-12, maxval=5))
    p, u = (
        (jax.random.normal(k, (20000,)) * s).astype(dtype)
        for k, s in zip((p_key, u_key), size, strict=True)
    )
    cell = IndRNNCell(1, 20000, key=key)
    params = eqx.tree_at(lambda c: c.recurrent, cell, p)
    updates = eqx.tree_at(lambda c: c.recurrent, jax.tree.map(jnp.zeros_like, cell), u)
    within = np.abs(np.float64(p) + np.float64(u)) < 0.29
    for limit in (2 ** (1 / 1000), 0.3):
        transformation = indrnn_constraint(limit)
        state = transformation.init(params)

        def step(params, updates: Any, transformation=transformation, state=state) -> Any:
            updates, _ = transformation.update(updates, state, params)
            assert updates.recurrent.dtype == dtype
            return optax.apply_updates(params, updates)

        moved = (jax.jit(step) if jit else step)(params, updates)
        after = np.float64(moved.recurrent)
        assert np.max(np.abs(after)) <= limit
        assert np.max(after) >= limit * (1 - 2 * float(jnp.finfo(dtype).eps))
        # What stays within moves as it would without, but for rounding.
        expected = np.float64(p) + np.float64(u)
        scale = np.maximum(np.abs(np.float64(p)), np.abs(np.float64(u)))
        error = np.abs(after - expected) / scale
        assert np.max(error[within]) <= 2 * float(jnp.finfo(dtype).eps)
        clipped = np.clip(expected, -limit, limit)
        error = np.abs(after - clipped) / np.maximum(scale, limit)
        assert np.max(error) <= 2 * float(jnp.finfo(dtype).eps)


def test_a_stack_of_layers_and_a_frozen_one(getkey):
    stack = eqx.filter_vmap(lambda key: IndRNNCell(2, 3, key=key))(jax.random.split(getkey(), 4))
    frozen = eqx.tree_at(lambda c: c.recurrent, stack, None)
    optimiser = optax.chain(optax.sgd(1.0), indrnn_constraint(0.5))
    for params in (stack, frozen):
        grads = jax.tree.map(lambda p: -jnp.ones_like(p), params)
        updates, _ = optimiser.update(grads, optimiser.init(params), params)
        after: Any = eqx.apply_updates(params, updates)
        np.testing.assert_array_equal(after.input, params.input + 1)
        if params is stack:
            np.testing.assert_array_equal(after.recurrent, np.full((4, 3), 0.5))
        else:
            assert after.recurrent is None


def test_bad_arguments(key):
    cell: Any = IndRNNCell(2, 3, key=key)
    other: Any = ElmanRNNCell(2, 3, key=key)
    transformation = indrnn_constraint(1.0)
    with pytest.raises(ValueError, match=r"limit must be positive and finite; got 0"):
        indrnn_constraint(0.0)
    with pytest.raises(ValueError, match="no IndRNNCell in the parameters"):
        transformation.init(other)
    with pytest.raises(ValueError, match="no IndRNNCell"):
        transformation.init(jax.tree.leaves(cell))
    with pytest.raises(ValueError, match="needs the parameters"):
        transformation.update(cell, transformation.init(cell))
