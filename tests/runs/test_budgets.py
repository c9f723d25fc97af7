"""The collectives of a train step on a mesh with `seq`, read from the compiled step, for devices of
this machine and for devices that are not here."""

from collections import Counter

import jax
import pytest

from rnnscale.runs import TrainConfig, set_up
from rnnscale.sharding import make_mesh
from rnnscale.tasks import load_task
from rnnscale_kernels.testing import Program, compile_for, missing, target_devices

DEPTH = 3
LENGTH = 1 << 20

with_h100 = pytest.mark.skipif(bool(missing("h100")), reason=str(missing("h100")))
with_v5e = pytest.mark.skipif(bool(missing("v5e")), reason=str(missing("v5e")))


def collectives(target: str, axes: dict[str, int], layer: str):
    """Those between different devices, by kind, axes, bytes, times, and loops around them."""
    devices = jax.devices() if target == "cpu" else target_devices(target)
    mesh = make_mesh(**axes, devices=devices)
    rows = 2 * axes.get("data", 1)
    config = TrainConfig.for_task(
        "copy", out="", model=layer, seq_len=LENGTH, batch_size=rows, dim=32, depth=DEPTH
    )
    setup = set_up(config, load_task("copy", seq_len=LENGTH), mesh)
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


@pytest.mark.parametrize(
    ("target", "axes", "layer"),
    [
        ("cpu", {"seq": 8}, "s5"),
        ("cpu", {"data": 2, "seq": 4}, "lru"),
        pytest.param("h100:8", {"data": 2, "seq": 4}, "s5", marks=[with_h100, pytest.mark.slow]),
        pytest.param(
            "v5e:16x16", {"data": 16, "seq": 16}, "s5", marks=[with_v5e, pytest.mark.slow]
        ),
    ],
    ids=str,
)
def test_one_gather_each_way_and_nothing_that_grows_with_the_length(target, axes, layer):
    found = collectives(target, axes, layer)
    gathers = Counter({key: n for key, n in found.items() if key[0] == "all-gather"})
    # One forward and one backward, in the loop over depth and in no loop over time.
    assert gathers.total() == 2
    assert all(key[1] == ("seq",) and key[3:] == (DEPTH, 1) for key in gathers)
    # All others are sums of the metrics and of gradients, each of which is summed once.
    sums = found - gathers
    assert {key[0] for key in sums} == {"all-reduce"}
    assert {key[3:] for key in sums} <= {(1, 0), (DEPTH, 1)}
    assert {axis for _, axes, *_ in sums for axis in axes} == {*axes, "seq"}
    # The largest has the gradients of a block, and less than a byte for each step of a device.
    assert all(size < LENGTH // axes["seq"] for _, _, size, *_ in found)
