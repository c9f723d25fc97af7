"""What the compilers of devices that are not here make of the kernels, and of whole layers."""

import importlib.util
from functools import partial

import equinox as eqx
import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rnnscale import sharding, ssm
from rnnscale_kernels import Planar, diagonal_ssm, linear_scan
from rnnscale_kernels.linear_scan import DISPATCH as SCAN
from rnnscale_kernels.testing import (
    BASELINES,
    SCAN_ARGUMENTS,
    Program,
    ScanArguments,
    compile_for,
    minimal_bytes,
    missing,
    shared_memory_limit,
    target_devices,
)

ORDINARY = [
    ScanArguments((8,), time=4096, channels=1024, **options)
    for options in ({}, {"dtype": "bfloat16"}, {"planar": True}, {"planar": True, "varying": False})
]


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


MOSAIC = [("mosaic_gpu", "h100"), ("mosaic_tpu", "v5e"), slow("mosaic_tpu", "v6e")]
# What a kernel may take of the vector memory of a TPU core, unless it asks for more.
VMEM_LIMIT = 16 << 20


def skip_unless_compilable(target: str, implementation: str | None = None) -> None:
    reason = missing(target)
    if implementation == "triton" and importlib.util.find_spec("jax_triton") is None:
        reason = "needs jax-triton: install rnnscale[aot]"
    if reason is not None:
        pytest.skip(reason)


def structs(spec: ScanArguments):
    """(a, b, h0, reset, g, g_last)."""

    def number(*shape, dtype=spec.dtype):
        plane = jax.ShapeDtypeStruct(shape, dtype)
        return Planar(plane, plane) if spec.planar else plane

    steps = number(*spec.batch, spec.time, spec.channels)
    ends = number(*spec.batch, spec.channels, dtype="float32")
    decay = number(*(1 for _ in spec.batch), 1, spec.channels, dtype="float32")
    reset = jax.ShapeDtypeStruct((*spec.batch, spec.time), bool)
    return (
        steps if spec.varying else decay,
        steps,
        ends if spec.h0 else None,
        reset if spec.reset else None,
        steps,
        ends,
    )


