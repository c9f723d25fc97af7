"""The ops with time split over devices, compared with a loop over time in double precision."""

import functools
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnscale.sharding import (
    _distributed_scan,
    block_scan,
    diagonal_ssm,
    linear_scan,
    make_mesh,
    matrix_scan,
)
from rnnscale_kernels import Planar
from rnnscale_kernels.testing import compile_for, reference, to_jax as to_jax_of, to_numpy

ROWS = 4
to_jax = functools.partial(to_jax_of, dtype="float32")
# 16 steps are split evenly over seq=4; of 13 steps, padded, the last device has one.
MESHES: dict[str, Any] = {
    "data=2,seq=4": {"data": 2, "seq": 4},
    "tensor=2,seq=4": {"tensor": 2, "seq": 4},
    "seq=8": {"seq": 8},
}
EXAMPLES = hypothesis.settings(max_examples=15)
RESETS = st.sampled_from([0.0, 0.1, 0.7])


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch):
    """The 4 steps of a device are cut into two pieces, its only step or two steps are not."""
    monkeypatch.setattr(_distributed_scan, "_LEAST_STEPS", 2)


def all_to_jax(*arrays, dtype="float32"):
    return tuple(to_jax(x, dtype=dtype) for x in arrays)


def numbers(rng, shape, planar, scale=1.0):
    x = rng.normal(size=shape) * scale
    return x + 1j * rng.normal(size=shape) * scale if planar else x


def close(got, expected, tolerance=2e-6):
    """Equal up to `tolerance` times the largest number."""
    for x, y in zip(got, expected, strict=True):
        x = to_numpy(x)
        assert np.all(np.isfinite(x))
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * max(1.0, np.max(np.abs(y))))


@functools.cache
def compiled(op, mesh_name, reverse):
    """The outputs of an op and its gradients for given cotangents, on a mesh."""

    def run(arrays, masks, cotangents):
        outputs, pull = jax.vjp(lambda *x: op(*x, reverse=reverse, **masks), *arrays)
        return outputs, pull(cotangents)

    return jax.jit(run), make_mesh(**MESHES[mesh_name])


@pytest.mark.parametrize(
    ("mesh_name", "time", "decay", "planar", "reverse", "with_resets"),
    [
        ("data=2,seq=4", 16, "varying", False, False, True),
        ("data=2,seq=4", 13, "varying", True, True, True),
        ("data=2,seq=4", 13, "varying", False, True, False),
        ("tensor=2,seq=4", 16, "invariant", True, False, False),
        ("tensor=2,seq=4", 16, "invariant", False, False, True),
        ("tensor=2,seq=4", 13, "invariant", False, True, True),
        ("data=2,seq=4", 16, "shared by rows", False, True, True),
        ("data=2,seq=4", 4, "varying", False, False, False),
    ],
)
@EXAMPLES
@hypothesis.given(seed=st.integers(0, 2**32 - 1), resets=RESETS)
def test_linear_scan(mesh_name, time, decay, planar, reverse, with_resets, seed, resets):
    rng = np.random.default_rng(seed)
    shape = (ROWS, time, 6)
    rows, steps = {"varying": (ROWS, time), "invariant": (1, 1), "shared by rows": (1, time)}[decay]
    a = numbers(rng, (rows, steps, 6), planar, 0.6)
    b, g = (numbers(rng, shape, planar) for _ in range(2))
    h0, g_last = (numbers(rng, (ROWS, 6), planar) for _ in range(2))
    reset = rng.random(shape[:2]) < resets if with_resets else None
    run, mesh = compiled(linear_scan, mesh_name, reverse)
    # In double precision: decays above one amplify the rounding of float32 over the steps.
    to_double = functools.partial(all_to_jax, dtype="float64")
    with jax.enable_x64(True), jax.set_mesh(mesh):
        outputs, gradients = run(to_double(a, b, h0), {"reset": reset}, to_double(g, g_last))
    options = {"reverse": reverse, "reset": reset}
    close(outputs, reference.linear_scan(a, b, h0, **options), 1e-12)
    close(gradients, reference.linear_scan_gradient(a, b, h0, g, g_last, **options), 1e-12)


