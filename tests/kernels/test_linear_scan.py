"""`linear_scan` in all implementations: numbers, derivatives, transformations, choice, errors."""

import contextlib
import itertools
import re
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from jax.sharding import (
    AbstractDevice,
    AbstractMesh,
    AxisType,
    NamedSharding,
    PartitionSpec as P,
    use_abstract_mesh,
)
from jax.test_util import check_grads

import rnnscale_kernels
from rnnscale_kernels import SCAN, OpArguments, Planar, implementations
from rnnscale_kernels._target import H100, Target
from rnnscale_kernels.linear_scan import DISPATCH
from rnnscale_kernels.linear_scan._mosaic_gpu_plan import Division
from rnnscale_kernels.linear_scan._triton_config import Case, choose_config
from rnnscale_kernels.testing import (
    SCAN_ARGUMENTS,
    ScanArguments,
    reference,
    to_jax,
    to_numpy,
)

# Its results are arrays or `Planar`s as its arguments are, which its type does not say.
linear_scan: Any = rnnscale_kernels.linear_scan

# What runs on a CPU: the XLA forms, and the kernels of other devices in their interpreters.
XLA_FORMS = ("sequential", "chunked", "associative")
INTERPRETED = ("mosaic_gpu_interpreted", "triton_interpreted", "mosaic_tpu_interpreted")
REASONS = {name: reason for name, _, reason in implementations("cpu")["linear_scan"]}


def _if_usable(name):
    return pytest.param(name, marks=pytest.mark.skipif(bool(REASONS[name]), reason=REASONS[name]))


every_xla_form = pytest.mark.parametrize("implementation", XLA_FORMS)
every_kernel = pytest.mark.parametrize("implementation", [*map(_if_usable, INTERPRETED)])
every_implementation = pytest.mark.parametrize(
    "implementation", [*XLA_FORMS, *map(_if_usable, INTERPRETED)]
)
# For what does not depend on the kernel, one kernel is enough: the one whose interpreter is quick.
every_xla_form_and_a_kernel = pytest.mark.parametrize(
    "implementation", [*XLA_FORMS, _if_usable("triton_interpreted")]
)


def run(spec: ScanArguments, implementation, seed=0):
    """`(results, expected, sizes)`: values and gradients of one call, those of the reference, and
    the sizes to which their errors are relative."""
    arrays = spec.arrays(seed)
    options = dict(reverse=spec.reverse, reset=arrays["reset"])
    a = to_jax(arrays["a"], spec.dtype if spec.varying else "float32")
    b, g = (to_jax(arrays[name], spec.dtype) for name in ("b", "g"))
    h0, g_last = (to_jax(arrays[name], "float32") for name in ("h0", "g_last"))

    @jax.jit
    def value_and_gradient(arguments, cotangents):
        scan = partial(linear_scan, implementation=implementation, **options)
        value, pull = jax.vjp(scan, *arguments)
        return value, pull(cotangents)

    value, gradient = value_and_gradient((a, b, h0) if spec.h0 else (a, b), (g, g_last))
    given = [arrays[name] for name in ("a", "b", "h0")]
    cotangents = [arrays[name] for name in ("g", "g_last")]
    expected = reference.linear_scan(*given, **options)
    expected_gradient = reference.linear_scan_gradient(*given, *cotangents, **options)
    sizes = [np.max(np.abs(x)) for x in (*expected, *expected_gradient)]
    if not spec.varying:
        # The gradient of the decay is a sum, whose rounding errors are relative to its terms: terms
        # may cancel, their errors do not.
        repeated = np.broadcast_to(given[0], given[1].shape)
        terms, *_ = reference.linear_scan_gradient(repeated, *given[1:], *cotangents, **options)
        sizes[2] = np.max(np.sum(np.abs(terms), tuple(range(terms.ndim - 1))))
    results = *value, *gradient
    return results, [*expected, *expected_gradient][: len(results)], sizes[: len(results)]


