"""Plans of a small run: the exact figures, and the estimates against what compilers report."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest

from rnnscale.plan import (
    HARDWARE,
    CollectiveCost,
    Planner,
    Topology,
    all_meshes,
    larger_mesh,
    rank_meshes,
    smaller_mesh,
)
from rnnscale.plan._collectives import crosses_hosts
from rnnscale.plan._device_cost import abstract_mesh
from rnnscale.plan._report import undivided
from rnnscale.runs import TrainConfig, set_up
from rnnscale.sharding import make_mesh, sharded_init
from rnnscale.tasks import load_task
from rnnscale_kernels.testing import missing

MESH: dict[str, Any] = {"data": 2, "fsdp": 2, "tensor": 2}
SMALL: dict[str, Any] = {"dim": 16, "depth": 2, "state_dim": 16, "batch_size": 64}


@functools.cache  # a planner keeps its traces
def planner(target, task="digits", **options):
    config = TrainConfig.for_task(task, out="", **{**SMALL, **options})
    return Planner(config, load_task(task, seq_len=config.seq_len), Topology.named(target))


@pytest.fixture(scope="module", params=["cpu:8", pytest.param("h100:8", marks=pytest.mark.slow)])
def plans(request):
    """The compiled and the estimated plan of one mesh."""
    if reason := missing(request.param):
        pytest.skip(reason)
    plan = planner(request.param)
    return plan.compile(MESH), plan.estimate(MESH)


@pytest.fixture(scope="module")
def bytes_held():
    """Bytes of the model and of the training state without its key on the first device."""
    config = TrainConfig.for_task("digits", out="", **SMALL)
    mesh = make_mesh(**MESH)
    run = set_up(config, load_task("digits"), mesh)
    with jax.set_mesh(mesh):
        state = dataclasses.replace(sharded_init(run.init, jax.random.key(0), mesh), key=None)
    return tuple(
        sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))
        for tree in (state.model, state)
    )


def test_state_and_batch_are_exact(plans, bytes_held):
    model, state = bytes_held
    for plan in plans:
        assert plan.memory.parameters == model
        # The plan also has the random key: 8 bytes, which its dtype may not count.
        assert plan.memory.optimiser == pytest.approx(state - model, abs=8)
        assert plan.memory.batch == (64 // 4) * (64 * 4 + 4)


def test_estimated_memory_is_near_the_compiled_one(plans):
    compiled, estimated = plans
    assert compiled.source == "compiled" and estimated.source == "estimated"
    # Compilers fuse more than the model assumes, most of all in so small a program.
    assert 0.8 < estimated.memory.total / compiled.memory.total < 2
    assert compiled.memory.activations > 0
    assert compiled.memory.total >= sum(dataclasses.astuple(compiled.memory)[:3])


def test_estimated_collectives_are_near_the_compiled_ones(plans):
    compiled, estimated = plans
    assert estimated.sent == pytest.approx(compiled.sent, rel=0.1)

    def over_tensor(plan):
        return [
            (each.kind, each.bytes, each.count, each.in_loop)
            for each in plan.collectives
            if each.axes == ("tensor",) and each.bytes > 10_000
        ]

    # Outputs of 16 rows, 64 steps and 16 features, for two blocks, forward and backward.
    assert over_tensor(compiled) == [("all-reduce", 16 * 64 * 16 * 4, 4, True)]
    assert over_tensor(estimated) == 2 * [("all-reduce", 16 * 64 * 16 * 4, 2, True)]


def test_bounds_need_a_datasheet(plans):
    for plan in plans:
        assert (plan.bound is None) == (plan.fits is None)
        if plan.bound is not None:
            peak = HARDWARE["h100"].flops["float32"]
            assert plan.fits and plan.bound.compute == pytest.approx(plan.flops / peak)
            assert plan.bound.step == max(dataclasses.astuple(plan.bound))


def test_a_cell_waits_for_its_launches():
    plan = planner("h100:8", model="gru").estimate({"data": 8})
    assert plan.bound is not None and plan.bound.step == plan.bound.launch
    # For each of two layers and 64 steps: a product and the gates, and backward the gates, a
    # product and a sum.
    launches = 2 * 64 * 5
    assert launches <= plan.bound.launch / HARDWARE["h100"].launch <= 1.2 * launches
    on_tpu = planner("v5e:2x4", model="gru").estimate({"data": 8}).bound
    assert on_tpu is not None and on_tpu.launch == 0


@pytest.fixture(scope="module")
def solved_by_newton():
    """The compiled and the estimated plan of a cell that is solved by Newton's method, with time
    split over devices."""
    config = TrainConfig.for_task(
        "adding", out="", model="gru", dim=8, depth=1, seq_len=64, batch_size=4, parallel="dense"
    )
    task = load_task("adding", seq_len=64)
    mesh = {"data": 2, "seq": 4}
    with pytest.raises(ValueError, match="give iterations"):
        Planner(config, task, Topology.named("cpu:8")).estimate(mesh)
    chosen = Planner(config, task, Topology.named("cpu:8"), iterations=7)
    return chosen.compile(mesh), chosen.estimate(mesh)


def test_an_iteration_of_newtons_method_is_one_gather(solved_by_newton):
    for plan in solved_by_newton:
        gathers = [each for each in plan.collectives if each.kind == "all-gather"]
        assert all(each.axes == ("seq",) for each in gathers)
        # For the states, for rounding errors, and backward. The matrix of 8 x 8, the end, the last
        # state and four measures, for two rows on each of four devices.
        size = 4 * 2 * 4 * (8 * 8 + 8 + 8 + 4)
        assert sum(each.count for each in gathers if each.bytes == size) == 3 * 7
        assert sum(each.count for each in gathers) <= 3 * 7 + 3
        # No step is taken after another one, so no state is handed from device to device.
        assert not any(each.in_loop for each in plan.collectives if each.kind != "all-gather")
    compiled, estimated = solved_by_newton
    assert compiled.sent == pytest.approx(estimated.sent, rel=0.05)


def test_gradients_are_summed_over_the_axes_of_the_batch():
    plan = planner("h100:8").estimate({"data": 8})
    parameters = plan.memory.parameters
    assert plan.collectives == [CollectiveCost("all-reduce", ("data",), 8, parameters, 1, False)]
    assert plan.sent == 2 * 7 / 8 * parameters


def test_work_is_split_over_devices():
    plan = planner("h100:8")
    one = plan.estimate({})
    for axes in ({"data": 4}, {"fsdp": 4}, {"seq": 4}):
        part = plan.estimate(axes)
        assert part.flops == pytest.approx(one.flops / 4, rel=0.02)
        assert part.memory.activations == pytest.approx(one.memory.activations / 4, rel=0.1)
    # Only layers with states are split over tensor.
    assert one.flops / 4 < plan.estimate({"tensor": 4}).flops < one.flops


@pytest.mark.parametrize(
    ("model", "cell", "splits"),
    [
        ("s5", {"blocks": 8}, True),
        ("gla", {"heads": 4}, True),
        ("mlstm", {"heads": 4}, True),
        ("attention", {"heads": 4, "kv_heads": 2}, False),
        ("slstm", {"heads": 4}, False),
        ("mlstm-up-projected", {"heads": 4}, False),
    ],
)
def test_no_model_has_more_work_over_tensor(model, cell, splits):
    """Layers whose heads share the features are counted whole, and the plan says so."""
    sizes = {**SMALL, "dim": 32, "state_dim": 32, "block": "half-glu", "model": model, "cell": cell}
    config = TrainConfig.for_task("digits", out="", **sizes)
    planned = Planner(config, load_task("digits"), Topology.named("h100:8"))
    one, part = (planned.estimate(axes) for axes in ({}, {"tensor": 4}))
    assert part.flops < one.flops if splits else part.flops == one.flops
    assert one.counted_parameters == 1
    assert (part.counted_parameters == pytest.approx(1, abs=0.05)) == splits
    notes = undivided([one, part])
    assert notes == [] if splits else "tensor=4" in notes[0] and "too large" in notes[0]


def test_accumulation_saves_memory_at_equal_arithmetic():
    full = planner("h100:8").estimate(MESH)
    parts = planner("h100:8", accumulation=4).estimate(MESH)
    assert parts.flops == pytest.approx(full.flops, rel=0.01)
    assert parts.memory.activations == pytest.approx(full.memory.activations / 4, rel=0.05)
    # All activations are written and read, whatever the number of parts.
    assert parts.bound is not None and full.bound is not None
    assert parts.bound.memory == pytest.approx(full.bound.memory, rel=0.05)


def test_recomputation_saves_memory_and_costs_arithmetic():
    kept, again = (planner("h100:8", remat=x, depth=8).estimate(MESH) for x in (False, True))
    assert again.memory.activations < kept.memory.activations / 4
    assert 1.1 * kept.flops < again.flops < 1.5 * kept.flops


def test_a_run_that_does_not_fit():
    plan = planner("v5e:2x2", task="adding", model="s5", dim=512, seq_len=65536, batch_size=64)
    assert not plan.estimate({"data": 4}).fits
    assert plan.estimate({"data": 4}).memory.total > HARDWARE["v5e"].memory


@pytest.mark.parametrize(
    "sent, collective",
    [
        (75, CollectiveCost("all-gather", ("data",), 4, 100, 1, False)),
        (2 * 75 * 3, CollectiveCost("all-reduce", ("data",), 4, 100, 3, True)),
        (300, CollectiveCost("reduce-scatter", ("data",), 4, 100, 1, False)),
        (75, CollectiveCost("all-to-all", ("data",), 4, 100, 1, False)),
        (200, CollectiveCost("collective-permute", ("data",), 2, 100, 2, True)),
    ],
)
def test_bytes_sent(sent, collective):
    assert collective.sent == sent


def test_which_axes_cross_hosts():
    plan = planner("h100:16")
    mesh = abstract_mesh({"data": 2, "seq": 8})
    gpu, tpu = HARDWARE["h100"], HARDWARE["v5e"]
    assert gpu.network is not None
    assert crosses_hosts(("data",), mesh, gpu) and not crosses_hosts(("seq",), mesh, gpu)
    assert crosses_hosts(("data", "seq"), mesh, gpu) and not crosses_hosts((), mesh, gpu)
    assert not crosses_hosts(("data", "seq"), mesh, tpu)
    near, far = plan.estimate({"data": 8}), plan.estimate({"data": 16})
    assert near.bound is not None and far.bound is not None
    ratio = gpu.interconnect / gpu.network * (15 / 16) / (7 / 8)
    assert far.bound.interconnect / near.bound.interconnect == pytest.approx(ratio)


def test_neighbouring_meshes():
    assert smaller_mesh({"data": 2, "seq": 8}) == {"data": 2, "seq": 4}
    assert larger_mesh({"data": 2, "seq": 8}) == {"data": 2, "seq": 16}
    assert smaller_mesh({"data": 9, "tensor": 2}) == {"data": 9, "tensor": 1}
    assert smaller_mesh({"data": 3}) is None
    assert larger_mesh({}) == {"data": 2}


@pytest.mark.parametrize("count, ways", [(1, 1), (8, 20), (12, 40), (256, 165)])
def test_all_meshes(count, ways):
    found = [tuple(mesh.values()) for mesh in all_meshes(count)]
    assert len(set(found)) == len(found) == ways
    assert {int(np.prod(each)) for each in found} == {count}


def test_only_feasible_meshes_are_ranked():
    ranked, infeasible = rank_meshes(planner("h100:4", batch_size=6, state_dim=4))
    found = [tuple(plan.mesh.values()) for plan in ranked]
    # Six rows, and two pairs of states, can be split over one or two devices.
    expected = [
        (data, fsdp, tensor, seq)
        for data, fsdp, tensor, seq in (tuple(mesh.values()) for mesh in all_meshes(4))
        if data * fsdp <= 2 and tensor <= 2
    ]
    assert sorted(found) == sorted(expected)
    assert len(found) + len(infeasible) == len(list(all_meshes(4)))
    assert all("batch_size=6" in each.reason for each in infeasible if each.mesh["data"] == 4)
    steps = [plan.bound.step for plan in ranked if plan.bound]
    assert len(steps) == len(ranked)
    assert steps == sorted(steps)


def test_nonlinear_cells_do_not_split_time():
    ranked, infeasible = rank_meshes(planner("h100:4", model="gru"))
    assert ranked and all(plan.mesh["seq"] == 1 for plan in ranked)
    assert any("splits time over seq=2" in each.reason for each in infeasible)


@pytest.mark.parametrize(
    "mesh, options, message",
    [
        ({"data": 4}, {}, "the mesh needs 4 devices"),
        ({"data": 8}, {"batch_size": 12}, "make it a multiple of 8"),
        ({"tensor": 8}, {"state_dim": 12}, "not a multiple of the mesh axis tensor=8"),
        ({"seq": 8}, {"model": "gru"}, "splits time over seq=8"),
        ({"seq": 8}, {"task": "adding", "seq_len": 4, "model": "s5"}, "seq_len=4"),
    ],
)
def test_an_infeasible_mesh_is_an_error(mesh, options, message):
    plan = planner("cpu:8", **options)
    with pytest.raises(ValueError, match=message):
        plan.compile(mesh)
    if message != "the mesh needs 4 devices":
        with pytest.raises(ValueError, match=message):
            plan.estimate(mesh)


def plans_of_adding(target, mesh, **options):
    if reason := missing(target):
        pytest.skip(reason)
    plan = planner(target, task="adding", **options)
    compiled, estimated = plan.compile(mesh), plan.estimate(mesh)
    assert compiled.fits
    assert 1 / 1.5 < compiled.memory.total / estimated.memory.total < 1.5
    return compiled, estimated


@pytest.mark.slow
def test_a_million_steps_on_eight_h100():
    options = {"model": "s5", "dim": 512, "depth": 6, "state_dim": 512, "batch_size": 1}
    compiled, _ = plans_of_adding("h100:8", {"seq": 8}, seq_len=1_048_576, **options)
    # The rule of the guide: model and optimiser, and 12 arrays per block.
    rule = 3 * compiled.memory.parameters + 12 * 6 * (1_048_576 // 8) * 512 * 4
    assert 1 / 1.5 < compiled.memory.total / rule < 1.5
    states = [each for each in compiled.collectives if each.kind == "all-gather"]
    assert all(each.axes == ("seq",) for each in states)
    # One per block and direction, with 256 complex states from each of 8 devices.
    assert [(each.bytes, each.count) for each in states] == [(8 * 256 * 2 * 4, 12)]
    # All others are sums of gradients, which one model has, and of metrics.
    sums = [each for each in compiled.collectives if each.kind != "all-gather"]
    assert {(each.kind, each.axes) for each in sums} == {("all-reduce", ("seq",))}
    assert sum(each.bytes * each.count for each in sums) < 1.1 * compiled.memory.parameters


@pytest.mark.slow
def test_two_hundred_and_fifty_six_chips():
    # Larger than the chip's vector memory, in which the compiler keeps activations.
    options = {"model": "s5", "dim": 256, "depth": 4, "state_dim": 256, "batch_size": 128}
    mesh = {"data": 16, "seq": 16}
    compiled, estimated = plans_of_adding("v5e:16x16", mesh, seq_len=65_536, **options)
    assert estimated.sent == pytest.approx(compiled.sent, rel=0.5)
