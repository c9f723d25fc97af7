"""The collectives of a train step on a mesh with `seq`, read from the compiled step, for devices of
this machine and for devices that are not here."""

import functools
from collections import Counter

import jax
import pytest

from rnnscale.runs import TrainConfig, set_up
from rnnscale.sharding import make_mesh
from rnnscale.tasks import load_task
from rnnscale_kernels.testing import Program, compile_for, missing, target_devices

DEPTH = 3
FULL_LENGTH = 1 << 20

with_h100 = pytest.mark.skipif(bool(missing("h100")), reason=str(missing("h100")))
with_v5e = pytest.mark.skipif(bool(missing("v5e")), reason=str(missing("v5e")))


@functools.cache
def collectives(target: str, mesh_axes: tuple[tuple[str, int], ...], layer: str, length: int):
    """Those between different devices, by kind, axes, bytes, times, and loops around them."""
    axes = dict(mesh_axes)
    devices = jax.devices() if target == "cpu" else target_devices(target)
    mesh = make_mesh(**axes, devices=devices)
    rows = 2 * axes.get("data", 1)
    config = TrainConfig.for_task(
        "copy", out="", model=layer, seq_len=length, batch_size=rows, dim=32, depth=DEPTH
    )
    setup = set_up(config, load_task("copy", seq_len=length), mesh)
    arguments = setup.abstract_state(), setup.abstract_batch()
    if target == "cpu":
        with jax.set_mesh(mesh):
            program = Program(setup.train_step.lower(*arguments).compile(), mesh)
    else:
        program = compile_for(setup.train_step, *arguments, target=mesh)
    return Counter(
        (each.kind, each.axes, each.bytes, each.turns, len(each.loops))
        for each in program.collectives
        if each.axes
    )


def check(found, batch_axes):
    gathers = Counter({key: n for key, n in found.items() if key[0] == "all-gather"})
    # One forward and one backward, in the loop over depth and in no loop over time.
    assert gathers.total() == 2
    assert all(key[1] == ("seq",) and key[3:] == (DEPTH, 1) for key in gathers)
    # All others are sums of the metrics and of gradients, each of which is summed once.
    sums = found - gathers
    assert {key[0] for key in sums} == {"all-reduce"}
    assert {loops for *_, loops in sums} <= {0, 1}
    assert {axis for _, axes, *_ in sums for axis in axes} == {*batch_axes, "seq"}


CASES = [
    ("cpu", {"seq": 8}, "s5"),
    ("cpu", {"data": 2, "seq": 4}, "lru"),
    pytest.param("h100:8", {"seq": 8}, "lru", marks=[with_h100, pytest.mark.slow]),
    pytest.param("h100:8", {"data": 2, "seq": 4}, "s5", marks=[with_h100, pytest.mark.slow]),
    pytest.param("v5e:16x16", {"data": 16, "seq": 16}, "s5", marks=[with_v5e, pytest.mark.slow]),
]


@pytest.mark.parametrize(("target", "axes", "layer"), CASES, ids=str)
def test_one_gather_each_way_and_nothing_that_grows_with_the_length(target, axes, layer):
    found, longer = (collectives(target, tuple(axes.items()), layer, n) for n in (4096, 8192))
    check(found, axes)
    assert found == longer


@pytest.mark.slow
@pytest.mark.parametrize(("target", "axes", "layer"), [CASES[0], CASES[2], CASES[4]], ids=str)
def test_the_same_at_full_length(target, axes, layer):
    short, full = (collectives(target, tuple(axes.items()), layer, n) for n in (4096, FULL_LENGTH))
    assert full == short