def assert_close(results, expected, sizes, tolerance):
    for x, y, size in zip(results, expected, sizes, strict=True):
        x = to_numpy(x)
        assert x.shape == y.shape
        assert np.max(np.abs(x - y)) <= tolerance * max(1, size)


@every_implementation
@pytest.mark.parametrize("spec", SCAN_ARGUMENTS, ids=str)
def test_values_and_gradients_are_those_of_the_reference(spec, implementation):
    results, expected, sizes = run(spec, implementation)
    # Sums over 64 to 300 steps in float32. bfloat16 has 8 bits, and its states enter the gradient.
    tolerance = 2e-6 if spec.dtype == "float32" else 1e-2
    assert_close(results, expected, sizes, tolerance)
    assert results[0].dtype == spec.dtype
    assert results[1].dtype == jnp.float32


@pytest.mark.parametrize(
    ("division", "spec"),
    [
        (
            Division(32, warpgroups=2, cluster=2),
            ScanArguments(batch=(1,), time=80, planar=True, reset=True, reverse=True),
        ),
        (Division(32, cluster=2), ScanArguments(batch=(1,), time=150, varying=False)),
        (
            Division(64, warpgroups=2),
            ScanArguments(batch=(1,), time=100, reset=True, reverse=True, varying=False),
        ),
        (Division(128, cluster=2), ScanArguments(batch=(1,), time=70, dtype="bfloat16")),
    ],
    ids=str,
)
def test_threads_of_a_gpu_share_the_time_of_a_row(division, spec, monkeypatch):
    monkeypatch.setattr(Division, "of", lambda *_: division)
    tolerance = 2e-6 if spec.dtype == "float32" else 1e-2
    assert_close(*run(spec, "mosaic_gpu_interpreted"), tolerance)


def test_time_is_split_as_little_as_fills_a_gpu():
    assert Division.of(8, 4096, 1024, 4, H100) == Division()
    assert Division.of(5, 4096, 1024, 4, H100) == Division(64, warpgroups=2)
    # In 16 bits half the multiprocessors are not enough.
    assert Division.of(8, 4096, 1024, 2, H100) == Division(64, warpgroups=2)
    assert Division.of(5, 4096, 1024, 2, H100) == Division(32, warpgroups=2)
    assert Division.of(1, 4096, 1024, 4, H100) == Division(32, warpgroups=2, cluster=2)
    assert Division.of(1, 131072, 256, 4, H100) == Division(32, warpgroups=2, cluster=8)
    assert Division.of(1, 500, 256, 4, H100) == Division()


@pytest.mark.parametrize("cores", [28, 84, 170])
def test_the_rings_of_triton_fit_into_a_workstation_gpu(cores):
    target = Target("cuda", "a GPU of compute capability 8.6", (8, 6), cores)
    for rows, channels in itertools.product((1, 3, 64), (32, 100, 1000, 4096)):
        for decay, sequence in itertools.product(("float32", "bfloat16"), repeat=2):
            case = Case("backward", True, True, (decay, sequence), rows * channels)
            config = choose_config(case, rows, target)
            row_bytes = config.block * sum(jnp.dtype(x).itemsize for x in case.reads)
            assert (config.stages - 1) * config.rows * row_bytes <= 99 * 1024, (rows, case)


@every_kernel
def test_the_gradient_of_a_shared_decay_is_summed_in_two_stages(implementation):
    """A running sum of 255 terms of 0.1 in float32 has a relative error of 2.4e-6."""
    tenth = np.float32(0.1)
    states = jnp.ones((1, 256, 8))

    def total(a):
        return jnp.sum(tenth * linear_scan(a, states, implementation=implementation)[0])

    gradient = jax.jit(jax.grad(total))(jnp.zeros(8))
    np.testing.assert_allclose(gradient, 255 * np.float64(tenth), rtol=1e-6)