def size(tree) -> int:
    """Bytes of all arrays."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def compile_scan(spec: ScanArguments, mode: str, implementation: str, target: str):
    """The program of the forward pass, or of the results together with all gradients."""

    def forward(a, b, h0, reset):
        return linear_scan(
            a, b, h0, reverse=spec.reverse, reset=reset, implementation=implementation
        )

    def gradient(a, b, h0, reset, g, g_last):
        results, pull = jax.vjp(lambda a, b, h0: forward(a, b, h0, reset), a, b, h0)
        return results, pull((g, g_last))

    if mode == "forward":
        return compile_for(forward, *structs(spec)[:4], target=target)
    return compile_for(gradient, *structs(spec), target=target)


def check_kernels(program: Program, implementation: str, target: str, least: int) -> None:
    """The program has at least so many kernels of the implementation, and they fit the device."""
    calls = [call for call in program.calls if call.target == implementation]
    assert len(calls) >= least, program.calls
    if implementation == "mosaic_tpu":
        assert all(0 < call.vmem <= VMEM_LIMIT for call in calls), calls
        return
    # Calls of the same kernel may share it.
    assert program.kernels
    for kernel in program.kernels:
        assert kernel.spills == 0, kernel
        assert kernel.shared_memory <= shared_memory_limit(target), kernel


@pytest.mark.parametrize("implementation, target", [*MOSAIC, slow("triton", "h100")])
@pytest.mark.parametrize("spec", SCAN_ARGUMENTS, ids=str)
def test_kernel_compiles(spec, implementation, target):
    skip_unless_compilable(target, implementation)
    program = compile_scan(spec, "gradient", implementation, target)
    check_kernels(program, implementation, target, least=2)


@pytest.mark.parametrize(
    "implementation, target", [*MOSAIC, ("triton", "h100"), slow("triton", "a100")]
)
@pytest.mark.parametrize("mode", ["forward", "gradient"])
@pytest.mark.parametrize("spec", ORDINARY, ids=str)
def test_kernel_moves_the_fewest_bytes(spec, mode, implementation, target):
    skip_unless_compilable(target, implementation)
    program = compile_scan(spec, mode, implementation, target)
    check_kernels(program, implementation, target, least=1 if mode == "forward" else 2)
    sequence = size(structs(spec)[1])
    assert program.temporaries <= sequence / 100
    # XLA moves whole arrays between a TPU's memories as it sees fit.
    if implementation != "mosaic_tpu":
        assert program.bytes_accessed() <= 1.01 * minimal_bytes(spec, mode)


def test_fallback_moves_a_quarter_of_the_bytes_of_autodiff():
    skip_unless_compilable("h100")
    spec = ORDINARY[0]
    a, b, h0, _, g, g_last = structs(spec)

    def autodiff(a, b, h0, g, g_last):
        results, pull = jax.vjp(BASELINES["associative_scan"], a, b, h0)
        return results, pull((g, g_last))

    ours = compile_scan(spec, "gradient", "associative", "h100").bytes_accessed()
    textbook = compile_for(autodiff, a, b, h0, g, g_last, target="h100").bytes_accessed()
    # 23 and 100 times the bytes of b.
    assert ours <= textbook / 4


LAYERS = [ssm.LRU, slow(ssm.S5)]


def compile_layer(layer_type, target: str) -> Program:
    """The program of all gradients of a layer of 256 features and states, on 8 x 4096 steps."""

    def gradient(layer, xs, g):
        _, pull = jax.vjp(lambda layer, xs: layer(xs)[1], layer, xs)
        return pull(g)

    layer = eqx.filter_eval_shape(lambda: layer_type(256, 256, key=jax.random.key(0)))
    xs = jax.ShapeDtypeStruct((8, 4096, 256), "float32")
    return compile_for(gradient, layer, xs, xs, target=target)


@pytest.mark.parametrize("layer_type", LAYERS)
def test_layer_on_gpu_moves_the_fewest_bytes(layer_type, monkeypatch):
    skip_unless_compilable("h100")
    default = compile_layer(layer_type, "h100")
    unfused = partial(sharding.diagonal_ssm, implementation="unfused")
    monkeypatch.setattr(sharding, "diagonal_ssm", unfused)
    with_kernels = compile_layer(layer_type, "h100")
    monkeypatch.setitem(SCAN.order, "cuda", ("associative",))
    xla_alone = compile_layer(layer_type, "h100")
    check_kernels(default, "mosaic_gpu", "h100", least=2)
    check_kernels(with_kernels, "mosaic_gpu", "h100", least=2)
    assert not xla_alone.calls
    # LRU: 45 and 68 times the bytes of the input, S5: 30 and 41.
    assert with_kernels.bytes_accessed() <= xla_alone.bytes_accessed() / 1.3
    assert default.bytes_accessed() <= with_kernels.bytes_accessed()


@pytest.mark.parametrize("layer_type", LAYERS)
def test_layer_on_tpu_has_the_kernels(layer_type):
    skip_unless_compilable("v5e")
    check_kernels(compile_layer(layer_type, "v5e"), "mosaic_tpu", "v5e", least=2)


def compile_ssm(width: int, mode: str, implementation: str | None) -> Program:
    """`diagonal_ssm` on 8 x 4096 steps of `width` features and states, in bfloat16."""

    def number(*shape, dtype="bfloat16"):
        plane = jax.ShapeDtypeStruct(shape, dtype)
        return Planar(plane, plane)

    decay, matrix = number(width, dtype="float32"), number(width, width)
    u = jax.ShapeDtypeStruct((8, 4096, width), "bfloat16")

    def forward(u, decay, b, c):
        return diagonal_ssm(u, decay, b, c, implementation=implementation)[0]

    def gradient(u, decay, b, c, g):
        return jax.vjp(forward, u, decay, b, c)[1](g)

    if mode == "forward":
        return compile_for(forward, u, decay, matrix, matrix, target="h100")
    return compile_for(gradient, u, decay, matrix, matrix, u, target="h100")


@pytest.mark.parametrize("mode", ["forward", "gradient"])
@pytest.mark.parametrize("width", [64, 128])
def test_fused_ssm_keeps_its_states_on_chip(width, mode):
    skip_unless_compilable("h100")
    fused, unfused = (compile_ssm(width, mode, name) for name in (None, "unfused"))
    check_kernels(fused, "mosaic_gpu", "h100", least=2 if mode == "forward" else 4)
    states = 8 * 4096 * width * 8
    assert fused.temporaries <= states / 4
    # 14 and 6.5 times fewer.
    fewer = 12 if mode == "forward" else 6
    assert fused.bytes_accessed() <= unfused.bytes_accessed() / fewer


@pytest.mark.parametrize(
    ("target", "implementation"),
    [("h100:4", "mosaic_gpu"), ("a100:4", "triton"), ("v6e:2x2", "mosaic_tpu")],
)
def test_the_kernel_is_the_default_also_inside_shard_map(target, implementation):
    skip_unless_compilable(target, implementation)
    mesh = Mesh(np.array(target_devices(target)), ("rows",))
    whole, rows = PartitionSpec(), PartitionSpec("rows")

    def gradient(a, b):
        scan = jax.shard_map(
            lambda a, b: linear_scan(a, b)[0], mesh=mesh, in_specs=(whole, rows), out_specs=rows
        )
        return jax.grad(lambda a, b: scan(a, b).sum(), (0, 1))(a, b)

    a, b = (
        jax.ShapeDtypeStruct(shape, "float32", sharding=NamedSharding(mesh, spec))
        for shape, spec in (((256,), whole), ((8, 1024, 256), rows))
    )
    program = compile_for(gradient, a, b, target=mesh)
    check_kernels(program, implementation, target, least=1)
    # The one thing that devices tell one another is the gradient of the decay that they share.
    assert program.text.count(" all-reduce(") + program.text.count(" all-reduce-start(") == 1
