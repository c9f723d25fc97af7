import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(script, *arguments, devices=1):
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    done = subprocess.run(
        [sys.executable, BENCHMARKS / script, *map(str, arguments)],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_users_script_runs_unchanged_on_one_and_on_eight_devices():
    assert len((BENCHMARKS / "train_script.py").read_text().splitlines()) <= 40
    losses = [
        [float(x) for x in re.findall(r"loss ([\d.]+)", run("train_script.py", 20, devices=n))]
        for n in (1, 8)
    ]
    assert len(losses[0]) == 2
    np.testing.assert_allclose(*losses, rtol=1e-4)


@pytest.mark.slow
def test_scaling_counts_collectives_and_gives_no_time_on_virtual_devices(tmp_path):
    file = tmp_path / "scaling.json"
    run("scaling.py", "--quick", "--axes", "seq", "--json", file, devices=8)
    rows = json.loads(file.read_text())["rows"]
    assert [(row["experiment"], row["devices"]) for row in rows] == [
        *(("strong", n) for n in (1, 8)), *(("weak", n) for n in (1, 8)), *(("length", 8),) * 2
    ]  # fmt: skip
    assert all(row["seconds"] is None and "efficiency" not in row for row in rows)
    alone, together, *_ = rows
    assert alone["collectives"] == []
    gathers = [each for each in together["collectives"] if each["kind"] == "all-gather"]
    assert [(each["axes"], each["count"]) for each in gathers] == [(["seq"], 2)]
    short, long = rows[-2:]
    assert short["collectives"] == long["collectives"]


@pytest.mark.slow
def test_ssm_layers_prints_and_writes_every_shape_and_form(tmp_path):
    printed = run("ssm_layers.py", "--runs", 1, "--out", tmp_path / "figures.json")
    rows = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert {(row["layer"], row["form"]) for row in rows} == {
        (layer, form) for layer in ("LRU", "S5") for form in ("rnnscale", "textbook")
    }
    assert len(rows) == 12
    for row in rows:
        assert 0 < row["forward_ms"] < row["gradient_ms"]
    assert "gradient ms" in printed


@pytest.mark.slow
def test_rnn_cells_prints_and_writes_every_form(tmp_path):
    printed = run("rnn_cells.py", "ElmanRNNCell", "--runs", 1, "--out", tmp_path / "figures.json")
    rows = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert {"rnnscale", "plain"} <= {row["form"] for row in rows} <= {"rnnscale", "plain", "torch"}
    assert all(0 < row["forward_ms"] < row["gradient_ms"] for row in rows)
    assert "gradient ms" in printed


@pytest.mark.slow
def test_linear_scan_sweeps_lengths(tmp_path):
    printed = run("linear_scan.py", "--quick", "--sweep", "length", "--out", tmp_path)
    (file,) = tmp_path.iterdir()
    rows = json.loads(file.read_text())
    assert {row["time"] for row in rows} == {256, 1024}
    assert len({row["batch"] * row["time"] for row in rows}) == 1
    assert "associative_scan" in printed


@pytest.mark.slow
def test_data_times_every_source_and_pipeline_beside_plain_grain(tmp_path):
    file = tmp_path / "data.json"
    printed = run("data.py", "--quick", "--json", file)
    rows = json.loads(file.read_text())["rows"]
    kinds = [row["kind"] for row in rows]
    assert [kinds.count(kind) for kind in ("source", "pipeline", "stall", "fill")] == [9, 6, 1, 1]
    for row in rows:
        if row["kind"] in ("source", "pipeline"):
            assert row["examples_per_second"] > 0 and row["plain_examples_per_second"] > 0
            assert row["overhead"] == sorted(row["overhead"])
            assert row["name"] in printed


@pytest.mark.slow
def test_memory_in_chunks_is_a_small_part_of_the_whole(tmp_path):
    file = tmp_path / "memory.json"
    run("memory.py", "--quick", "--out", file)
    rows = json.loads(file.read_text())["rows"]
    whole, chunks = (
        [r["temp_bytes"] for r in rows if bool(r["chunk"]) is c] for c in (False, True)
    )
    assert len(whole) == len(chunks) > 0
    assert all(8 * few < many for few, many in zip(chunks, whole, strict=True))


def test_watch_tells_of_each_person(tmp_path):
    file = tmp_path / "watch.json"
    printed = run("watch.py", "--people", 3, "--steps", 1, "--json", file)
    (row,) = json.loads(file.read_text())["rows"]
    assert row["person"] == 3 and 0 <= row["test_accuracy"] <= 1
    assert f"person 3: test accuracy {row['test_accuracy']:.3f}" in printed


@pytest.mark.slow
def test_gpu_checks_and_times_what_there_is(tmp_path):
    printed = run("gpu.py", "--quick", "--out", tmp_path)
    rows = json.loads((tmp_path / "gpu.json").read_text())
    checks = [row for row in rows if row["part"] == "check"]
    assert {row["operation"] for row in checks} == {"linear_scan", "diagonal_ssm"}
    assert all(row["figure"] <= row["bound"] for row in checks)
    times = [row for row in rows if row["part"] == "time"]
    assert {row["mode"] for row in times} == {"forward", "gradient"}
    assert all(row["time_ms"] > 0 for row in times)
    assert "8x64x16 bf16" in printed and "bwd %" in printed


@pytest.fixture
def gpu():
    spec = importlib.util.spec_from_file_location("gpu", BENCHMARKS / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("then", "ended", "says"),
    [
        ("sys.exit('out of luck')", "exit code 1", "out of luck"),
        ("os.kill(os.getpid(), 9)", "exit code -9", "-9"),
        ("time.sleep(60)", "no end after 2 s", "2 s"),
    ],
)
def test_a_part_that_ends_badly_keeps_its_rows_and_is_a_failure(
    gpu, then, ended, says, tmp_path, monkeypatch
):
    script = tmp_path / "part.py"
    script.write_text(
        "import os, sys, time, pathlib\n"
        "folder = pathlib.Path(sys.argv[sys.argv.index('--out') + 1])\n"
        "(folder / 'lines').write_text('{\"figure\": 1}\\n{\"fig')\n" + then
    )
    monkeypatch.setattr(gpu, "__file__", str(script))
    monkeypatch.setattr(gpu, "LONGEST", {"check": 2})
    options = argparse.Namespace(quick=True)
    row, end = gpu.run_in_a_process(("check", "linear_scan", "triton"), options, left=100)
    about = {"part": "check", "operation": "linear_scan", "name": "triton"}
    assert row == {**about, "figure": 1}
    assert end["ended"] == ended and says in end["error"] and end.items() >= about.items()


def test_a_part_without_time_is_dropped(gpu):
    options = argparse.Namespace(quick=True)
    (row,) = gpu.run_in_a_process(("time", "triton"), options, left=1)
    assert row == {"part": "time", "dropped": "all"}


@pytest.mark.slow
def test_messages_are_what_the_network_learns_from():
    printed = run("message_passing.py", "--steps", 100)
    (with_messages,) = re.findall(r"^messages, step 100: loss ([\d.]+)", printed, re.MULTILINE)
    (without,) = re.findall(r"^no messages, step 100: loss ([\d.]+)", printed, re.MULTILINE)
    assert float(with_messages) < 0.1 < 0.25 < float(without)
