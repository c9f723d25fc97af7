"""Compiling for devices that are not here, and reading programs back."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rnnscale_kernels.testing import compile_for, missing, shared_memory_limit, target_devices
from rnnscale_kernels.testing._targets import _HLO

TARGETS = ["a100", "h100", "h200", "v4", "v5e", "v5p", "v6e"]
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
    hlo = _HLO("""HloModule m

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


def test_loop_counts_as_often_as_it_runs():
    skip_unless_compilable("h100")

    def count(turns):
        def repeat(x):
            return jax.lax.fori_loop(0, turns, lambda i, x: jnp.sin(x) + i, x)

        return compile_for(repeat, X, target="h100").bytes_accessed()

    # Besides what a turn reads and writes there are a few counters.
    assert (count(30) - count(20)) / 10 == pytest.approx(2 * BYTES, rel=0.01)


@pytest.mark.parametrize("target", ["h101", "", "v5e4x4"])
def test_unknown_target_is_an_error(target):
    for function in (missing, target_devices, shared_memory_limit):
        with pytest.raises(ValueError, match="target must be one of"):
            function(target)


def test_missing_names_the_extra():
    # Nothing but the standard library, jax and numpy.
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