any_spec = st.builds(
    ScanArguments,
    batch=st.lists(st.integers(1, 3), max_size=2).map(tuple),
    time=st.integers(1, 40),
    channels=st.integers(1, 4),
    planar=st.booleans(),
    varying=st.booleans(),
    h0=st.booleans(),
    reset=st.booleans(),
    reverse=st.booleans(),
)
any_seed = st.integers(0, 2**31)


@given(spec=any_spec, implementation=st.sampled_from([*XLA_FORMS, None]), seed=any_seed)
def test_any_arguments(spec, implementation, seed):
    assert_close(*run(spec, implementation, seed), tolerance=2e-6)


# An interpreter takes seconds for what XLA does in microseconds.
@every_kernel
@settings(max_examples=4)
@given(spec=any_spec, seed=any_seed)
def test_any_arguments_of_a_kernel(implementation, spec, seed):
    assert_close(*run(spec, implementation, seed), tolerance=2e-6)


@every_implementation
@pytest.mark.parametrize(
    "spec",
    [
        ScanArguments(reset=True, time=131),
        ScanArguments(planar=True, varying=False, reverse=True, reset=True, batch=(2, 3), time=67),
    ],
    ids=str,
)
def test_totals_are_what_the_steps_make_of_a_state(spec, implementation):
    arrays = spec.arrays()
    a, b, g, h0 = (arrays[name] for name in ("a", "b", "g", "h0"))
    options = {"reverse": spec.reverse, "reset": arrays["reset"]}
    _, end = reference.linear_scan(a, b, 0 * h0, **options)
    *_, g_h0 = reference.linear_scan_gradient(a, b, h0, g, 0 * h0, **options)
    expected = [end, g_h0] + ([np.prod(a, axis=-2)] if spec.varying else [])

    @jax.jit
    def run(a, b, h0, g, reset):
        direction = {"reverse": spec.reverse}
        primals, _ = SCAN.canonical(OpArguments((a, b), h0, reset, None), **direction)
        static = SCAN.static(primals, implementation=implementation, **direction)
        decay, end = SCAN.totals(primals, **static)
        return end, SCAN.transpose_totals(primals, g, **static), decay

    *results, decay = run(*(to_jax(x, "float32") for x in (a, b, h0, g)), arrays["reset"])
    assert (decay is None) != spec.varying
    results += [decay] if spec.varying else []
    assert_close(results, expected, [np.max(np.abs(x)) for x in expected], tolerance=2e-6)


@every_kernel
def test_kernels_have_the_derivatives_of_the_xla_forms(implementation):
    arrays = ScanArguments(batch=(2,), time=5, channels=2, planar=True, varying=False).arrays()
    arguments = tuple(to_jax(arrays[name], "float32") for name in ("a", "b", "h0"))
    reset = jnp.asarray([[False, False, True, False, False], [False] * 5])

    def scalar(implementation, *arguments):
        h, last = linear_scan(*arguments, reset=reset, implementation=implementation)
        return jnp.sum(jnp.sin(h.re) * h.im) + jnp.sum(last.re * last.im**2)

    def hessian_vector(implementation):
        gradient = jax.grad(partial(scalar, implementation), (0, 1, 2))
        return jax.jit(lambda *x: jax.jvp(gradient, x, x))(*arguments)

    got, expected = map(hessian_vector, (implementation, "sequential"))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), got, expected)


def small(implementation):
    """A scalar function of both outputs in both directions, and arguments for it in float64."""
    arrays = ScanArguments(batch=(2,), time=4, channels=2, planar=True, varying=False).arrays()
    arguments = tuple(to_jax(arrays[name], "float64") for name in ("a", "b", "h0"))
    reset = jnp.asarray([[False, False, True, False], [False] * 4])

    def scalar(a, b, h0):
        scan = partial(linear_scan, a, b, reset=reset, implementation=implementation)
        h, _ = scan(h0)
        _, last = scan(h0, reverse=True)
        return jnp.sum(jnp.sin(h.re) * h.im) + jnp.sum(last.re * last.im**2)

    return scalar, arguments