def planes(x, axes):
    """Nested tuples of planes, from an array with that many axes of planes at its end."""
    if not axes:
        return x
    parts = np.moveaxis(x, -axes, 0)
    return tuple(planes(part, axes - 1) for part in parts)


@pytest.mark.parametrize(
    ("op", "mesh_name", "time", "varying", "reverse", "masks"),
    [
        (block_scan, "seq=8", 16, True, False, ("reset",)),
        (block_scan, "tensor=2,seq=4", 13, True, True, ("reset", "lengths")),
        (block_scan, "data=2,seq=4", 16, False, True, ()),
        (matrix_scan, "data=2,seq=4", 16, True, True, ("reset",)),
        (matrix_scan, "seq=8", 16, False, False, ("reset",)),
        (matrix_scan, "tensor=2,seq=4", 13, False, False, ("lengths",)),
    ],
)
@hypothesis.settings(max_examples=5)
@hypothesis.given(
    seed=st.integers(0, 2**32 - 1),
    resets=RESETS,
    lengths=st.lists(st.integers(0, 13), min_size=ROWS, max_size=ROWS),
)
def test_blocks(op, mesh_name, time, varying, reverse, masks, seed, resets, lengths):
    """Blocks of two planes, and matrices, whose products are in the order of the devices."""
    rng = np.random.default_rng(seed)
    channels, size = (4, 2) if op is block_scan else (1, 3)
    steps = (ROWS, time) if varying else (1, 1)
    a = rng.normal(size=(*steps, channels, size, size)) * 0.6
    b, g = rng.normal(size=(2, ROWS, time, channels, size))
    h0, g_last = rng.normal(size=(2, ROWS, channels, size))
    reset = rng.random((ROWS, time)) < resets if "reset" in masks else None
    row_lengths = np.array(lengths if "lengths" in masks else [time] * ROWS)
    # The reference knows no lengths: beyond them it holds the state.
    valid = np.arange(time) < row_lengths[:, None]
    held = np.where(valid[..., None, None, None], a, np.eye(size)), b * valid[..., None, None]
    options = {"reverse": reverse, "reset": None if reset is None else reset & valid}
    h, last = reference.block_scan(*held, h0, **options)
    g_valid = g * valid[..., None, None]
    da, db, dh0 = reference.block_scan_gradient(*held, h0, g_valid, g_last, **options)
    da = da * valid[..., None, None, None]
    da = da if varying else da.sum((0, 1), keepdims=True)
    expected = h * valid[..., None, None], last, da, db * valid[..., None, None], dh0

    def form(x, axes):
        return planes(x, axes) if op is block_scan else x.squeeze(-1 - axes)

    given, cotangents = (form(a, 2), form(b, 1), form(h0, 1)), (form(g, 1), form(g_last, 1))
    given_masks = {name: {"reset": reset, "lengths": row_lengths}[name] for name in masks}
    run, mesh = compiled(op, mesh_name, reverse)
    with jax.enable_x64(True), jax.set_mesh(mesh):
        outputs, gradients = run(given, given_masks, cotangents)
    got = (*outputs, *gradients)
    wanted = [form(x, axes) for x, axes in zip(expected, (1, 1, 2, 1, 1), strict=True)]
    assert jax.tree.structure(got) == jax.tree.structure(tuple(wanted))
    close(jax.tree.leaves(got), jax.tree.leaves(wanted), 1e-12)


