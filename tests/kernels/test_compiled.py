"""Kernels and layers compiled for absent devices: what their programs move, hold and spill.

Every compile takes seconds, so each program is compiled once, and one test reads all that is to be
read from it.
"""

import importlib.util
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rnnscale import sharding, ssm
from rnnscale.cells import ElmanRNNCell, GatedRecurrentUnitCell, LongShortTermMemoryCell, time_loop
from rnnscale.sharding import make_mesh
from rnnscale_kernels import Planar, diagonal_ssm, linear_scan
from rnnscale_kernels.testing import (
    SCAN_ARGUMENTS,
    BlockArguments,
    Program,
    ScanArguments,
    compile_for,
    missing,
    shared_memory_limit,
    target_devices,
)


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


_SPEC = ScanArguments((8,), time=4096, channels=1024)
ORDINARY = [
    _SPEC,
    replace(_SPEC, dtype="bfloat16"),
    replace(_SPEC, planar=True),
    replace(_SPEC, planar=True, varying=False),
]


# Rows and channels that do not fill a GPU.
_LONG = ScanArguments((1,), time=131072, channels=256)
FEW_ROWS = [
    _LONG,
    slow(replace(_LONG, dtype="bfloat16", varying=False)),
    slow(replace(_LONG, time=65536, planar=True)),
    slow(replace(_LONG, time=65536, planar=True, varying=False)),
    slow(ScanArguments((1,), time=4096, channels=1024)),
    replace(_SPEC, batch=(5,), dtype="bfloat16"),
    slow(replace(_SPEC, batch=(5,))),
]


# What `ORDINARY` does not cover: resets, the other direction, blocks of channels that are not full.
SPECIAL = [spec for spec in SCAN_ARGUMENTS if spec.reset or spec.reverse or spec.channels > 128]


# What a kernel may take of the vector memory of a TPU core, unless it asks for more.
VMEM_LIMIT = 16 << 20


def skip_unless_compilable(target: str, implementation: str | None = None) -> None:
    reason = missing(target)
    if implementation == "triton" and importlib.util.find_spec("jax_triton") is None:
        reason = "needs jax-triton: install rnnscale[aot]"
    if reason is not None:
        pytest.skip(reason)


def structs(spec: ScanArguments) -> dict[str, Any]:
    """The arguments of a call and the cotangents of its results, as `ShapeDtypeStruct`s."""

    def number(*shape: int, dtype: str = spec.dtype) -> Any:
        plane: Any = jax.ShapeDtypeStruct(shape, dtype)
        return Planar(plane, plane) if spec.planar else plane

    steps = number(*spec.batch, spec.time, spec.channels)
    ends = number(*spec.batch, spec.channels, dtype="float32")
    decay = number(*(1 for _ in spec.batch), 1, spec.channels, dtype="float32")
    reset = jax.ShapeDtypeStruct((*spec.batch, spec.time), bool)
    return {
        "a": steps if spec.varying else decay,
        "b": steps,
        "h0": ends if spec.h0 else None,
        "reset": reset if spec.reset else None,
        "g": steps,
        "g_last": ends,
    }


def compile_scan(spec: ScanArguments, implementation: str, target: str) -> Program:
    """The program of the results together with all gradients."""

    def gradient(a, b, h0, reset, g, g_last):
        def scan(a, b, h0):
            return linear_scan(
                a, b, h0, reverse=spec.reverse, reset=reset, implementation=implementation
            )

        results, pull = jax.vjp(scan, a, b, h0)
        return results, pull((g, g_last))

    return compile_for(gradient, *structs(spec).values(), target=target)


def check_kernels(
    program: Program, implementation: str, target: str, least: int, vmem: int = VMEM_LIMIT
) -> None:
    """The program has at least `least` kernels of the implementation, and they fit the device."""
    calls = [call for call in program.calls if call.target == implementation]
    assert len(calls) >= least, program.calls
    if implementation == "mosaic_tpu":
        assert all(0 < (call.vmem or 0) <= vmem for call in calls), calls
        return
    # Calls of the same kernel may share it.
    assert program.kernels
    for kernel in program.kernels:
        assert kernel.spills == 0, kernel
        assert kernel.shared_memory <= shared_memory_limit(target), kernel


