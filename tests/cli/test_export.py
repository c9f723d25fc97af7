"""`rnnscale export`, and what it wrote, run."""

from collections.abc import Callable
from dataclasses import asdict
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


@pytest.fixture(scope="module")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    def make(task: str, **options: Any) -> Path:
        """A run that was stopped before its first step."""
        folder = RunFolder(tmp_path_factory.mktemp("runs") / "run")
        config = TrainConfig.for_task(
            task, out=str(folder.path), dim=8, depth=2, batch_size=8, **{"seq_len": 16, **options}
        )
        folder.open(asdict(config))
        loaded = load_task(task, seq_len=config.seq_len, text=config.text, folder=config.folder)
        parts = set_up(config, loaded, make_mesh(8))
        with Checkpointer(folder.checkpoints) as checkpoints:
            checkpoints.save(0, jax.jit(parts.init)(jax.random.key(0)))
        return folder.path

    return make


def test_a_model_of_features_and_one_of_tokens(make_run, tmp_path, capsys):
    text = tmp_path / "text"
    text.mkdir()
    for i in range(3):
        (text / f"{i}.txt").write_text(f"{i} times {i + 1} is {i * (i + 1)}.\n" * 3)
    cases = {
        "adding": (make_run("adding", model="gru"), "DeepRNN", "float32 (batch, 2)"),
        "bytes": (
            make_run("bytes", model="lru", state_dim=8, text=str(text)),
            "LanguageModel",
            "int32 (batch)",
        ),
    }
    for run, model, inputs in cases.values():
        out = tmp_path / "model.step"
        assert main(["export", str(run), "--out", str(out), "--platforms", "cpu", "tpu"]) == 0
        first, second, _ = capsys.readouterr().out.splitlines()
        assert first.startswith(f"{out}: a step of {model}, {run} at step 0, ")
        assert first.endswith("MB, for cpu, tpu") and second == f"  input   {inputs}"
        step = load_step(out.read_bytes())
        saved: Any = load_run(run, make_mesh(devices=jax.devices()[:1]), text=None).model
        if model == "DeepRNN":
            x = jnp.array([[0.3, 1.0], [0.6, 0.0]])
            expected = saved(x[:, None])[0]
        else:
            x = jnp.array([65, 10])
            expected = saved.step(x, saved.init_state((2,)))[1]
        _, y = step(x, step.init_state((2,)))
        np.testing.assert_allclose(y, expected, atol=1e-5)
    fixed = tmp_path / "fixed"
    assert main(["export", str(run), "--out", str(fixed), "--batch-size", "4"]) == 0
    assert "int32 (4)" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fixed", "model.step", "text"]


def test_the_data_may_have_moved(make_run, tmp_path, capsys, monkeypatch):
    before, now, out = (tmp_path / name for name in ("before", "now", "model.step"))
    for split in ("train", "val", "test"):
        file = before / f"listops-1000/basic_{split}.tsv"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("Source\tTarget\n[MAX 4 3 ]\t4\n")
    run = str(make_run("lra-listops", model="lru", state_dim=8, seq_len=None, folder=str(before)))
    before.rename(now)
    export = ["export", run, "--out", str(out)]
    assert main(export) == 2
    assert str(before) in capsys.readouterr().err
    export += ["--folder", str(now)]

    def full(partial, out):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.replace", full)
        assert main(export) == 2
    assert "No space left" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["now"]  # nothing by halves
    assert main(export) == 0
    assert "SequenceClassifier" in capsys.readouterr().out and out.exists()


def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys):
    def error(*arguments: str) -> str:
        capsys.readouterr()
        assert main(["export", *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    file = str(tmp_path / "file")
    assert "holds no run" in error(str(tmp_path), "--out", file)
    assert "there is no folder" in error(str(tmp_path), "--out", str(tmp_path / "no" / "file"))
    assert "is a folder; name a file" in error(str(tmp_path), "--out", str(tmp_path))
    assert "--batch-size must be" in error(str(tmp_path), "--out", file, "--batch-size", "0")
    with pytest.raises(SystemExit, match="2"):
        main(["export", str(tmp_path), "--out", file, "--platforms", "gpu"])
