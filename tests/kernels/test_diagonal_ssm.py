"""`diagonal_ssm` in all implementations: numbers, derivatives, transformations, memory, errors."""

from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

import rnnscale_kernels
from rnnscale_kernels import SSM, Planar
from rnnscale_kernels._target import H100, TPU_V5E
from rnnscale_kernels.diagonal_ssm import _api, _mosaic_gpu_wide_plan, _unfused, _xla
from rnnscale_kernels.diagonal_ssm._implementations import DISPATCH
from rnnscale_kernels.diagonal_ssm._mosaic_gpu_plan import Plan
from rnnscale_kernels.diagonal_ssm._spec import SSMSpec
from rnnscale_kernels.linear_scan import SideBySide
from rnnscale_kernels.testing import reference, rounded, to_jax, to_numpy

# Their results are arrays or `Planar`s as their arguments are, which their types do not say.
diagonal_ssm: Any = rnnscale_kernels.diagonal_ssm
linear_scan: Any = rnnscale_kernels.linear_scan

IMPLEMENTATIONS = ("chunked", "unfused")
every_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
ROWS, IDIM, STATE, ODIM = 3, 4, 5, 2


def arrays(time, *, reset=False, lengths=False, seed=0):
    rng = np.random.default_rng(seed)

    def planar(*shape):
        return rng.normal(size=shape) + 1j * rng.normal(size=shape)

    given = {
        "u": rng.normal(size=(ROWS, time, IDIM)),
        "decay": planar(STATE),
        "b": planar(STATE, IDIM),
        "c": planar(ODIM, STATE),
        "h0": planar(ROWS, STATE),
    }
    given["decay"] *= rng.uniform(size=STATE) / np.abs(given["decay"])
    cotangents = rng.normal(size=(ROWS, time, ODIM)), planar(ROWS, STATE)
    options = {
        "reset": rng.random((ROWS, time)) < 0.2 if reset else None,
        "lengths": rng.integers(0, time + 1, ROWS) if lengths else None,
    }
    return given, cotangents, options


@every_implementation
@pytest.mark.parametrize(
    ("time", "reverse", "reset", "lengths"),
    [
        *((100, *flags) for flags in product([False, True], repeat=3)),
        *(
            (time, reverse, both, both)
            for time, reverse, both in product([1, 7], *[[False, True]] * 2)
        ),
    ],
)
def test_values_and_gradients_are_those_of_the_reference(
    time, reverse, reset, lengths, implementation
):
    given, cotangents, options = arrays(time, reset=reset, lengths=lengths)
    padded = given["u"].copy()
    if lengths:
        for row, length in enumerate(options["lengths"]):
            padded[row, length:] = np.nan
    run = partial(diagonal_ssm, reverse=reverse, implementation=implementation, **options)
    with jax.enable_x64(True):
        values = [to_jax(x, "float64") for x in (padded, *list(given.values())[1:])]
        value, pull = jax.vjp(jax.jit(run), *values)
        gradient = pull(tuple(to_jax(x, "float64") for x in cotangents))
    expected = reference.diagonal_ssm(**given, reverse=reverse, **options)
    arguments = [*given.values(), *cotangents]
    expected_gradient = reference.diagonal_ssm_gradient(*arguments, reverse=reverse, **options)
    for x, y in zip((*value, *gradient), (*expected, *expected_gradient), strict=True):
        np.testing.assert_allclose(to_numpy(x), y, rtol=1e-11, atol=1e-11)


@every_implementation
@pytest.mark.parametrize(
    ("reverse", "reset", "lengths"), [(False, True, True), (True, False, True), (True, True, False)]
)
def test_totals_are_what_the_steps_make_of_a_state(reverse, reset, lengths, implementation):
    given, (g_y, g_last), options = arrays(100, reset=reset, lengths=lengths)
    empty = 0 * given["h0"]
    _, end = reference.diagonal_ssm(**{**given, "h0": empty}, reverse=reverse, **options)
    arguments = [*given.values(), g_y, 0 * g_last]
    *_, g_h0 = reference.diagonal_ssm_gradient(*arguments, reverse=reverse, **options)

    @jax.jit
    def run(values, g_y):
        arguments = SSM.check(*values, implementation=implementation, **options)
        primals, finish = SSM.canonical(arguments, reverse=reverse)
        _, pull = jax.vjp(lambda y: finish((y, empty))[0], g_y)
        static = SSM.static(primals, reverse=reverse, implementation=implementation)
        _, end = SSM.totals(primals, **static)
        return end, SSM.transpose_totals(primals, *pull(g_y), **static)

    with jax.enable_x64(True):
        results = run([to_jax(x, "float64") for x in given.values()], to_jax(g_y, "float64"))
    for x, y in zip(results, (end, g_h0), strict=True):
        np.testing.assert_allclose(to_numpy(x), y, rtol=1e-11, atol=1e-11)


