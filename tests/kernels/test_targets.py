"""Compiling for absent devices, and reading back what the programs do."""

import os
import re
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rnnscale_kernels._implementations import DISPATCHES
from rnnscale_kernels._target import H100, Target
from rnnscale_kernels.diagonal_ssm._spec import SSMSpec
from rnnscale_kernels.testing import compile_for, missing, shared_memory_limit, target_devices
from rnnscale_kernels.testing._hlo import HLO, _groups

TARGETS = ["a100", "h100", "h200", "b200", "v4", "v5e", "v5p", "v6e"]
X = jax.ShapeDtypeStruct((64, 128), "float32")
BYTES = 64 * 128 * 4


def skip_unless_compilable(target: str) -> None:
    if reason := missing(target):
        pytest.skip(reason)


@pytest.mark.parametrize("target", TARGETS)
def test_program_is_for_the_target(target):
    skip_unless_compilable(target)
    seen = []

    def double(x):
        seen.append(jax.sharding.get_abstract_mesh().abstract_device.device_kind)
        return 2 * x

    program = compile_for(double, X, target=target)
    (device,) = target_devices(target)
    assert set(seen) == {device.device_kind}
    assert program.bytes_accessed() == 2 * BYTES
    assert program.temporaries == 0
    assert program.calls == program.kernels == ()


B200 = Target("cuda", "NVIDIA B200", (10, 0), 148)


def test_kernels_of_hopper_name_the_capability_where_they_refuse_blackwell():
    refused = {}
    for dispatch in DISPATCHES.values():
        for each in dispatch.implementations:
            if each.unavailable(H100) is None and (reason := each.unavailable(B200)):
                refused[dispatch.operation, each.name] = reason
    assert ("diagonal_ssm", "mosaic_gpu") in refused
    assert not any(operation in ("linear_scan", "block_scan") for operation, _ in refused)
    for reason in refused.values():
        assert re.search(r"need.* compute capability 9\.0.* this is 10\.0", reason)


def test_what_runs_on_blackwell_in_place_of_kernels_of_hopper():
    layer = SSMSpec(
        batch=8, time=4096, idim=64, state=64, odim=64, dtype="bfloat16", state_dtype="float32",
        planar=True, cut=False, lengths=False, chunk=4096,
    )  # fmt: skip
    choose = DISPATCHES["diagonal_ssm"].choose
    assert choose(H100, layer, None).name == "mosaic_gpu"
    assert choose(B200, layer, None).name == "unfused"
    with pytest.raises(NotImplementedError, match=r"\(wgmma\) need compute capability 9\.0, this"):
        choose(B200, layer, "mosaic_gpu")


def test_environment_and_devices_stay_as_they_are():
    for target in ("h100", "v5e"):
        skip_unless_compilable(target)
    environment, devices = dict(os.environ), jax.devices()
    for target in ("h100", "v5e", "h100"):
        compile_for(jnp.sin, X, target=target)
    assert dict(os.environ) == environment
    assert jax.devices() == devices and devices[0].platform == "cpu"


@pytest.mark.parametrize("target", ["h100:16", "v5e:4x4"])
def test_many_devices(target):
    skip_unless_compilable(target)
    mesh = Mesh(np.array(target_devices(target)), ("rows",))
    assert mesh.size == 16
    x = jax.ShapeDtypeStruct(X.shape, X.dtype, sharding=NamedSharding(mesh, PartitionSpec("rows")))
    program = compile_for(lambda x: 2 * x, x, target=mesh)
    assert program.bytes_accessed() == 2 * BYTES / 16
    assert "all-reduce" in compile_for(lambda x: x.sum(0), x, target=mesh).text


def test_loop_of_unknown_length_is_not_counted():
    skip_unless_compilable("h100")
    program = compile_for(
        lambda x: jax.lax.while_loop(lambda x: x.sum() < 1, lambda x: 2 * x, x), X, target="h100"
    )
    with pytest.raises(ValueError, match="how often"):
        program.bytes_accessed()


