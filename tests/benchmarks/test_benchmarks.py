"""Runs the benchmarks at small sizes, and checks what each measures."""

import argparse
import importlib
import importlib.util
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

import benchmarks.__main__ as command
from benchmarks import (
    _loading,
    _parts,
    _series,
    gpu,
    kernels,
    matrix_states,
    message_passing,
    parallel_bounds,
    scaling,
    tune,
    watch,
)
from benchmarks._benchmark import Unavailable
from benchmarks._device_cases import JOBS
from rnnscale.cli._cell_arguments import CellArguments
from rnnscale.data import repeat, shuffle
from rnnscale.models import SequenceClassifier
from rnnscale.plan import HARDWARE, Planner
from rnnscale.ssm import LRU
from rnnscale.tasks import Task
from rnnscale.training import restore_part
from rnnscale_kernels.testing import (
    BlockArguments,
    Kernel,
    ScanArguments,
    SSMArguments,
    missing,
)

BENCHMARKS = Path(command.__file__).parent


def run(name, *given):
    """The rows, which can be shown and drawn."""
    benchmark = command.load(name)
    options, _ = command.parse(name, benchmark, given)
    rows = list(benchmark.run(options))
    shown(benchmark, rows)
    return rows


def shown(benchmark, rows):
    """What is printed. The plot is drawn too."""
    console = Console(width=200)
    with console.capture() as captured:
        console.print(benchmark.table(rows))
    if benchmark.plot is not None and importlib.util.find_spec("matplotlib") is not None:
        from matplotlib.figure import Figure

        figure = Figure()
        benchmark.plot([{"device": "cpu", **row} for row in rows], figure)
        figure.canvas.draw()
        assert any(panel.has_data() for panel in figure.axes)
        assert figure.legends or any(panel.get_legend() for panel in figure.axes)
    return captured.get()


def test_the_script_in_full_goes_on_where_it_was_killed_on_another_mesh(
    tmp_path, monkeypatch, capsys
):
    """Killed after a checkpoint with time over two devices, it ends with the batch over eight as an
    uninterrupted run on one device does."""
    script, steps = BENCHMARKS / "train_script.py", 60
    assert len(script.read_text().splitlines()) <= 45

    def start(name: str, devices: int, seq: int) -> subprocess.Popen:
        flags = "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count="
        return subprocess.Popen(
            [sys.executable, script, tmp_path / name, str(steps), str(seq)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{flags}{devices}"},
        )

    alone, killed = start("alone", 1, 1), start("run", 2, 2)
    while not (tmp_path / "run" / "20").exists():
        assert killed.poll() is None
        time.sleep(0.01)
    killed.kill()
    monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path / "run"), str(steps), "1"])
    assert jax.device_count() == 8
    ended = runpy.run_path(str(script), run_name="__main__")

    def rows(printed: str) -> dict[int, float]:
        found = re.findall(r"'step': (\d+), 'loss': ([\d.]+)", printed)
        return {int(step): float(loss) for step, loss in found}

    expected, before = rows(alone.communicate()[0]), rows(killed.communicate()[0])
    resumed = rows(capsys.readouterr().out)
    assert (alone.returncode, killed.returncode) == (0, -signal.SIGKILL)
    assert 10 in before and list(expected) == list(range(10, steps + 1, 10))
    assert list(resumed) in (list(range(first, steps + 1, 10)) for first in (30, 50))
    for step, loss in {**before, **resumed}.items():
        assert loss == pytest.approx(expected[step], rel=1e-6), step
    saved = restore_part(tmp_path / "alone", {"model": ended["state"].model})
    assert saved is not None and saved[1] == steps
    for got, like in zip(
        jax.tree.leaves(ended["state"].model), jax.tree.leaves(saved[0]["model"]), strict=True
    ):
        np.testing.assert_allclose(got, like, rtol=1e-6, atol=3e-6)


@pytest.mark.slow
def test_a_cell_in_parallel_is_compared_with_its_loop():
    rows = run("parallel_cells", "--quick", "--cell", "cornn")
    parts = ("dense", "block", "diagonal")
    assert [(row["trained"], row["jacobian"]) for row in rows] == [
        (trained, part) for trained in (False, True) for part in parts
    ]
    assert all(row["lyapunov"] < 0 for row in rows)
    assert all(1 < row["iterations"] <= 64 and row["value_error"] < 1e-5 for row in rows)
    for row in rows[::3]:
        assert row["suitable"] and row["stepped"] == row["stepped_64"] == 0
        assert 0 < row["gradient_error"] < 1e-4
        assert row["value_error_64"] < 1e-12 and row["gradient_error_64"] < 1e-12