def fused_arrays(spec):
    """Arguments for the fused kernel, rounded to its dtype; decays stay away from zero."""
    rng = np.random.default_rng(0)
    batch, time, idim, state, odim = (spec[name] for name in ("batch", "time", *SIZES))

    def normal(*shape, dtype):
        values = rng.normal(size=shape)
        return rounded(values + 1j * rng.normal(size=shape) if spec["planar"] else values, dtype)

    def real(*shape):
        return rounded(rng.normal(size=shape), spec["dtype"])

    decay = normal(state, dtype="float32")
    given = {
        "u": real(batch, time, idim),
        "decay": rounded(decay / np.abs(decay) * rng.uniform(0.5, 1, state), "float32"),
        "b": normal(state, idim, dtype=spec["dtype"]) / 16,
        "c": normal(odim, state, dtype=spec["dtype"]) / 16,
        "h0": normal(batch, state, dtype="float32"),
    }
    cotangents = real(batch, time, odim), normal(batch, state, dtype="float32")
    options = {
        "reset": rng.random((batch, time)) < 0.05 if spec["cuts"] else None,
        "lengths": np.array([time, 0, time - 9])[:batch] if spec["cuts"] else None,
    }
    return given, cotangents, options


SIZES = ("idim", "state", "odim")
FUSED, FUSED_WIDE, FUSED_ON_TPU = (
    [
        dict(zip(("dtype", "planar", "cuts", "batch", "time", *SIZES), values, strict=True))
        for values in specs
    ]
    for specs in (
        (
            ("bfloat16", True, True, 2, 150, 24, 70, 40),
            ("float16", False, False, 1, 130, 8, 20, 64),
        ),
        (
            ("bfloat16", True, True, 2, 130, 70, 40, 24),
            ("float16", False, False, 1, 130, 140, 100, 40),
        ),
        (
            # Two tiles of two pieces, beyond the end; two rows, in four parts each.
            ("bfloat16", True, True, 2, 200, 24, 70, 40),
            # Three tiles of one piece; eight rows.
            ("float32", False, False, 8, 150, 8, 20, 130),
        ),
    )
)


LARGEST = FUSED[0] | {"batch": 1} | dict.fromkeys(SIZES, 128)


def relative_errors(spec, implementation):
    """The errors of values and gradients, relative to the largest value of each."""
    given, cotangents, options = fused_arrays(spec)
    dtypes = [spec["dtype"], "float32", spec["dtype"], spec["dtype"], "float32"]
    values = [to_jax(x, dtype) for x, dtype in zip(given.values(), dtypes, strict=True)]
    run = partial(diagonal_ssm, implementation=implementation, **options)

    @jax.jit
    def value_and_gradient(values, g_y, g_last):
        value, pull = jax.vjp(run, *values)
        return *value, *pull((g_y, g_last))

    g_y, g_last = cotangents
    got = value_and_gradient(values, to_jax(g_y, spec["dtype"]), to_jax(g_last, "float32"))
    arguments = [*given.values(), *cotangents]
    expected = (
        *reference.diagonal_ssm(**given, **options),
        *reference.diagonal_ssm_gradient(*arguments, **options),
    )
    names = ("y", "h_last", "du", "d_decay", "db", "dc", "dh0")
    return {
        name: np.max(np.abs(to_numpy(x) - y)) / np.max(np.abs(y))
        for name, x, y in zip(names, got, expected, strict=True)
    }


