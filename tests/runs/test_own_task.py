"""Runs on a task of one's own, given in Python."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rnnscale.data import ArraySource
from rnnscale.runs import RunFolder, TrainConfig, load_run, run
from rnnscale.tasks import Task, check_records

pytestmark = pytest.mark.usefixtures("quick_compilation")


def signs(count: int, seed: int) -> ArraySource:
    """Short walks, and whether they end above zero."""
    steps = np.random.default_rng(seed).normal(size=(count, 6, 1)).astype(np.float32)
    return ArraySource(inputs=steps, labels=(steps.sum((1, 2)) > 0).astype(np.int32))


@pytest.fixture(scope="module")
def task() -> Task:
    return Task(
        "signs",
        *(signs(count, seed) for seed, count in enumerate((64, 16, 24))),
        inputs="features",
        idim=1,
        labels="sequence",
        seq_len=6,
        metric="accuracy",
        classes=2,
        notes={"steps": 6, "from": "a generator"},
    )


@pytest.fixture(scope="module")
def config(task: Task, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """The options of a run of two steps on the task."""
    out = str(tmp_path_factory.mktemp("runs") / "signs")
    sizes = {"model": "elman", "dim": 4, "depth": 1, "batch_size": 8, "steps": 2, "log_every": 1}
    config = TrainConfig.for_task(task, out=out, **sizes)
    summary = run(config, task=task)
    assert summary is not None and summary["task"] == "signs"
    assert summary["steps"] == 2 and summary["from"] == "a generator"
    return config


def test_it_is_loaded_without_its_task_and_evaluated_with_it(config: TrainConfig, task: Task):
    saved = load_run(config.out)
    assert saved.spec == task.spec and saved.step >= 2
    with pytest.raises(ValueError, match="the options name neither a task nor data"):
        saved.evaluate()
    summary = RunFolder(config.out).summary()
    assert summary is not None
    saved = load_run(config.out, task=task)
    assert saved.evaluate()["loss"] == summary["test_loss"]
    with pytest.raises(ValueError, match="sequences of 'signs' have 6 steps; got seq_len=7"):
        saved.evaluate(seq_len=7)
    with pytest.raises(ValueError, match="unknown split 'train'; known: validation, test"):
        saved.evaluate("train")  # pyright: ignore[reportArgumentType]


def test_it_is_resumed_with_its_task_only(config: TrainConfig, task: Task):
    stored = RunFolder(config.out).config()
    assert "task" not in stored
    more = TrainConfig.resumed(stored, steps=3)
    with pytest.raises(ValueError, match=r"Pass it as run\(config, task=\.\.\.\)"):
        run(more, resume=True)
    run(more, task=task, resume=True)
    assert [row["step"] for row in RunFolder(config.out).rows()] == [1, 2, 3]


def test_options_that_name_another_task_are_refused(config: TrainConfig, task: Task):
    with pytest.raises(ValueError, match="name the task 'adding', and the given one is 'signs'"):
        run(replace(config, task="adding", out=config.out + "-2"), task=task)


@pytest.mark.parametrize(
    ("split", "change", "message"),
    [
        (
            "train",
            {"idim": 2},
            r"inputs float\[6, 2\], .*, but its split train has float32\[6, 1\]",
        ),
        ("train", {"labels": "step"}, r"labels int\[6\], .*, but its split train has int32\[\]"),
        ("train", {"inputs": "tokens"}, r"inputs int\[6\], .* has float32\[6, 1\]"),
        (
            "train",
            {"classes": None, "odim": 1, "metric": "mse"},
            r"labels float\[1\], .* has int32",
        ),
        ("test", {"test": [{"inputs": np.zeros((6, 1), np.float32)}]}, "labels .* test has none"),
    ],
)
def test_records_that_are_not_as_the_task_says_are_refused(
    split: str, change: dict[str, Any], message: str, config: TrainConfig, task: Task
):
    with pytest.raises(
        ValueError, match=f"the task 'signs' has records with {message}.*tasks/READ"
    ):
        run(replace(config, out=config.out + "-3"), task=replace(task, **change))


def test_what_is_not_a_task_is_refused(config: TrainConfig, task: Task):
    source: Any = task.train
    with pytest.raises(ValueError, match="must be a rnnscale.tasks.Task, .*; got ArraySource"):
        run(replace(config, out=config.out + "-4"), task=source)


def test_tasks_of_arrays_are_as_they_say():
    xs = np.random.default_rng(0).normal(size=(20, 6, 2))
    for labels in (["a", "b"] * 10, xs[:, 0, :1], xs[..., :1]):
        check_records(Task.from_arrays(xs, labels))
    check_records(Task.from_arrays(np.sin(np.arange(100.0)), horizon=2))