@pytest.mark.parametrize(
    "implementation, target",
    [("mosaic_gpu", "h100"), ("mosaic_tpu", "v5e"), slow("triton", "h100")],
)
@pytest.mark.parametrize("spec", SPECIAL, ids=str)
def test_kernel_compiles(spec: ScanArguments, implementation: str, target: str):
    skip_unless_compilable(target, implementation)
    program = compile_scan(spec, implementation, target)
    check_kernels(program, implementation, target, least=2)


# The forward pass is in the program of the gradient: if all of it moves the fewest bytes, both
# passes do.
@pytest.mark.parametrize(
    "implementation, target",
    [
        ("mosaic_gpu", "h100"),
        ("mosaic_tpu", "v5e"),
        slow("mosaic_tpu", "v6e"),
        ("triton", "h100"),
    ],
)
@pytest.mark.parametrize("spec", ORDINARY, ids=str)
def test_kernel_moves_the_fewest_bytes(spec: ScanArguments, implementation: str, target: str):
    skip_unless_compilable(target, implementation)
    program = compile_scan(spec, implementation, target)
    check_kernels(program, implementation, target, least=2)
    sequence = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(structs(spec)["b"]))
    assert program.temporaries <= sequence / 100
    # XLA moves arrays between a TPU's memories as it sees fit.
    if implementation != "mosaic_tpu":
        assert program.bytes_accessed() <= 1.01 * spec.minimal_bytes("gradient")


@pytest.mark.parametrize("spec", FEW_ROWS, ids=str)
def test_kernel_that_splits_time_reads_its_inputs_once(spec: ScanArguments):
    skip_unless_compilable("h100")
    program = compile_scan(spec, "mosaic_gpu", "h100")
    check_kernels(program, "mosaic_gpu", "h100", least=2)
    assert len(program.calls) == 2
    assert program.bytes_accessed() <= 1.03 * spec.minimal_bytes("gradient")


# By Little's law: bandwidth times 0.7 microseconds.
IN_FLIGHT = {"a100": 1.43e6, "h100": 2.35e6}


@pytest.mark.slow
@pytest.mark.parametrize("target", IN_FLIGHT)
def test_triton_has_enough_bytes_on_their_way(target):
    skip_unless_compilable(target, "triton")
    program = compile_scan(replace(_SPEC, dtype="bfloat16"), "triton", target)
    check_kernels(program, "triton", target, least=2)
    for kernel in program.kernels:
        assert kernel.blocks * kernel.shared_memory >= IN_FLIGHT[target], kernel