@pytest.mark.parametrize(
    ("implementation", "spec", "longest"),
    [
        # Three chunks of time, as far longer sequences have.
        *(("mosaic_gpu_interpreted", spec, 48) for spec in FUSED),
        # The largest matrices that fit on chip leave room for a ring of one tile.
        pytest.param("mosaic_gpu_interpreted", LARGEST, 48, marks=pytest.mark.slow),
        *(("mosaic_tpu_interpreted", spec, 48) for spec in FUSED_ON_TPU),
        # Segments of one tile, and one segment of several tiles, which go round a short ring.
        *zip(["mosaic_gpu_wide_interpreted"] * 2, FUSED_WIDE, (48, 256), strict=True),
    ],
    ids=str,
)
def test_the_fused_kernel_gives_the_numbers_of_the_reference(
    implementation, spec, longest, monkeypatch
):
    monkeypatch.setattr(_api, "_LONGEST", longest)
    monkeypatch.setattr(_mosaic_gpu_wide_plan, "_MOST_STAGES", 3)
    monkeypatch.setattr(_mosaic_gpu_wide_plan, "_COLUMNS", (64,))
    # States are rounded to 16 bits for the products, sums of them are in float32. The kernel for
    # wide layers takes d_decay from cotangents that were rounded, too.
    half = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float32": 2e-6}[spec["dtype"]]
    is_rounded = {"y", "du", "db", "dc"} | ({"d_decay"} if "wide" in implementation else set())
    for name, error in relative_errors(spec, implementation).items():
        assert error <= (half if name in is_rounded else 2e-6), name


