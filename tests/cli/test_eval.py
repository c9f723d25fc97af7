"""`rnnscale eval`, and the runs that `load_run` loads."""

import json
import logging
import shutil
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

TINY = "--dim 8 --state-dim 8 --depth 1 --batch-size 8 --seq-len 16 --steps 4 --save-every 2"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for i in range(40):
        (folder / f"{i}.txt").write_text(f"{i} times {i + 1} is {i * (i + 1)}.\n" * (3 + i % 5))
    return folder


@pytest.fixture(scope="module")
def run(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", "bytes", *TINY.split(), "--text", str(text), "--out", str(out)]) == 0
    return out


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(run, tmp_path / "copy")


@jax.jit
def apply(model: Any, inputs: jax.Array) -> Any:
    return model(inputs)


def files(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def figures(run: Path, capsys: pytest.CaptureFixture, *arguments: str) -> list[dict]:
    capsys.readouterr()
    assert main(["eval", str(run), "--json", "-", *arguments]) == 0
    return json.loads(capsys.readouterr().out)["figures"]


def losses_of_documents(saved: SavedRun) -> np.ndarray:
    """Of each byte of the test split, and of the end of each file, read as a whole."""
    documents = saved.task.sequences["test"]
    losses = []
    for record in (documents[i] for i in range(len(documents))):
        _, logits = apply(saved.model, record["inputs"])
        logits = np.asarray(logits, np.float64)
        chosen = np.take_along_axis(logits, record["labels"][:, None], axis=-1)[:, 0]
        losses.append(np.log(np.exp(logits).sum(axis=-1)) - chosen)
    return np.concatenate(losses)


def test_figures_are_those_of_the_summary_and_the_folder_stays_as_it_is(run, capsys):
    before = files(run)
    (found,) = figures(run, capsys)
    assert files(run) == before
    summary = json.loads((run / "summary.json").read_text())
    assert found["loss"] == summary["test_loss"]
    assert found["bits_per_byte"] == summary["test_bits_per_byte"]
    assert found["perplexity"] == pytest.approx(np.exp(summary["test_loss"]))
    (other,) = figures(run, capsys, "--split", "validation")
    assert other["loss"] != found["loss"]


def test_longer_windows_start_from_zero_and_lanes_carry_the_state(run, text, capsys):
    saved = load_run(run)
    (long,) = figures(run, capsys, "--seq-len", "50")
    windows = load_task("bytes", seq_len=50, text=text).test
    inputs, labels = (np.stack([w[name] for w in windows]) for name in ("inputs", "labels"))
    logits = np.asarray(apply(saved.model, inputs)[1], np.float64)
    chosen = np.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    expected = (np.log(np.exp(logits).sum(axis=-1)) - chosen).mean()
    assert long["loss"] == pytest.approx(expected, rel=1e-5)
    # With more lanes than files.
    (lanes,) = figures(run, capsys, "--rows", "lanes", "--seq-len", "7")
    assert lanes["loss"] == pytest.approx(losses_of_documents(saved).mean(), rel=1e-5)


def test_any_mesh_gives_the_same_figures(run, capsys):
    """And a model that is split over it."""
    expected = json.loads((run / "summary.json").read_text())["test_loss"]
    mesh = make_mesh(data=1, fsdp=2, tensor=2, seq=2)
    saved = load_run(run, mesh)
    model: Any = saved.model
    (embedding,) = jax.tree.leaves(model.embedding)
    assert embedding.sharding.mesh == mesh and not embedding.is_fully_replicated
    assert saved.evaluate()["loss"] == pytest.approx(expected, rel=1e-5)
    (chunked,) = figures(run, capsys, "--mesh", "data=4,tensor=2", "--chunk", "5")
    assert chunked["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_part_of_a_checkpoint_is_read_without_the_rest(run):
    step = jax.ShapeDtypeStruct((), np.int32)
    found = restore_part(run / "checkpoints", {"step": step})
    assert found is not None and found[1] == 4 and jax.tree.map(int, found[0]) == {"step": 4}
    with pytest.raises(ValueError, match="only in the checkpoint: key"):
        restore_part(run / "checkpoints", {"step": step, "key": {}})
    assert restore_part(run / "nothing", {"step": step}) is None


def test_a_damaged_checkpoint_is_passed_over_and_left_where_it_is(copy, caplog):
    newest = copy / "checkpoints" / "4"
    largest = max((newest / "state").rglob("*"), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    damaged = files(copy)
    with caplog.at_level(logging.WARNING, "rnnscale"):
        saved = load_run(copy)
    assert saved.step == 2 and "checkpoint 4" in caplog.text
    assert files(copy) == damaged


def test_bad_input_is_one_line_and_exit_code_2(copy, tmp_path, capsys):
    def error(*arguments: str) -> str:
        capsys.readouterr()
        assert main(["eval", *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "holds no run" in error(str(tmp_path / "nowhere"))
    assert "unknown mesh axis 'dta'" in error(str(copy), "--mesh", "dta=8")
    assert "make it a multiple of 8" in error(str(copy), "--batch-size", "9")
    assert "less than one window" in error(str(copy), "--seq-len", "100000")
    assert "there is no folder" in error(str(copy), "--json", str(tmp_path / "no" / "file"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "dim": 16}))
    assert "is of another model" in error(str(copy))
    shutil.rmtree(copy / "checkpoints")
    assert "has saved no checkpoint yet" in error(str(copy))


def test_a_task_of_one_length_takes_no_other(tmp_path):
    task = load_task("digits")
    config = TrainConfig.for_task("digits", out=str(tmp_path))
    saved = SavedRun(config, task, make_mesh(8), 0, None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="sequences of 'digits' have 64 steps; got seq_len=65"):
        saved.evaluate(seq_len=65)
    lanes = replace(saved, config=replace(config, rows="lanes"))
    with pytest.raises(ValueError, match="rows=lanes needs sequences"):
        lanes.evaluate()
