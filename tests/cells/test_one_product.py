"""Cells with one recurrent product, as `persistent_rnn` runs them on GPUs, against the time loop.

Here `persistent_rnn` runs in plain XLA; its kernels are tested in `tests/kernels`.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnscale.cells import ElmanRNNCell, GatedRecurrentUnitCell, LongShortTermMemoryCell, time_loop
from rnnscale.cells._persistent import persistent_run
from rnnscale.sharding import make_mesh

BATCH, TIME, IDIM, HDIM = 4, 6, 3, 5


def call(cell_type: type, key: jax.Array):
    """`(cell, xs, state)`, and resets and lengths."""
    keys = jax.random.split(key, 3)
    cell = cell_type(IDIM, HDIM, key=keys[0])
    xs = jax.random.normal(keys[1], (BATCH, TIME, IDIM), "bfloat16")
    state = jax.tree.map(lambda x: x + 0.3, cell.init_state((BATCH,), xs.dtype))
    reset = jax.random.bernoulli(keys[2], 0.3, (BATCH, TIME))
    return (cell, xs, state), reset, jnp.array([6, 0, 4, 5])


def value_and_gradients(run, arguments):
    """The results of `run(cell, xs, state)`, and the gradients of their weighted sum."""

    def loss(arguments):
        results = run(*arguments)
        weights = [np.cos(np.arange(x.size)).reshape(x.shape) for x in jax.tree.leaves(results)]
        pairs = zip(jax.tree.leaves(results), weights, strict=True)
        return sum(jnp.sum(x * w) for x, w in pairs), results

    gradients, results = eqx.filter_jit(eqx.filter_grad(loss, has_aux=True))(arguments)
    return results, gradients


def check(got, expected, bound: float) -> None:
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        x, y = np.asarray(x, "float64"), np.asarray(y, "float64")
        np.testing.assert_allclose(x, y, atol=bound * np.max(np.abs(y)), rtol=0)


@pytest.mark.parametrize(
    ("cell_type", "reverse"),
    [(LongShortTermMemoryCell, True), (GatedRecurrentUnitCell, False), (ElmanRNNCell, True)],
)
def test_cells_run_as_in_the_time_loop(cell_type, reverse, key):
    arguments, reset, lengths = call(cell_type, key)

    def persistent(cell, xs, state):
        run = persistent_run(cell, xs, state, reset, lengths, reverse=reverse, remat=False)
        assert run is not None
        return run()

    def loop(cell, xs, state):
        return time_loop(cell, xs, state, reset=reset, lengths=lengths, reverse=reverse)

    check(value_and_gradients(persistent, arguments), value_and_gradients(loop, arguments), 2e-2)


def test_calls_that_no_kernel_takes_stay_in_the_time_loop(key):
    (cell, xs, state), reset, lengths = call(GatedRecurrentUnitCell, key)
    given = state, reset, lengths
    assert persistent_run(cell, xs.astype("float32"), *given, reverse=False, remat=False) is None
    assert persistent_run(cell, xs, *given, reverse=False, remat=True) is None


def test_devices_of_a_mesh_take_their_rows(key):
    arguments, reset, lengths = call(LongShortTermMemoryCell, key)

    def persistent(cell, xs, state):
        run = persistent_run(cell, xs, state, reset, lengths, reverse=False, remat=False)
        assert run is not None
        return run()

    expected = value_and_gradients(persistent, arguments)
    with jax.set_mesh(make_mesh(data=4, devices=jax.devices()[:4])):
        got = value_and_gradients(persistent, arguments)
    check(got, expected, 1e-2)


class Shifted(ElmanRNNCell):
    def advance(self, weights, drive, state, affine):
        return super().advance(weights, drive, state, affine) + weights.bias


class Twice(ElmanRNNCell):
    def advance(self, weights, drive, state, affine):
        return affine(drive, weights.recurrent, affine(drive, weights.recurrent, state))


@pytest.mark.parametrize(
    ("cell_type", "message"),
    [(Shifted, r"uses weights\.bias.* weights\.recurrent only"), (Twice, "it did so 2 times")],
)
def test_cells_with_more_than_one_product_are_an_error(cell_type, message, key):
    (cell, xs, state), reset, lengths = call(cell_type, key)
    with pytest.raises(TypeError, match=message):
        persistent_run(cell, xs, state, reset, lengths, reverse=False, remat=False)