@pytest.mark.parametrize(
    ("implementation", "spec"),
    [
        ("mosaic_gpu_interpreted", FUSED[0]),
        # Nothing is cut, so what is beyond the end would reach the first step.
        ("mosaic_tpu_interpreted", FUSED_ON_TPU[1]),
        pytest.param("mosaic_gpu_wide_interpreted", FUSED_WIDE[0], marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_totals_of_the_fused_kernel(implementation, spec, monkeypatch):
    monkeypatch.setattr(_api, "_LONGEST", 48)
    given, (g_y, g_last), options = fused_arrays(spec)
    empty = 0 * given["h0"]
    _, end = reference.diagonal_ssm(**{**given, "h0": empty}, **options)
    arguments = [*given.values(), g_y, 0 * g_last]
    *_, g_h0 = reference.diagonal_ssm_gradient(*arguments, **options)
    dtypes = [spec["dtype"], "float32", spec["dtype"], spec["dtype"], "float32"]
    values = [to_jax(x, dtype) for x, dtype in zip(given.values(), dtypes, strict=True)]

    @jax.jit
    def run(values, g_y):
        arguments = SSM.check(*values, implementation=implementation, **options)
        primals, _ = SSM.canonical(arguments, reverse=False)
        static = SSM.static(primals, reverse=False, implementation=implementation)
        return SSM.totals(primals, **static)[1], SSM.transpose_totals(primals, g_y, **static)

    for x, y in zip(run(values, to_jax(g_y, spec["dtype"])), (end, g_h0), strict=True):
        np.testing.assert_allclose(to_numpy(x), y, rtol=0, atol=2e-6 * np.max(np.abs(y)))


def test_the_fused_kernel_on_tpus_takes_what_fits_on_chip():
    spec = SSMSpec(
        batch=8, time=16384, idim=1024, state=1024, odim=1024, dtype="bfloat16",
        state_dtype="float32", planar=True, cut=False, lengths=False, chunk=64,
    )  # fmt: skip
    assert DISPATCH.choose(TPU_V5E, spec, None).name == "mosaic_tpu"
    for unfit, reason in (
        (replace(spec, state=4096), "of 128 MiB on chip"),
        (replace(spec, dtype="float16"), "bfloat16 or float32"),
        (replace(spec, state_dtype="float64"), "its states are float32"),
        (replace(spec, chunk=100), "a multiple of 64 steps"),
    ):
        with pytest.raises(NotImplementedError, match=reason):
            DISPATCH.choose(TPU_V5E, unfit, "mosaic_tpu")
        assert DISPATCH.choose(TPU_V5E, unfit, None).name != "mosaic_tpu"
    small = replace(TPU_V5E, device_kind="TPU v4")
    assert DISPATCH.choose(small, spec, None).name == "unfused"
    spec = replace(spec, idim=256, odim=256, state=256)
    assert DISPATCH.choose(small, spec, None).name == "mosaic_tpu"


@pytest.mark.parametrize("spec", FUSED, ids=str)
def test_unfused_rounds_its_sequences_to_16_bits(spec):
    errors = relative_errors(spec, "unfused")
    assert max(errors.values()) <= (1e-2 if spec["dtype"] == "bfloat16" else 2e-3), errors
    # Without padding the last state is a carry, which is not rounded.
    assert spec["cuts"] or errors["h_last"] <= 1e-3


def test_unfused_gives_the_same_with_planes_side_by_side(monkeypatch):
    """As for GPUs, whose kernel takes them so, against the definition."""
    spec = FUSED[0] | {"dtype": "float32", "time": 12, "state": 128}
    given, cotangents, options = fused_arrays(spec)
    values = [to_jax(x, "float32") for x in given.values()]
    primals, _ = SSM.canonical(SSM.check(*values, **options), reverse=False)
    cotangents = tuple(to_jax(x, "float32") for x in cotangents)

    @partial(jax.jit, static_argnames="target")
    def run(primals, cotangents, target):
        outputs = _unfused.forward(primals, chunk=5, target=target)
        return outputs, _unfused.transpose(primals, outputs, cotangents, chunk=5, target=target)

    expected = run(primals, cotangents, None)
    seen = []
    for name in ("scan", "scan_transpose"):
        interpreted = partial(getattr(_unfused, name), implementation="mosaic_gpu_interpreted")
        monkeypatch.setattr(
            _unfused, name, lambda *x, f=interpreted, **y: seen.append(x[1]) or f(*x, **y)
        )
    got = run(primals, cotangents, H100)
    assert all(isinstance(x, SideBySide) for x in seen) and len(seen) == 3
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), got, expected)


def turns(rows: int, steps: int, states: int) -> tuple[int, float]:
    """How many tiles the programs of a sweep take one after another on an H100, and how many it
    would be if the tiles could be spread evenly."""
    u: Any = jax.ShapeDtypeStruct((rows, steps, states), "bfloat16")
    decay: Any = jax.ShapeDtypeStruct((states,), "float32")
    plan = Plan.of(u, Planar(decay, decay), _api._chunk_length(2 * rows * states, steps), H100)
    waves = -(-plan.programs // 132)
    return waves * plan.tiles, rows * -(-steps // 64) / (132 * plan.group)


@pytest.mark.parametrize(
    ("rows", "steps", "states", "expected"),
    [
        (8, 16384, 128, 16),
        (16, 8192, 128, 16),
        (4, 65536, 128, 32),
        (8, 65536, 128, 64),
        (64, 1024, 128, 8),
        (1, 131072, 128, 16),
        (32, 4096, 64, 8),
        (5, 3000, 96, 4),  # no segment is shorter than a chunk, here four tiles
        (131, 100, 128, 2),
    ],
)
def test_the_fused_kernel_has_no_wave_that_is_almost_empty(rows, steps, states, expected):
    assert turns(rows, steps, states)[0] == expected


def test_the_programs_of_the_fused_kernel_are_balanced_for_any_batch():
    for rows in range(1, 300):
        taken, even = turns(rows, 2048, 128)
        # A single sweep over rows that do not fill the last wave beats two sweeps that do.
        assert taken <= max(4, 2 * even), rows


def shapes(rows: int, steps: int, width: int) -> Any:
    """Primals of the operation with as many features as states, which are complex."""

    def number(*shape: int, dtype: str = "bfloat16") -> Any:
        plane: Any = jax.ShapeDtypeStruct(shape, dtype)
        return Planar(plane, plane)

    u, matrix = jax.ShapeDtypeStruct((rows, steps, width), "bfloat16"), number(width, width)
    decay, h0 = number(width, dtype="float32"), number(rows, width, dtype="float32")
    return u, decay, matrix, matrix, h0, None, None


# 128 programs for the 132 multiprocessors of an H100, as nearly as slices of 16, 32 or 64 states
# allow. Time is split only if rows and slices are few.
@pytest.mark.parametrize(
    ("rows", "steps", "width", "columns", "segments", "programs"),
    [
        (8, 16384, 256, 32, 1, 128),
        (8, 16384, 512, 64, 1, 128),
        (8, 16384, 1024, 64, 1, 256),
        (32, 4096, 256, 128, 1, 128),
        (1, 131072, 256, 32, 8, 128),
    ],
)
def test_programs_of_wide_layers_fill_a_gpu(rows, steps, width, columns, segments, programs):
    chunk = _api._chunk_length(2 * rows * width, steps)
    plan = _mosaic_gpu_wide_plan.WidePlan.of(shapes(rows, steps, width), chunk, H100)
    assert (plan.columns, plan.segments, plan.programs) == (columns, segments, programs)


@pytest.mark.parametrize(
    ("width", "chosen"),
    [(128, "mosaic_gpu"), (200, "mosaic_gpu_wide"), (2048, "mosaic_gpu_wide"), (4096, "unfused")],
)
def test_layers_take_the_kernel_that_they_fit_in(width, chosen):
    spec = SSMSpec.of(shapes(8, 4096, width), chunk=64)
    assert DISPATCH.choose(H100, spec, None).name == chosen
    assert DISPATCH.choose(H100, replace(spec, dtype="float32"), None).name == "unfused"
    short = DISPATCH.choose(H100, replace(spec, time=56), None).name
    assert short == ("mosaic_gpu" if chosen == "mosaic_gpu" else "unfused")


@given(
    time=st.integers(1, 50),
    chunk=st.integers(1, 60),
    most=st.integers(1, 60),
    flags=st.tuples(st.booleans(), st.booleans()),
    seed=st.integers(0, 2**31),
)
def test_the_chunk_changes_nothing(time, chunk, most, flags, seed):
    """Nor how many steps at most are taken at once."""
    reset, lengths = flags
    given, cotangents, options = arrays(time, reset=reset, lengths=lengths, seed=seed)
    if lengths:
        for row, length in enumerate(options["lengths"]):
            given["u"][row, length:] = 0
    with jax.enable_x64(True):
        values = tuple(to_jax(x, "float64") for x in given.values())
        rest = tuple(options.values())
        g = tuple(to_jax(x, "float64") for x in cotangents)

        def both(implementation):
            def run(*values):
                return SSM.operation.forward(
                    (*values, *rest), chunk=min(chunk, time), implementation=implementation
                )

            value, pull, borders = jax.vjp(jax.jit(run), *values, has_aux=True)
            return value, pull(g), borders

        close = partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10)
        with mock.patch.object(_xla, "_STEPS", most):
            chunked = both("chunked")
        jax.tree.map(close, chunked, both("unfused"))


@every_implementation
def test_forward_and_reverse_mode_to_second_order(implementation):
    with jax.enable_x64(True):
        given, _, _ = arrays(5)
        # Small numbers, for finite differences of the second order to be close.
        arguments = tuple(to_jax(0.3 * x, "float64") for x in given.values())

        def scalar(*arguments):
            run = partial(diagonal_ssm, *arguments, implementation=implementation)
            y, _ = run()
            _, last = run(reverse=True, lengths=jnp.asarray([5, 3, 0]))
            return jnp.sum(jnp.sin(y)) + jnp.sum(last.re * last.im**2)

        check_grads(scalar, arguments, order=2, modes=("fwd", "rev"), atol=1e-5, rtol=1e-5)


def test_vmap():
    given, _, _ = arrays(9)
    u, decay, b, c, h0 = (to_jax(x, "float32") for x in given.values())

    def loss(u, decay, b, c, h0):
        y, last = diagonal_ssm(u, decay, b, c, h0)
        return jnp.sum(jnp.sin(y)) + jnp.sum(last.re * last.im)

    gradient = jax.grad(loss, tuple(range(5)))
    expected = gradient(u, decay, b, c, h0)
    shared = (0, None, None, None, 0)
    mapped = jax.grad(lambda *x: jnp.sum(jax.vmap(loss, shared)(*x)), tuple(range(5)))
    per_row = jax.vmap(gradient, shared)(u, decay, b, c, h0)
    summed = (per_row[0], *jax.tree.map(lambda x: x.sum(0), per_row[1:4]), per_row[4])
    for got in (mapped(u, decay, b, c, h0), summed):
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), got, expected)
    # An ensemble: weights of its own for every member, and the same input.
    ensemble = jax.tree.map(lambda x: jnp.stack([x, 0.5 * x]), (decay, b, c))
    y, _ = jax.vmap(diagonal_ssm, (None, 0, 0, 0, None))(u, *ensemble, h0)
    for member in range(2):
        one = jax.tree.map(lambda x, i=member: x[i], ensemble)
        np.testing.assert_allclose(y[member], diagonal_ssm(u, *one, h0)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_any_batch(batch):
    rng = np.random.default_rng(0)
    given, _, _ = arrays(6)
    decay, b, c = (to_jax(given[name], "float32") for name in ("decay", "b", "c"))
    u = jnp.asarray(rng.normal(size=(*batch, 6, IDIM)), jnp.float32)
    y, last = diagonal_ssm(u, decay, b, c)
    flat, flat_last = diagonal_ssm(u.reshape(-1, 6, IDIM), decay, b, c)
    np.testing.assert_allclose(y, flat.reshape(*batch, 6, ODIM), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(last.re, flat_last.re.reshape(*batch, STATE), rtol=1e-5, atol=1e-6)


def test_bfloat16_has_float32_states():
    given, _, _ = arrays(64)
    u, decay, b, c, h0 = (to_jax(x, "float32") for x in given.values())
    y, last = diagonal_ssm(u.astype(jnp.bfloat16), decay, b, c, h0)
    expected, expected_last = diagonal_ssm(u, decay, b, c, h0)
    assert (y.dtype, last.dtype) == (jnp.bfloat16, jnp.float32)
    scale = float(jnp.max(jnp.abs(expected)))
    np.testing.assert_allclose(y.astype(jnp.float32), expected, atol=0.02 * scale)
    np.testing.assert_allclose(last.re, expected_last.re, atol=0.02 * scale)


@every_implementation
def test_states_do_not_run_on_into_the_padding(implementation):
    growing = Planar(jnp.full(4, 2.0), jnp.zeros(4))
    b, c = (Planar(jnp.ones(shape), jnp.ones(shape)) for shape in ((4, 3), (2, 4)))
    u, lengths = jnp.ones((2, 300, 3)), jnp.asarray([10, 20])

    def loss(decay, b, c):
        return jnp.sum(
            diagonal_ssm(u, decay, b, c, lengths=lengths, implementation=implementation)[0]
        )

    for gradient in jax.tree.leaves(jax.grad(loss, (0, 1, 2))(growing, b, c)):
        assert np.all(np.isfinite(gradient))


@every_implementation
@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.uint32, jnp.int32])
def test_lengths_of_any_integer_type(dtype, implementation):
    given, _, _ = arrays(6)
    u, *system, h0 = (to_jax(x, "float32") for x in given.values())

    def last(h0):
        lengths = jnp.asarray([0, 4, 6], dtype)
        return jnp.sum(
            diagonal_ssm(u, *system, h0, lengths=lengths, implementation=implementation)[1].re
        )

    np.testing.assert_allclose(jax.grad(last)(h0).re[0], 1)


