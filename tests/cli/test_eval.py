"""`rnnscale eval`, and the runs that `load_run` loads."""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from rnnscale.cli import main
from rnnscale.runs import SavedRun, TrainConfig, load_run
from rnnscale.sharding import make_mesh
from rnnscale.tasks import load_task
from rnnscale.training import restore_part


@jax.jit
def apply(model: Any, inputs: jax.Array) -> Any:
    return model(inputs)


def files(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def figures(run: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict]:
    capsys.readouterr()
    assert main(["eval", str(run), "--json", "-", *arguments]) == 0
    return json.loads(capsys.readouterr().out)["figures"]


def losses_of_documents(saved: SavedRun) -> np.ndarray:
    """The loss of each byte of the test split, including the end of each file, when the model reads
    full files."""
    losses = []
    for record in saved.task.sequences["test"]:
        _, logits = apply(saved.model, record["inputs"])
        logits = np.asarray(logits, np.float64)
        chosen = np.take_along_axis(logits, record["labels"][:, None], axis=-1)[:, 0]
        losses.append(np.log(np.exp(logits).sum(axis=-1)) - chosen)
    return np.concatenate(losses)


def test_figures_equal_the_summary_and_the_folder_is_only_read(
    bytes_run: Path, capsys: pytest.CaptureFixture[str]
):
    before = files(bytes_run)
    (found,) = figures(bytes_run, capsys)
    assert files(bytes_run) == before
    summary = json.loads((bytes_run / "summary.json").read_text())
    assert found["loss"] == summary["test_loss"]
    assert found["bits_per_byte"] == summary["test_bits_per_byte"]
    assert found["perplexity"] == pytest.approx(np.exp(summary["test_loss"]))
    (other,) = figures(bytes_run, capsys, "--split", "validation")
    assert other["loss"] != found["loss"]


def test_longer_windows_start_from_zero_and_lanes_carry_the_state(
    bytes_run: Path, text: Path, capsys: pytest.CaptureFixture[str]
):
    saved = load_run(bytes_run)
    (long,) = figures(bytes_run, capsys, "--seq-len", "50")
    windows = load_task("bytes", seq_len=50, text=text).test
    inputs, labels = (np.stack([w[name] for w in windows]) for name in ("inputs", "labels"))
    logits = np.asarray(apply(saved.model, inputs)[1], np.float64)
    chosen = np.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    expected = (np.log(np.exp(logits).sum(axis=-1)) - chosen).mean()
    assert long["loss"] == pytest.approx(expected, rel=1e-5)
    # With more lanes than files.
    (lanes,) = figures(bytes_run, capsys, "--rows", "lanes", "--seq-len", "7")
    assert lanes["loss"] == pytest.approx(losses_of_documents(saved).mean(), rel=1e-5)


def test_any_mesh_gives_the_same_figures(bytes_run: Path, capsys: pytest.CaptureFixture[str]):
    """Also if the model itself is split over the mesh."""
    expected = json.loads((bytes_run / "summary.json").read_text())["test_loss"]
    mesh = make_mesh(data=1, fsdp=2, tensor=2, seq=2)
    saved = load_run(bytes_run, mesh)
    model: Any = saved.model
    (embedding,) = jax.tree.leaves(model.embedding)
    assert embedding.sharding.mesh == mesh and not embedding.is_fully_replicated
    assert saved.evaluate()["loss"] == pytest.approx(expected, rel=1e-5)
    (chunked,) = figures(bytes_run, capsys, "--mesh", "data=4,tensor=2", "--chunk", "5")
    assert chunked["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_part_of_a_checkpoint_is_read_without_the_rest(bytes_run: Path):
    step = jax.ShapeDtypeStruct((), np.int32)
    found = restore_part(bytes_run / "checkpoints", {"step": step})
    assert found is not None and found[1] == 4 and jax.tree.map(int, found[0]) == {"step": 4}
    with pytest.raises(ValueError, match="only in the checkpoint: key"):
        restore_part(bytes_run / "checkpoints", {"step": step, "key": {}})
    assert restore_part(bytes_run / "nothing", {"step": step}) is None


def test_a_damaged_checkpoint_is_skipped_and_left_in_place(
    bytes_copy: Path, caplog: pytest.LogCaptureFixture
):
    newest = bytes_copy / "checkpoints" / "4"
    largest = max((newest / "state").rglob("*"), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    damaged = files(bytes_copy)
    with caplog.at_level(logging.WARNING, "rnnscale"):
        saved = load_run(bytes_copy)
    assert saved.step == 2 and "checkpoint 4" in caplog.text
    assert files(bytes_copy) == damaged


def test_bad_input_is_one_line(bytes_copy: Path, tmp_path: Path, error_line: Callable[..., str]):
    def error(*options: str) -> str:
        return error_line("eval", str(bytes_copy), *options)

    assert "holds no run" in error_line("eval", str(tmp_path / "nowhere"))
    assert "unknown mesh axis 'dta'" in error("--mesh", "dta=8")
    assert "make it a multiple of 8" in error("--batch-size", "9")
    assert "the mesh needs 4 devices" in error("--mesh", "data=4")
    assert "less than one window" in error("--seq-len", "100000")
    assert "there is no folder" in error("--json", str(tmp_path / "no" / "file"))
    config = json.loads((bytes_copy / "config.json").read_text())
    (bytes_copy / "config.json").write_text(json.dumps({**config, "dim": 16}))
    assert "is of another model" in error()
    shutil.rmtree(bytes_copy / "checkpoints")
    assert "has saved no checkpoint yet" in error()


def test_a_task_of_one_length_takes_no_other(tmp_path):
    task = load_task("digits")
    config = TrainConfig.for_task("digits", out=str(tmp_path))
    saved = SavedRun(config, task.spec, make_mesh(8), 0, None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="sequences of 'digits' have 64 steps; got seq_len=65"):
        saved.evaluate(seq_len=65)
    lanes = replace(saved, config=replace(config, rows="lanes"))
    with pytest.raises(ValueError, match="rows=lanes needs sequences"):
        lanes.evaluate()