@pytest.mark.parametrize("op", [block_scan, matrix_scan])
def test_one_gather_in_each_direction(op):
    """It brings totals and flags, whose size does not depend on the length."""
    mesh, found = make_mesh(seq=8), []

    def gradient(a, b, reset):
        def loss(a, b):
            return sum(jnp.sum(x**2) for x in jax.tree.leaves(op(a, b, reset=reset)))

        return jax.grad(loss, (0, 1))(a, b)

    for time in (16, 64):

        def like(*shape, dtype=jnp.float32):
            layout = jax.NamedSharding(mesh, jax.P(None, "seq"))
            return jax.ShapeDtypeStruct(shape, dtype, sharding=layout)

        plane = like(2, time, 3)
        row = (plane, plane)
        given = ((row, row), row) if op is block_scan else (like(2, time, 3, 3), plane)
        program = compile_for(gradient, *given, like(2, time, dtype=jnp.bool_), target=mesh)
        found.append([(x.kind, x.axes, x.bytes, x.turns) for x in program.collectives])
    short, long = found
    assert short == long
    states, decay = (2 * 3, 4 * 3) if op is block_scan else (3, 9)
    # From eight devices, of two rows: the state, the decay and a flag, then the cotangents.
    sizes = [8 * 2 * 4 * numbers for numbers in (states + decay + 1, states)]
    assert short == [("all-gather", ("seq",), size, 1) for size in sizes]


# Each combination of direction, resets and lengths compiles a program of its own.
@pytest.mark.parametrize(
    ("mesh_name", "time", "reverse", "with_resets", "with_lengths"),
    [
        ("data=2,seq=4", 13, False, True, True),
        ("data=2,seq=4", 13, True, True, False),
        ("data=2,seq=4", 16, False, False, False),
        ("tensor=2,seq=4", 16, True, False, True),
        ("tensor=2,seq=4", 16, True, True, True),
        ("tensor=2,seq=4", 16, False, True, False),
    ],
)
@EXAMPLES
@hypothesis.given(
    seed=st.integers(0, 2**32 - 1),
    resets=RESETS,
    lengths=st.lists(st.integers(0, 13), min_size=ROWS, max_size=ROWS),
)
def test_diagonal_ssm(mesh_name, time, reverse, with_resets, with_lengths, seed, resets, lengths):
    rng = np.random.default_rng(seed)
    u, g = rng.normal(size=(ROWS, time, 3)), rng.normal(size=(ROWS, time, 5))
    decay = 0.95 * np.exp(1j * rng.normal(size=6))
    b, c = numbers(rng, (6, 3), True, 0.5), numbers(rng, (5, 6), True, 0.5)
    h0, g_last = (numbers(rng, (ROWS, 6), True) for _ in range(2))
    reset = rng.random((ROWS, time)) < resets if with_resets else None
    lengths = np.asarray(lengths) if with_lengths else None
    masks = {"reset": reset, "lengths": lengths}
    run, mesh = compiled(diagonal_ssm, mesh_name, reverse)
    with jax.set_mesh(mesh):
        outputs, gradients = run(all_to_jax(u, decay, b, c, h0), masks, all_to_jax(g, g_last))
    options = {"reverse": reverse, **masks}
    close(outputs, reference.diagonal_ssm(u, decay, b, c, h0, **options))
    close(gradients, reference.diagonal_ssm_gradient(u, decay, b, c, h0, g, g_last, **options))


@pytest.mark.parametrize("border", [True, False])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_reset_stops_what_is_not_finite_between_devices(border, reverse):
    time, channels = 16, 2
    b = np.ones((1, time, channels))
    a = np.full((1, time, channels), 0.5)
    # Four steps per device: the segment starts on the first step of the third device, or within it.
    start = 8 if border else 10
    bad = 14 if reverse else 3
    b[0, bad], a[0, bad] = np.inf, np.inf
    reset = jnp.zeros((1, time), bool).at[0, start].set(True)
    good = slice(0, start) if reverse else slice(start, time)

    def run(a, b):
        h, _ = linear_scan(a, b, reset=reset, reverse=reverse)
        assert not isinstance(h, Planar)
        return jnp.sum(h[:, good])

    with jax.set_mesh(make_mesh(seq=4, devices=jax.devices()[:4])):
        value, (da, db) = jax.jit(jax.value_and_grad(run, (0, 1)))(to_jax(a), to_jax(b))
    assert np.isfinite(value)
    assert np.all(np.isfinite(da[:, good])) and np.all(np.isfinite(db[:, good]))
    assert np.all(db[:, good])


