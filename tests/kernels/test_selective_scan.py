"""`selective_scan`: numbers, derivatives, transformations, memory, errors."""

from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from rnnscale_kernels import selective_scan
from rnnscale_kernels.selective_scan import _api, _sequential
from rnnscale_kernels.testing import reference

ROWS, CHANNELS, MODES = 4, 4, 5
every_implementation = pytest.mark.parametrize("implementation", ["sequential", "chunked"])


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
    """Chunks of 8 steps, and groups of two rows."""
    monkeypatch.setattr(_sequential, "_STATE", 3 * CHANNELS * MODES)
    monkeypatch.setattr(_api, "_SHORTEST", 8)
    monkeypatch.setattr(_api, "_CHUNK_BYTES", 0)


def arrays(time, *, reset=False, lengths=False, seed=0):
    """The arguments, the cotangents of the results, and options."""
    rng = np.random.default_rng(seed)
    given = {
        "u": rng.normal(size=(ROWS, time, CHANNELS)),
        "delta": np.exp(rng.normal(size=(ROWS, time, CHANNELS))),
        "a": -np.exp(rng.normal(size=(CHANNELS, MODES))),
        "b": rng.normal(size=(ROWS, time, MODES)),
        "c": rng.normal(size=(ROWS, time, MODES)),
        "h0": rng.normal(size=(ROWS, CHANNELS, MODES)),
    }
    cotangents = rng.normal(size=given["u"].shape), rng.normal(size=given["h0"].shape)
    options = {
        "reset": rng.random((ROWS, time)) < 0.2 if reset else None,
        "lengths": np.array([time, 0, time // 2, 1]) if lengths else None,
    }
    return given, cotangents, options


def expected(given, cotangents, options, *, reverse):
    """Results and gradients by the reference of `linear_scan`, row by row."""
    found, time = [], given["u"].shape[1]
    for row in range(ROWS):
        u, delta, b, c = (given[name][row] for name in ("u", "delta", "b", "c"))
        a, h0, (g_y, g_last) = given["a"], given["h0"][row], (x[row] for x in cotangents)
        length = time if options["lengths"] is None else options["lengths"][row]
        reset = None if options["reset"] is None else options["reset"][row, :length]

        def flat(x, length=length):
            return x[:length].reshape(length, CHANNELS * MODES)

        decay = np.exp(delta[..., None] * a)
        drive = (delta * u)[..., None] * b[:, None, :]
        options_of_row = {"reverse": reverse, "reset": reset}
        system = flat(decay), flat(drive), h0.ravel()
        h, last = reference.linear_scan(*system, **options_of_row)
        g_h = flat(g_y[..., None] * c[:, None, :])
        d_decay, d_drive, d_h0 = reference.linear_scan_gradient(
            *system, g_h, g_last.ravel(), **options_of_row
        )

        def steps(x, length=length):
            return np.pad(x.reshape(length, CHANNELS, MODES), [(0, time - length), (0, 0), (0, 0)])

        h, d_log, d_drive = steps(h), steps(d_decay) * decay, steps(d_drive)
        read = np.sum(d_drive * b[:, None, :], axis=-1)
        found.append(
            (
                np.sum(h * c[:, None, :], axis=-1),
                last.reshape(CHANNELS, MODES),
                delta * read,
                u * read + np.sum(d_log * a, axis=-1),
                np.sum(d_log * delta[..., None], axis=0),
                np.sum(d_drive * (delta * u)[..., None], axis=1),
                np.sum(h * g_y[..., None], axis=1),
                d_h0.reshape(CHANNELS, MODES),
            )
        )
    results = [np.stack(x) for x in zip(*found, strict=True)]
    results[4] = results[4].sum(0)
    return results


@every_implementation
@pytest.mark.parametrize(
    ("time", "reverse", "reset", "lengths"),
    [
        *((20, *flags) for flags in product([False, True], repeat=3) if sum(flags) != 1),
        (1, True, True, False),
    ],
)
def test_values_and_gradients_are_those_of_the_reference(
    time, reverse, reset, lengths, implementation
):
    given, cotangents, options = arrays(time, reset=reset, lengths=lengths)
    padded = dict(given)
    if lengths:
        for name in ("u", "delta", "b", "c"):
            valid = np.arange(time) < options["lengths"][:, None]
            padded[name] = np.where(valid[..., None], given[name], np.nan)
    with jax.enable_x64(True):
        run = partial(selective_scan, reverse=reverse, implementation=implementation, **options)
        value, pull = jax.vjp(jax.jit(run), *map(jnp.asarray, padded.values()))
        gradient = pull(tuple(map(jnp.asarray, cotangents)))
    results = expected(given, cotangents, options, reverse=reverse)
    for x, y in zip((*value, *gradient), results, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-11)


def test_forward_and_reverse_mode_to_second_order():
    with jax.enable_x64(True):
        given, _, _ = arrays(9)
        values = tuple(jnp.asarray(0.5 * x) for x in given.values())

        def scalar(*values):
            y, _ = selective_scan(*values)
            _, last = selective_scan(*values, reverse=True, lengths=jnp.asarray([9, 3, 0, 1]))
            return jnp.sum(jnp.sin(y)) + jnp.sum(last**3)

        check_grads(jax.jit(scalar), values, 2, modes=("fwd", "rev"), atol=1e-5, rtol=1e-5)


@every_implementation
def test_vmap_over_rows_and_over_an_ensemble(implementation):
    given, _, _ = arrays(9)
    values = tuple(jnp.asarray(x, jnp.float32) for x in given.values())
    scan = partial(selective_scan, implementation=implementation)

    def loss(*values):
        y, last = scan(*values)
        return jnp.sum(jnp.sin(y)) + jnp.sum(last**2)

    gradient = jax.grad(loss, range(6))
    shared = (0, 0, None, 0, 0, 0)
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    per_row: Any = jax.jit(jax.vmap(gradient, shared))(*values)
    summed = (*per_row[:2], per_row[2].sum(0), *per_row[3:])
    jax.tree.map(close, summed, jax.jit(gradient)(*values))
    u, delta, a, b, c, _ = values
    ensemble = jnp.stack([a, 2 * a])
    run: Any = jax.jit(jax.vmap(scan, (None, None, 0, None, None)))
    ys, _ = run(u, delta, ensemble, b, c)
    for a, y in zip(ensemble, ys, strict=True):
        close(y, scan(u, delta, a, b, c)[0])


def test_bfloat16_has_float32_states():
    given, _, _ = arrays(64)
    exact: Any = [jnp.asarray(x, jnp.float32) for x in given.values()]
    u, delta, a, b, c, h0 = exact
    y, last = selective_scan(u.astype("bfloat16"), delta, a, b, c, h0)
    expected, _ = selective_scan(*exact)
    assert (y.dtype, last.dtype) == (jnp.bfloat16, jnp.float32)
    scale = float(jnp.max(jnp.abs(expected)))
    np.testing.assert_allclose(y.astype(jnp.float32), expected, atol=0.02 * scale)


@every_implementation
def test_an_empty_batch(implementation):
    u, b = jnp.zeros((0, 6, 2)), jnp.zeros((0, 6, 3))
    y, last = selective_scan(u, u, jnp.zeros((2, 3)), b, b, implementation=implementation)
    assert (y.shape, last.shape) == ((0, 6, 2), (0, 2, 3))


def test_memory_is_that_of_a_chunk_and_the_borders(monkeypatch):
    monkeypatch.setattr(_api, "_SHORTEST", 32)
    rows, channels, modes = 2, 32, 16

    def memory(time):
        u, b = (
            jax.ShapeDtypeStruct((rows, time, width), jnp.float32) for width in (channels, modes)
        )
        a = jax.ShapeDtypeStruct((channels, modes), jnp.float32)
        loss = jax.grad(lambda *x: jnp.sum(selective_scan(*x)[0] ** 2), range(5))
        program = jax.jit(loss).lower(u, u, a, b, b).compile()
        analysis: Any = program.memory_analysis()
        return analysis.temp_size_in_bytes

    states = 4 * rows * channels * modes
    added = memory(8192) - memory(4096)
    assert added < 4096 * states / 4


u, b = jnp.zeros((2, 5, 3)), jnp.zeros((2, 5, 4))
a = jnp.zeros((3, 4))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "says"),
    [
        ((u[:, :0], u[:, :0], a, b[:, :0], b[:, :0]), {}, ValueError, "one time step or more"),
        ((u, u[..., :2], a, b, b), {}, ValueError, "delta must have the shape of u"),
        ((u, u, a.T, b, b), {}, ValueError, "a must be 'channel modes' with 3 channels"),
        ((u, u, a, b[..., :2], b), {}, ValueError, "b must be '*batch time modes', (2, 5, 4)"),
        ((u, u, a, b, b[:1]), {}, ValueError, "c must be '*batch time modes', (2, 5, 4)"),
        ((u.astype(int), u, a, b, b), {}, TypeError, "u must hold floating-point"),
        ((u, u, a, b, b, a), {}, ValueError, "h0 must be '*batch channel modes', (2, 3, 4)"),
        ((u, u, a, b, b), {"lengths": jnp.asarray([5, 6])}, ValueError, "from 0 to the 5 steps"),
        ((u, u, a, b, b), {"reset": jnp.zeros((2, 4), bool)}, ValueError, "reset has shape"),
        ((u, u, a, b, b), {"implementation": "x"}, ValueError, "sequential"),
    ],
)
def test_bad_input(arguments, options, error, says):
    with pytest.raises(error) as caught:
        selective_scan(*arguments, **options)
    assert says in str(caught.value)
