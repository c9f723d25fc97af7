"""Runs the benchmarks at small sizes, and checks what each measures."""

import argparse
import dataclasses
import importlib.util
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
    gpu,
    linear_scan,
    message_passing,
    parallel_bounds,
    scaling,
    tune_triton,
    watch,
)
from benchmarks._benchmark import Benchmark
from rnnscale.plan import HARDWARE
from rnnscale.training import restore_part
from rnnscale_kernels.testing import ScanArguments, missing

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
        assert any(panel.has_data() for panel in figure.axes) or figure.texts
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


def test_the_recurrence_is_compared_with_the_textbook_forms(monkeypatch):
    def cases(sweep, *, quick):
        assert sweep == "length" and quick
        yield ScanArguments((4,), 16, 8)

    monkeypatch.setattr(linear_scan, "cases", cases)
    monkeypatch.setattr(linear_scan, "usable_implementations", lambda _: ["chunked", "sequential"])
    rows = run("linear_scan", "--quick")
    names = ["chunked", "sequential", "associative_scan", "lax_scan"]
    assert [(row["mode"], row["name"]) for row in rows] == [
        (mode, name) for mode in ("forward", "gradient") for name in names
    ]
    for row in rows:
        assert row["sweep"] == "length" and row["time_ms"] > 0 and "versions" not in row
        (default,) = {
            other["time_ms"] for other in rows
            if other["default"] and other["mode"] == row["mode"]
        }  # fmt: skip
        assert row["ratio"] == row["time_ms"] / default
        peer = row["name"] in ("associative_scan", "lax_scan")
        assert row.get("ahead", False) == (peer and row["ratio"] < 1)


@pytest.mark.parametrize("sweep", linear_scan.SWEEPS)
def test_sweeps_change_one_thing_at_a_constant_number_of_tokens(sweep):
    for quick in (True, False):
        found = list(linear_scan.cases(sweep, quick=quick))
        assert len(set(map(str, found))) == len(found) and (quick or len(found) >= 3)
        assert {each.batch[0] * each.time for each in found} == {2**12 if quick else 2**15}
        fields = [dataclasses.asdict(each) for each in found]
        varied = {name for name in fields[0] if len({str(each[name]) for each in fields}) > 1}
        allowed = {
            "length": {"batch", "time"},
            "channels": {"channels"},
            "numbers": {"dtype", "planar", "varying"},
        }[sweep]
        assert varied <= allowed and (quick or varied == allowed)


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


def test_watch_has_a_row_for_each_person(monkeypatch):
    for name, size in {"DIM": 4, "DEPTH": 1, "PIECE": 64, "BATCH": 4}.items():
        monkeypatch.setattr(watch, name, size)
    (row,) = run("watch", "--quick", "--people", "3", "--steps", "1")
    assert row["person"] == 3 and 0 <= row["test_accuracy"] <= 1
    assert [point["step"] for point in row["curve"]] == [1]


def test_a_check_fails_where_a_figure_is_above_its_bound_and_goes_on():
    def broken():
        raise ValueError("no such kernel")

    checks = [("a", 1e-3, lambda: 2e-3), ("b", 1e-3, broken), ("c", 1e-3, lambda: np.nan),
              ("d", 1e-3, lambda: 5e-4)]  # fmt: skip
    off, raised, missing_number, good = gpu.run_checks(iter(checks), time.monotonic() + 60)
    assert "is off by 0.002, more than 0.001" in off["error"]
    assert raised["error"] == "ValueError: no such kernel" and "figure" not in raised
    assert "error" in missing_number
    assert good == {"arguments": "d", "bound": 1e-3, "figure": 5e-4}
    (late,) = gpu.run_checks(iter(checks[:1]), time.monotonic() - 1)
    assert late["dropped"] == "a"


def test_checks_find_a_kernel_that_is_wrong(monkeypatch):
    (_, bound, right), *_ = gpu.scan_checks("sequential", quick=True)
    assert right() <= bound
    exact = gpu.linear_scan

    def off(a, b, h0, **options):
        states = exact(a, b, h0, **options)
        return jax.tree.map(lambda h: h * (1 + 1e-4), states)

    monkeypatch.setattr(gpu, "linear_scan", off)
    (_, bound, wrong), *_ = gpu.scan_checks("sequential", quick=True)
    assert wrong() > 10 * bound


