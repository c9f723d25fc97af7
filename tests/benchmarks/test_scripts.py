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
def test_messages_are_what_the_network_learns_from():
    printed = run("message_passing.py", "--steps", 100)
    (with_messages,) = re.findall(r"^messages, step 100: loss ([\d.]+)", printed, re.MULTILINE)
    (without,) = re.findall(r"^no messages, step 100: loss ([\d.]+)", printed, re.MULTILINE)
    assert float(with_messages) < 0.1 < 0.25 < float(without)
