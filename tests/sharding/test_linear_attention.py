"""`linear_attention` with rows, heads and time split over devices, compared with one device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnscale.sharding import linear_attention, make_mesh
from rnnscale_kernels import linear_attention as on_one_device
from rnnscale_kernels.testing import compile_for

ROWS, TIME, HEADS, KEY, VALUE = 4, 16, 4, 3, 5


def arrays(rng, *, time=TIME, groups=HEADS, decay=None, erases=False):
    """Query, key, value, logarithm of the decay, erasure and initial state."""
    query, key = rng.normal(size=(2, ROWS, time, groups, KEY))
    key /= np.linalg.norm(key, axis=-1, keepdims=True)
    value = rng.normal(size=(ROWS, time, HEADS, VALUE))
    widths = {"head": (HEADS,), "channel": (HEADS, KEY)}
    log_decay = -np.exp(rng.normal(size=(ROWS, time, *widths[decay]))) if decay else None
    erase = rng.uniform(0, 2, (ROWS, time, groups, 1)) * key if erases else None
    return query, key, value, log_decay, erase, rng.normal(size=(ROWS, HEADS, KEY, VALUE))


def masks(rng, time=TIME):
    """Resets also on the first step of a device, and rows that end within one and at its border."""
    reset = rng.random((ROWS, time)) < 0.1
    reset[1, [0, 4, 8]] = True
    return {"reset": jnp.asarray(reset), "lengths": jnp.asarray([time, 8, 0, 5])}


def both_passes(op, options, arrays, cotangents):
    outputs, pull = jax.vjp(functools.partial(op, **options), *arrays)
    return outputs, pull(cotangents)


def close(got, expected, tolerance=1e-12):
    def check(x, y):
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * max(1, np.max(np.abs(y))))

    jax.tree.map(check, got, expected)


@pytest.mark.parametrize(
    ("axes", "time", "form", "reverse"),
    [
        ({"seq": 8}, 16, {"erases": True, "groups": 1}, False),
        ({"data": 2, "seq": 4}, 16, {"decay": "channel"}, True),
        ({"data": 2, "seq": 4}, 13, {"decay": "head", "erases": True}, True),
        ({"data": 2, "tensor": 2, "seq": 2}, 16, {"decay": "head", "groups": 2}, False),
        ({"data": 2, "tensor": 2, "seq": 2}, 13, {"decay": "channel", "erases": True}, False),
        ({"tensor": 4, "seq": 2}, 16, {"groups": 2}, False),
        ({"tensor": 8}, 16, {"decay": "head"}, False),
    ],
    ids=str,
)
def test_results_and_gradients_are_those_of_one_device(axes, time, form, reverse):
    """In double precision, with resets, lengths, both states, and a NaN that a reset stops."""
    rng = np.random.default_rng(0)
    given = arrays(rng, time=time, **form)
    given[-1][1] = np.nan
    options = {"reverse": reverse, **masks(rng, time)}
    if reverse:  # no reset stops the state after the last step
        given[-1][1] = 1
    cotangents = rng.normal(size=given[2].shape), rng.normal(size=given[5].shape)
    with jax.enable_x64(True):
        run = [
            jax.jit(functools.partial(both_passes, op, options))
            for op in (on_one_device, linear_attention)
        ]
        expected = run[0](given, cotangents)
        with jax.set_mesh(make_mesh(**axes)):
            got = run[1](given, cotangents)
    close(got, expected)


@pytest.mark.parametrize("erases", [False, True])
def test_what_is_not_finite_does_not_pass_a_reset(erases):
    """Neither forward from the first segment, nor backward from the last one."""
    rng = np.random.default_rng(0)
    given = [x if x is None else jnp.asarray(x, jnp.float32) for x in arrays(rng, erases=erases)]
    given[3] = jnp.zeros((ROWS, TIME, HEADS, KEY))
    bad = [x if x is None else x.at[:, [2, 13]].set(jnp.nan) for x in given[:5]]
    # The middle segment starts within a device and ends at a border of devices.
    reset = jnp.zeros((ROWS, TIME), bool).at[:, [5, 12]].set(True)

    def loss(given, reset):
        y, _ = linear_attention(*given, reset=reset)
        return jnp.sum(y[:, 5:12] ** 2)

    run = jax.jit(jax.value_and_grad(loss))
    with jax.set_mesh(make_mesh(seq=4, devices=jax.devices()[:4])):
        value, gradients = run(bad, reset)
        expected, of_finite = run(given[:5], reset)
    assert value == expected
    for x, y in zip(gradients, of_finite, strict=True):
        if x is not None:
            np.testing.assert_array_equal(x[:, 5:12], y[:, 5:12])


@pytest.mark.parametrize(
    ("form", "decays"),
    [
        ({}, 0),
        ({"decay": "head"}, 1),
        ({"decay": "channel"}, KEY),
        ({"decay": "head", "erases": True}, KEY * KEY),
    ],
    ids=str,
)
def test_one_gather_in_each_direction(form, decays):
    """It brings the totals and a flag of each row, whose size does not depend on the length."""
    mesh, found = make_mesh(tensor=2, seq=4), []

    def gradient(reset, *given):
        def loss(*given):
            return sum(jnp.sum(x**2) for x in linear_attention(*given, reset=reset))

        return jax.grad(loss, range(3))(*given)

    for time in (16, 64):

        def like(x, *axes):
            layout = jax.NamedSharding(mesh, jax.P(*axes))
            return jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=layout)

        *steps, h0 = arrays(np.random.default_rng(0), time=time, **form)
        given = (x if x is None else like(x, None, "seq", "tensor") for x in steps)
        layout = jax.NamedSharding(mesh, jax.P(None, "seq"))
        reset = jax.ShapeDtypeStruct((ROWS, time), jnp.bool_, sharding=layout)
        program = compile_for(gradient, reset, *given, like(h0, None, "tensor"), target=mesh)
        found.append([(x.kind, x.axes, x.bytes, x.turns) for x in program.collectives])
    assert found[0] == found[1]
    states = HEADS // 2 * KEY * VALUE
    sizes = [4 * ROWS * 4 * n for n in (HEADS // 2 * decays + states + 1, states)]
    assert found[0] == [("all-gather", ("seq",), size, 1) for size in sizes]