def test_an_empty_batch():
    given, _, _ = arrays(6)
    system = [to_jax(given[name], "float32") for name in ("decay", "b", "c")]
    y, last = diagonal_ssm(jnp.zeros((0, 6, IDIM)), *system)
    assert (y.shape, last.shape) == ((0, 6, ODIM), (0, STATE))


def test_real_systems():
    given, _, _ = arrays(12)
    u = to_jax(given["u"], "float32")
    decay, b, c = (to_jax(given[name].real, "float32") for name in ("decay", "b", "c"))
    y, last = diagonal_ssm(u, decay, b, c)
    h, h_last = linear_scan(decay, u @ b.T)
    np.testing.assert_allclose(y, h @ c.T, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(last, h_last, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map_over_batch_and_states(check_vma):
    given, _, _ = arrays(8)
    rng = np.random.default_rng(1)
    u = jnp.asarray(rng.normal(size=(4, 8, IDIM)), jnp.float32)
    weights = [
        to_jax(rng.normal(size=shape) + 1j * rng.normal(size=shape), "float32")
        for shape in ((6,), (6, IDIM), (ODIM, 6))
    ]
    weights[0] = jax.tree.map(lambda x: 0.3 * x, weights[0])
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

    def one_device(u, decay, b, c):
        return jax.lax.psum(diagonal_ssm(u, decay, b, c)[0], "y")

    sharded = jax.shard_map(
        one_device,
        mesh=mesh,
        in_specs=(P("x"), P("y"), P("y"), P(None, "y")),
        out_specs=P("x"),
        check_vma=check_vma,
    )

    def loss(run):
        return jax.jit(jax.value_and_grad(lambda *x: jnp.sum(jnp.sin(run(*x))), (0, 1, 2, 3)))

    got = loss(sharded)(u, *weights)
    expected = loss(lambda *x: diagonal_ssm(*x)[0])(u, *weights)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), got, expected)