@pytest.mark.parametrize("implementation", ["sequential", "chunked", "associative"])
def test_every_implementation(implementation, key):
    b = jax.random.normal(key, (2, 64, 3))
    a = jax.nn.sigmoid(b)

    def run(scan):
        def loss(a, b):
            h, h_last = scan(a, b)
            return jnp.sum(h**2) + jnp.sum(h_last)

        return jax.jit(jax.grad(loss, (0, 1)))

    expected = run(linear_scan)(a, b)
    with jax.set_mesh(make_mesh(seq=8)):
        got = run(functools.partial(linear_scan, implementation=implementation))(a, b)
    close(got, expected, tolerance=1e-5)


def test_a_long_memory_is_as_accurate_as_on_one_device(key):
    """Decays of up to 1 - 1e-6, whose powers over the steps of a device must keep all digits."""
    time = 1 << 15
    decay = 1 - 10.0 ** -jnp.linspace(1, 6, 8)
    u = jax.random.normal(key, (1, time, 2))
    b, c = jax.random.normal(key, (8, 2)), jax.random.normal(key, (2, 8))
    h, largest = np.zeros(8), np.zeros(8)
    for u_t in np.asarray(u[0] @ b.T, np.float64):
        h = np.asarray(decay, np.float64) * h + u_t
        largest = np.maximum(largest, np.abs(h))
    for mesh in (make_mesh(seq=8), make_mesh(devices=jax.devices()[:1])):
        with jax.set_mesh(mesh):
            _, h_last = jax.jit(diagonal_ssm)(u, decay, b, c)
        # Rounding errors scale with the largest state on the way, not with the last one. A decay
        # with an error in its last digit would give an error of 1e-3.
        np.testing.assert_allclose(h_last[0] / largest, h / largest, rtol=0, atol=5e-5)


def test_fewer_steps_than_devices():
    with jax.set_mesh(make_mesh(seq=8)):
        with pytest.raises(ValueError, match="7 steps can't be split over the 8 devices"):
            linear_scan(jnp.ones(3), jnp.ones((7, 3)))
        with pytest.raises(ValueError, match="7 steps can't be split over the 8 devices"):
            diagonal_ssm(jnp.ones((7, 3)), jnp.ones(4), jnp.ones((4, 3)), jnp.ones((2, 4)))


def test_within_a_shard_map_over_rows(key):
    """As in gradient accumulation: `shard_map` over `data` around the op, which splits `seq`."""
    mesh = make_mesh(data=2, seq=4)
    b = jax.random.normal(key, (4, 16, 3))
    a = Planar(jnp.full((3,), 0.9), jnp.full((3,), 0.1))

    def gradient(a, b):
        def loss(a, b):
            h, h_last = linear_scan(a, Planar(b, -b))
            assert isinstance(h, Planar) and isinstance(h_last, Planar)
            return jnp.sum(h.re * h.im) + jnp.sum(h_last.re**2)

        return jax.grad(loss, (0, 1))(a, b)

    rows = jax.P("data")

    @jax.jit
    @functools.partial(
        jax.shard_map, in_specs=(jax.P(), rows), out_specs=(jax.P(), rows), axis_names={"data"}
    )
    def run(a, b):
        varying = jax.tree.map(lambda x: jax.lax.pcast(x, "data", to="varying"), a)
        d_a, d_b = gradient(varying, b)
        return jax.lax.psum(d_a, "data"), d_b

    expected = jax.jit(gradient)(a, b)
    with jax.set_mesh(mesh):
        got = run(a, b)
    close(got, map(to_numpy, expected), tolerance=1e-5)