@pytest.mark.slow
def test_kernels_fit_a_newer_gpu():
    skip_unless_compilable("b200")
    # In a process of its own, since jaxlib assembles kernels for one architecture in each.
    code = """
import test_compiled as tests

program = tests.compile_scan(tests._SPEC, "mosaic_gpu", "b200")
tests.check_kernels(program, "mosaic_gpu", "b200", least=2)
assert program.bytes_accessed() <= 1.01 * tests._SPEC.minimal_bytes("gradient")
with tests.pytest.raises(RuntimeError, match="for NVIDIA B200, .* H100 .* in a process of its own"):
    tests.compile_scan(tests._SPEC, "mosaic_gpu", "h100")
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)


@pytest.mark.parametrize(
    ("spec", "implementation", "target"),
    [
        (BlockArguments((8,), 4096, 1024, 2, dtype="bfloat16"), "mosaic_gpu", "h100"),
        slow(BlockArguments((8,), 4096, 1024, 4), "mosaic_gpu", "h100"),
        (BlockArguments((8,), 4096, 1024, 4), "mosaic_tpu", "v5e"),
        (BlockArguments((8,), 4096, 1024, 4, varying=False), "mosaic_tpu", "v5e"),
    ],
    ids=str,
)
def test_kernel_of_blocks_moves_the_fewest_bytes(spec, implementation, target):
    skip_unless_compilable(target)
    start, inputs = spec.structs()
    run = partial(spec.run, implementation=implementation)
    g, _ = jax.eval_shape(run, start, inputs)
    program = compile_for(spec.call("gradient", run), start, inputs, g, target=target)
    check_kernels(program, implementation, target, least=2)
    # XLA moves arrays between a TPU's memories as it sees fit, so these are the kernels' own.
    moved = sum(call.bytes_accessed for call in program.calls if call.target == implementation)
    assert moved <= 1.01 * spec.minimal_bytes("gradient")


def test_fallback_moves_a_quarter_of_the_bytes_of_autodiff():
    skip_unless_compilable("h100")
    moved = compile_scan(_SPEC, "associative", "h100").bytes_accessed()
    # Differentiated by JAX, `lax.associative_scan` moves 100 times the bytes of b; ours 23 times.
    assert moved <= 25 * 8 * 4096 * 1024 * 4


def test_totals_are_computed_once_where_devices_split_time():
    skip_unless_compilable("h100")
    mesh = make_mesh(seq=8, devices=target_devices("h100:8"))
    steps, states = (1, 65536, 256), (1, 256)
    layout = NamedSharding(mesh, PartitionSpec(None, "seq"))
    sequence = jax.ShapeDtypeStruct(steps, "float32", sharding=layout)
    state = jax.ShapeDtypeStruct(states, "float32")

    def gradient(a, b, h0, g, g_last):
        results, pull = jax.vjp(sharding.linear_scan, a, b, h0)
        return results, pull((g, g_last))

    program = compile_for(gradient, sequence, sequence, state, sequence, state, target=mesh)
    check_kernels(program, "mosaic_gpu", "h100", least=4)
    names = sorted(kernel.name.split("_mosaic")[0] for kernel in program.kernels)
    passes = ["backward", "backward_totals", "forward", "forward_totals"]
    assert names == [f"linear_scan_{each}" for each in passes]
    # The totals read two arrays in each direction; the passes themselves read or write 3 and 5.
    assert program.bytes_accessed() <= 1.03 * (2 + 3 + 2 + 5) * np.prod(steps) * 4 / 8


def compile_layer(layer_type, target: str) -> Program:
    """The program of all gradients of a layer with 256 features and states, for 8 x 4096 steps."""

    def gradient(layer, xs, g):
        _, pull = jax.vjp(lambda layer, xs: layer(xs)[1], layer, xs)
        return pull(g)

    layer = eqx.filter_eval_shape(lambda: layer_type(256, 256, key=jax.random.key(0)))
    xs = jax.ShapeDtypeStruct((8, 4096, 256), "float32")
    return compile_for(gradient, layer, xs, xs, target=target)


# XLA alone moves 68 and 41 times the bytes of the input, the kernels 45 and 30 times.
@pytest.mark.parametrize(("layer_type", "most"), [(ssm.LRU, 52), slow(ssm.S5, 31.5)])
def test_layer_on_gpu_moves_fewer_bytes_than_xla_alone(layer_type: type, most: float):
    skip_unless_compilable("h100")
    program = compile_layer(layer_type, "h100")
    check_kernels(program, "mosaic_gpu", "h100", least=2)
    assert program.bytes_accessed() <= most * 8 * 4096 * 256 * 4


@pytest.mark.parametrize("layer_type", [ssm.LRU, slow(ssm.S5)])
def test_layer_on_tpu_has_the_kernels(layer_type: type):
    skip_unless_compilable("v5e")
    program = compile_layer(layer_type, "v5e")
    # The fused kernel asks for more vector memory.
    check_kernels(program, "mosaic_tpu", "v5e", least=2, vmem=3 * VMEM_LIMIT)


def compile_ssm(
    width: int, mode: str, target: str, time: int = 4096, implementation: str | None = None
) -> Program:
    """The program of `diagonal_ssm` with `width` features and states, for 8 rows in bfloat16."""

    def number(*shape, dtype="bfloat16"):
        plane: Any = jax.ShapeDtypeStruct(shape, dtype)
        return Planar(plane, plane)

    decay, matrix = number(width, dtype="float32"), number(width, width)
    u = jax.ShapeDtypeStruct((8, time, width), "bfloat16")

    def forward(u, decay, b, c):
        return diagonal_ssm(u, decay, b, c, implementation=implementation)[0]

    def gradient(u, decay, b, c, g):
        return jax.vjp(forward, u, decay, b, c)[1](g)

    if mode == "forward":
        return compile_for(forward, u, decay, matrix, matrix, target=target)
    return compile_for(gradient, u, decay, matrix, matrix, u, target=target)


# A program takes the states of one segment at width 128, and of two segments at width 64.
@pytest.mark.parametrize(
    ("width", "mode"),
    [(64, "forward"), slow(64, "gradient"), slow(128, "forward"), slow(128, "gradient")],
)
def test_fused_ssm_keeps_its_states_on_chip(width: int, mode: str):
    skip_unless_compilable("h100")
    fused = compile_ssm(width, mode, "h100")
    check_kernels(fused, "mosaic_gpu", "h100", least=2 if mode == "forward" else 4)
    states, sequence = 8 * 4096 * width * 8, 8 * 4096 * width * 2
    assert fused.temporaries <= states / 4
    # The forward pass reads a sequence and writes one, the backward pass reads two and writes one.
    # They move 1.6 and 4.2 times these bytes; without the kernels they would move 23 and 28 times.
    most = 1.9 * 2 * sequence if mode == "forward" else 4.6 * 3 * sequence
    assert fused.bytes_accessed() <= most


# `columns` are counted in the widths of u and y: complex states have two. In the forward pass the
# kernel reads u and writes the states, and a product reads them and writes y. In the backward pass
# the kernel reads g, and later u and the cotangents, and writes states twice; the products for du,
# dB and dC read three each. Beyond that there are the borders and the matrices. Operations on
# states in float32 would add at least 4 to each.
@pytest.mark.parametrize(
    ("width", "mode", "columns"),
    [(512, "forward", 6), slow(256, "gradient", 20), slow(1024, "gradient", 20)],
)
def test_wide_ssm_moves_its_states_in_16_bits(width: int, mode: str, columns: int):
    skip_unless_compilable("h100")
    wide = compile_ssm(width, mode, "h100", time=16384)
    check_kernels(wide, "mosaic_gpu", "h100", least=1 if mode == "forward" else 3)
    assert all(kernel.registers * kernel.threads <= 65536 for kernel in wide.kernels)
    sequence = 8 * 16384 * width * 2
    assert wide.bytes_accessed() <= 1.05 * columns * sequence
    assert wide.temporaries <= (2.1 if mode == "forward" else 4.2) * sequence


# The gradient's program has the forward kernel, which writes the borders only.
@pytest.mark.parametrize(("width", "vmem"), [(256, 20), slow(512, 25), slow(1024, 64)])
def test_fused_ssm_on_tpu_moves_its_sequences_once(width: int, vmem: int):
    skip_unless_compilable("v5e")
    fused = compile_ssm(width, "gradient", "v5e", time=16384)
    check_kernels(fused, "mosaic_tpu", "v5e", least=2, vmem=vmem << 20)
    sequence = 8 * 16384 * width * 2
    assert fused.temporaries <= 1.2 * sequence  # y, which the gradient does not need
    # u is read and y is written, then u and g are read and du is written. The rest are borders, and
    # the matrices, their gradients and what prepares them.
    assert fused.bytes_accessed() <= 1.25 * 5 * sequence


# In bytes of u: the forward pass reads u and writes y, and moves the states of 16 bits, 2 of these,
# through memory as drive and as states. On an H100 it reads the drive twice, since time is split.
@pytest.mark.parametrize(
    ("target", "mode", "most"),
    [
        ("h100", "forward", 12.1),
        slow("h100", "gradient", 30),
        slow("v5e", "forward", 11.2),
        slow("v5e", "gradient", 29.3),
    ],
)
def test_unfused_ssm_moves_its_states_in_16_bits(target: str, mode: str, most: float):
    skip_unless_compilable(target)
    program = compile_ssm(512, mode, target, time=16384, implementation="unfused")
    assert program.bytes_accessed() <= most * 8 * 16384 * 512 * 2


@pytest.mark.slow
def test_fused_ssm_keeps_its_states_on_chip_where_devices_split_time():
    skip_unless_compilable("h100:8")
    mesh = Mesh(np.array(target_devices("h100:8")), ("seq",))
    width, steps = 64, 8192

    def struct(*shape, dtype="bfloat16", axes=()) -> Any:
        layout = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=layout)

    def number(*shape, dtype="bfloat16"):
        return Planar(*[struct(*shape, dtype=dtype)] * 2)

    u = struct(4, 8 * steps, width, axes=(None, "seq"))
    system = number(width, dtype="float32"), *[number(width, width)] * 2
    program = compile_for(lambda *x: sharding.diagonal_ssm(*x)[0], u, *system, target=mesh)
    # The totals and the pass take two sweeps each. Only the last of them writes a sequence, y.
    check_kernels(program, "mosaic_gpu", "h100:8", least=4)
    states, sequence = 4 * steps * width * 8, 4 * steps * width * 2
    assert program.temporaries <= states / 10
    assert program.bytes_accessed() <= 6.5 * sequence


@pytest.mark.parametrize(
    ("target", "implementation"),
    [("h100:4", "mosaic_gpu"), ("a100:4", "triton"), ("v6e:2x2", "mosaic_tpu")],
)
def test_the_kernel_is_the_default_also_inside_shard_map(target, implementation):
    skip_unless_compilable(target, implementation)
    mesh = Mesh(np.array(target_devices(target)), ("rows",))
    replicated, rows = PartitionSpec(), PartitionSpec("rows")

    def gradient(a, b):
        scan: Any = jax.shard_map(
            lambda a, b: linear_scan(a, b)[0],
            mesh=mesh,
            in_specs=(replicated, rows),
            out_specs=rows,
        )
        return jax.grad(lambda a, b: jnp.sum(scan(a, b)), (0, 1))(a, b)

    a, b = (
        jax.ShapeDtypeStruct(shape, "float32", sharding=NamedSharding(mesh, spec))
        for shape, spec in (((256,), replicated), ((8, 1024, 256), rows))
    )
    program = compile_for(gradient, a, b, target=mesh)
    check_kernels(program, implementation, target, least=1)
    # The only collective sums the gradient of the decay, which the devices share.
    assert program.text.count(" all-reduce(") + program.text.count(" all-reduce-start(") == 1


@pytest.mark.parametrize(
    ("cell_type", "units", "programs", "forward", "backward"),
    [
        # Forward, a kernel reads the drive and writes gates and states. Backward, it reads gates,
        # states and cotangents and writes cotangents of the gates. These are numbers of a unit.
        (LongShortTermMemoryCell, 384, 6, 4 + 4 + 2, 4 + 1 + 1 + 4),
        slow(LongShortTermMemoryCell, 128, 1, 4 + 4 + 2, 4 + 1 + 1 + 4),
        slow(GatedRecurrentUnitCell, 448, 7, 4 + 3 + 1, 4 + 1 + 1 + 4),
        slow(ElmanRNNCell, 640, 5, 1 + 1 + 1, 1 + 0 + 1 + 1),
    ],
)
def test_networks_keep_their_matrix_on_chip(
    cell_type: type, units: int, programs: int, forward: int, backward: int
):
    skip_unless_compilable("h100")
    cell = cell_type(64, units, key=jax.random.key(0))
    arrays, static = eqx.partition(cell, eqx.is_array)

    def gradient(arrays, xs):
        def loss(arrays, xs):
            return jnp.sum(time_loop(eqx.combine(arrays, static), xs)[1].astype("float32"))

        return jax.grad(loss, (0, 1))(arrays, xs)

    xs = jax.ShapeDtypeStruct((64, 256, 64), "bfloat16")
    program = compile_for(gradient, jax.eval_shape(lambda: arrays), xs, target="h100")
    # A cluster takes 16 of the 64 rows.
    assert [kernel.blocks for kernel in program.kernels] == [4 * programs] * 2
    for kernel in program.kernels:
        assert kernel.spills == 0
        assert kernel.shared_memory <= shared_memory_limit("h100")
    moved = [call.bytes_accessed / (64 * 256 * units * 2) for call in program.calls]
    for numbers, least in zip(moved, (forward, backward), strict=True):
        assert least <= numbers <= 1.03 * least
    # No loop is left: the products with the input, and the gradients of all matrices, are of all
    # steps at once.
    assert " while(" not in program.text
