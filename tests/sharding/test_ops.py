"""`linear_scan` and layers that use the ops give the results of one device on every mesh."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnscale import S5, BidirectionalS5
from rnnscale.sharding import linear_scan, make_mesh
from rnnscale_kernels import Planar

MESHES = {
    "data=2,fsdp=2,tensor=2": (2, 2, 2),
    "tensor=8": (1, 1, 8),
    "seq=8": (1, 1, 1, 8),
    "data=2,seq=4": (2, 1, 1, 4),
    "fsdp=2,tensor=2,seq=2": (1, 2, 2, 2),
}
every_mesh = pytest.mark.parametrize("sizes", MESHES.values(), ids=MESHES)
MOST_AXES = MESHES["fsdp=2,tensor=2,seq=2"]


def sequences(key, rows=8, dtype=jnp.float32):
    return jax.random.normal(key, (rows, 33, 6)).astype(dtype)


def assert_same_on(sizes, run, *arguments, tolerance=1e-5):
    """`run` gives the same on a mesh as on one device. It is jitted here and defined by the module,
    so that the program for one device is compiled once for all meshes."""

    def close(x, y):
        x, y = (np.asarray(z, np.float64) for z in (x, y))
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * max(1, np.max(np.abs(y))))

    expected = run(*arguments)
    with jax.set_mesh(make_mesh(*sizes)):
        got = run(*arguments)
    jax.tree.map(close, got, expected)


def loss(layer, xs, state):
    reset = jnp.zeros((8, 33), bool).at[:, 11].set(True)
    lengths = jnp.asarray([33, 0, 1, 12, 33, 5, 20, 32])
    state, ys = layer(xs, state, reset=reset, lengths=lengths)
    total = sum(jnp.sum(x**2) for x in jax.tree.leaves(state))
    return total + jnp.sum(ys.astype(jnp.float32) ** 2)


loss_and_gradient = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))


def check_loss_and_gradient(sizes, layer, dtype, key):
    state = jax.tree.map(lambda x: x + 0.5, layer.init_state((8,), dtype))
    # bfloat16 has 8 bits, and the devices' parts of an output are rounded before they are summed.
    tolerance = 2e-5 if dtype == jnp.float32 else 3e-2
    arguments = layer, sequences(key, dtype=dtype), state
    assert_same_on(sizes, loss_and_gradient, *arguments, tolerance=tolerance)


@every_mesh
def test_values_and_gradients(sizes, key):
    check_loss_and_gradient(sizes, S5(6, 32, key=key), jnp.float32, key)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_both_directions(dtype, key):
    check_loss_and_gradient(MOST_AXES, BidirectionalS5(6, 32, key=key), dtype, key)


@jax.jit
def output_gradient(layer, xs):
    return jax.grad(lambda layer, xs: jnp.sum(layer(xs)[1] ** 2), (0, 1))(layer, xs)


@pytest.mark.parametrize("batch", [(), (5,), (4, 2)], ids=str)
def test_any_batch(batch, key):
    """No batch axis, a size that the mesh does not divide, and two axes."""
    xs = jax.random.normal(key, (*batch, 9, 6))
    assert_same_on(MOST_AXES, output_gradient, S5(6, 32, key=key), xs)


def test_filter_vmap(key):
    @jax.jit
    def gradient(layer, xs):
        def total(layer, xs):
            return jnp.sum(eqx.filter_vmap(lambda xs: layer(xs)[1])(xs) ** 2)

        return jax.value_and_grad(total, (0, 1))(layer, xs)

    assert_same_on(MOST_AXES, gradient, S5(6, 32, key=key), sequences(key))


def test_filter_vmap_over_layers(key):
    # As many layers as a device has rows, where exchanged axes would give no error of shapes.
    layers = eqx.filter_vmap(lambda key: S5(6, 32, key=key))(jax.random.split(key, 4))

    @jax.jit
    def gradient(layers, xs):
        def total(layers, xs):
            ys = eqx.filter_vmap(lambda layer: layer(xs)[1])(layers)
            return jnp.sum(ys**2 * jnp.arange(1.0, 5)[:, None, None, None])

        return jax.value_and_grad(total, (0, 1))(layers, xs)

    assert_same_on(MOST_AXES, gradient, layers, sequences(key), tolerance=2e-5)


@pytest.mark.parametrize("transform", [jax.hessian, jax.jacfwd])
def test_other_derivatives_are_errors(transform, key):
    layer = S5(6, 32, key=key)
    with (
        jax.set_mesh(make_mesh(seq=8)),
        pytest.raises((NotImplementedError, TypeError), match=r"reverse mode|forward-mode"),
    ):
        transform(lambda xs: jnp.sum(layer(xs)[1] ** 2))(jnp.ones((8, 6)))


@jax.jit
def scan_gradient(a, b):
    def total(a, b):
        h, last = linear_scan(a, b, reverse=True)
        assert isinstance(h, Planar) and isinstance(last, Planar)
        return jnp.sum(h.re * h.im) + jnp.sum(last.re**2)

    return jax.value_and_grad(total, (0, 1))(a, b)


@every_mesh
@pytest.mark.parametrize("varying", [True, False])
def test_linear_scan(sizes, varying, key):
    shape = (8, 12, 16)
    a = 0.9 * jax.random.uniform(key, shape if varying else shape[-1:])
    b = jax.random.normal(key, shape)
    assert_same_on(sizes, scan_gradient, Planar(a, 0.1 * a), Planar(b, b + 1))


def test_an_explicit_mesh_is_refused():
    mesh = jax.make_mesh((8,), ("data",))
    with jax.set_mesh(mesh), pytest.raises(ValueError, match="axis data is of type Explicit"):
        linear_scan(jnp.ones(3), jnp.ones((8, 4, 3)))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("sizes", [None, MESHES["data=2,seq=4"]], ids=["no mesh", "data=2,seq=4"])
def test_rows_of_other_lengths_are_those_of_shorter_sequences(sizes, reverse, key):
    """Complex numbers; whatever lies beyond a row, a reset or NaN, changes nothing."""
    lengths, time = np.array([8, 0, 1, 5]), 8
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(4, time, 2)) + 1j * rng.normal(size=(4, time, 2)) for _ in range(2))
    h0 = rng.normal(size=(4, 2)) + 0j
    reset = np.zeros((4, time), bool)
    reset[:, 3] = reset[2:, 6] = True
    b[1:, 5:] = np.nan

    def planes(x):
        return Planar(*(jnp.asarray(plane, jnp.float32) for plane in (x.real, x.imag)))

    def run() -> Any:
        return linear_scan(
            *map(planes, (a, b, h0)),
            reset=jnp.asarray(reset),
            lengths=jnp.asarray(lengths),
            reverse=reverse,
        )

    if sizes is None:
        h, last = run()
    else:
        with jax.set_mesh(make_mesh(*sizes)):
            h, last = run()
    for row, length in enumerate(lengths):
        state, expected = h0[row], np.zeros((time, 2), complex)
        for t in reversed(range(length)) if reverse else range(length):
            state = a[row, t] * state + b[row, t]
            start = t if not reverse else t + 1
            if start < length and reset[row, start]:
                state = b[row, t]
            expected[t] = state
        np.testing.assert_allclose(h.re[row] + 1j * h.im[row], expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(last.re[row] + 1j * last.im[row], state, rtol=1e-5, atol=1e-5)