@every_xla_form
def test_forward_and_reverse_mode_to_second_order(implementation):
    with jax.enable_x64(True):
        scalar, arguments = small(implementation)
        check_grads(scalar, arguments, order=2, modes=("fwd", "rev"), atol=1e-4, rtol=1e-4)
        # Finite differences are coarse, but two ways to the second derivatives agree closely.
        forward_over_reverse = jax.hessian(scalar)(*arguments)
        reverse_over_reverse = jax.jacrev(jax.jacrev(scalar))(*arguments)
        close = partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12)
        jax.tree.map(close, forward_over_reverse, reverse_over_reverse)


def test_the_transpose_of_the_backward_pass_is_the_tangent():
    with jax.enable_x64(True):
        scalar, arguments = small(None)
        _, pull = jax.vjp(lambda b: linear_scan(arguments[0], b)[0], arguments[1])
        direction = jax.tree.map(lambda x: x + 1.0, arguments[1])
        (pushed,) = jax.linear_transpose(lambda g: pull(g)[0], direction)(direction)
        _, expected = jax.jvp(
            lambda b: linear_scan(arguments[0], b)[0], (arguments[1],), (direction,)
        )
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12), pushed, expected)


@every_xla_form_and_a_kernel
@pytest.mark.parametrize("varying", [True, False])
def test_vmap_folds_into_the_batch(implementation, varying):
    spec = ScanArguments(batch=(3,), time=9, channels=2, varying=varying, reset=True)
    arrays = spec.arrays()
    a, b, h0 = (to_jax(arrays[name], "float32") for name in ("a", "b", "h0"))
    reset = jnp.asarray(arrays["reset"])

    def loss(a, b, h0, reset):
        h, last = linear_scan(a, b, h0, reset=reset, implementation=implementation)
        return jnp.sum(h**2) + jnp.sum(last**3)

    # The gradient of a decay is summed over the rows if they share it, and not if each has its own.
    shared = None if not varying else 0
    row_decay = a if varying else a[0]
    mapped = jax.vmap(loss, (shared, 0, 0, 0))
    total, gradient = jax.value_and_grad(lambda *x: jnp.sum(mapped(*x)), (0, 1, 2))(
        row_decay, b, h0, reset
    )
    expected, expected_gradient = jax.value_and_grad(loss, (0, 1, 2))(a, b, h0, reset)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    for x, y in zip(gradient, expected_gradient, strict=True):
        np.testing.assert_allclose(x, y.reshape(x.shape), rtol=1e-5, atol=1e-5)
    per_row = jax.vmap(jax.grad(loss), (shared, 0, 0, 0))(row_decay, b, h0, reset)
    summed = per_row if varying else per_row.sum(0)
    np.testing.assert_allclose(summed, expected_gradient[0].reshape(summed.shape), rtol=1e-5)
    # The mapped program has no loop over rows: it has the loops of the batched one.
    assert jax.jit(mapped).lower(row_decay, b, h0, reset).as_text().count("stablehlo.while") == (
        jax.jit(loss).lower(a, b, h0, reset).as_text().count("stablehlo.while")
    )


@pytest.mark.parametrize("check_vma", [True, False])
@every_xla_form
def test_shard_map(implementation, check_vma):
    arrays = ScanArguments(batch=(4,), time=12, channels=6, planar=True, varying=False).arrays()
    a, b, h0 = (to_jax(arrays[name], "float32") for name in ("a", "b", "h0"))
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

    def loss(a, b, h0):
        h, last = linear_scan(a, b, h0, implementation=implementation)
        return jnp.sum(h.re * h.im, (0, 1)) + jnp.sum(last.re**2, 0)

    def sharded(a, b, h0):
        specs = P(None, None, "y"), P("x", None, "y"), P("x", "y")
        per_device = jax.shard_map(
            lambda *x: loss(*x)[None],
            mesh=mesh,
            in_specs=specs,
            out_specs=P("x", "y"),
            check_vma=check_vma,
        )
        return jnp.sum(per_device(a, b, h0))

    got = jax.jit(jax.value_and_grad(sharded, (0, 1, 2)))(a, b, h0)
    expected = jax.value_and_grad(lambda *x: jnp.sum(loss(*x)), (0, 1, 2))(a, b, h0)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), got, expected)


