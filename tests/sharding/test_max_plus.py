"""`max_plus_scan` against a loop over time, on one device and with time split over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnscale.sharding import make_mesh, max_plus_scan
from rnnscale_kernels.testing import compile_for

ROWS, TIME, HEADS = 4, 13, 2


@pytest.mark.parametrize("axes", [{}, {"seq": 8}, {"data": 2, "tensor": 2, "seq": 2}], ids=str)
def test_states_are_those_of_a_loop(axes):
    """With resets, rows that end early, and a NaN that must not cross a reset or the end."""
    rng = np.random.default_rng(0)
    a, b = -rng.exponential(size=(2, ROWS, TIME, HEADS)) * [[[[1]]], [[[4]]]]
    h0 = rng.normal(size=(ROWS, HEADS))
    reset, lengths = np.zeros((ROWS, TIME), bool), np.array([TIME, 7, 0, TIME])
    reset[0, [0, 5, 8]] = reset[3, 4] = True
    a[1, 7:], b[3, 2] = np.nan, np.nan
    before, last = np.zeros_like(a), h0.copy()
    for row, length in enumerate(lengths):
        for t in range(TIME):
            before[row, t] = np.where(reset[row, t], 0, last[row])
            if t < length:
                last[row] = np.maximum(a[row, t] + before[row, t], b[row, t])

    def run(a, b, h0):
        return max_plus_scan(a, b, h0, reset=jnp.array(reset), lengths=jnp.array(lengths))

    devices = 8 if axes else 1
    with jax.set_mesh(make_mesh(**axes, devices=jax.devices()[:devices])):
        got = jax.jit(run)(*(jnp.asarray(x, jnp.float32) for x in (a, b, h0)))
    for x, y in zip(got, (before, last), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6)


def test_it_has_no_gradient_and_one_gather():
    """The gather brings two numbers for each row and head, and a flag for each row."""
    mesh, found = make_mesh(seq=8), []

    def loss(a, b):
        before, last = max_plus_scan(a, b)
        return jnp.sum(jnp.exp(a + before - jnp.maximum(a + before, b))) + jnp.sum(last)

    for time in (16, 64):
        layout = jax.NamedSharding(mesh, jax.P(None, "seq"))
        steps = jax.ShapeDtypeStruct((ROWS, time, HEADS), jnp.float32, sharding=layout)
        program = compile_for(jax.grad(loss, (0, 1)), steps, steps, target=mesh)
        found.append([(x.kind, x.bytes, x.turns) for x in program.collectives])
    assert found[0] == found[1] == [("all-gather", 8 * ROWS * (2 * HEADS + 1) * 4, 1)]