@pytest.mark.slow
def test_memory_in_chunks_is_a_small_part_of_the_whole():
    whole, chunks = run("memory", "--quick")
    assert (whole["chunk"], chunks["chunk"]) == (None, 64)
    assert 8 * chunks["temp_bytes"] < whole["temp_bytes"]


def test_bounds_on_newtons_method_grow_with_iterations_and_those_on_the_loop_with_steps():
    bounds = partial(parallel_bounds.bounds, "GRU", "diagonal", hardware=HARDWARE["h100"])
    short, long = (bounds(iterations=4, batch=1, length=length) for length in (1024, 4096))
    assert long["loop_launches"] / 4 == pytest.approx(short["loop_launches"], rel=0.01)
    assert long["newton_launches"] == short["newton_launches"]
    assert long["ratio"] > short["ratio"] and long["loop_bottleneck"] == "launch"
    # Five launches for each step: backward and forward a product, and the gates.
    assert long["loop_ms"] == pytest.approx(4096 * 5 * 0.5e-3, rel=0.01)
    wide = bounds(iterations=8, batch=64, length=4096)
    assert wide["newton_bottleneck"] == "memory"
    assert wide["newton_ms"] == pytest.approx(1e3 * wide["newton_bytes"] / 3.35e12)


@pytest.mark.slow
def test_newtons_method_is_timed_beside_the_loop():
    rows = run("parallel_time", "--quick", "--rounds", "1")
    assert [(row["mode"], row["contender"]) for row in rows] == [
        (mode, name) for mode in ("forward", "gradient") for name in ("rnnscale", "diagonal")
    ]
    assert all(row["median_ms"] > 0 for row in rows)
    assert [row["stepped"] for row in rows if "stepped" in row] == [0, 0]


def test_mamba_in_loops_has_the_outputs_of_ours():
    """They are compared before anything is timed."""
    rows = run("mamba", "--quick", "--rounds", "1")
    ways = {"Mamba": {"rnnscale", "plain", "tree"}, "Mamba2": {"rnnscale", "plain"}}
    for layer, names in ways.items():
        for mode in ("forward", "gradient"):
            found = {x["contender"] for x in rows if (x["layer"], x["mode"]) == (layer, mode)}
            assert found >= names
    assert all(x["processor_ms"] > 0 for x in rows)


def test_memory_of_the_host_is_measured_after_each_save():
    rows = run("saves", "--quick")
    assert [row["save"] for row in rows] == [1, 2, 3, 4]
    assert all(row["host_mb"] > row["state_mb"] > 2 for row in rows)


@pytest.mark.slow
def test_a_resumed_run_is_measured_beside_a_new_one():
    """That it compiles nothing is tested with the runs; the time of a small model is noise."""
    new, resumed = run("resume", "--quick")
    assert (new["session"], resumed["session"]) == ("new", "resumed")
    assert all(row["cpu_s"] > 1 and row["seconds"] > 0 for row in (new, resumed))


@pytest.mark.slow
def test_scaling_counts_collectives_and_gives_no_time_on_virtual_devices():
    rows = run("scaling", "--quick", "--axes", "seq")
    found = [(row["experiment"], row["devices"]) for row in rows]
    assert found == [("strong", 1), ("strong", 8), ("length", 8), ("length", 8)]
    assert all(row["seconds"] is None and "efficiency" not in row for row in rows)
    alone, together, *_ = rows
    assert alone["collectives"] == []
    gathers = [each for each in together["collectives"] if each["kind"] == "all-gather"]
    assert [(each["axes"], each["count"]) for each in gathers] == [(("seq",), 2)]
    short, long = rows[-2:]
    assert short["collectives"] == long["collectives"]


