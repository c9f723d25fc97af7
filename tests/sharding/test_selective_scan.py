"""`selective_scan` with rows, channels and time split over devices, compared with one device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnscale.sharding import _distributed_scan, make_mesh, selective_scan
from rnnscale_kernels import selective_scan as on_one_device
from rnnscale_kernels.testing import compile_for

ROWS, CHANNELS, MODES = 4, 8, 3


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch):
    """The steps of a device are cut into pieces."""
    monkeypatch.setattr(_distributed_scan, "_LEAST_STEPS", 2)


def arrays(rng, time):
    u, delta = rng.normal(size=(2, ROWS, time, CHANNELS))
    b, c = rng.normal(size=(2, ROWS, time, MODES))
    a, h0 = -np.exp(rng.normal(size=(CHANNELS, MODES))), rng.normal(size=(ROWS, CHANNELS, MODES))
    return u, np.exp(delta), a, b, c, h0


def both_passes(op, options, arrays, cotangents):
    outputs, pull = jax.vjp(functools.partial(op, **options), *arrays)
    return outputs, pull(cotangents)


@pytest.mark.parametrize(
    ("axes", "time", "reverse"),
    [
        ({"seq": 8}, 16, False),
        ({"data": 2, "seq": 4}, 13, True),
        ({"fsdp": 2, "tensor": 2, "seq": 2}, 16, False),
        ({"tensor": 8}, 16, True),
    ],
    ids=str,
)
def test_results_and_gradients_are_those_of_one_device(axes, time, reverse):
    """In double precision, with resets, lengths, both states, and a NaN that a reset stops."""
    rng = np.random.default_rng(0)
    given = arrays(rng, time)
    reset = rng.random((ROWS, time)) < 0.1
    reset[1, [0, 4, 8]] = True
    options = {"reverse": reverse, "reset": reset, "lengths": np.array([time, 8, 0, 5])}
    if not reverse:
        given[-1][1] = np.nan
    cotangents = rng.normal(size=given[0].shape), rng.normal(size=given[-1].shape)
    with jax.enable_x64(True):
        run = [
            jax.jit(functools.partial(both_passes, op, options))
            for op in (on_one_device, selective_scan)
        ]
        expected = run[0](given, cotangents)
        with jax.set_mesh(make_mesh(**axes)):
            got = run[1](given, cotangents)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert np.isfinite(y).all()
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-12 * max(1, np.max(np.abs(y))))


def test_one_gather_in_each_direction():
    """It brings the totals and flags, whose size does not depend on the length; over `tensor` the
    gradients of the maps that all channels share are summed once, after the loop."""
    mesh, found = make_mesh(tensor=2, seq=4), []

    def gradient(reset, *given):
        def loss(*given):
            return sum(jnp.sum(x**2) for x in selective_scan(*given, reset=reset))

        return jax.grad(loss, range(6))(*given)

    for time in (16, 64):

        def like(x, *axes):
            layout = jax.NamedSharding(mesh, jax.P(*axes))
            return jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=layout)

        u, delta, a, b, c, h0 = arrays(np.random.default_rng(0), time)
        layout = jax.NamedSharding(mesh, jax.P(None, "seq"))
        reset = jax.ShapeDtypeStruct((ROWS, time), jnp.bool_, sharding=layout)
        steps = (like(x, None, "seq", "tensor") for x in (u, delta))
        maps = (like(x, None, "seq") for x in (b, c))
        program = compile_for(
            gradient, reset, *steps, like(a, "tensor"), *maps, like(h0, None, "tensor"), target=mesh
        )
        found.append(program.collectives)
    for collectives in found:
        assert all(x.turns == 1 for x in collectives)
    gathers = [[(x.axes, x.bytes) for x in each if x.kind == "all-gather"] for each in found]
    assert gathers[0] == gathers[1] and len(gathers[0]) == 2
    assert {axes for axes, _ in gathers[0]} == {("seq",)}
    assert {x.kind for each in found for x in each} == {"all-gather", "all-reduce"}