@every_kernel
def test_an_interpreter_refuses_to_run_inside_shard_map(implementation):
    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,))
    scan = jax.shard_map(
        lambda b: linear_scan(jnp.ones(3), b, implementation=implementation)[0],
        mesh=mesh,
        in_specs=P("x"),
        out_specs=P("x"),
    )
    with pytest.raises(NotImplementedError, match="shard_map"):
        jax.jit(scan)(jnp.ones((4, 5, 3)))


@every_xla_form_and_a_kernel
def test_checkpoint_changes_no_gradient(implementation):
    arrays = ScanArguments().arrays()
    arguments = [to_jax(arrays[name], "float32") for name in ("a", "b", "h0")]

    def loss(*x):
        return jnp.sum(jnp.sin(linear_scan(*x, implementation=implementation)[0]))

    plain = jax.grad(loss, (0, 1, 2))(*arguments)
    again = jax.grad(jax.checkpoint(loss), (0, 1, 2))(*arguments)
    jax.tree.map(np.testing.assert_array_equal, plain, again)


@every_implementation
@pytest.mark.parametrize("reverse", [False, True])
def test_a_reset_stops_infinities_also_in_the_gradient(implementation, reverse):
    time, border = 16, 7
    b = jnp.ones((1, time, 3))
    # Infinite in one segment only; the other one must not see it.
    b = b.at[:, (border if reverse else 0), :].set(jnp.inf)
    a = jnp.full((1, time, 3), 0.5)
    reset = jnp.zeros((1, time), bool).at[:, border].set(True)
    clean = slice(0, border) if reverse else slice(border, None)

    def loss(a, b):
        h, _ = linear_scan(a, b, reverse=reverse, reset=reset, implementation=implementation)
        return jnp.sum(h[:, clean] ** 2)

    value, gradients = jax.value_and_grad(loss, (0, 1))(a, b)
    assert np.isfinite(value)
    for gradient in gradients:
        assert np.all(np.isfinite(gradient[:, clean]))


@every_implementation
def test_a_reset_stops_an_infinite_decay(implementation):
    a = jnp.full((1, 8, 2), 0.5).at[:, 3].set(jnp.inf)
    reset = jnp.zeros((1, 8), bool).at[:, 3].set(True)

    def run(a, b, reset):
        return linear_scan(a, b, reset=reset, implementation=implementation)[0]

    b = jnp.ones((1, 8, 2))
    expected = [1, 1.5, 1.75, 1, 1.5, 1.75, 1.875, 1.9375]
    np.testing.assert_allclose(run(a, b, reset)[0, :, 0], expected)
    for steps in (np.s_[:], np.s_[3:4]):
        arguments = a[:, steps], b[:, steps], reset[:, steps]
        for gradient in jax.grad(lambda *x: jnp.sum(run(*x)), (0, 1))(*arguments):
            assert np.all(np.isfinite(gradient))


@every_implementation
def test_exact_cases(implementation):
    b = jnp.asarray(np.random.default_rng(0).integers(-4, 5, (2, 37, 3)), jnp.float32)
    scan = jax.jit(partial(linear_scan, implementation=implementation))
    for shape in ((3,), b.shape):
        h, _ = scan(jnp.zeros(shape), b)
        np.testing.assert_array_equal(h, b)
        h, last = scan(jnp.ones(shape), b)
        np.testing.assert_array_equal(h, jnp.cumsum(b, 1))
        np.testing.assert_array_equal(last, h[:, -1])
        h, _ = scan(-jnp.ones(shape), b)
        signs = (-1.0) ** np.arange(37)[:, None]
        np.testing.assert_array_equal(h, jnp.cumsum(b * signs, 1) * signs)