def test_the_checks_of_layers_pass_on_a_cpu():
    # Checked with resets and lengths, backwards in time: what is hardest.
    words, bound, error = list(gpu.ssm_checks("unfused", quick=True))[2]
    assert words == "3x700x24-float32-reverse-reset-lengths" and error() <= bound


@pytest.mark.slow
def test_gpu_checks_and_times_in_processes_of_their_own(monkeypatch):
    monkeypatch.setattr(gpu, "LONGEST", {})  # of a machine that does nothing else
    options = argparse.Namespace(quick=True, rounds=3)
    part = partial(gpu.run_in_a_process, options=options, left=200)
    (machine,) = part(("machine",))
    assert machine["platform"] == "cpu" and "sequential" in machine["linear_scan"]
    checks = part(("check", "linear_scan", "sequential"))
    assert len(checks) > 3 and all(row["figure"] <= row["bound"] for row in checks)
    times = part(("time", "sequential", "lax_scan"))
    assert {(row["mode"], row["name"]) for row in times} >= {
        (mode, name) for mode in ("forward", "gradient") for name in ("sequential", "lax_scan")
    }
    text = shown(gpu.BENCHMARK, [machine, *checks, *times])
    assert "8x64x16 bf16" in text or "8x64x16 f32" in text
    assert "FAILED" not in text and "percent target" in text


@pytest.mark.slow
def test_gpu_compiles_for_what_is_not_here():
    if (reason := missing("h100")) is not None:
        pytest.skip(reason)
    row = gpu.compile_scan(ScanArguments((8,), 256, 128), "forward", "mosaic_gpu", "h100")
    (kernel,) = row["kernels"]
    assert kernel["spills"] == 0 and 0 < kernel["shared_memory"] < 233_472
    row |= {"part": "compile", "name": "mosaic_gpu", "mode": "forward", "arguments": "8x256x128"}
    assert f"{kernel['shared_memory']:,}" in shown(gpu.BENCHMARK, [row])


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
    script = tmp_path / "part.py"
    script.write_text(
        "import os, sys, time, pathlib\n"
        "folder = pathlib.Path(sys.argv[sys.argv.index('--out') + 1])\n"
        "(folder / 'lines').write_text('{\"figure\": 1}\\n{\"fig')\n" + then
    )
    monkeypatch.setattr(gpu, "PART", (sys.executable, str(script)))
    monkeypatch.setattr(gpu, "LONGEST", {"check": 2})
    options = argparse.Namespace(quick=True, rounds=3)
    row, end = gpu.run_in_a_process(("check", "linear_scan", "triton"), options, left=100)
    about = {"part": "check", "operation": "linear_scan", "name": "triton"}
    assert row == {**about, "figure": 1}
    assert end["ended"] == ended and says in end["error"] and end.items() >= about.items()
    assert "FAILED" in shown(Benchmark(run=gpu.run, table=gpu.table), [row | {"bound": 2}, end])


def test_a_part_without_time_is_dropped():
    options = argparse.Namespace(quick=True, rounds=3)
    (row,) = gpu.run_in_a_process(("time", "triton"), options, left=1)
    assert row == {"part": "time", "dropped": "all"}


def test_what_is_tuned_fits_every_gpu():
    for case in tune_triton.cases(tune_triton.DTYPES, tune_triton.WIDTHS):
        found = list(tune_triton.candidates(case))
        assert len(found) == len(set(found)) >= 4, case
        itemsize = {"float32": 4, "bfloat16": 2}[case.dtypes[0]]
        for each in found:
            # Asynchronous copies are of 4 bytes at least.
            assert each.block * itemsize >= 4 * 32 * each.warps


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:unsafe cast:numba.core.errors.NumbaTypeSafetyWarning")
def test_own_data_are_predicted_beside_their_rivals():
    pytest.importorskip("aeon")
    nearest, ours = run("own_data", "--quick", "--rounds", "1")[:2]
    assert (nearest["library"], ours["library"]) == ("1-NN, Euclidean", "rnnscale")
    # As published by the archive.
    assert nearest["name"] == "ItalyPowerDemand"
    assert nearest["accuracy"] == pytest.approx(0.9553, abs=1e-4)
    assert ours["steps"] == 3 and 0 < ours["accuracy"] < 1
