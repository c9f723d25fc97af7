"""The folder of a run, its files, and when a run may use it."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from rnnscale.runs import RunFolder, load_run
from rnnscale.training import MetricsFile

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.open({"task": "digits"})
    return folder


def checkpoint(folder: RunFolder, step: int) -> None:
    (folder.checkpoints / str(step)).mkdir(parents=True)


def test_new_and_empty_folders_are_fine_and_stay_as_they_are(tmp_path: Path):
    RunFolder(tmp_path).check(resume=False)
    RunFolder(tmp_path / "new").check(resume=False)
    RunFolder(tmp_path / "new").check(resume=True)
    assert not list(tmp_path.iterdir())


def test_checkpoints_of_another_run(run: RunFolder):
    run.check(resume=False)  # a run that was stopped before its first checkpoint loses nothing
    checkpoint(run, 20)
    checkpoint(run, 100)
    with pytest.raises(
        ValueError, match=r"run holds another run's checkpoints, up to step 100; .*"
    ):
        run.check(resume=False)
    run.check(resume=True)
    run.check(resume=True, steps=100)
    with pytest.raises(ValueError, match="is already at step 100; got steps=80, which counts from"):
        run.check(resume=True, steps=80)


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_that_is_no_run(tmp_path: Path, resume: bool):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="is not empty and holds no run"):
        RunFolder(tmp_path).check(resume=resume)
    with pytest.raises(ValueError, match=r"thesis.tex is a file"):
        RunFolder(tmp_path / "thesis.tex").check(resume=resume)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"path": None}, "path must be a string or a pathlib.Path; got None"),
        ({"mesh": 3}, "mesh must be a jax.Mesh or a .*; got 3. rnnscale.sharding.make_mesh"),
        ({"task": "digits"}, "task must be a rnnscale.tasks.Task or None; got 'digits'"),
    ],
)
def test_a_run_is_loaded_with_arguments_of_the_right_kind(
    run: RunFolder, given: dict[str, Any], message: str
):
    with pytest.raises(TypeError, match=f"load_run: {message}"):
        load_run(**{"path": run.path, **given})


def test_killed_before_the_config_was_written(tmp_path: Path):
    (tmp_path / "config.json.partial").write_text('{"ta')
    for name in ("run.lock", "run.lock4k2s", ".shared-1f"):
        (tmp_path / name).touch()
    RunFolder(tmp_path).check(resume=True)


def test_folder_that_cannot_be_made(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="can't be written to"):
        RunFolder(tmp_path / "file" / "run").open({})


def test_config_comes_back(run: RunFolder):
    assert run.config() == {"task": "digits"}
    (run.path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json can't be read"):
        run.config()


def test_each_row_is_on_disk_when_it_is_logged(run: RunFolder):
    lines = []
    for step in (10, 20):
        run.metrics({"step": step, "loss": 1 / step})
        lines = (run.path / "metrics.jsonl").read_text().splitlines()
        assert json.loads(lines[-1]) == {"step": step, "loss": 1 / step}
    assert len(lines) == 2


def test_numbers_that_json_lacks_are_null(run: RunFolder):
    run.metrics({"step": 1, "loss": math.nan, "grad_norm": math.inf})
    assert run.rows() == [{"step": 1, "loss": None, "grad_norm": None}]


@pytest.mark.parametrize("cut", range(1, 12))
def test_resume_truncates_after_the_checkpoint_and_a_torn_line(run: RunFolder, cut: int):
    for step in (10, 20, 30):
        run.metrics({"step": step, "loss": 0.5})
    metrics = run.path / "metrics.jsonl"
    metrics.write_text(metrics.read_text()[:-cut])
    assert [row["step"] for row in run.rows()] == [10, 20]
    run.metrics.truncate(10)
    run.metrics({"step": 20, "loss": 0.25})
    assert run.rows() == [{"step": 10, "loss": 0.5}, {"step": 20, "loss": 0.25}]
    run.metrics.truncate(0)
    assert run.rows() == []


def test_curves(run: RunFolder):
    pytest.importorskip("matplotlib")
    for step in (1, 2, 3):
        run.metrics({"step": step, "loss": 1 / step, "elapsed": 1.0, "tokens_per_second": 3.0})
    run.metrics({"step": 4, "loss": math.nan, "validation_loss": 0.3})
    run.plot()
    assert (run.path / "curves.png").read_bytes().startswith(PNG)


def test_without_matplotlib_the_extra_is_named(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    run.metrics({"step": 1, "loss": 0.5})
    run.plot()
    assert "rnnscale[plots]" in caplog.text
    assert len(caplog.records) == 1
    assert not (run.path / "curves.png").exists()


def test_a_disk_that_is_full_while_a_row_is_written(run: RunFolder):
    """`/dev/full` is such a disk."""
    if not Path("/dev/full").exists():
        pytest.skip("the system has no /dev/full")
    run.metrics = MetricsFile("/dev/full")
    with pytest.raises(ValueError, match=r"No space left on device\); choose another folder"):
        with run.locked(resume=False):
            run.metrics({"step": 1, "loss": 0.5})
    checkpoint(run, 20)
    with pytest.raises(OSError, match=r"No space left on device\); no checkpoint is whole yet"):
        with run.locked(resume=True):
            run.metrics({"step": 1, "loss": 0.5})
    with pytest.raises(FileNotFoundError), run.locked(resume=True):
        raise FileNotFoundError(2, "a file of the data")
    assert not (run.path / "run.lock").exists()