@every_implementation
def test_decays_near_one_over_65536_steps(implementation):
    rng = np.random.default_rng(0)
    # An interpreter takes 5 to 100 s for all of them.
    fewer = {"mosaic_gpu_interpreted": 1024, "triton_interpreted": 16384}
    steps = fewer.get(implementation, 65536)
    a = np.asarray(1 - 10.0 ** -rng.uniform(1, 5, 4), np.float32).astype(np.float64)
    a[1::2] *= -1
    b = rng.normal(size=(1, steps, 4)).astype(np.float32).astype(np.float64)
    h, _ = linear_scan(
        *(jnp.asarray(x, jnp.float32) for x in (a, b)), implementation=implementation
    )
    expected, _ = reference.linear_scan(a.reshape(1, 1, 4), b, np.zeros((1, 4)))
    error = np.max(np.abs(h - expected), axis=(0, 1)) / np.max(np.abs(expected), axis=(0, 1))
    # A state lasts for 1 / (1 - |a|) steps, over which relative rounding errors of 2^-24 make a
    # random walk.
    assert np.all(error < 8 * 2.0**-24 * (1 - np.abs(a)) ** -0.5)


@every_implementation
def test_denormals_do_not_turn_into_anything_else(implementation):
    tiny = np.float32(1e-40)
    h, _ = linear_scan(
        jnp.full((1,), 0.5), jnp.full((1, 9, 1), tiny), implementation=implementation
    )
    assert np.all(np.abs(np.asarray(h)) <= 2 * tiny)


@pytest.mark.parametrize("implementation", ["sequential", "associative"])
def test_an_invariant_decay_is_never_copied_along_time(implementation):
    time, channels = 1024, 64
    like = jax.ShapeDtypeStruct((2, time, channels), jnp.float32)
    decay = jax.ShapeDtypeStruct((channels,), jnp.float32)

    def has_a_decay_for_each_step(decay):
        run = jax.jit(partial(linear_scan, implementation=implementation))
        text = run.lower(decay, like).as_text()
        return any(f"tensor<{batch}{time}x{channels}xf32>" in text for batch in ("", "1x"))

    assert not has_a_decay_for_each_step(decay)
    varying = jax.ShapeDtypeStruct((1, time, channels), jnp.float32)
    assert has_a_decay_for_each_step(varying)


@pytest.mark.parametrize("steps", [1, 8])
@pytest.mark.parametrize("decay", [(256,), (4, 1, 256)])
def test_short_sequences_in_16_bits_lower_for_a_gpu(steps, decay):
    """A ring of tiles that small would have more stages than Mosaic has barriers."""
    b = jax.ShapeDtypeStruct((4, steps, 256), jnp.bfloat16)
    a = jax.ShapeDtypeStruct(decay, jnp.float32)
    with mesh_context(mesh_of("NVIDIA H100 80GB HBM3", "gpu")):
        traced = jax.jit(lambda a, b: linear_scan(a, b)).trace(a, b)
        assert "mosaic_gpu" in traced.lower(lowering_platforms=("cuda",)).as_text()


def test_no_axis_of_a_mesh_can_have_the_name_of_one_of_a_kernel():
    """Within `shard_map` it would hide the one of the kernel, without an error."""
    pattern = r"""(?:axis_index\(|_names?=\(?|\b(?:AXIS|MEMBER|WARPGROUP|GRID) = \(?)(["'].*["'])"""
    names = set[str]()
    for file in Path(rnnscale_kernels.__path__[0]).rglob("*.py"):
        for found in re.findall(pattern, file.read_text()):
            names |= set(re.findall(r"[\"'](\w+)[\"']", found))
    names -= {"diagonal_ssm", "diagonal_ssm_wide", "linear_scan", "persistent_rnn"}  # of kernels
    assert len(names) >= 6 and all(name.startswith("rnnscale_") for name in names), names