@pytest.mark.slow
def test_meshes_and_remat_are_compared_with_one_device(monkeypatch):
    # Compiling for an H100 takes a minute, and is tested with the planner.
    monkeypatch.setattr(Planner, "compile", Planner.estimate)
    alone, data, fsdp = run("one_machine", "--quick", "--rounds", "1")
    forms = [row["form"] for row in (alone, data, fsdp)]
    assert forms == ["one device", "data=8", "fsdp=8 remat chunk=128"]
    assert alone["ratio"] == 1 and all(row["processor_ms"] > 0 for row in (data, fsdp))
    assert alone["memory"] > data["memory"] > fsdp["memory"]
    assert alone["sent"] == 0 < data["sent"] < fsdp["sent"]
    # The same arithmetic in eight parts, and once more what is recomputed.
    flops = [row["planned"]["flops"] for row in (alone, data, fsdp)]
    assert flops[0] == pytest.approx(8 * flops[1], rel=0.01) and flops[2] > 1.1 * flops[1]
    for row in (alone, data, fsdp):
        bounds = row["planned"]["bound_ms"]
        assert bounds[row["planned"]["bottleneck"]] == max(bounds.values()) > 0


def test_efficiency_is_over_one_device_with_the_same_work(monkeypatch):
    def measured(axis, work, devices, *, absent, rounds):
        # Twice as many devices take 0.75 of the time, and 1.25 times as long for twice the work.
        assert rounds == 4 and not absent
        growth = work.length * work.batch / (8 * 8192)
        seconds = 0.75 ** np.log2(len(devices)) * (5 / 3) ** np.log2(growth)
        return {"collectives": [], "temporaries": 0, "seconds": seconds}

    monkeypatch.setattr(scaling, "measured", measured)
    figures = {
        (row["experiment"], row["axis"], row["devices"]): row.get("efficiency")
        for row in run("scaling", "--rounds", "4", "--axes", "data", "seq")
    }
    for axis in ("data", "seq"):
        assert figures["strong", axis, 1] == figures["weak", axis, 1] == 1
        assert figures["strong", axis, 8] == pytest.approx(1 / (8 * 0.75**3))
        assert figures["weak", axis, 8] == pytest.approx(1 / 1.25**3)
    assert figures["strong", "seq", 4] == pytest.approx(1 / (4 * 0.75**2))
    assert figures["length", "seq", 8] is None


def test_matrix_states_are_compared_with_other_forms(monkeypatch):
    monkeypatch.setattr(matrix_states, "installed", dict)
    rows = run("matrix_states", "--quick")
    names = [(row["mode"], row["contender"]) for row in rows]
    modes = ("forward", "gradient")
    assert {(mode, name) for mode in modes for name in ("rnnscale", "plain")} <= set(names)
    assert all(row["median_ms"] > 0 and row["delta"] for row in rows)


def test_loading_is_timed_from_every_source_and_pipeline(monkeypatch):
    monkeypatch.setattr(_loading, "RECORDS", 256)
    rows = run("data", "--quick", "--rounds", "1")
    kinds = [row["kind"] for row in rows]
    assert [kinds.count(kind) for kind in ("source", "pipeline", "stall", "fill")] == [9, 6, 1, 1]
    for row in rows:
        if row["kind"] in ("source", "pipeline"):
            assert row["examples_per_second"] > 0 and row["plain_examples_per_second"] > 0
            assert row["overhead"] == sorted(row["overhead"]) and row["rounds"] == 1
    by_name = {row["name"]: row for row in rows}
    assert by_name["arrays"]["example_bytes"] == 64 * 8 * 4 + 4
    assert by_name["japanese-vowels, 64 steps"]["fill"] == pytest.approx(3837 / (62 * 64))