def test_calls_count_operands_and_results_in_every_turn_of_nested_loops():
    hlo = HLO("""HloModule m

%body (p: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %p = (s32[], f32[8,128]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8,128]{1,0} get-tuple-element(%p), index=1
  %k = (bf16[8,128]{1,0}, pred[16]{0}) custom-call(%x, /*index=1*/%x), custom_call_target="f"
  %y = f32[8,128]{1,0} custom-call(%x), custom_call_target="mosaic_gpu_v2"
  ROOT %t = (s32[], f32[8,128]{1,0}) tuple(%i, %y)
}

%condition (q: (s32[], f32[8,128])) -> pred[] {
  %q = (s32[], f32[8,128]{1,0}) parameter(0)
  ROOT %c = pred[] constant(true)
}

%outer (r: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %r = (s32[], f32[8,128]{1,0}) parameter(0)
  ROOT %v = (s32[], f32[8,128]{1,0}) while(%r), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"5"}}
}

ENTRY %main (a: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %a = (s32[], f32[8,128]{1,0}) parameter(0)
  ROOT %w = (s32[], f32[8,128]{1,0}) while(%a), condition=%condition, body=%outer, \
backend_config={"known_trip_count":{"n":"4"}}
}
""")
    calls = [(call.target, call.bytes_accessed, turns) for call, turns in hlo.calls]
    f, mosaic_gpu, pointers = 4096 + 2048 + 16, 4096 + 4096, 8
    assert calls == [("f", f, 20), ("mosaic_gpu", mosaic_gpu, 20)]
    assert hlo.bytes_accessed() == 20 * (f + mosaic_gpu + pointers)


@pytest.fixture(scope="module", params=["cpu:8", "h100:8", "v5e:2x4"])
def program_with_collectives(request):
    """A program on 8 devices whose collectives are known."""
    skip_unless_compilable(request.param)
    axes = ("data", "tensor", "seq")
    mesh = Mesh(np.array(target_devices(request.param)).reshape(2, 2, 2), axes)

    def step(x, _):
        gathered = jax.lax.all_gather(x, "seq")
        total = jax.lax.psum(gathered, ("data", "seq"))
        return jnp.sin(x + total.sum(0)), jax.lax.ppermute(x, "seq", [(0, 1)])

    def outer(x, _):
        x, passed = jax.lax.scan(step, x, None, length=5)
        return jnp.cos(x), passed

    def exchange(x):
        x, passed = jax.lax.scan(outer, x, None, length=3)
        there = jax.lax.ppermute(x, "data", [(0, 1), (1, 0)])
        part = jax.lax.all_to_all(x, "data", 0, 1, tiled=True)
        largest = jax.lax.pmax(x.sum(), axes)
        return [jnp.atleast_1d(each) for each in (x, passed, there, part, largest)]

    split = PartitionSpec(axes)
    function = jax.shard_map(exchange, in_specs=PartitionSpec(), out_specs=split, check_vma=False)
    return compile_for(function, jax.ShapeDtypeStruct((16, 64), "float32"), target=mesh)


def test_collectives_have_axes_bytes_and_turns(program_with_collectives):
    size = 16 * 64 * 4
    found = {
        (each.kind, each.axes, each.devices, each.bytes, each.turns)
        for each in program_with_collectives.collectives
    }
    assert found == {
        ("all-gather", ("seq",), 2, 2 * size, 15),
        ("all-reduce", ("data", "seq"), 4, 2 * size, 15),
        ("collective-permute", ("seq",), 2, size, 15),
        ("collective-permute", ("data",), 2, size, 1),
        ("all-to-all", ("data",), 2, size, 1),
        ("all-reduce", ("data", "tensor", "seq"), 8, 4, 1),
    }
    assert len(program_with_collectives.collectives) == len(found)


def test_collectives_know_the_loops_around_them(program_with_collectives):
    for each in program_with_collectives.collectives:
        if each.turns == 1:
            assert each.loops == ()
        else:
            outer, inner = each.loops
            assert outer.endswith("shard_map/while")
            assert inner.startswith(outer) and inner.endswith("while/body/eval_jaxpr/while")


GROUPS = {
    "{{0,1},{2,3}}": [[0, 1], [2, 3]],
    "[2,2]<=[4]": [[0, 1], [2, 3]],
    "[2,4]<=[4,2]T(1,0)": [[0, 2, 4, 6], [1, 3, 5, 7]],
    "mesh['x'=2,'y'=4] {'y'}": [[0, 1, 2, 3], [4, 5, 6, 7]],
    "mesh['x'=2,'y'=2,'z'=2] {'x','z'}": [[0, 1, 4, 5], [2, 3, 6, 7]],
    "mesh['x'=8] {'x':(2)2}": [[0, 2], [1, 3], [4, 6], [5, 7]],
    "mesh['x'=2,'y'=2], device_ids=(0,2,1,3) {'y'}": [[0, 2], [1, 3]],
    "mesh['x'=2,'y'=2], device_ids=([2,2]T(1,0)) {'y'}": [[0, 2], [1, 3]],
}


