import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rnnscale.cli import main
from rnnscale.data import ArraySource
from rnnscale.runs import RunFolder
from rnnscale.tasks import load_task

TINY = "--dim 8 --state-dim 16 --depth 1 --batch-size 8 --log-every 1 --save-every 5".split()
MESH = ["--mesh", "data=4,tensor=2"]
STEPS = 60


def train(*arguments: str) -> int:
    return main(["train", *arguments])


def start(out: Path, *arguments: str) -> subprocess.Popen:
    """`rnnscale train digits` in a process of its own, on 8 CPU devices."""
    command = [sys.executable, "-m", "rnnscale", "train", "digits", *TINY, *MESH]
    command += ["--cpu-devices", "8", "--out", str(out), *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )


def environment() -> dict[str, str]:
    # A child finds the packages where this process found them.
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def wait_for_rows(process: subprocess.Popen, out: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while len(RunFolder(out).rows()) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def losses(out: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in RunFolder(out).rows()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert train("digits", *TINY, *MESH, "--steps", str(STEPS), "--out", str(out)) == 0
    return out


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "copy")


def test_a_run_leaves_its_files(whole: Path):
    names = {path.name for path in whole.iterdir()}
    assert names >= {"config.json", "metrics.jsonl", "summary.json", "checkpoints"}
    assert sorted(p.name for p in (whole / "checkpoints").iterdir()) == ["50", "55", "60"]
    rows = RunFolder(whole).rows()
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert all({"loss", "tokens_per_second", "elapsed", "accuracy"} <= row.keys() for row in rows)
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["task"] == "digits" and summary["model"] == "s5"
    assert summary["mesh"] == {"data": 4, "fsdp": 1, "tensor": 2, "seq": 1}
    assert summary["devices"] == 8 and summary["steps"] == STEPS and summary["processes"] == 1
    assert summary["parameters"] == 499
    assert summary["seconds"] > 0 and summary["tokens_per_second"] > 0
    assert 0 <= summary["test_accuracy"] <= 1 and summary["test_loss"] > 0
    assert json.loads((whole / "config.json").read_text())["mesh"] == {"data": 4, "tensor": 2}


def test_trains_lru_on_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    text = tmp_path / "text"
    text.mkdir()
    for i in range(20):
        (text / f"{i}.txt").write_text(f"file {i}\n" + "the quick brown fox jumps over it\n" * 200)
    out = tmp_path / "run"
    arguments = ["--model", "lru", "--text", str(text), "--seq-len", "32", "--steps", "3"]
    assert train("bytes", *TINY, *arguments, "--dtype", "bfloat16", "--out", str(out)) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["test_bits_per_byte"] == pytest.approx(summary["test_loss"] / math.log(2))
    assert len(summary["corpus_sha256"]) == 64
    assert {"bits_per_byte", "loss"} <= RunFolder(out).rows()[0].keys()
    printed = capsys.readouterr().out
    assert "bits per byte" in printed and "count model" in printed


@pytest.mark.parametrize(
    "arguments",
    [
        "adding --model indrnn --seq-len 12 --depth 2",
        "adding --model cornn --seq-len 12 --cell dt=0.1,gamma=2,epsilon=3",
        "copy --model exprnn --seq-len 24 --cell init=cayley",
        "henon --model lstm --seq-len 12",
    ],
)
def test_cells_train_alike_on_any_mesh(arguments: str, tmp_path: Path):
    if "henon" in arguments:
        pytest.importorskip("reservoirpy", reason="needs rnnscale[datasets]")
    found = []
    for mesh in ("data=2,fsdp=2,tensor=2", "data=8"):
        out = tmp_path / mesh
        given = [*arguments.split(), *TINY[:2], *TINY[6:], "--steps", "3", "--mesh", mesh]
        assert train(*given, "--out", str(out)) == 0
        found.append([loss for _, loss in losses(out)])
    assert len(found[0]) == 3
    np.testing.assert_allclose(*found, rtol=1e-5)


def test_a_run_that_is_done_is_resumed_to_nothing(copy: Path):
    before = losses(copy)
    assert train("--resume", "--out", str(copy)) == 0
    assert losses(copy) == before


def test_stopped_in_any_way_and_resumed_it_ends_the_same(whole: Path, tmp_path: Path):
    """Killed before the first checkpoint, stopped by each signal, and resumed on two meshes."""
    out = tmp_path / "stopped"
    for number, rows in ((signal.SIGKILL, 1), (signal.SIGTERM, 12), (signal.SIGINT, 23)):
        process = start(out, "--steps", str(STEPS), "--resume")
        wait_for_rows(process, out, rows)
        process.send_signal(number)
        said, told = process.communicate(timeout=240)
        assert not (out / "summary.json").exists()
        if number == signal.SIGKILL:
            assert process.returncode == -number
            assert f"nothing to resume in {out}" in told
            continue
        assert process.returncode == 0, told
        assert f"rnnscale train --resume --out {out}" in said
        assert number.name in told and "Traceback" not in told
        assert (out / "checkpoints" / str(losses(out)[-1][0])).is_dir()
    elsewhere = shutil.copytree(out, tmp_path / "elsewhere")

    assert train("--resume", "--out", str(out)) == 0
    assert losses(out) == losses(whole)

    assert train("--resume", "--out", str(elsewhere), "--mesh", "data=2,fsdp=2,tensor=2") == 0
    steps, values = zip(*losses(elsewhere), strict=True)
    expected_steps, expected = zip(*losses(whole), strict=True)
    assert steps == expected_steps
    np.testing.assert_allclose(values, expected, rtol=1e-4)


@pytest.mark.slow
def test_killed_again_and_again(whole: Path, tmp_path: Path):
    """At any moment: while it starts, compiles, restores, trains or saves."""
    out = tmp_path / "killed"
    rng = np.random.default_rng(0)
    for kill in range(5):
        process = start(out, "--steps", str(STEPS), "--resume")
        if kill % 2:
            time.sleep(rng.uniform(0, 12))
        else:
            wait_for_rows(process, out, min(len(RunFolder(out).rows()) + 1, STEPS))
            time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.communicate()
    process = start(out, "--steps", str(STEPS), "--resume")
    _, told = process.communicate()
    assert process.returncode == 0, told
    assert losses(out) == losses(whole)


def test_falls_back_from_a_truncated_checkpoint(
    whole: Path, copy: Path, capsys: pytest.CaptureFixture[str]
):
    for file in (copy / "checkpoints" / str(STEPS)).rglob("d/*"):
        os.truncate(file, file.stat().st_size // 2)
    assert train("--resume", "--out", str(copy)) == 0
    told = capsys.readouterr().err
    assert f"checkpoint {STEPS}" in told and "damaged" in told
    assert "falling back to checkpoint 55" in told
    assert losses(copy) == losses(whole)


def test_resume_takes_what_is_not_given_from_the_run(
    copy: Path, capsys: pytest.CaptureFixture[str]
):
    shutil.rmtree(copy / "checkpoints" / str(STEPS))
    arguments = ["--log-every", "2", "--learning-rate", "1e-4", "--mesh", "data=8"]
    assert train("--resume", "--out", str(copy), *arguments) == 0
    told = capsys.readouterr().err
    assert "learning_rate was 0.0" in told and "is now 0.0001: no longer the same run" in told
    assert "log_every was" not in told and "mesh was" not in told
    config = json.loads((copy / "config.json").read_text())
    assert config["learning_rate"] == 1e-4 and config["batch_size"] == 8
    assert [step for step, _ in losses(copy)][-4:] == [55, 56, 58, 60]


def test_starts_from_the_model_of_another_run_on_another_mesh(copy: Path, tmp_path: Path):
    out = tmp_path / "next"
    arguments = [*TINY, "--start-from", str(copy), "--steps", "2", "--seed", "7"]
    still = ["--learning-rate", "1e-30", "--weight-decay", "0"]
    assert train("digits", *arguments, *still, "--mesh", "data=8", "--out", str(out)) == 0
    first, then = (RunFolder(folder).summary() for folder in (copy, out))
    assert first is not None and then is not None and then["steps"] == 2
    np.testing.assert_allclose(then["test_loss"], first["test_loss"], rtol=1e-6)
    # What goes on is this run, and not from where it started.
    shutil.rmtree(copy)
    assert train("--resume", "--out", str(out), "--steps", "3", "--learning-rate", "0.1") == 0
    assert [step for step, _ in losses(out)] == [1, 2, 3]


def test_options_of_another_version_are_named(copy: Path, capsys: pytest.CaptureFixture[str]):
    config = RunFolder(copy).config()
    RunFolder(copy).open({**config, "gamma": 2})
    assert train("--resume", "--out", str(copy)) == 2
    assert "options that are unknown here: gamma" in capsys.readouterr().err


def test_default_folders_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    given = []

    def run(config: Any, *, resume: bool) -> None:
        given.append(config.out)
        RunFolder(config.out).open({})

    monkeypatch.setattr("rnnscale.runs.run", run)
    for _ in range(2):
        train("digits", "--model", "lru")
    assert given == ["runs/digits-lru-1", "runs/digits-lru-2"]


def nan_in_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    task = load_task("digits")
    inputs = np.stack([task.train[i]["inputs"] for i in range(16)])
    labels = np.stack([task.train[i]["labels"] for i in range(16)])
    inputs[:, 5] = math.nan
    broken = replace(task, train=ArraySource(inputs=inputs, labels=labels))
    monkeypatch.setattr("rnnscale.runs._setup.load_task", lambda *_, **__: broken)


BAD = {
    "task": ("digitz", ["unknown task 'digitz'", "'digits'"]),
    "model": ("digits --model s55", ["unknown model 's55'", "'s5'"]),
    "mesh": ("digits --mesh data=4,tensor=4", ["16", "8"]),
    "mesh axis": ("digits --mesh dat=8", ["unknown mesh axis 'dat'", "'data'"]),
    "mesh size": ("digits --mesh data=0", ["data", "at least 1", "got 0"]),
    "mesh syntax": ("digits --mesh 8", ["--mesh", "'8'", "data=4,tensor=2"]),
    "mesh axis twice": ("digits --mesh data=4,data=2", ["--mesh", "twice"]),
    "batch": ("digits --batch-size 12", ["batch_size=12", "8"]),
    "accumulation": ("digits --batch-size 8 --accumulation 3", ["accumulation=3"]),
    "accumulated batch": ("digits --batch-size 8 --accumulation 2", ["accumulation=2", "data=8"]),
    "parameter": (
        "digits --mesh tensor=8 --state-dim 12 --batch-size 8",
        ["stack.blocks.layer", "tensor=8"],
    ),
    "seq_len": ("bytes --seq-len 0", ["seq_len", "at least 1", "got 0"]),
    "seq_len of digits": ("digits --seq-len 32", ["64", "32"]),
    "steps": ("digits --steps 0", ["steps", "at least 1", "got 0"]),
    "no number": ("digits --steps many", ["--steps", "'many'"]),
    "learning rate": ("digits --learning-rate -1", ["learning_rate", "positive", "-1"]),
    "save minutes": ("digits --save-minutes 0", ["save_minutes", "positive", "0"]),
    "stuck minutes": ("digits --stuck-minutes -1", ["stuck_minutes", "positive", "-1"]),
    "dropout": ("digits --dropout 1", ["dropout", "1.0"]),
    "dtype": ("digits --dtype float16", ["dtype", "'bfloat16'", "'float16'"]),
    "text": ("bytes --text {tmp}", ["{tmp}"]),
    "no text": ("bytes --text {tmp}/absent", ["{tmp}/absent"]),
    "cell": (
        "adding --seq-len 6 --batch-size 8 --cell dtt=1",
        ["no option dtt", "dt, gamma, epsilon"],
    ),
    "cell syntax": ("adding --cell dt", ["--cell", "'dt'", "dt=0.06"]),
    "cell of a layer": ("digits --cell dt=1", ["s5 has no option dt", "blocks"]),
    "option": ("digits --lr 1", ["--lr"]),
    "no task": ("", ["task is missing", "rnnscale tasks"]),
    "resume without out": ("digits --resume", ["--out"]),
    "cpu devices too late": ("digits --cpu-devices 3", ["cpu_devices=3", "too late"]),
    "start from no run": ("digits --start-from {tmp}", ["{tmp}", "holds no run"]),
    "start from another model": (
        "digits --start-from {whole}",
        ["model.encoder.weight is float32[8, 1] there and float32[64, 1] here"],
    ),
    "start from an emptied run": ("digits --start-from {emptied}", ["no checkpoint in {emptied}"]),
    "another run": ("digits --out {whole}", ["{whole}", "step 60", "--resume"]),
    "no run": ("digits --out {whole}/checkpoints", ["holds no run", "choose"]),
    "another model": (
        "--resume --out {copy} --dim 24",
        ["{copy}", "model.encoder.weight is float32[8, 1] there and float32[24, 1] here"],
    ),
    "another kind of model": (
        "--resume --out {copy} --model lru",
        ["only in the model: model.stack.blocks.layer", "only in the checkpoint: model.stack"],
    ),
    "no whole checkpoint": ("--resume --out {emptied}", ["no checkpoint in", "steps 50, 55, 60"]),
    "NaN in the data": ("digits --batch-size 8", ["NaN", "batch of step 0"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(
    name: str,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    places: dict[str, Path] = {"whole": whole, "tmp": tmp_path / "empty"}
    for place in ("tmp", "copy", "emptied"):
        places[place] = tmp_path / place
    places["tmp"].mkdir()
    if "{copy}" in BAD[name][0]:
        shutil.copytree(whole, places["copy"])
    if "{emptied}" in BAD[name][0]:
        shutil.copytree(whole, places["emptied"])
        for manifest in places["emptied"].glob("checkpoints/*/manifest.json"):
            manifest.unlink()
    if name == "NaN in the data":
        nan_in_the_data(monkeypatch)
    else:
        monkeypatch.setattr("rnnscale.runs._run.fit", lambda *_, **__: pytest.fail("trains"))
    before = files(whole), files(places["copy"])

    code = exit_code(lambda: train(*BAD[name][0].format(**places).split()))

    said = capsys.readouterr().err.splitlines()
    assert code == 2
    assert said[-1].startswith("rnnscale: error: ")
    assert not [line for line in said[:-1] if not line.startswith("rnnscale: warning: ")]
    for part in BAD[name][1]:
        assert part.format(**places) in said[-1]
    assert (files(whole), files(places["copy"])) == before


def files(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def exit_code(command: Callable[[], int]) -> int:
    """argparse leaves with SystemExit, everything else returns."""
    try:
        return command()
    except SystemExit as left:
        assert isinstance(left.code, int)
        return left.code
