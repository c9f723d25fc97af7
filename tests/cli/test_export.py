"""`rnnscale export`, and the files that it writes, run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnscale.cli import main
from rnnscale.runs import RunFolder, TrainConfig, load_run, set_up
from rnnscale.sharding import make_mesh
from rnnscale.tasks import load_task
from rnnscale.training import Checkpointer

pytest.importorskip("flatbuffers", reason="flatbuffers, in which jax.export writes, is missing")

from rnnscale.interop import load_step


@pytest.fixture
def make_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    def make(task: str, **options: Any) -> Path:
        """A run that was stopped before its first step."""
        folder = RunFolder(tmp_path_factory.mktemp("runs") / "run")
        config = TrainConfig.for_task(
            task, out=str(folder.path), dim=8, depth=2, batch_size=8, **options
        )
        folder.open(config.as_json())
        loaded = load_task(task, seq_len=config.seq_len, text=config.text, folder=config.folder)
        parts = set_up(config, loaded, make_mesh(8))
        with Checkpointer(folder.checkpoints) as checkpoints:
            checkpoints.save(0, jax.jit(parts.init)(jax.random.key(0)))
        return folder.path

    return make


def export(run: Path, out: Path, *options: str) -> int:
    return main(["export", str(run), "--out", str(out), *options])


def test_a_model_of_features(
    make_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run, out = make_run("adding", model="gru", seq_len=16), tmp_path / "model.step"
    assert export(run, out, "--platforms", "cpu", "tpu") == 0
    first, second, _ = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{out}: a step of DeepRNN, {run} at step 0, ")
    assert first.endswith("MB, for cpu, tpu") and second == "  input   float32 (batch, 2)"
    step = load_step(out.read_bytes())
    model: Any = load_run(run, make_mesh(devices=jax.devices()[:1])).model
    x = jnp.array([[0.3, 1.0], [0.6, 0.0]])
    _, y = step(x, step.init_state((2,)))
    np.testing.assert_allclose(y, model(x[:, None])[0], atol=1e-5)


def test_a_model_of_tokens(bytes_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "model.step"
    assert export(bytes_run, out, "--batch-size", "2") == 0
    first, second, _ = capsys.readouterr().out.splitlines()
    assert "a step of LanguageModel" in first and second == "  input   int32 (2)"
    assert [path.name for path in tmp_path.iterdir()] == ["model.step"]
    step = load_step(out.read_bytes())
    model: Any = load_run(bytes_run, make_mesh(devices=jax.devices()[:1])).model
    x = jnp.array([65, 10])
    _, y = step(x, step.init_state((2,)))
    np.testing.assert_allclose(y, model.step(x, model.init_state((2,)))[1], atol=1e-5)


def test_the_data_may_have_moved(
    make_run: Callable[..., Path],
    tmp_path: Path,
    error_line: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
):
    before, now, out = (tmp_path / name for name in ("before", "now", "model.step"))
    for split in ("train", "val", "test"):
        file = before / f"listops-1000/basic_{split}.tsv"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("Source\tTarget\n[MAX 4 3 ]\t4\n")
    run = make_run("lra-listops", model="lru", state_dim=8, folder=str(before))
    before.rename(now)
    assert str(before) in error_line("export", str(run), "--out", str(out))
    moved = ["--folder", str(now)]

    def full_disk(partial: Path, out: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.replace", full_disk)
        assert "No space left" in error_line("export", str(run), "--out", str(out), *moved)
    assert [path.name for path in tmp_path.iterdir()] == ["now"]  # no partial file
    assert export(run, out, *moved) == 0 and out.exists()


def test_bad_input_is_one_line(
    make_run: Callable[..., Path], tmp_path: Path, error_line: Callable[..., str]
):
    def error(*options: str, out: Path = tmp_path / "file", run: Path = tmp_path) -> str:
        return error_line("export", str(run), "--out", str(out), *options)

    assert "holds no run" in error()
    assert "there is no folder" in error(out=tmp_path / "no" / "file")
    assert "is a folder; name a file" in error(out=tmp_path)
    assert "--batch-size must be" in error("--batch-size", "0")
    assert "unknown platform 'gpu'; did you mean 'tpu'?" in error("--platforms", "gpu")
    assert "is not causal" in error(run=make_run("digits", model="s5-bidirectional", state_dim=8))