@pytest.mark.parametrize("text", GROUPS)
def test_groups_in_every_syntax(text):
    line = f"  %y = f32[8]{{0}} all-reduce(%x), replica_groups={text}, to_apply=%add"
    assert _groups(line).tolist() == GROUPS[text]


def test_unknown_syntax_of_groups_is_an_error():
    with pytest.raises(ValueError, match="unknown syntax"):
        _groups("  %y = f32[8]{0} all-reduce(%x), replica_groups=all, to_apply=%add")


def test_a_collective_that_several_fusions_continue_counts_once():
    gather = (
        "f32[8]{0} all-gather(%p), replica_groups=[1,2]<=[2], dimensions={0}, "
        'frontend_attributes={chain_id="0"}'
    )
    hlo = HLO(f"""HloModule m

%start (p: f32[4]) -> (f32[4], f32[8]) {{
  %p = f32[4]{{0}} parameter(0)
  %g = {gather}
  ROOT %s = (f32[4]{{0}}, f32[8]{{0}}) custom-call(%g), custom_call_target="AsyncCollectiveStart"
}}

%work (p: f32[4]) -> f32[8] {{
  %p = f32[4]{{0}} parameter(0)
  ROOT %g = {gather}
}}

%done (p: f32[4]) -> f32[8] {{
  %p = f32[4]{{0}} parameter(0)
  %g = {gather}
  ROOT %d = f32[8]{{0}} custom-call(%p, %g), custom_call_target="AsyncCollectiveDone"
}}

ENTRY %main (a: f32[4]) -> f32[8] {{
  %a = f32[4]{{0}} parameter(0)
  %s = (f32[4]{{0}}, f32[8]{{0}}) fusion(%a), kind=kCustom, calls=%start
  %w = f32[8]{{0}} fusion(%a), kind=kOutput, calls=%work
  ROOT %d = f32[8]{{0}} fusion(%a), kind=kCustom, calls=%done
}}
""")
    (found,) = hlo.collectives({"data": 2})
    assert (found.kind, found.axes, found.bytes, found.turns) == ("all-gather", ("data",), 32, 1)
    assert hlo.calls == []


@pytest.mark.parametrize("target", ["cpu:1", "h100", "v5e"])
def test_a_jitted_function_donates_what_it_donates(target):
    skip_unless_compilable(target)

    def add(x, y):
        return x + y

    def aliased(function):
        program = compile_for(function, X, X, target=target)
        memory: Any = program.compiled.memory_analysis()
        return memory.alias_size_in_bytes

    assert aliased(jax.jit(add, donate_argnums=1)) == BYTES
    assert aliased(jax.jit(add)) == aliased(add) == 0


def test_loop_counts_as_often_as_it_runs():
    skip_unless_compilable("h100")

    def count(turns):
        def repeat(x):
            return jax.lax.fori_loop(0, turns, lambda i, x: jnp.sin(x) + i, x)

        return compile_for(repeat, X, target="h100").bytes_accessed()

    # A turn reads and writes the array, and a few counters.
    assert (count(30) - count(20)) / 10 == pytest.approx(2 * BYTES, rel=0.01)


@pytest.mark.parametrize("target", ["cpu:", "h100:0", "h100:2x4", "v5e:16", "v5p:4x4", "v5e:4x"])
def test_target_of_an_impossible_shape_is_an_error(target):
    for function in (missing, target_devices):
        with pytest.raises(ValueError, match="write it like"):
            function(target)


def test_too_many_devices_are_an_error():
    with pytest.raises(RuntimeError, match="JAX_NUM_CPU_DEVICES=1000"):
        target_devices("cpu:1000")
    skip_unless_compilable("h100")
    with pytest.raises(ValueError, match="multiple of 8"):
        target_devices("h100:9")
    skip_unless_compilable("v5e")
    with pytest.raises(ValueError, match="no such slice"):
        target_devices("v5e:3x5")


@pytest.mark.parametrize("target", ["h101", "", "v5e4x4"])
def test_unknown_target_is_an_error(target):
    for function in (missing, target_devices, shared_memory_limit):
        with pytest.raises(ValueError, match="target must be one of"):
            function(target)


def test_missing_names_the_extra():
    # The message must not need anything but the standard library, jax and numpy.
    code = """
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if "cuda" in name or name == "libtpu" else found(name)
from rnnscale_kernels.testing import missing, target_devices
for target in ("h100", "v6e"):
    assert missing(target).endswith("install rnnscale[aot]"), missing(target)
    try:
        target_devices(target)
    except RuntimeError as error:
        assert "rnnscale[aot]" in str(error)
    else:
        raise AssertionError
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