def mesh_of(device_kind, platform):
    device = AbstractDevice(device_kind=device_kind, num_cores=132, platform=platform)
    return AbstractMesh((1,), ("x",), axis_types=(AxisType.Auto,), abstract_device=device)


@pytest.mark.parametrize(
    ("platform", "mesh", "chosen", "call"),
    [
        ("cpu", None, "chunked", "stablehlo.while"),
        ("cuda", None, "associative", None),
        ("cuda", mesh_of("NVIDIA H100 80GB HBM3", "gpu"), "mosaic_gpu", "mosaic_gpu"),
        ("cuda", mesh_of("NVIDIA L4", "gpu"), "triton", "triton_kernel_call"),
        ("cuda", mesh_of("Tesla V100-SXM2-16GB", "gpu"), "associative", None),
        ("rocm", None, "associative", None),
        ("tpu", None, "mosaic_tpu", "tpu_custom_call"),
        ("tpu", mesh_of("TPU v5 lite", "tpu"), "mosaic_tpu", "tpu_custom_call"),
        ("tpu", mesh_of("TPU v3", "tpu"), "associative", None),
    ],
)
def test_the_device_compiled_for_decides(platform, mesh, chosen, call, caplog):
    if chosen == "triton":
        pytest.importorskip("jax_triton", reason="needs jax-triton: install rnnscale[aot]")
    DISPATCH._logged.clear()
    arguments = jax.ShapeDtypeStruct((4,), "float32"), jax.ShapeDtypeStruct((1, 300, 4), "float32")
    with caplog.at_level("INFO", "rnnscale_kernels"), mesh_context(mesh):
        for _ in range(2):
            run = jax.jit(lambda a, b: linear_scan(a, b))
            text = run.trace(*arguments).lower(lowering_platforms=(platform,)).as_text()
    (line,) = [record.getMessage() for record in caplog.records]
    assert f"runs as {chosen} for" in line
    calls = ("mosaic_gpu", "triton_kernel_call", "tpu_custom_call", "stablehlo.while")
    assert [name for name in calls if name in text] == [call] * (call is not None)


def mesh_context(mesh):
    return contextlib.nullcontext() if mesh is None else use_abstract_mesh(mesh)


def test_one_program_for_several_platforms():
    arguments = jax.ShapeDtypeStruct((4,), "float32"), jax.ShapeDtypeStruct((1, 30, 4), "float32")
    gradient = jax.jit(jax.grad(lambda a, b: jnp.sum(linear_scan(a, b)[0]), (0, 1)))
    exported = jax.export.export(gradient, platforms=("cpu", "cuda", "tpu"))(*arguments)
    a, b = (jnp.full(x.shape, 0.5) for x in arguments)
    jax.tree.map(np.testing.assert_array_equal, exported.call(a, b), gradient(a, b))


b = jnp.zeros((2, 5, 3))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "says"),
    [
        ((jnp.zeros((4,)), b), {}, ValueError, "3 channels"),
        ((jnp.zeros((2, 4, 3)), b), {}, ValueError, "a has shape (2, 4, 3)"),
        ((jnp.zeros((3,), int), b), {}, TypeError, "a must hold floating-point arrays, got int"),
        ((jnp.zeros((3,), complex), b), {}, TypeError, "Planar(x.real, x.imag)"),
        ((Planar(jnp.zeros(3), jnp.zeros(3)), b), {}, TypeError, "a is Planar, b is real"),
        (
            (jnp.zeros((3,)), jnp.zeros((2, 0, 3))),
            {},
            ValueError,
            "must have at least one time step",
        ),
        ((jnp.zeros((3,)), b, jnp.zeros((2, 4))), {}, ValueError, "h0 has shape (2, 4)"),
        ((jnp.zeros((3,)), b), {"reset": jnp.zeros((2, 5))}, TypeError, "reset must be boolean"),
        ((jnp.zeros((3,)), b), {"reset": jnp.zeros((5,), bool)}, ValueError, "reset has shape"),
        ((jnp.zeros((3,)), b), {"implementation": "fast"}, ValueError, "sequential"),
        *(
            ((jnp.zeros((3,)), b), {"implementation": name}, NotImplementedError, says)
            for name, says in (
                ("mosaic_gpu", "it is for NVIDIA GPUs. Usable there: sequential, chunked"),
                ("triton", "it is for NVIDIA GPUs"),
                ("mosaic_tpu", "it is for TPUs"),
            )
        ),
    ],
)
def test_bad_input(arguments, options, error, says):
    with pytest.raises(error) as caught:
        linear_scan(*arguments, **options)
    assert says in str(caught.value)