def test_loading_needs_pyarrow(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(Unavailable, match=r"pip install 'rnnscale\[parquet\]'"):
        run("data", "--quick")


@pytest.mark.parametrize("name", ["compile_time", "start_up"])
@pytest.mark.parametrize(("given", "rounds"), [((), 1), (("--rounds", "2"), 2)])
def test_quick_benchmarks_take_the_rounds_that_are_given(name, given, rounds, monkeypatch):
    taken = []

    def in_turns(case, names, rounds, parts):
        taken.append(rounds)
        return []

    module = importlib.import_module(f"benchmarks.{name}")
    monkeypatch.setattr(module, "in_turns", in_turns)
    options, _ = command.parse(name, module.BENCHMARK, ["--quick", *given])
    assert not list(module.run(options)) and taken == [rounds]


def test_first_fit_fills_rows():
    lengths = np.random.default_rng(0).integers(20, 201, 200)
    rows = _loading.first_fit(lengths, 512)
    assert sorted(each for row in rows for each in row) == list(range(200))
    sums = [lengths[row].sum() for row in rows]
    assert max(sums) <= 512 and sum(sums) > 0.9 * 512 * (len(rows) - 1)


@pytest.mark.slow
def test_messages_are_what_the_network_learns_from():
    rows = run("message_passing", "--quick")
    last = {row["network"]: row for row in rows}
    assert {row["step"] for row in last.values()} == {40}
    chance = last["messages"]["chance"]
    assert chance == pytest.approx(1 / 3)
    assert last["messages"]["loss"] < 0.3 * chance
    assert last["no messages"]["loss"] > 0.75 * chance


def test_the_graph_has_no_loops_and_the_same_degree():
    senders, receivers = message_passing.make_graph(seed=3)
    neighbours = senders.reshape(message_passing.NODES, -1)
    for node, each in enumerate(neighbours):
        assert node not in each and len(set(each)) == message_passing.DEGREE
    np.testing.assert_array_equal(np.bincount(receivers), message_passing.DEGREE)


def test_watch_compares_classifiers_on_each_person(monkeypatch):
    for name, size in {"DIM": 4, "DEPTH": 1, "PIECE": 64, "BATCH": 4}.items():
        monkeypatch.setattr(watch, name, size)

    def rivals(series, labels, test, test_labels, seeds, **_):
        # Ten people, of whom the one to test is left out, did seven exercises with either arm.
        assert series.shape == (126, 6, 2618) and test.shape == (14, 6, 2618)
        assert np.bincount(labels).tolist() == [18] * 7
        assert np.bincount(test_labels).tolist() == [2] * 7
        assert abs(series.mean()) < 0.1 and seeds == [0]
        yield {"library": "another", "accuracy": 1.0, "processor_seconds": 0.0}

    monkeypatch.setattr(watch, "rivals", rivals)
    ours, other = run("watch", "--quick", "--people", "3", "--steps", "1")
    assert ours["person"] == other["person"] == 3 and 0 <= ours["accuracy"] <= 1
    assert [point["step"] for point in ours["curve"]] == [1] and ours["ended"] == "budget"


def test_a_classifier_trains_until_its_validation_loss_stops_falling(monkeypatch):
    """Labels of the validation split are wrong, so that learning makes its loss worse."""
    monkeypatch.setattr(_series, "PATIENCE", 3)
    random = np.random.default_rng(0)
    series, labels = random.normal(size=(12, 8, 1)), np.arange(12) % 2
    series[labels == 1] += 1
    labels[8:] = 1 - labels[8:]
    splits = ["train"] * 8 + ["validation"] * 4 + ["test"] * 4
    task = Task.from_arrays(
        [*series, *series[8:]], np.append(labels, labels[8:]), kind="classification", split=splits
    )

    def make_model(key):
        return SequenceClassifier(
            1, 2, make_layer=lambda key: LRU(4, 4, key=key), dim=4, depth=1, key=key
        )

    row = _series.Trainer(make_model, every=2, most=100).train(
        task, repeat(shuffle(task.train, seed=0)), batch=4, seed=0
    )
    best = min(row["curve"], key=lambda point: point["validation_loss"])
    assert row["best_step"] == best["step"] and row["steps"] == best["step"] + 2 * 3 < 100
    # The test series are those for validation.
    assert row["ended"] == "patience" and row["accuracy"] == best["validation_accuracy"]
    assert row["curve"][-1]["validation_loss"] > best["validation_loss"]


class Errors(ScanArguments):
    """Arguments whose error is given, or raised."""

    figure: float | Exception = 0.0

    def error(self, implementation):
        if isinstance(self.figure, Exception):
            raise self.figure
        return self.figure


def test_a_check_fails_where_a_figure_is_above_its_bound_and_goes_on():
    figures = (2e-3, ValueError("no such kernel"), np.nan, 5e-7)
    cases = [Errors(time=n + 1) for n in range(4)]
    for case, figure in zip(cases, figures, strict=True):
        object.__setattr__(case, "figure", figure)
    off, raised, missing_number, good = gpu.check_cases(cases, "any", time.monotonic() + 60)
    assert "is off by 0.002, more than 1e-06" in off["error"]
    assert raised["error"] == "ValueError: no such kernel" and "figure" not in raised
    assert "error" in missing_number
    assert good == {"arguments": str(cases[3]), "bound": 1e-6, "figure": 5e-7}
    (late,) = gpu.check_cases(cases[:1], "any", time.monotonic() - 1)
    assert late["dropped"] == str(cases[0])


def test_nothing_more_is_run_on_a_device_that_has_faulted(monkeypatch):
    def lost():
        raise RuntimeError("an illegal memory access")

    monkeypatch.setattr(gpu, "require_device", lost)
    case = Errors()
    object.__setattr__(case, "figure", 1.0)
    rows = gpu.check_cases([case, case], "any", time.monotonic() + 60)
    assert "error" in next(rows)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        next(rows)


@pytest.mark.parametrize(
    "arguments",
    [
        ScanArguments(planar=True, time=20, reverse=True, reset=True),
        # With resets and lengths, backwards in time: what is hardest.
        SSMArguments(time=100, idim=24, state=40, odim=16, ragged=True, reverse=True),
        BlockArguments(time=20, reset=True),
        CellArguments("indrnn"),
    ],
    ids=lambda arguments: arguments.operation,
)
def test_checks_find_a_kernel_that_is_wrong(arguments, monkeypatch):
    assert arguments.error(None) <= arguments.bound
    called = "run" if isinstance(arguments, CellArguments) else "function"
    exact = getattr(type(arguments), called)

    def off(*given, **options):
        return jax.tree.map(lambda x: x * (1 + 1e-3), exact(*given, **options))

    monkeypatch.setattr(type(arguments), called, off)
    assert arguments.error(None) > 10 * arguments.bound


def test_cudnns_lstm_gets_the_weights_of_the_cell():
    """On a CPU it is the reference of the same interface, with the same layout of weights."""
    arguments = CellArguments("lstm", (2,), 5, 3, 4)
    start, inputs = arguments.draw(jax.random.key(0))
    for got, expected in zip(
        jax.tree.leaves(arguments.cudnn_lstm(start, inputs)),
        jax.tree.leaves(arguments.run(start, inputs, None)),
        strict=True,
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_fault_in_one_kernel_leaves_the_rows_of_the_others(monkeypatch, tmp_path):
    """A cut of the rehearsal: the same processes, the same file, one of them aborted."""
    pytest.importorskip(
        "triton", reason="the process with a Triton kernel aborts: needs rnnscale[aot]"
    )
    broken, other = ("linear_scan", "triton_interpreted"), ("block_scan", "associative")
    monkeypatch.setattr(gpu, "in_order", lambda usable, only: [broken, other])
    file = tmp_path / "rows.json"
    fault = ("--fault", "linear_scan/triton=abort")
    given = ("--rehearse", "--rounds", "3", *fault, "--json", str(file))
    assert command.main(["gpu", *given]) == command.FAILED
    document = json.loads(file.read_text())
    assert document["platform"] == "cpu" and "jax" in document["versions"]
    machine, *rows = document["rows"]
    assert broken[1] in machine["usable"]["linear_scan"]
    parts = [(row["part"], row["job"], row["name"], "ended" in row) for row in rows]
    # Its check ends after the first row, and its times are taken last.
    checks = len(JOBS["block_scan"].tiny_checks)
    times = [2 * len(JOBS[job].tiny_times) for job in ("block_scan", "linear_scan")]
    assert parts == [
        ("check", *broken, False),
        ("check", *broken, True),
        *[("check", *other, False)] * checks,
        *[("time", *other, False)] * times[0],
        *[("time", *broken, False)] * times[1],
    ]
    (ended,) = [row for row in rows if "ended" in row]
    assert ended["ended"] == "exit code -6" and ended["error"].startswith("exit code -6 after 1")
    for row in rows:
        if row is not ended:
            assert row["figure"] <= row["bound"] if row["part"] == "check" else row["time_ms"] > 0
    text = shown(gpu.BENCHMARK, document["rows"])
    assert "FAILED check linear_scan triton_interpreted" in text and "1x16x8 bfloat16" in text


def test_parts_come_in_the_order_of_the_list_whatever_is_usable():
    usable = {job: [] for job in JOBS} | {
        "linear_scan": ["new_kernel", "triton_interpreted", "mosaic_gpu", "associative_scan"],
        "diagonal_ssm": ["mosaic_gpu"],
    }
    found = gpu.in_order(usable, None)
    assert found[:2] == [("linear_scan", "mosaic_gpu"), ("diagonal_ssm", "mosaic_gpu")]
    assert found.index(("linear_scan", "associative_scan")) == 2
    assert found[-1] == ("linear_scan", "new_kernel")
    assert gpu.in_order(usable, ["diagonal_ssm"]) == [("diagonal_ssm", "mosaic_gpu")]


PART = """
import os, sys, time
lines = sys.argv[sys.argv.index("--lines") + 1]
with open(lines, "a") as file:
    file.write('{"figure": 1}\\n')
    file.flush()
    time.sleep(0.3)
    file.write('{"figure": 2}\\n{"fig')
"""


@pytest.mark.parametrize(
    ("then", "ended", "says"),
    [
        ("sys.exit('out of luck')", "exit code 1", "out of luck"),
        ("os.kill(os.getpid(), 9)", "exit code -9", "-9"),
        ("time.sleep(60)", "no end after 2 s", "2 s"),
    ],
)
def test_a_part_that_ends_badly_keeps_its_rows_and_is_a_failure(
    then, ended, says, tmp_path, monkeypatch
):
    (tmp_path / "broken_part.py").write_text(PART + then)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(_parts, "SHORTEST", 1)
    about = {"part": "check", "job": "linear_scan", "name": "triton"}
    part = _parts.Part(("check", "linear_scan", "triton"), about)
    rows = _parts.run_part(part, "broken_part", [], 2, {})
    begin = time.monotonic()
    assert next(rows) == {**about, "figure": 1}
    assert time.monotonic() - begin < 1.9  # it comes while the part still runs
    second, end = rows
    assert second == {**about, "figure": 2}
    assert end["ended"] == ended and says in end["error"] and end.items() >= about.items()
    shown_rows = [{**about, "figure": 1, "bound": 2}, end]
    assert "FAILED" in shown(gpu.BENCHMARK, shown_rows)


def test_a_part_without_time_is_dropped():
    about = {"part": "time", "job": "linear_scan", "name": "triton"}
    (row,) = _parts.run_part(_parts.Part(("time",), about), "benchmarks.gpu", [], 1, {})
    assert row == {**about, "dropped": "all"}
    assert "time linear_scan triton all" in shown(gpu.BENCHMARK, [row])


@pytest.mark.slow
def test_kernels_are_compiled_for_what_is_not_here(monkeypatch, tmp_path):
    if (reason := missing("h100")) is not None:
        pytest.skip(reason)
    before = tmp_path / "before.json"
    (case, *_) = kernels.CASES
    old = {"commit": "1234567", **kernels.row_of(case, "forward", "h100"), "error": "broken"}
    gone = old | {"named": "an implementation that is gone"}
    before.write_text(json.dumps({"rows": [old, gone]}))
    kept, forward, gradient = run(
        "kernels", "--quick", "--only", "linear_scan", "--target", "h100", "--before", str(before)
    )
    assert kept == old
    assert forward["implementation"] == gradient["implementation"] == "mosaic_gpu"
    (kernel,) = forward["kernels"]
    assert kernel["spills"] == 0 and 0 < kernel["shared_memory"] < 233_472
    assert kernel["threads"] >= 128 and kernel["blocks"] * kernel["waves"] >= 1
    # A block takes 128 channels of a row, and there is one kernel for each pass.
    assert forward["bytes"] < 1.01 * forward["minimal_bytes"] == 1.01 * 3 * 8 * 256 * 128 * 4
    assert len(gradient["kernels"]) == 2 and gradient["predicted_us"] > forward["predicted_us"]


def test_occupancy_follows_from_registers_shared_memory_and_threads():
    h100 = kernels.MODEL["h100"]

    def fits(**changes):
        figures = {"registers": 32, "shared_memory": 0, "threads": 128, "spills": 0} | changes
        kernel = Kernel(name="any", blocks=133, **figures)
        found = kernels.figures(kernel, h100)
        return found["blocks_per_core"], found["waves"]

    assert fits() == (16, 1)
    assert fits(registers=255) == (2, 1)
    assert fits(shared_memory=110 * 1024) == (2, 1)
    assert fits(shared_memory=120 * 1024) == (1, 2)
    assert fits(threads=1024, registers=60) == (1, 2)


def test_a_prediction_is_the_longest_of_bytes_walk_and_products():
    def predict(*, moved, clocks=None, waves=1, width=1):
        row = {
            "target": "h100", "mode": "forward", "dtype": "bfloat16", "launches": 1,
            "bytes": moved, "minimal_bytes": moved,
            "clocks": clocks, "kernels": [{"blocks": 1, "threads": 128, "waves": waves}],
            "calls": [{"bytes": 10**6, "kernel": 0}],
        }  # fmt: skip
        case = kernels.Case(SSMArguments((1,), 4096, width, 128, width))
        return kernels.prediction(row, case)

    assert predict(moved=29 * 10**5)["limit"] == "launches"
    streamed = predict(moved=29 * 10**6)
    assert streamed["limit"] == "bytes"
    assert streamed["predicted_us"] == pytest.approx(10 + 2.5)
    walked = predict(moved=10**6, clocks=27, waves=2)
    assert walked["limit"] == "walk"
    assert walked["predicted_us"] == pytest.approx(1e6 * 2 * 4096 * 27 / 1.755e9 + 2.5)
    products = predict(moved=10**6, width=4096)
    assert products["limit"] == "products"
    # Two products with two planes each.
    operations = 2 * 4096 * 128 * (4096 + 4096) * 2
    assert products["predicted_us"] == pytest.approx(1e6 * operations / 600e12 + 2.5)


def test_what_is_tuned_fits_every_gpu():
    triton = tune.TUNABLES["triton"]
    for case in triton.cases(tiny=False):
        found = [tuple(each.items()) for each in triton.candidates(case)]
        assert len(found) == len(set(found)) >= 4, case
        itemsize = {"float32": 4, "bfloat16": 2}[case.arguments.dtype]
        for each in map(dict, found):
            # Asynchronous copies are of 4 bytes at least.
            assert each["block"] * itemsize >= 4 * 32 * each["warps"]


CONSTANTS = {name: x for name, x in tune.TUNABLES.items() if isinstance(x, tune.Constants)}


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_to_tune_exist_and_are_among_the_candidates(name):
    tunable = CONSTANTS[name]
    module = importlib.import_module(tunable.module)
    (case, *_) = tunable.cases(tiny=True)
    now = {key: getattr(module, key) for key in tunable.values}
    assert now in list(tunable.candidates(case)), now
    other = {key: object() for key in now}
    with tunable.applied(case, other):
        assert {key: getattr(module, key) for key in now} == other
    assert {key: getattr(module, key) for key in now} == now


def test_candidates_reach_the_kernels_and_the_best_is_written(monkeypatch, tmp_path):
    """In the interpreter, in this process."""
    pytest.importorskip("triton", reason="a Triton kernel is tuned: needs rnnscale[aot]")
    triton = tune.TUNABLES["triton"]
    options = argparse.Namespace(quick=False, rehearse=True, rounds=3)
    candidate = {"block": 64, "rows": 4, "stages": 4, "warps": 1}
    monkeypatch.setattr(tune.Triton, "candidates", lambda *_: iter([candidate]))
    monkeypatch.setattr(tune.Triton, "cases", lambda *_, tiny: iter([
        tune.Case(ScanArguments((1,), 8, 8), "forward", "forward")
    ]))  # fmt: skip
    now, tried, best = tune.tuned(triton, options, time.monotonic() + 60)
    assert now["config"] == {} and tried["config"] == candidate
    assert tried["configs"] == ["forward real varying float32/float32 8"]
    assert best["best"] and best["time_ms"] == min(now["time_ms"], tried["time_ms"]) > 0
    file = tmp_path / "configs.json"
    monkeypatch.setattr(tune, "CONFIGS", file)
    tune.write_triton([{**tried, "best": True}], "a device")
    assert json.loads(file.read_text())["a device"] == {tried["configs"][0]: candidate}
    assert "forward" in shown(tune.BENCHMARK, [{"part": "triton", **best}])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:unsafe cast:numba.core.errors.NumbaTypeSafetyWarning")
def test_own_data_are_predicted_beside_their_rivals():
    pytest.importorskip("aeon")
    nearest, ours = run("own_data", "--quick", "--seeds", "0")[:2]
    assert (nearest["library"], ours["library"]) == ("1-NN, Euclidean", "rnnscale")
    # As published by the archive.
    assert nearest["name"] == "ItalyPowerDemand"
    assert nearest["accuracy"] == pytest.approx(0.9553, abs=1e-4)
    assert ours["steps"] == 3 and ours["ended"] == "steps" and 0 < ours["accuracy"] < 1
