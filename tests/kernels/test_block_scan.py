"""`block_scan` and `matrix_scan` in all implementations: numbers, derivatives, transformations.

Both take blocks: one for each channel, or a single one. So the tests that they share take
`BlockArguments`, and `to_planes` or `to_matrices` gives them the form of the function.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from jax.test_util import check_grads

import rnnscale_kernels
from rnnscale_kernels import BLOCK, MATRIX, Planar
from rnnscale_kernels.linear_scan._mosaic_gpu_plan import Division
from rnnscale_kernels.testing import (
    BLOCK_ARGUMENTS,
    BlockArguments,
    compile_for,
    missing,
    reference,
)

# Results have the form of the arguments, and tests that are shared draw arguments of all forms.
linear_scan: Any = rnnscale_kernels.linear_scan
block_scan: Any = rnnscale_kernels.block_scan
matrix_scan: Any = rnnscale_kernels.matrix_scan

FORMS = ("sequential", "chunked", "associative")
every_form = pytest.mark.parametrize("implementation", FORMS)
both = pytest.mark.parametrize("scan", [block_scan, matrix_scan], ids=["block", "matrix"])


def to_planes(x, axes: int):
    """Nested tuples of planes, from an array with that many axes of planes at its end."""
    if not axes:
        return x
    return tuple(to_planes(x[..., i, *[slice(None)] * (axes - 1)], axes - 1)
                 for i in range(x.shape[-axes]))  # fmt: skip


def from_planes(x):
    """The inverse of `to_planes`, of one level or two: an array with planes in its last axes."""
    if not isinstance(x, tuple):
        return np.asarray(x).astype(np.float64)
    planes = [from_planes(plane) for plane in x]
    return np.stack(planes, -2 if isinstance(x[0], tuple) else -1)


def to_matrices(x, axes: int):
    """The array without its axis of channels, of which there is one."""
    return jnp.squeeze(x, -1 - axes)


def arguments_of(scan, spec, arrays, names, dtypes):
    """The arrays of these names in the form of the arguments of `scan`."""
    form = to_planes if scan is block_scan else to_matrices
    return tuple(
        form(jnp.asarray(arrays[name], dtype), 2 if name == "a" else 1)
        for name, dtype in zip(names, dtypes, strict=True)
    )


def to_arrays(scan, results):
    """The results of `scan`, or gradients, in the form of the reference."""
    if scan is block_scan:
        return [from_planes(x) for x in results]
    axes = (1, 1, 2, 1, 1)[: len(results)]
    return [
        np.expand_dims(np.asarray(x).astype(np.float64), -1 - n)
        for x, n in zip(results, axes, strict=True)
    ]


def check(scan, spec: BlockArguments, implementation, tolerance, seed=0):
    """Values and gradients of one call are those of the reference."""
    arrays = spec.arrays(seed)
    options = dict(reverse=spec.reverse, reset=arrays["reset"])
    decay = spec.dtype if spec.varying else "float32"
    names = ("a", "b", "h0") if spec.h0 else ("a", "b")
    given = arguments_of(scan, spec, arrays, names, (decay, spec.dtype, "float32")[: len(names)])
    cotangents = arguments_of(scan, spec, arrays, ("g", "g_last"), (spec.dtype, "float32"))

    @jax.jit
    def value_and_gradient(given, cotangents):
        run = partial(scan, implementation=implementation, **options)
        value, pull = jax.vjp(run, *given)
        return value, pull(cotangents)

    value, gradient = value_and_gradient(given, cotangents)
    h, last = (jax.tree.leaves(x)[0] for x in value)
    assert h.dtype == spec.dtype and last.dtype == jnp.float32
    a, b, h0, g, g_last = (arrays[name] for name in ("a", "b", "h0", "g", "g_last"))
    expected = [
        *reference.block_scan(a, b, h0, **options),
        *reference.block_scan_gradient(a, b, h0, g, g_last, **options),
    ]
    for x, y in zip(to_arrays(scan, (*value, *gradient)), expected[: 2 + len(names)], strict=True):
        assert x.shape == y.shape
        # A gradient of invariant blocks is a sum over all steps.
        steps = spec.time if y.ndim == a.ndim and not spec.varying else 1
        assert np.max(np.abs(x - y)) <= tolerance * max(1, steps**0.5, np.max(np.abs(y)))


@every_form
@pytest.mark.parametrize(
    ("scan", "spec"),
    [
        *((block_scan, spec) for spec in BLOCK_ARGUMENTS),
        *((matrix_scan, replace(spec, channels=1, size=5)) for spec in BLOCK_ARGUMENTS[:2]),
    ],
    ids=lambda x: str(x) if isinstance(x, BlockArguments) else x.__name__,
)
def test_values_and_gradients_are_those_of_the_reference(scan, spec, implementation):
    check(scan, spec, implementation, 3e-6 if spec.dtype == "float32" else 2e-2)


# The kernels of GPUs and TPUs, in the interpreters of their toolchains. Those of blocks of 4 x 4
# planes take 20 seconds on a TPU's, whose loop over a window is unrolled; they are compiled
# elsewhere.
KERNELS = [
    *(("mosaic_gpu_interpreted", BLOCK_ARGUMENTS[i]) for i in (1, 2, 3)),
    *(("mosaic_tpu_interpreted", BLOCK_ARGUMENTS[i]) for i in (0, 1, 3)),
]


@pytest.mark.parametrize(("implementation", "spec"), KERNELS, ids=str)
def test_kernels_give_the_numbers_of_the_reference(implementation, spec):
    check(block_scan, spec, implementation, 3e-6 if spec.dtype == "float32" else 2e-2)


def test_kernels_that_split_time_compose_blocks_in_their_order(monkeypatch):
    # Parts so short that the product of their blocks is not yet small.
    monkeypatch.setattr(Division, "of", lambda *_: Division(64, cluster=2))
    spec = BlockArguments(time=40, batch=(1,))
    check(block_scan, spec, "mosaic_gpu_interpreted", 3e-6)


@pytest.mark.slow
def test_the_largest_blocks_compile_where_few_rows_would_split_time():
    """Their totals leave no room for tiles of some steps, so that time is not split."""
    if (reason := missing("h100")) is not None:
        pytest.skip(reason)
    struct = jax.ShapeDtypeStruct
    a, b = struct((1, 512, 136), "bfloat16"), struct((8, 512, 136), "bfloat16")
    last = struct((8, 136), "float32")

    def both(a, b, g):
        value, pull = jax.vjp(partial(block_scan, implementation="mosaic_gpu"), a, b)
        return value, pull(g)

    program = compile_for(both, ((a,) * 4,) * 4, (b,) * 4, ((b,) * 4, (last,) * 4), target="h100")
    assert [kernel.spills for kernel in program.kernels] == [0, 0]


any_spec = st.builds(
    BlockArguments,
    batch=st.lists(st.integers(1, 3), max_size=2).map(tuple),
    time=st.integers(1, 20),
    channels=st.just(1),
    size=st.integers(1, 4),
    varying=st.booleans(),
    h0=st.booleans(),
    reset=st.booleans(),
    reverse=st.booleans(),
)


@settings(max_examples=10)
@given(
    spec=any_spec,
    implementation=st.sampled_from([*FORMS, None]),
    scan=st.sampled_from([block_scan, matrix_scan]),
    seed=st.integers(0, 2**31),
)
def test_any_arguments(spec, implementation, scan, seed):
    check(scan, spec, implementation, 3e-6, seed)


@both
@pytest.mark.parametrize("reverse", [False, True])
def test_totals_are_what_the_steps_make_of_a_state(scan, reverse):
    """Their product is in the order of the steps."""
    op = {block_scan: BLOCK, matrix_scan: MATRIX}[scan]
    spec = BlockArguments(time=21, channels=1, size=3, reset=True, reverse=reverse)
    arrays = spec.arrays()
    a, b, h0, g, reset = (arrays[name] for name in ("a", "b", "h0", "g", "reset"))
    options = {"reverse": reverse, "reset": reset}
    _, end = reference.block_scan(a, b, 0 * h0, **options)
    *_, g_h0 = reference.block_scan_gradient(a, b, h0, g, 0 * h0, **options)
    steps = [a[:, t, 0] for t in range(spec.time)]
    product = np.eye(3)
    for step in reversed(steps) if reverse else steps:
        product = step @ product

    @jax.jit
    def run(a, b, h0, g, reset):
        arguments = op.check(a, b, h0, reverse=reverse, reset=reset)
        primals, _ = op.canonical(arguments, reverse=reverse)
        static = op.static(primals, reverse=reverse, implementation=None)
        cotangents = op.check(a, g, h0).values[1]
        decay, end = op.totals(primals, **static)
        # A decay acts on states: its columns are what it makes of the unit vectors.
        one = op.check(a, b, h0).values[0]
        assert jax.tree.structure(decay) == jax.tree.structure(one)
        return jax.tree.leaves(decay), end, op.transpose_totals(primals, cotangents, **static)

    given = arguments_of(scan, spec, arrays, ("a", "b", "h0", "g"), ["float32"] * 4)
    decay, end_got, g_got = run(*given, reset)
    decay = np.stack(decay, -1).reshape(product.shape) if scan is block_scan else decay[0]
    np.testing.assert_allclose(np.reshape(decay, product.shape), product, atol=1e-6)
    for got, expected in ((end_got, end), (g_got, g_h0)):
        got = np.stack(got, -1) if scan is block_scan else np.asarray(got)[:, None]
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("scan", "varying"), [(block_scan, True), (matrix_scan, False)])
def test_forward_and_reverse_mode_to_second_order(scan, varying):
    spec = BlockArguments(batch=(2,), time=4, channels=1, varying=varying)
    reset = jnp.asarray([[False, False, True, False], [False] * 4])
    with jax.enable_x64(True):
        given = arguments_of(scan, spec, spec.arrays(), ("a", "b", "h0"), ["float64"] * 3)

        @jax.jit
        def scalar(*given):
            h, _ = scan(*given, reset=reset)
            _, last = scan(*given, reset=reset, reverse=True)
            return sum(jnp.sum(jnp.sin(x * (1 + x))) for x in jax.tree.leaves((h, last)))

        check_grads(scalar, given, order=1, modes=("fwd", "rev"), atol=1e-4, rtol=1e-4)
        # Finite differences are coarse, but two ways to a second derivative agree closely.
        direction = jax.tree.map(jnp.cos, given)
        _, forward_over_reverse = jax.jvp(jax.grad(scalar, (0, 1, 2)), given, direction)
        slope = lambda *given: jax.jvp(scalar, given, direction)[1]  # noqa: E731
        reverse_over_forward = jax.grad(slope, (0, 1, 2))(*given)
        close = partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12)
        jax.tree.map(close, forward_over_reverse, reverse_over_forward)


@both
@pytest.mark.parametrize("varying", [True, False])
def test_vmap_folds_into_the_batch(scan, varying):
    spec = BlockArguments(batch=(3,), time=9, channels=1, varying=varying, reset=True)
    arrays = spec.arrays()
    a, b, h0 = arguments_of(scan, spec, arrays, ("a", "b", "h0"), ["float32"] * 3)
    reset = jnp.asarray(arrays["reset"])

    def loss(a, b, h0, reset):
        h, last = scan(a, b, h0, reset=reset)
        return sum(jnp.sum(x**2) for x in jax.tree.leaves((h, last)))

    # The gradient of blocks is summed over the rows if they share them.
    shared, of_row = (0, a) if varying else (None, jax.tree.map(lambda x: x[0], a))
    per_row = jax.jit(jax.vmap(jax.value_and_grad(loss, (0, 1)), (shared, 0, 0, 0)))
    values, (da, db) = per_row(of_row, b, h0, reset)
    value, (da_all, db_all) = jax.jit(jax.value_and_grad(loss, (0, 1)))(a, b, h0, reset)
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    close(sum(values), value)
    jax.tree.map(close, db, db_all)
    total = da if varying else jax.tree.map(lambda x: x.sum(0)[None], da)
    jax.tree.map(close, total, da_all)


@both
@every_form
def test_a_reset_stops_what_is_not_finite_also_in_the_gradient(implementation, scan):
    time, border = 12, 7

    @partial(jax.jit, static_argnames="reverse")
    def run(a, b, reverse):
        reset = jnp.zeros((1, time), bool).at[:, border].set(True)
        clean = slice(0, border) if reverse else slice(border, None)

        def loss(a, b):
            h, _ = scan(a, b, reset=reset, reverse=reverse, implementation=implementation)
            return sum(jnp.sum(x[:, clean] ** 2) for x in jax.tree.leaves(h))

        value, gradients = jax.value_and_grad(loss, (0, 1))(a, b)
        return value, [x[:, clean] for x in jax.tree.leaves(gradients)]

    # In one segment, and where a block would carry the state from one into the other.
    for reverse, at, border_of_a in ((False, 2, border), (True, border + 2, border - 1)):
        a = np.full((1, time, 1, 2, 2), 0.5)
        b = np.ones((1, time, 1, 2))
        b[:, at] = np.nan
        a[:, at], a[:, border_of_a] = np.nan, np.inf
        given = arguments_of(scan, None, {"a": a, "b": b}, ("a", "b"), ["float32"] * 2)
        value, gradients = run(*given, reverse=reverse)
        assert np.isfinite(value)
        assert all(np.all(np.isfinite(x)) for x in gradients)


@pytest.mark.parametrize(
    ("implementation", "varying"), [*((name, True) for name in FORMS), ("associative", False)]
)
def test_a_complex_scan_is_the_scan_of_its_blocks(implementation, varying, key):
    shape = (2, 13, 3)
    re, im, x, y = jax.random.normal(key, (4, *shape)) * 0.6
    if not varying:
        re, im = re[0, 0], im[0, 0]
    options = {"reset": jnp.zeros(shape[:2], bool).at[0, 4].set(True)}
    options["implementation"] = implementation

    def of_blocks(re, im, x, y):
        return block_scan(((re, -im), (im, re)), (x, y), **options)

    def of_numbers(re, im, x, y):
        return jax.tree.map(
            tuple,
            linear_scan(Planar(re, im), Planar(x, y), **options),
            is_leaf=lambda x: isinstance(x, Planar),
        )

    @jax.jit
    def run(*arguments):
        results = []
        for each in (of_blocks, of_numbers):
            value, pull = jax.vjp(each, *arguments)
            results.append((value, pull(jax.tree.map(jnp.cos, value))))
        return results

    got, expected = run(re, im, x, y)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-5), got, expected)


@every_form
def test_a_long_memory(implementation):
    """A damped rotation, whose powers must keep their digits over thousands of steps."""
    time, decay, angle = 8192, 1 - 1e-4, 0.1
    cos, sin = (np.float32(decay * f(angle)) for f in (np.cos, np.sin))
    b = np.random.default_rng(0).normal(size=time).astype(np.float32)
    h, expected = 0, np.zeros(time, complex)
    for t in range(time):
        h = (np.float64(cos) + 1j * np.float64(sin)) * h + b[t]
        expected[t] = h
    planes = jnp.asarray(b)[:, None], jnp.zeros((time, 1))
    block = tuple(tuple(jnp.asarray([x]) for x in row) for row in ((cos, -sin), (sin, cos)))
    (re, im), _ = block_scan(block, planes, implementation=implementation)
    error = np.max(np.abs(re[:, 0] + 1j * im[:, 0] - expected)) / np.max(np.abs(expected))
    # A state lasts for 10,000 steps, over which relative rounding errors of 2^-24 make a random
    # walk.
    assert error < 8 * 2.0**-24 * 100


@both
@pytest.mark.parametrize("implementation", ["sequential", "associative"])
def test_invariant_blocks_are_never_copied_along_time(implementation, scan):
    time, size = 1024, 3
    b = np.zeros((2, time, 1, size))
    for steps, copied in ((1, False), (time, True)):
        arrays = {"a": np.zeros((1, steps, 1, size, size)), "b": b}
        given = arguments_of(scan, None, arrays, ("a", "b"), ["float32"] * 2)
        run = jax.jit(lambda a, b: scan(a, b, implementation=implementation))
        text = run.lower(*given).as_text()
        shapes = (f"1x{time}x1xf32",) if scan is block_scan else (f"1x{time}x9xf32",)
        # Rows of inputs have a batch of two, so only blocks can have these shapes.
        assert any(f"tensor<{shape}>" in text for shape in shapes) == copied


def test_one_program_for_several_platforms():
    like = partial(jax.ShapeDtypeStruct, dtype="float32")
    plane, matrix = like((1, 6, 2)), like((2, 2))

    def gradient(plane, matrix):
        row = plane[0, 0], plane[0, 1]

        def loss(plane, matrix):
            (h, _), _ = block_scan((row, row), (plane, plane))
            return jnp.sum(h) + jnp.sum(matrix_scan(matrix, plane)[0])

        return jax.grad(loss, (0, 1))(plane, matrix)

    exported = jax.export.export(jax.jit(gradient), platforms=("cpu", "cuda", "tpu"))(plane, matrix)
    given = jnp.full(plane.shape, 0.5), jnp.full(matrix.shape, 0.5)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-6), exported.call(*given), gradient(*given)
    )


x = jnp.zeros((2, 5, 3))
row = (x, x)


@pytest.mark.parametrize(
    ("scan", "arguments", "error", "says"),
    [
        (block_scan, ((row,), row), ValueError, "a must be a tuple of 2 rows of 2 planes"),
        (block_scan, (x, row), TypeError, "a must be a tuple of 2 rows of 2 planes"),
        (block_scan, ((row, row), x), TypeError, "b must be a tuple of planes"),
        (block_scan, ((row, row), (x,) * 5), ValueError, "1 to 4 planes, got 5"),
        (block_scan, ((row, row), row, (x[:, 0],)), ValueError, "h0 must have as many planes"),
        (block_scan, ((row, row), row, (x, x)), ValueError, "h0 has shape (2, 5, 3)"),
        (block_scan, ((row, row), (x, x[:1])), ValueError, "must have the same shape and dtype"),
        (block_scan, ((row, (x, x[:, :4])), row), ValueError, "a[1][1] has shape (2, 4, 3)"),
        (block_scan, ((row, (x, 1j * x)), row), TypeError, "a[1][1] must hold floating-point"),
        (matrix_scan, (jnp.zeros((3, 2)), x), ValueError, "'dim dim' with a dim of 3"),
        (matrix_scan, (jnp.zeros((2, 4, 3, 3)), x), ValueError, "a has shape (2, 4, 3, 3)"),
        (matrix_scan, (jnp.zeros((3, 3)), x[:, :0]), ValueError, "at least one time step"),
        (matrix_scan, (jnp.zeros((3, 3)), Planar(x, x)), TypeError, "b must hold floating-point"),
    ],
)
def test_bad_input(scan, arguments, error, says):
    with pytest.raises(error) as caught:
        scan(*arguments)
    assert says in str(caught.value)
