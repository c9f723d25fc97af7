"""Which model a run ends with, and what it writes on the way: early stopping, the best checkpoint,
averaged parameters, samples and a log for TensorBoard, in one run on text in bfloat16 whose rate is
too large, so that it gets worse again."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from rnnscale.runs import RunFolder, SavedRun, Setup, TrainConfig, load_run, run
from rnnscale.training import restore_part


def config(folder: Path, **changed: Any) -> TrainConfig:
    options: dict[str, Any] = {
        "model": "lru",
        "text": str(folder.parent / "text"),
        "seq_len": 8,
        "dim": 4,
        "depth": 1,
        "state_dim": 4,
        "batch_size": 8,
        "steps": 40,
        "learning_rate": 0.3,
        "warmup": 0,
        "optimiser": "lion",
        "schedule": "constant",
        "dtype": "bfloat16",
        "average": 0.5,
        "evaluate_every": 1,
        "patience": 3,
        "keep_best": True,
        "save_every": 100,
        "sample_bytes": 16,
        "tensorboard": True,
    }
    return TrainConfig.for_task("bytes", out=str(folder), **{**options, **changed})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, RunFolder, SavedRun]]:
    folder = tmp_path_factory.mktemp("runs") / "run"
    (folder.parent / "text").mkdir()
    for i in range(10):
        (folder.parent / "text" / f"{i}.txt").write_text(f"line {i}\n" * 20)
    summary = run(config(folder))
    yield summary, RunFolder(folder), load_run(folder)
    jax.clear_caches()


def test_a_run_stops_early_and_its_best_model_is_tested_and_loaded(trained: Any):
    summary, folder, saved = trained
    losses = [row["validation_bits_per_byte"] for row in folder.rows()]
    best = int(np.argmin(losses)) + 1
    assert summary["steps"] == len(losses) == best + 3 < 40 and summary["ended"] == "patience"
    assert (summary["best_step"], summary["best_validation_bits_per_byte"]) == (best, min(losses))
    assert saved.step == best
    assert saved.evaluate("validation")["bits_per_byte"] == pytest.approx(min(losses), rel=1e-6)
    assert saved.evaluate("test")["bits_per_byte"] == pytest.approx(
        summary["test_bits_per_byte"], rel=1e-6
    )


def test_a_run_whose_budget_is_used_up_tests_its_best_model_and_goes_on_with_more(
    trained: Any, tmp_path: Path
):
    whole, folder, _ = trained
    given = {**folder.config(), "out": str(tmp_path / "run")}
    cut = run(TrainConfig(**{**given, "cpu_minutes": 1e-9}))
    assert cut is not None and cut["ended"] == "budget" and cut["steps"] < whole["steps"]
    assert cut["test_bits_per_byte"] > 0
    rest = run(TrainConfig(**{**given, "cpu_minutes": 60.0}), resume=True)
    assert rest is not None and rest["ended"] == "patience"
    for name in ("steps", "best_step", "test_bits_per_byte"):
        assert rest[name] == whole[name]


def test_a_signal_during_a_validation_loses_no_figures(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole, folder, _ = trained
    given = {**folder.config(), "out": str(tmp_path / "run")}
    evaluate = Setup.evaluate

    def interrupted(*arguments: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Setup, "evaluate", interrupted)
        assert run(TrainConfig(**given)) is None
    rest = run(TrainConfig(**given), resume=True)
    assert rest is not None and rest["best_step"] == whole["best_step"]
    name = "validation_bits_per_byte"
    figures = [[row[name] for row in x.rows()] for x in (folder, RunFolder(tmp_path / "run"))]
    assert figures[0] == figures[1]


def test_a_resumed_run_takes_the_ties_that_are_given(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    _, folder, _ = trained
    given = {**folder.config(), "out": str(tmp_path / "run")}
    monkeypatch.setattr(Setup, "evaluate", lambda *_, **__: {"loss": 1.0, "bits_per_byte": 1.0})
    run(TrainConfig(**{**given, "cpu_minutes": 1e-9}))
    rest = run(TrainConfig(**{**given, "ties": "last"}), resume=True)
    assert rest is not None and rest["best_step"] == rest["steps"] > 1


@pytest.mark.parametrize(("patience", "warns"), [(0, False), (3, True)])
def test_other_evaluations_are_another_run_if_the_end_goes_by_them(
    patience: int, warns: bool, caplog: pytest.LogCaptureFixture
):
    stored = {"task": "bytes", "out": "run", "patience": patience, "evaluate_every": 10}
    TrainConfig.resumed(stored, evaluate_every=20)
    assert ("evaluate_every was 10 and is now 20" in caplog.text) == warns


@pytest.mark.parametrize(("dropout", "warns"), [(0.0, False), (0.1, True)])
def test_other_chunks_are_another_run_with_dropout(
    dropout: float, warns: bool, caplog: pytest.LogCaptureFixture
):
    TrainConfig.resumed({"task": "bytes", "out": "run", "dropout": dropout}, chunk=128)
    assert ("chunk was None and is now 128" in caplog.text) == warns


def test_a_best_checkpoint_that_is_gone_is_not_replaced_by_the_last(trained: Any, tmp_path: Path):
    summary, folder, _ = trained
    copy = tmp_path / "run"
    shutil.copytree(folder.path, copy)
    shutil.rmtree(copy / "checkpoints" / str(summary["best_step"]))
    given = {**folder.config(), "out": str(copy)}
    with pytest.raises(ValueError, match=f"no checkpoint of step {summary['best_step']}, the best"):
        run(TrainConfig(**given), resume=True)
    # Not after training on.
    more = TrainConfig(**{**given, "steps": given["steps"] + 1, "patience": 0})
    with pytest.raises(ValueError, match="no checkpoint .* go on and test the last model"):
        run(more, resume=True)
    assert RunFolder(copy).rows() == folder.rows()
    last = run(TrainConfig(**{**given, "keep_best": False}), resume=True)
    assert last is not None and last["steps"] == summary["steps"]


def test_the_loaded_parameters_are_averaged(trained: Any):
    _, folder, saved = trained
    parts = {"model": saved.model}
    found = restore_part(folder.checkpoints, jax.eval_shape(lambda: parts), best=True)
    assert found is not None and found[1] == saved.step
    last, averaged = jax.tree.leaves(found[0]), jax.tree.leaves(saved.model)
    differences = [np.abs(np.asarray(a) - b).max() for a, b in zip(last, averaged, strict=True)]
    assert max(differences) > 0.1


def test_samples_and_figures_are_written_on_the_way(trained: Any):
    summary, folder, _ = trained
    samples = {int(file.stem): file.read_text() for file in (folder.path / "samples").iterdir()}
    assert sorted(samples) == list(range(1, summary["steps"] + 1))
    assert any(samples.values())
    (events,) = folder.tensorboard.iterdir()
    written = events.read_bytes()
    for name in (b"validation_bits_per_byte", b"grad_norm", b"config", b"sample"):
        assert name in written


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"evaluate_every": 0}, "patience and keep_best go by evaluations: leave evaluate_every"),
        ({"average": 1.0}, "average must be at least 0 and less than 1, got 1.0"),
        ({"mesh": {"data": "4"}}, "mesh axis 'data' must have a whole number of devices, .* '4'"),
        ({"patience": -1}, "patience must be at least 0, got -1"),
        ({"optimiser": "adam"}, "optimiser must be one of 'adamw', .*; got 'adam'"),
        ({"schedule": "step"}, "schedule must be one of 'cosine', .*; got 'step'"),
    ],
)
def test_bad_options(changed: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        config(Path("unused"), **changed)
