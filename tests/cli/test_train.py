"""`rnnscale train`: a run, stopped and resumed in every way, and every mistake in its options."""

import json
import math
import os
import platform
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from rnnscale.cli import main
from rnnscale.cli._main import _parser
from rnnscale.data import ArraySource, stream
from rnnscale.runs import RunFolder, TrainConfig, load_task_of, read_options, set_up
from rnnscale.sharding import make_mesh, sharded_init
from rnnscale.tasks import load_task
from rnnscale.training import fit

TINY = "--dim 8 --state-dim 16 --depth 1 --batch-size 8 --log-every 1 --save-every 5".split()
MESH = ["--mesh", "data=4,tensor=2"]
STEPS = 60


def train(*arguments: str) -> int:
    return main(["train", *arguments])


def start(out: Path, *arguments: str) -> subprocess.Popen[str]:
    """`rnnscale train digits` in a process of its own, on eight CPU devices."""
    command = [sys.executable, "-m", "rnnscale", "train", "digits", *TINY, *MESH]
    command += ["--cpu-devices", "8", "--out", str(out), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_rows(process: subprocess.Popen[str], out: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while len(RunFolder(out).rows()) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def losses(out: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in RunFolder(out).rows()]


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without any incident."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    assert train("digits", *TINY, *MESH, "--steps", str(STEPS), "--out", str(out)) == 0
    return out


@pytest.fixture
def copy(digits_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(digits_run, tmp_path / "copy")


def test_a_run_leaves_its_files(digits_run: Path):
    names = {path.name for path in digits_run.iterdir()}
    assert names >= {"config.json", "metrics.jsonl", "summary.json", "checkpoints"}
    assert sorted(p.name for p in (digits_run / "checkpoints").iterdir()) == ["50", "55", "60"]
    rows = RunFolder(digits_run).rows()
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert all({"loss", "tokens_per_second", "elapsed", "accuracy"} <= row.keys() for row in rows)
    summary = json.loads((digits_run / "summary.json").read_text())
    assert summary["task"] == "digits" and summary["model"] == "s5"
    assert summary["mesh"] == {"data": 4, "fsdp": 1, "tensor": 2, "seq": 1}
    assert summary["devices"] == 8 and summary["steps"] == STEPS and summary["processes"] == 1
    assert summary["parameters"] == 499
    assert summary["seconds"] > 0 and summary["tokens_per_second"] > 0
    assert 0 <= summary["test_accuracy"] <= 1 and summary["test_loss"] > 0


def test_the_config_holds_the_values_used_and_the_versions(digits_run: Path):
    config = json.loads((digits_run / "config.json").read_text())
    assert config.pop("versions") == {
        **{name: metadata.version(name) for name in ("rnnscale", "jax", "equinox", "optax")},
        "python": platform.python_version(),
    }
    assert None not in config.values() and "chunk" not in config
    used = {"seq_len": 64, "warmup": 6, "recurrence_rate": 1e-3, "learning_rate": 4e-3}
    assert config.items() >= {**used, "mesh": {"data": 4, "tensor": 2}}.items()


def test_a_config_starts_the_same_run_and_options_override_it(
    digits_run: Path, tmp_path: Path, error_line: Callable[..., str]
):
    """The file is enough; the options given here are those that it has from the other run."""
    file, out = digits_run / "config.json", tmp_path / "again"
    assert train("--config", str(file), "--out", str(out), "--save-every", "60") == 0
    assert losses(out) == losses(digits_run)
    again, first = (json.loads((each / "config.json").read_text()) for each in (out, digits_run))
    assert again == {**first, "out": str(out), "save_every": 60}
    assert "--resume takes the options" in error_line(
        "train", "--resume", "--out", str(out), "--config", str(file)
    )
    assert "no.json can't be read (No such file or directory); name" in error_line(
        "train", "--config", str(tmp_path / "no.json")
    )
    wrong = tmp_path / "wrong.json"
    for name, value, words in (
        ("gamma", 2, "unknown here: gamma; use rnnscale"),
        ("steps", "3", "steps must be an integer; got '3'"),
        ("dim", True, "dim must be an integer; got True"),
        ("learning_rate", [1], "learning_rate must be a number; got [1]"),
        ("data", "ward.csv", "data must be a mapping of options such as path; got 'ward.csv'"),
    ):
        wrong.write_text(json.dumps({**first, name: value}))
        assert words in error_line("train", "--config", str(wrong))


def test_a_mesh_of_data_alone_is_all_devices_that_there_are(tmp_path: Path):
    file = tmp_path / "config.json"
    split = {"mesh": {"data": 2, "seq": 4}, "cpu_devices": 8}
    for mesh, kept in (({"mesh": {"data": 8}, "cpu_devices": 8}, {}), (split, split)):
        file.write_text(json.dumps({"task": "digits", **mesh, "versions": {}}))
        assert read_options(file) == {"task": "digits", **kept}
        file.write_text(json.dumps({"task": "digits", **mesh}))  # by hand: as it is meant
        assert read_options(file) == {"task": "digits", **mesh}


def test_validation_is_on_and_takes_little(digits_run: Path):
    """23 batches of eight records would cost more than a tenth of 60 steps if evaluated twice."""
    evaluated = [row["step"] for row in RunFolder(digits_run).rows() if "validation_loss" in row]
    assert RunFolder(digits_run).config()["evaluate_every"] == 60
    assert evaluated == [60]


def test_trains_a_language_model_in_bfloat16(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "run"
    arguments = ["--model", "lru", "--text", str(text), "--seq-len", "32", "--steps", "3"]
    assert train("bytes", *TINY, *arguments, "--dtype", "bfloat16", "--out", str(out)) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["test_bits_per_byte"] == pytest.approx(summary["test_loss"] / math.log(2))
    assert len(summary["corpus_sha256"]) == 64
    assert {"bits_per_byte", "loss"} <= RunFolder(out).rows()[0].keys()
    printed = capsys.readouterr().out
    assert "bits per byte" in printed and "count model" in printed


@pytest.mark.slow
def test_a_hybrid_from_training_to_text(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Trained, resumed, evaluated and continued as text, from the options in its folder."""
    out = str(tmp_path / "run")
    sizes = "--dim 8 --state-dim 8 --depth 3 --batch-size 8 --seq-len 16 --sample-bytes 0"
    hybrid = "--model griffin --every 2 attention --every-cell window=4,kv_heads=1"
    command = f"train bytes {hybrid} {sizes} --text {text} --evaluate-every 0 --steps"
    assert main([*command.split(), "1", "--out", out]) == 0
    assert "griffin and attention on bytes" in capsys.readouterr().err
    assert RunFolder(Path(out)).config()["every"] == [2, "attention"]
    assert main(["train", "--resume", "--out", out, "--steps", "2"]) == 0
    assert main(["eval", out, "--batch-size", "8"]) == 0
    generated = ["generate", out, "--prompt", "x", "--steps", "3", "--temperature", "0"]
    capsys.readouterr()
    assert main(generated) == 0
    assert capsys.readouterr().out.startswith("x")


@pytest.mark.parametrize(
    "arguments",
    [
        "adding --model indrnn --seq-len 12 --depth 2",
        "adding --model cornn --seq-len 12 --cell dt=0.1,gamma=2,epsilon=3",
        "copy --model exprnn --seq-len 24 --cell init=cayley",
        "henon --model lstm --seq-len 12",
        "copy --model rglru --seq-len 24 --depth 3 --every 2 attention --every-cell kv_heads=1",
    ],
)
def test_cells_train_the_same_on_any_mesh(arguments: str):
    if "henon" in arguments:
        pytest.importorskip("reservoirpy", reason="needs rnnscale[datasets]")
    words = ["train", *arguments.split(), "--dim", "8", "--batch-size", "8", "--out", "unused"]
    options = vars(_parser().parse_args(words))
    del options["command"], options["resume"]
    config = TrainConfig.for_task(**options)
    task = load_task_of(config)
    found = []
    for mesh in (make_mesh(data=2, fsdp=2, tensor=2), make_mesh(data=8)):
        parts = set_up(config, task, mesh)
        with (
            jax.set_mesh(mesh),
            stream(parts.rows, config.batch_size, shardings=parts.layout) as batches,
        ):
            state = sharded_init(parts.init, jax.random.key(config.seed), mesh)
            losses = []
            for _, batch in zip(range(3), batches, strict=False):
                state, metrics = parts.train_step(state, batch)
                losses.append(float(metrics["loss"]))
        found.append(losses)
    np.testing.assert_allclose(*found, rtol=1e-5)


def test_a_run_in_parallel_logs_certificates_and_can_go_on_without(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
):
    """Evaluated or resumed step by step, it is the same model and the same run."""
    out = tmp_path / "run"
    sizes = "--dim 4 --depth 1 --batch-size 8 --seq-len 12"
    steps = "--steps 4 --log-every 1 --evaluate-every 2"
    command = f"train adding --model gru --parallel auto {sizes} {steps} --out {out}"
    assert main(command.split()) == 0
    names = [f"parallel_{each}/layer_0" for each in ("iterations", "residual", "stepped")]
    rows: dict[int, Any] = {
        row["step"]: [row.get(name) for name in names] for row in RunFolder(out).rows()
    }
    assert rows[3] == [None] * 3
    for step in (1, 2, 4):
        iterations, residual, stepped = map(float, rows[step])
        assert iterations >= 1 and residual < 1e-4 and stepped == 0
    summary, stored = RunFolder(out).summary(), RunFolder(out).config()
    assert summary is not None and stored["parallel"] == "auto"
    capsys.readouterr()
    assert main(["eval", str(out), "--parallel", "none", "--json", "-"]) == 0
    (figures,) = json.loads(capsys.readouterr().out)["figures"]
    assert figures["loss"] == pytest.approx(summary["test_loss"], rel=1e-4)
    caplog.clear()
    assert TrainConfig.resumed(stored, parallel="none").parallel == "none" and not caplog.records


def test_a_run_that_is_done_is_resumed_to_nothing(copy: Path):
    before = losses(copy)
    assert train("--resume", "--out", str(copy)) == 0
    assert losses(copy) == before


def test_a_run_that_goes_on_has_no_summary(copy: Path, monkeypatch: pytest.MonkeyPatch):
    assert (copy / "summary.json").is_file()
    monkeypatch.setattr("rnnscale.distributed.StopSignals.reached", lambda self: True)
    assert train("--resume", "--out", str(copy), "--steps", str(STEPS + 9)) == 0
    assert not (copy / "summary.json").exists()


@pytest.mark.slow
def test_stopped_in_any_way_and_resumed_it_ends_the_same(digits_run: Path, tmp_path: Path):
    """Killed before the first checkpoint, stopped by each signal, and killed at any moment: while
    it starts, compiles, restores, trains or saves."""
    out = tmp_path / "stopped"
    for number, rows in ((signal.SIGKILL, 1), (signal.SIGTERM, 12), (signal.SIGINT, 23)):
        process = start(out, "--steps", str(STEPS), "--resume")
        wait_for_rows(process, out, rows)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=240)
        assert not (out / "summary.json").exists()
        if number == signal.SIGKILL:
            assert process.returncode == -number
            assert f"nothing to resume in {out}" in stderr
            continue
        assert process.returncode == 0, stderr
        assert f"rnnscale train --resume --out {out}" in stdout
        assert number.name in stderr and "Traceback" not in stderr
        assert (out / "checkpoints" / str(losses(out)[-1][0])).is_dir()
    process = start(out, "--steps", str(STEPS), "--resume")
    time.sleep(np.random.default_rng(0).uniform(0, 12))
    process.kill()
    process.communicate()
    assert train("--resume", "--out", str(out)) == 0
    assert losses(out) == losses(digits_run)


def test_falls_back_from_a_truncated_checkpoint(
    digits_run: Path, copy: Path, capsys: pytest.CaptureFixture[str]
):
    for file in (copy / "checkpoints" / str(STEPS)).rglob("d/*"):
        os.truncate(file, file.stat().st_size // 2)
    assert train("--resume", "--out", str(copy)) == 0
    stderr = capsys.readouterr().err
    assert f"checkpoint {STEPS}" in stderr and "damaged" in stderr
    assert "falling back to checkpoint 55" in stderr
    opening = "rnnscale: s5 on digits: 499 parameters, 8 x cpu, mesh data=4, tensor=2, rnnscale "
    assert stderr.index(opening) > stderr.index("resuming after step 55")
    assert losses(copy) == losses(digits_run)


def test_resume_takes_options_that_are_left_out_from_the_run(
    digits_run: Path, copy: Path, capsys: pytest.CaptureFixture[str]
):
    """Resumed on another mesh, it ends the same up to rounding; also a run of an older version,
    which noted neither the values used nor the versions."""
    as_older_versions_wrote_it(copy)
    shutil.rmtree(copy / "checkpoints" / str(STEPS))
    # Digits have 64 steps anyway.
    changed = ["--log-every", "2", "--seq-len", "64", "--mesh", "data=2,fsdp=2,tensor=2"]
    assert train("--resume", "--out", str(copy), *changed) == 0
    stderr = capsys.readouterr().err
    assert "seq_len was None and is now 64: no longer the same run" in stderr
    assert "log_every was" not in stderr and "mesh was" not in stderr
    config = json.loads((copy / "config.json").read_text())
    assert config["seq_len"] == 64 and config["batch_size"] == 8
    found, expected = dict(losses(copy)), dict(losses(digits_run))
    assert list(found)[-4:] == [55, 56, 58, 60]
    for step in (56, 58, 60):
        assert found[step] == pytest.approx(expected[step], rel=1e-4)


def as_older_versions_wrote_it(out: Path) -> None:
    options = json.loads((out / "config.json").read_text())
    del options["versions"], options["evaluate_every"]
    options |= dict.fromkeys(("seq_len", "recurrence_rate", "warmup", "chunk", "cell", "text"))
    (out / "config.json").write_text(json.dumps(options))
    (out / "task.json").unlink()


def test_starts_from_the_model_of_another_run_on_another_mesh(copy: Path, tmp_path: Path):
    out = tmp_path / "next"
    arguments = [*TINY, "--start-from", str(copy), "--steps", "2", "--seed", "7"]
    frozen = ["--learning-rate", "1e-30", "--weight-decay", "0"]
    assert train("digits", *arguments, *frozen, "--mesh", "data=8", "--out", str(out)) == 0
    first, then = (RunFolder(folder).summary() for folder in (copy, out))
    assert first is not None and then is not None and then["steps"] == 2
    np.testing.assert_allclose(then["test_loss"], first["test_loss"], rtol=1e-6)
    # To resume it needs its own checkpoints only.
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

    def run(config: Any, **_: Any) -> None:
        given.append(config.out)
        RunFolder(config.out).open({})

    monkeypatch.setattr("rnnscale.runs.run", run)
    for _ in range(2):
        train("digits", "--model", "lru")
    assert given == ["runs/digits-lru-1", "runs/digits-lru-2"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for two checkpoints."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=480k", "tmpfs", str(path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system can't be mounted here: only root may")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_a_full_disk(digits_run: Path, small_disk: Path, capfd: pytest.CaptureFixture[str]):
    """Whatever is being written when it is full: one line, and nothing that was saved is lost."""
    out = small_disk / "run"
    assert train("digits", *TINY, *MESH, "--steps", str(STEPS), "--out", str(out)) == 1
    *logged, line = capfd.readouterr().err.splitlines()
    assert all(each.startswith("rnnscale: ") and "error" not in each for each in logged)
    assert "(No space left on device)" in line
    (newest,) = re.findall(r"the newest whole checkpoint is that of step (\d+): resume", line)
    assert int(newest) == max(
        int(p.name) for p in (out / "checkpoints").iterdir() if p.suffix == ""
    )
    more = ["mount", "-o", "remount,size=8m", str(small_disk)]
    subprocess.run(more, check=True)
    assert train("--resume", "--out", str(out)) == 0
    assert f"resuming after step {newest}" in capfd.readouterr().err
    assert losses(out) == losses(digits_run)


def test_a_checkpoint_that_does_not_fit(
    digits_run: Path, copy: Path, capfd: pytest.CaptureFixture[str]
):
    """With a limit on the size of files, which needs no rights of root."""
    shutil.rmtree(copy / "checkpoints" / str(STEPS))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        assert train("--resume", "--out", str(copy)) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    line = capfd.readouterr().err.splitlines()[-1]
    assert line == (
        f"rnnscale: error: checkpoint {STEPS} in {copy}/checkpoints can't be written (File too "
        "large); the newest whole checkpoint is that of step 55: resume when this is mended"
    )
    assert train("--resume", "--out", str(copy)) == 0
    assert losses(copy) == losses(digits_run)


def test_two_runs_in_one_folder(
    copy: Path, monkeypatch: pytest.MonkeyPatch, error_line: Callable[..., str]
):
    """The second one is refused, and the first one does not notice."""
    expected = losses(copy)
    shutil.rmtree(copy / "checkpoints" / str(STEPS))
    lines = []

    def fit_meanwhile(*arguments: Any, **options: Any) -> Any:
        monkeypatch.undo()
        before = files(copy)
        lines.append(error_line("train", "--resume", "--out", str(copy)))
        assert files(copy) == before
        return fit(*arguments, **options)

    monkeypatch.setattr("rnnscale.runs._run.fit", fit_meanwhile)
    assert train("--resume", "--out", str(copy)) == 0
    assert f"is in use by process {os.getpid()} on {socket.gethostname()}, since " in lines[0]
    assert losses(copy) == expected
    assert not (copy / "run.lock").exists()


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
    "every": ("digits --every 4 attention", ["every", "2 to depth=2", "[4, 'attention']"]),
    "every of no model": ("digits --every 2 attn", ["attn", "attention"]),
    "option": ("digits --lr 1", ["--lr"]),
    "no task": ("", ["task is missing", "rnnscale tasks"]),
    "resume without out": ("digits --resume", ["--out"]),
    "resume from no folder": ("--resume --out {tmp}/new", ["{tmp}/new holds no run to resume"]),
    "empty out": ("digits --out=", ["out=''", "names no folder"]),
    "resume from an empty out": ("--resume --out=", ["out=''", "names no folder"]),
    "text with data of one's own": (f"--data {__file__} --text a", ["text is for some tasks"]),
    "cpu devices too late": ("digits --cpu-devices 3", ["cpu_devices=3", "too late"]),
    "start from no run": ("digits --start-from {tmp}", ["{tmp}", "holds no run"]),
    "start from another model": (
        "digits --start-from {run}",
        ["model.encoder.weight is float32[8, 1] there and float32[64, 1] here"],
    ),
    "start from an emptied run": ("digits --start-from {emptied}", ["no checkpoint in {emptied}"]),
    "fewer steps than done": (
        "--resume --out {copy} --steps 5",
        ["{copy} is already at step 60", "got steps=5"],
    ),
    "another run": ("digits --out {run}", ["{run}", "step 60", "--resume"]),
    "no run": ("digits --out {run}/checkpoints", ["holds no run", "choose"]),
    "another model": (
        "--resume --out {copy} --dim 24",
        ["{copy}", "model.encoder.weight is float32[8, 1] there and float32[24, 1] here"],
    ),
    "another kind of model": (
        "--resume --out {copy} --model lru",
        ["only in the model: model.stack.blocks.layer", "only in the checkpoint: model.stack"],
    ),
    "no full checkpoint": (
        "--resume --out {emptied}",
        ["no checkpoint in", "steps 50, 55, 60"],
    ),
    "NaN in the data": ("digits --batch-size 8", ["NaN", "batch of step 0"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(
    name: str,
    digits_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error_line: Callable[..., str],
):
    """And changes nothing in the folders that it names."""
    monkeypatch.chdir(tmp_path)
    command, parts = BAD[name]
    places = {
        "run": digits_run,
        **{place: tmp_path / place for place in ("tmp", "copy", "emptied")},
    }
    places["tmp"].mkdir()
    for place in ("copy", "emptied"):
        if f"{{{place}}}" in command:
            shutil.copytree(digits_run, places[place])
    for manifest in places["emptied"].glob("checkpoints/*/manifest.json"):
        manifest.unlink()
    if name == "NaN in the data":
        nan_in_the_data(monkeypatch)
    else:
        monkeypatch.setattr("rnnscale.runs._run.fit", lambda *_, **__: pytest.fail("trains"))
    before = files(digits_run), files(places["copy"])
    line = error_line("train", *command.format(**places).split())
    assert all(part.format(**places) in line for part in parts), line
    assert (files(digits_run), files(places["copy"])) == before


def files(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