def gradient_program(time, rows=4, state=64, idim=16):
    def loss(u, decay, b, c):
        return jnp.sum(diagonal_ssm(u, decay, b, c)[0] ** 2)

    def planar(*shape):
        plane: Any = jax.ShapeDtypeStruct(shape, jnp.float32)
        return Planar(plane, plane)

    return (
        jax.jit(jax.grad(loss, (0, 1, 2, 3)))
        .lower(
            jax.ShapeDtypeStruct((rows, time, idim), jnp.float32),
            planar(state),
            planar(state, idim),
            planar(idim, state),
        )
        .compile()
    )


def test_memory_is_that_of_a_chunk_and_the_borders():
    rows, state, idim = 4, 64, 16
    for time in (8192, 65536):
        memory: Any = gradient_program(time).memory_analysis()
        temporaries = memory.temp_size_in_bytes
        all_states = rows * time * state * 2 * 4
        inputs = rows * time * idim * 4
        # The cotangent of y has the size of the input; the states of a chunk are at most 2 MiB.
        assert temporaries < 2.5 * inputs + 3 * 2**21
        if time == 65536:
            assert temporaries < all_states / 2


u = jnp.zeros((2, 5, 3))
decay, b, c = (
    Planar(*(jnp.zeros(4),) * 2),
    Planar(*(jnp.zeros((4, 3)),) * 2),
    Planar(*(jnp.zeros((2, 4)),) * 2),
)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "says"),
    [
        ((u[..., :2], decay, b, c), {}, ValueError, "b must be 'state idim', (4, 2)"),
        ((u, decay, b, Planar(c.re.T, c.im.T)), {}, ValueError, "c must be 'odim state'"),
        ((u[:, :0], decay, b, c), {}, ValueError, "must have at least one time step"),
        ((u, decay.re, b, c), {}, TypeError, "decay is real, b is Planar"),
        ((u.astype(int), decay, b, c), {}, TypeError, "u must hold floating-point"),
        ((u, decay, b, c, Planar(*(jnp.zeros((2, 3)),) * 2)), {}, ValueError, "h0 must be"),
        ((u, decay, b, c), {"lengths": jnp.zeros(2)}, TypeError, "lengths must be integers"),
        (
            (u, decay, b, c),
            {"lengths": jnp.zeros(3, int)},
            ValueError,
            "lengths must have the shape",
        ),
        ((u, decay, b, c), {"lengths": jnp.asarray([5, 6])}, ValueError, "from 0 to the 5 steps"),
        ((u, decay, b, c), {"lengths": jnp.asarray([5, -1])}, ValueError, "got -1 to 5"),
        ((u, decay, b, c), {"reset": jnp.zeros((2, 4), bool)}, ValueError, "reset has shape"),
        ((u, decay, b, c), {"implementation": "x"}, ValueError, "chunked"),
    ],
)
def test_bad_input(arguments, options, error, says):
    with pytest.raises(error) as caught:
        diagonal_ssm(*arguments, **options)
    assert says in str(caught.value)


def test_bfloat16_without_a_batch_axis():
    u, decay = jnp.ones((64, 4), "bfloat16"), jnp.full(3, 0.5)
    b, c = jnp.ones((3, 4)), jnp.ones((2, 3))

    def loss(u, b):
        return jnp.sum(diagonal_ssm(u, decay, b, c)[0].astype("float32"))

    got = jax.grad(loss, 1)(u, b)
    np.testing.assert_allclose(got, jax.grad(loss, 1)(u[None], b), rtol=1e-6)


def test_a_named_implementation_stays_under_vmap_of_the_matrices():
    u, decay = jnp.ones((64, 4)), jnp.full((2, 3), 0.5)
    b, c = jnp.ones((3, 4)), jnp.ones((2, 3))

    def run(decay, implementation):
        return jnp.sum(diagonal_ssm(u, decay, b, c, implementation=implementation)[0])

    def mapped(implementation):
        return jax.vmap(jax.grad(partial(run, implementation=implementation)))(decay)

    np.testing.assert_allclose(mapped("chunked"), mapped("unfused"), rtol=1e-5)
    with pytest.raises(NotImplementedError, match="NVIDIA"):
        mapped("mosaic_gpu")