@every_kernel
def test_a_kernel_refuses_what_it_cannot_compute(implementation):
    with jax.enable_x64(True):
        arguments = jnp.ones((3,), "float64"), jnp.ones((2, 5, 3), "float64")
        with pytest.raises(NotImplementedError) as caught:
            linear_scan(*arguments, implementation=implementation)
    assert "float64" in str(caught.value)
    assert "Usable there: sequential, chunked, associative, or None" in str(caught.value)


@every_implementation
def test_the_gradient_stops_an_infinite_cotangent_at_a_reset(implementation):
    reset = jnp.zeros((1, 6), bool).at[:, 3].set(True)
    g = jnp.ones((1, 6, 1)).at[:, 3].set(jnp.inf)
    a, b = jnp.full((1, 6, 1), 0.5), jnp.ones((1, 6, 1))
    _, pull = jax.vjp(lambda a: linear_scan(a, b, reset=reset, implementation=implementation)[0], a)
    np.testing.assert_allclose(pull(g)[0].ravel(), [0, 1.5, 1.5, 0, 1.5, 1.5], rtol=1e-6)


@every_kernel
def test_kernels_in_a_program_of_double_precision(implementation):
    a, b = jnp.full((1, 5, 2), 0.5, "float32"), jnp.ones((1, 5, 2), "float32")
    reset = jnp.zeros((1, 5), bool).at[:, 2].set(True)

    def gradient(implementation):
        scan = partial(linear_scan, reset=reset, implementation=implementation)
        return jax.grad(lambda a: jnp.sum(scan(a, b)[0]))(a)

    expected = gradient("sequential")
    with jax.enable_x64(True):
        np.testing.assert_allclose(gradient(implementation), expected, rtol=1e-6)


@pytest.mark.parametrize("spec", [P(), P("x"), P(None, None, "x")], ids=str)
@every_xla_form
def test_a_mesh_of_explicit_axes(implementation, spec):
    a, b = jnp.full((8,), 0.5), jnp.arange(4 * 9 * 8.0).reshape(4, 9, 8)

    def value_and_gradient(b):
        scan = partial(linear_scan, implementation=implementation)
        return jax.value_and_grad(lambda a: jnp.sum(scan(a, b)[0] ** 2))(a)

    expected = value_and_gradient(b)
    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        got = value_and_gradient(jax.device_put(b, NamedSharding(mesh, spec)))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), got, expected)


@pytest.mark.parametrize("shape", [(0, 300, 8), (2, 300, 0)])
@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_nothing_to_compute(platform, shape):
    mesh = {
        "cpu": None,
        "cuda": mesh_of("NVIDIA H100 80GB HBM3", "gpu"),
        "tpu": mesh_of("TPU v5 lite", "tpu"),
    }[platform]
    arguments = jax.ShapeDtypeStruct(shape[-1:], "float32"), jax.ShapeDtypeStruct(shape, "float32")
    with mesh_context(mesh):
        traced = jax.jit(lambda a, b: linear_scan(a, b)).trace(*arguments)
        assert "custom_call" not in traced.lower(lowering_platforms=(platform,)).as_text()
    h, _ = linear_scan(*(jnp.zeros(x.shape) for x in arguments))
    assert h.shape == shape
