"""The recurrences on a mesh: what they give on one device, whatever is done with them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnscale import S5, BidirectionalS5
from rnnscale.sharding import linear_scan, make_mesh
from rnnscale_kernels import Planar, linear_scan as local_linear_scan

MESHES = {
    "data=2,fsdp=2,tensor=2": (2, 2, 2),
    "tensor=8": (1, 1, 8),
    "seq=8": (1, 1, 1, 8),
    "data=2,seq=4": (2, 1, 1, 4),
    "fsdp=2,tensor=2,seq=2": (1, 2, 2, 2),
}
every_mesh = pytest.mark.parametrize("sizes", MESHES.values(), ids=MESHES)
# All axes between them.
two_meshes = pytest.mark.parametrize(
    "sizes", [MESHES["data=2,fsdp=2,tensor=2"], MESHES["fsdp=2,tensor=2,seq=2"]], ids=str
)


def sequences(key, rows=8, dtype=jnp.float32):
    return jax.random.normal(key, (rows, 33, 6)).astype(dtype)


def assert_same_on(mesh, run, *arguments, tolerance=1e-5):
    expected = jax.jit(run)(*arguments)
    with jax.set_mesh(mesh):
        got = jax.jit(run)(*arguments)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        x, y = (np.asarray(z, np.float64) for z in (x, y))
        np.testing.assert_allclose(x, y, atol=tolerance * max(1, np.max(np.abs(y))))


@every_mesh
def test_values_and_gradients(sizes, key):
    check_values_and_gradients(sizes, S5(6, 32, key=key), jnp.float32, key)


@two_meshes
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_both_directions(sizes, dtype, key):
    check_values_and_gradients(sizes, BidirectionalS5(6, 32, key=key), dtype, key)


def check_values_and_gradients(sizes, layer, dtype, key):
    xs = sequences(key, dtype=dtype)
    state = jax.tree.map(lambda x: x + 0.5, layer.init_state((8,), dtype))
    reset = jnp.zeros((8, 33), bool).at[:, 11].set(True)
    lengths = jnp.asarray([33, 0, 1, 12, 33, 5, 20, 32])

    def run(layer, xs, state):
        state, ys = layer(xs, state, reset=reset, lengths=lengths)
        total = sum(jnp.sum(x**2) for x in jax.tree.leaves(state))
        return total + jnp.sum(ys.astype(jnp.float32) ** 2)

    # bfloat16 has 8 bits, and the parts of an output are rounded before they are added up.
    tolerance = 2e-5 if dtype == jnp.float32 else 3e-2
    gradient = jax.value_and_grad(run, (0, 1, 2))
    assert_same_on(make_mesh(*sizes), gradient, layer, xs, state, tolerance=tolerance)


@two_meshes
@pytest.mark.parametrize("batch", [(), (6,), (4, 2)], ids=str)
def test_any_batch(sizes, batch, key):
    layer = S5(6, 32, key=key)
    xs = jax.random.normal(key, (*batch, 9, 6))
    gradient = jax.grad(lambda layer, xs: jnp.sum(layer(xs)[1] ** 2), (0, 1))
    assert_same_on(make_mesh(*sizes), gradient, layer, xs)


@two_meshes
def test_filter_vmap(sizes, key):
    def run(layer, xs):
        return jnp.sum(eqx.filter_vmap(lambda xs: layer(xs)[1])(xs) ** 2)

    gradient = jax.value_and_grad(run, (0, 1))
    assert_same_on(make_mesh(*sizes), gradient, S5(6, 32, key=key), sequences(key))


@two_meshes
def test_filter_vmap_over_layers(sizes, key):
    # As many as a device has rows: axes that are taken for one another would not be noticed else.
    layers = eqx.filter_vmap(lambda key: S5(6, 32, key=key))(jax.random.split(key, 4))

    def run(layers, xs):
        ys = eqx.filter_vmap(lambda layer: layer(xs)[1])(layers)
        return jnp.sum(ys**2 * jnp.arange(1.0, 5)[:, None, None, None])

    gradient = jax.value_and_grad(run, (0, 1))
    assert_same_on(make_mesh(*sizes), gradient, layers, sequences(key), tolerance=2e-5)


@pytest.mark.parametrize("transform", [jax.hessian, jax.jacfwd])
def test_other_derivatives_say_that_there_are_none(transform, key):
    layer = S5(6, 32, key=key)
    with (
        jax.set_mesh(make_mesh(seq=8)),
        pytest.raises((NotImplementedError, TypeError), match=r"reverse mode|forward-mode"),
    ):
        transform(lambda xs: jnp.sum(layer(xs)[1] ** 2))(jnp.ones((8, 6)))


@every_mesh
@pytest.mark.parametrize("varying", [True, False])
def test_linear_scan(sizes, varying, key):
    shape = (8, 12, 16)
    a = 0.9 * jax.random.uniform(key, shape if varying else shape[-1:])
    b = jax.random.normal(key, shape)
    a, b = Planar(a, 0.1 * a), Planar(b, b + 1)

    def run(scan):
        def loss(a, b):
            h, last = scan(a, b, reverse=True)
            return jnp.sum(h.re * h.im) + jnp.sum(last.re**2)

        return jax.jit(jax.value_and_grad(loss, (0, 1)))

    expected = run(local_linear_scan)(a, b)
    with jax.set_mesh(make_mesh(*sizes)):
        got = run(linear_scan)(a, b)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4)


def test_an_explicit_mesh_is_refused(key):
    mesh = jax.make_mesh((8,), ("data",))
    with jax.set_mesh(mesh), pytest.raises(ValueError, match="axis data is of type Explicit"):
        S5(6, 32, key=key)(sequences(key))
