"""One's own data as tasks: files of every format, splits, preprocessing, forecasts, and errors."""

import importlib.metadata
import json
import math
import pickle
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rnnscale import data
from rnnscale.tasks import DataOptions, Preprocessing, Task, describe, load_task, task_from

SPLITS = ("train", "validation", "test")
TS = "@univariate false\n@equalLength false\n@classLabel true b a\n@data\n"


def records(source: data.Source) -> list[data.Record]:
    return [source[index] for index in range(len(source))]


def assert_same(one: Task, other: Task) -> None:
    """Tasks with the same records in the same splits."""
    for split in SPLITS:
        pairs = zip(records(getattr(one, split)), records(getattr(other, split)), strict=True)
        for record, expected in pairs:
            assert record.keys() == expected.keys()
            for name in record:
                np.testing.assert_allclose(record[name], expected[name], atol=1e-6, err_msg=name)


def fitted(task: Task) -> Preprocessing:
    assert task.preprocessing is not None
    return task.preprocessing


def two_classes(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Series of 12 steps and 2 channels with far from standard scales, and their classes."""
    random = np.random.RandomState(seed)
    labels = random.permutation(np.arange(count) % 2)
    inputs = random.normal(size=(count, 12, 2)) * [10, 0.1] + [100, -3]
    return inputs + labels[:, None, None], labels


# Preprocessing


def test_preprocessing_is_fitted_to_the_training_split_only():
    inputs, labels = two_classes(40, 0)
    split = np.array(["train", "validation", "test", "train"] * 10)
    task = Task.from_arrays(inputs, labels, split=split)
    training = inputs[split == "train"].reshape(-1, 2)
    mean, std = training.mean(axis=0), training.std(axis=0)
    np.testing.assert_allclose(fitted(task).mean, mean, rtol=1e-12)
    for name in SPLITS:
        found = np.stack([record["inputs"] for record in records(getattr(task, name))])
        np.testing.assert_allclose(found, (inputs[split == name] - mean) / std, atol=1e-5)
    inputs[split != "train"] *= 1000
    assert fitted(Task.from_arrays(inputs, labels, split=split)) == fitted(task)
    inputs[split == "train"] *= 1000
    assert fitted(Task.from_arrays(inputs, labels, split=split)) != fitted(task)


def test_real_labels_are_standardised_by_the_training_split_and_decoded():
    inputs, _ = two_classes(40, 0)
    labels = np.stack([inputs[:, :, 0].sum(axis=1), inputs[:, 0, 1]], axis=1)
    split = np.array(["train", "validation", "test", "train"] * 10)
    task = Task.from_arrays(inputs, labels, split=split, kind="regression")
    assert (task.odim, task.metric, task.labels) == (2, "nrmse", "sequence")
    trained = np.stack([record["labels"] for record in records(task.train)])
    np.testing.assert_allclose(trained.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(trained.std(axis=0), 1, atol=1e-5)
    tested = np.stack([record["labels"] for record in records(task.test)])
    decoded = fitted(task).decode(tested)
    assert list(decoded) == ["label 0", "label 1"]
    np.testing.assert_allclose(np.stack([*decoded.values()], 1), labels[split == "test"], rtol=1e-5)
    assert task.baseline is not None
    expected = np.mean((tested) ** 2) / tested.var(axis=0).mean()
    np.testing.assert_allclose(task.baseline()["constant_nrmse"], expected**0.5, rtol=1e-5)


def test_new_data_are_read_as_in_training(tmp_path: Path):
    inputs, labels = two_classes(40, 0)
    np.savez(tmp_path / "all.npz", X=inputs, y=np.where(labels, "up", "down"))
    task = task_from(tmp_path / "all.npz")
    stored = json.loads(json.dumps(fitted(task).to_json()))
    preprocessing = Preprocessing.from_json(stored)
    assert preprocessing == fitted(task)
    with pytest.raises(ValueError, match="must have .*seq_len.*; it has"):
        Preprocessing.from_json({"mean": [0]})
    np.savez(tmp_path / "new.npz", X=inputs)  # without labels
    new = preprocessing.read(tmp_path / "new.npz")
    assert len(new) == 40 and "labels" not in new[0]
    assert new.names[3] == "new.npz, series 3"
    found = {new[index]["inputs"].tobytes() for index in range(40)}
    assert {task.test[index]["inputs"].tobytes() for index in range(len(task.test))} < found
    decoded = preprocessing.decode(np.log([[0.25, 0.75], [0.6, 0.4]]))
    assert decoded["prediction"].tolist() == ["up", "down"]
    np.testing.assert_allclose(decoded["probability of down"], [0.25, 0.6])
    with pytest.raises(ValueError, match=r"shape \(..., 2\); got \(3,\)"):
        preprocessing.decode(np.zeros(3))


def test_new_data_must_be_like_the_training_data(tmp_path: Path):
    inputs, labels = two_classes(40, 0)
    preprocessing = fitted(Task.from_arrays(inputs, labels))
    np.savez(tmp_path / "narrow.npz", X=inputs[:, :, :1], y=labels)
    with pytest.raises(ValueError, match="has the inputs channel 0; the training data had"):
        preprocessing.read(tmp_path / "narrow.npz")
    np.savez(tmp_path / "third.npz", X=inputs, y=labels + 1)
    with pytest.raises(ValueError, match="series .*: the class '2' is not one of 0, 1"):
        preprocessing.read(tmp_path / "third.npz")
    np.savez(tmp_path / "steps.npz", X=inputs, y=np.tile([0, 1], (40, 6)))
    with pytest.raises(ValueError, match="must have one label for each series"):
        preprocessing.read(tmp_path / "steps.npz")
    inputs[3, 4, 1] = np.nan
    np.savez(tmp_path / "gap.npz", X=inputs, y=labels)
    with pytest.raises(ValueError, match="gap.npz, series 3, step 4, column .*, or train with"):
        preprocessing.read(tmp_path / "gap.npz")


def test_new_arrays_have_the_columns_of_a_file_in_their_order(tmp_path: Path):
    inputs = np.round(np.random.default_rng(0).normal(size=(20, 4, 2)), 3)
    rows = ["who,up,down,name"]
    for who, series in enumerate(inputs):
        rows += [f"{who},{a},{b},{'xy'[who % 2]}" for a, b in series]
    (tmp_path / "long.csv").write_text("\n".join(rows))
    own = fitted(task_from(tmp_path / "long.csv", group="who", label="name"))
    assert own.columns == ("up", "down")
    of_file, of_arrays = own.read(tmp_path / "long.csv"), own.read(inputs)
    for index in range(20):
        np.testing.assert_array_equal(of_arrays[index]["inputs"], of_file[index]["inputs"])
    with pytest.raises(ValueError, match="has the inputs channel 0; the training data had up, d"):
        own.read(inputs[..., :1])
    with pytest.raises(TypeError, match="data must be a path, an array, .*; got None"):
        own.read(None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="path must be that of a file or a folder; got None"):
        task_from(None)  # pyright: ignore[reportArgumentType]


def test_missing_values_are_named_or_masked():
    inputs, labels = two_classes(40, 0)
    inputs[3, 4, 1] = inputs[7, 0, 0] = np.nan
    with pytest.raises(
        ValueError,
        match="2 values are missing, the first at arrays, series 3, step 4, .*'chan.* 1'",
    ):
        Task.from_arrays(inputs, labels)
    split = ["train"] * 20 + ["validation"] * 10 + ["test"] * 10
    task = Task.from_arrays(inputs, labels, missing="mask", split=split)
    assert task.idim == 4
    record = task.train[3]["inputs"]
    assert record[4].tolist()[1:] == [0, 0, 1] and record[:, 2:].sum() == 1
    known = inputs[:20].reshape(-1, 2)
    np.testing.assert_allclose(fitted(task).mean, np.nanmean(known, axis=0), rtol=1e-12)
    np.testing.assert_allclose(fitted(task).std, np.nanstd(known, axis=0), rtol=1e-12)


# Kinds and splits


@pytest.mark.parametrize(
    "labels, classes, odim, per",
    [
        (np.arange(40) % 3, 3, None, "sequence"),
        (np.where(np.arange(40) % 3, "a", "b"), 2, None, "sequence"),
        (np.arange(40), None, 1, "sequence"),
        (np.linspace(0, 1, 40), None, 1, "sequence"),
        (np.arange(40 * 12).reshape(40, 12) % 5, 5, None, "step"),
        (np.random.RandomState(0).normal(size=(40, 12, 3)), None, 3, "step"),
    ],
)
def test_the_kind_follows_from_the_labels(labels, classes, odim, per):
    inputs, _ = two_classes(40, 0)
    task = Task.from_arrays(inputs, labels)
    assert (task.classes, task.odim, task.labels) == (classes, odim, per)
    shape = (12,) if per == "step" else ()
    assert task.train[0]["labels"].shape == (shape if odim is None else (*shape, odim))


def test_whole_numbers_and_booleans_are_classes_with_one_name(tmp_path: Path):
    path = tmp_path / "own.csv"
    names = ["1", "1.0", "2", "2.", "1.50"] * 8
    path.write_text("\n".join(["y,a,b", *(f"{name},{n},1" for n, name in enumerate(names))]))
    task = task_from(path, label="y", kind="classification")
    assert fitted(task).classes == ("1", "1.50", "2")
    assert [int(record["labels"]) for record in records(fitted(task).read(path))] == [
        {"1": 0, "1.0": 0, "1.50": 1, "2": 2, "2.": 2}[name] for name in names
    ]
    inputs, labels = two_classes(40, 0)
    for given in (labels == 1, (labels == 1).tolist()):
        task = Task.from_arrays(inputs, given)
        assert fitted(task).classes == ("False", "True")
        expected = np.bincount(labels).tolist()
        found = [int(r["labels"]) for s in SPLITS for r in records(getattr(task, s))]
        assert np.bincount(found).tolist() == expected


def test_the_kind_can_be_given():
    inputs, labels = two_classes(40, 0)
    assert Task.from_arrays(inputs, labels, kind="regression").odim == 1
    assert Task.from_arrays(inputs.repeat(3, axis=1), kind="forecast").labels == "step"
    for kind in ("classification", "regression"):
        with pytest.raises(ValueError, match=f"kind '{kind}' needs labels"):
            Task.from_arrays(inputs, kind=kind)


def test_splits_are_fixed_stratified_and_disjoint():
    inputs, labels = two_classes(100, 0)
    labels = np.where(np.arange(100) < 20, 2, labels)
    first, second = (Task.from_arrays(inputs, labels, split=(0.5, 0.2, 0.3)) for _ in range(2))
    assert_same(first, second)
    counts = np.bincount(labels)
    every = []
    for split, fraction in zip(SPLITS, (0.5, 0.2, 0.3), strict=True):
        found = records(getattr(first, split))
        each = np.bincount([record["labels"] for record in found])
        np.testing.assert_allclose(each, counts * fraction, atol=1)
        every += [record["inputs"].tobytes() for record in found]
    assert len(set(every)) == len(every) == 100


def test_validation_is_taken_from_training_if_the_data_have_none():
    inputs, labels = two_classes(60, 0)
    split = np.array(["train"] * 40 + ["test"] * 20)
    task = Task.from_arrays(inputs, labels, split=split)
    counts = np.bincount([record["labels"] for record in records(task.validation)])
    assert counts.tolist() == [math.ceil(c / 10) for c in np.bincount(labels[:40])]
    assert len(task.train) + len(task.validation) == 40 and len(task.test) == 20


# Formats


def write_npz(folder: Path, inputs: np.ndarray, names: np.ndarray) -> dict:
    np.savez(folder / "own.npz", inputs=inputs, labels=names)
    return {}


def write_ts(folder: Path, inputs: np.ndarray, names: np.ndarray) -> dict:
    lines = [
        ":".join(",".join(map(repr, channel.tolist())) for channel in series.T) + f":{name}"
        for series, name in zip(inputs, names, strict=True)
    ]
    (folder / "own.ts").write_text(TS.replace("b a", "down up") + "\n".join(lines) + "\n")
    return {}


def write_wide_csv(folder: Path, inputs: np.ndarray, names: np.ndarray) -> dict:
    lines = ["name," + ",".join(f"t{step}" for step in range(inputs.shape[1]))]
    for series, name in zip(inputs[:, :, 0], names, strict=True):
        lines.append(f"{name}," + ",".join(map(repr, series.tolist())))
    (folder / "own.csv").write_text("\ufeff" + "\r\n".join(lines) + "\r\n", encoding="utf-8")
    return {"label": "name"}


def write_archive_tsv(folder: Path, inputs: np.ndarray, names: np.ndarray) -> dict:
    lines = [
        "\t".join([name, *map(repr, series.tolist())])
        for series, name in zip(inputs[:, :, 0], names, strict=True)
    ]
    (folder / "own.tsv").write_text("\n".join(lines) + "\n")
    return {"label": "0"}


def write_long_csv(folder: Path, inputs: np.ndarray, names: np.ndarray) -> dict:
    lines = ["who;a;b;name"]
    for step in range(inputs.shape[1]):  # the rows of a series are not together
        for row, series in enumerate(inputs):
            values = ";".join(map(repr, series[step].tolist()))
            lines.append(f"person {row};{values};{names[row]}")
    (folder / "own.csv").write_text("\n".join(lines) + "\n")
    return {"label": "name", "group": "who"}


def write_long_parquet(folder: Path, inputs: np.ndarray, names: np.ndarray) -> dict:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    count, steps, _ = inputs.shape
    columns = {
        "who": np.repeat(np.arange(count), steps),
        "a": inputs[:, :, 0].ravel(),
        "b": inputs[:, :, 1].ravel(),
        "name": np.repeat(names, steps),
    }
    parquet.write_table(pa.table(columns), folder / "own.parquet")
    return {"label": "name", "group": "who", "inputs": "a,b"}


def write_list_parquet(folder: Path, inputs: np.ndarray, names: np.ndarray) -> dict:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    channels = {c: inputs[:, :, n].tolist() for n, c in enumerate("ab")}
    parquet.write_table(pa.table({**channels, "name": names}), folder / "own.parquet")
    return {"label": "name"}


@pytest.mark.parametrize("options", [{"group": "who"}, {}])
def test_new_tables_need_neither_labels_nor_splits(options, tmp_path: Path):
    path, new = tmp_path / "own.csv", tmp_path / "new.csv"
    lines = ["who,a,b,name,part"]
    for who, part in enumerate(["train", "validation", "test"] * 4):
        # Both steps of a group have the same label.
        lines += [f"{who},{step},{who},{'xy'[who % 2]},{part}" for step in (0.5, 7)]
    path.write_text("\n".join(lines) + "\n")
    new.write_text("\n".join(line.rsplit(",", 2)[0] for line in lines) + "\n")
    task = task_from(path, label="name", split="part", **options)
    with_labels, without = (records(fitted(task).read(each)) for each in (path, new))
    assert len(without) == (12 if options else 24)
    for record, expected in zip(without, with_labels, strict=True):
        assert expected.keys() - record.keys() == {"labels"}
        np.testing.assert_array_equal(record["inputs"], expected["inputs"])


MULTIVARIATE = [write_npz, write_ts, write_long_csv, write_long_parquet, write_list_parquet]
UNIVARIATE = [write_wide_csv, write_archive_tsv]


@pytest.mark.parametrize("write", MULTIVARIATE + UNIVARIATE)
def test_every_format_gives_the_same_task(write: Callable, tmp_path: Path):
    inputs, labels = two_classes(40, 0)
    inputs = inputs.astype(np.float32).astype(np.float64)[:, :, : 2 if write in MULTIVARIATE else 1]
    names = np.where(labels, "up", "down")
    options = write(tmp_path, inputs, names)
    expected = Task.from_arrays(inputs, names)
    for path in (next(tmp_path.iterdir()), tmp_path):  # as a file and as a folder
        task = task_from(path, **options)
        assert_same(task, expected)
        assert fitted(task).classes == ("down", "up")
    new = fitted(task).read(tmp_path)
    assert len(new) == 40
    shuffled = {record["inputs"].tobytes() for s in SPLITS for record in records(getattr(task, s))}
    assert {record["inputs"].tobytes() for record in records(new)} == shuffled


def test_a_missing_value_of_a_wide_table_has_the_line_and_column_of_its_file(tmp_path: Path):
    header = "y,monday,tuesday,friday,sunday\n"
    (tmp_path / "x_TRAIN.csv").write_text(header + "a,1,2,3,4\n\nb,1,2,,4\n" + "a,1,2,3\n" * 9)
    (tmp_path / "x_TEST.csv").write_text(header.replace("tues", "thurs") + "a,1,2,3,4\n")
    with pytest.raises(ValueError, match=r"1 values .* at .*x_TRAIN.csv, line 4, column 'friday';"):
        task_from(tmp_path, label="y")
    (tmp_path / "x_TRAIN.csv").write_text(header + "a,1,2,3,4\nb,2,3,4,5\n" * 9)
    preprocessing = fitted(task_from(tmp_path, label="y"))
    (tmp_path / "new.csv").write_text(header + "a,1,2,3,4\na,1,,3,\n")
    with pytest.raises(ValueError, match="new.csv, line 3, column 'tuesday'"):
        preprocessing.read(tmp_path / "new.csv")
    rows = [f"{','.join(map(str, sine(50).tolist()))}\n" for _ in range(3)]
    (tmp_path / "f.csv").write_text(",".join(f"t{n}" for n in range(50)) + "\n" + "".join(rows))
    forecast = fitted(task_from(tmp_path / "f.csv", form="wide", horizon=1, seq_len=4))
    (tmp_path / "f.csv").write_text("t0,t1,t2,t3,t4,t5,t6\n1,2,3,4,,5,\n")
    with pytest.raises(ValueError, match="line 2, column 't4'"):
        forecast.read(tmp_path / "f.csv")


def test_ts_files_of_every_kind(tmp_path: Path):
    path = tmp_path / "own.ts"
    lines = [f"{n},2,3:4,5,?:{'ab'[n % 2]}\n1,{n}:3,4:{'ab'[n % 2]}\n" for n in range(10)]
    path.write_text("# about\n" + TS + "".join(lines))
    with pytest.raises(ValueError, match=rf"{path}, line 6, step 2, column 'channel 1'"):
        task_from(path)
    task = task_from(path, missing="mask")
    assert (task.idim, task.classes, task.seq_len) == (4, 2, 3)
    assert fitted(task).classes == ("b", "a")  # the order of the header
    assert {int(record["lengths"]) for record in records(task.train)} == {2, 3}
    path.write_text("@targetlabel true\n@data\n" + "".join(f"{n},1:{n / 7}\n" for n in range(20)))
    task = task_from(path)
    assert (task.odim, task.metric) == (1, "nrmse")
    new = fitted(task).read(path)
    decoded = fitted(task).decode(np.stack([record["labels"] for record in records(new)]))
    np.testing.assert_allclose(decoded["target"], np.arange(20) / 7, atol=1e-6)
    path.write_text("@data\n" + ",".join(map(str, range(200))) + "\n")
    assert fitted(task_from(path, horizon=2)).kind == "forecast"


def test_ts_files_with_time_stamps(tmp_path: Path):
    path = tmp_path / "own.ts"

    def write(*channels: str) -> None:
        line = ":".join(channels)
        path.write_text("@timeStamps true\n" + TS + "".join(f"{line}:{c}\n" for c in "ab" * 10))

    times = ["2007-01-01 00:00:00", "2007-01-01 00:01:30", "2007-01-02"]
    write(
        *(
            ",".join(f"({t},{v})" for t, v in zip(times, row, strict=True))
            for row in [(1, 2, 3)] * 2
        )
    )
    task = task_from(path)
    assert task.idim == 2 and fitted(task).interval == (90 + 86310) / 2
    np.testing.assert_allclose(task.train[0]["intervals"], [1, 90 / 43200, 86310 / 43200])
    steps = task.train[0]["inputs"][:, 1] * fitted(task).std[1] + fitted(task).mean[1]
    np.testing.assert_allclose(steps, [1, 2, 3], atol=1e-6)
    for channels, message in {
        ("(0,1),(1,2)", "(0,1),(2,2)"): "its channels have different time stamps",
        ("(1,1),(0,2)",): "its time stamps do not increase",
        ("(x,1),(1,2)",): "neither a number nor a date",
    }.items():
        write(*channels)
        with pytest.raises(ValueError, match=f"{path}, line 6: .*{message}"):
            task_from(path)


ARCHIVE = [
    *("ACSF1", "ArrowHead", "BasicMotions", "GunPoint", "ItalyPowerDemand", "JapaneseVowels"),
    *("OSULeaf", "PickupGestureWiimoteZ", "CardanoSentiment", "Covid3Month"),
]


def aeon_folder(name: str) -> Path:
    pytest.importorskip("aeon")
    return (
        Path(str(importlib.metadata.distribution("aeon").locate_file("aeon/datasets/data"))) / name
    )


@pytest.mark.parametrize("name", ARCHIVE)
def test_sets_of_the_archive_are_what_aeon_reads(name: str):
    loaders = pytest.importorskip("aeon.datasets")
    folder = aeon_folder(name)
    series, labels, about = loaders.load_from_ts_file(
        str(folder / f"{name}_TEST.ts"), return_meta_data=True
    )
    train, _ = loaders.load_from_ts_file(str(folder / f"{name}_TRAIN.ts"))
    task = task_from(folder)
    assert len(task.train) + len(task.validation) == len(train) and len(task.test) == len(series)
    assert task.seq_len == max(x.shape[1] for x in (*train, *series))
    mean, std = np.array(fitted(task).mean), np.array(fitted(task).std)
    for record, expected, label in zip(records(task.test), series, labels, strict=True):
        length = int(record["lengths"])
        np.testing.assert_allclose(record["inputs"][:length], (expected.T - mean) / std, atol=1e-4)
        classes = fitted(task).classes
        if about["classlabel"]:
            assert classes is not None
            # aeon changes names to lower case.
            assert classes[int(record["labels"])].lower() == label
        else:
            decoded = fitted(task).decode(record["labels"])["target"]
            np.testing.assert_allclose(decoded, label, atol=1e-5)
    by_file = task_from(folder / f"{name}_TRAIN.ts")
    assert_same(by_file, task)
    assert_same(load_task("uea", folder=folder), task)
    new = fitted(task).read(folder / f"{name}_TEST.ts")
    for record, expected in zip(records(new), records(task.test), strict=True):
        np.testing.assert_array_equal(record["inputs"], expected["inputs"])


def test_files_named_after_splits(tmp_path: Path):
    inputs, labels = two_classes(40, 0)
    for split, rows in {"TRAIN": slice(0, 20), "VAL": slice(20, 30), "TEST": slice(30, 40)}.items():
        np.savez(tmp_path / f"x_{split}.npz", X=inputs[rows], y=labels[rows])
    split = ["train"] * 20 + ["validation"] * 10 + ["test"] * 10
    expected = Task.from_arrays(inputs, labels, split=split)
    assert_same(task_from(tmp_path), expected)
    assert_same(task_from(tmp_path / "x_TRAIN.npz"), expected)
    with pytest.raises(ValueError, match="x_TEST.npz is the test split; give the file for"):
        task_from(tmp_path / "x_TEST.npz")
    np.savez(tmp_path / "y_TRAIN.npz", X=inputs, y=labels)
    with pytest.raises(ValueError, match=r"several data sets \(x, y\); give one of their files"):
        task_from(tmp_path)
    parts = {"train": slice(0, 20), "val": slice(20, 30), "test": slice(30, 40)}
    arrays: dict = {f"X_{split}": inputs[rows] for split, rows in parts.items()}
    arrays |= {f"y_{split}": labels[rows] for split, rows in parts.items()}
    np.savez(tmp_path / "all.npz", **arrays)
    assert_same(task_from(tmp_path / "all.npz"), expected)


def test_a_column_says_the_split_and_labels_can_change_in_a_series(tmp_path: Path):
    path = tmp_path / "own.csv"
    lines = ["part,who,a,state"]
    for who, part in enumerate(["train", "Train", "val", "test"] * 3):
        lines += [f"{part},{who},{step}.5,{'on' if step > who else 'off'}" for step in range(15)]
    path.write_text("\n".join(lines) + "\n")
    task = task_from(path, group="who", label="state", split="part")
    assert [len(getattr(task, s)) for s in SPLITS] == [6, 3, 3]
    assert (task.labels, task.classes) == ("step", 2)
    # Each part has series 0 to 11 in the order of the file.
    on = [int(record["labels"].sum()) for record in records(task.test)]
    path.write_text("\n".join(lines[:-3]) + "\n")  # the last series is shorter
    last = fitted(task).read(path)[11]
    assert last["labels"].shape == (15,) and last["lengths"] == 12
    assert on == [14 - who for who in (3, 7, 11)] and fitted(task).classes == ("off", "on")


# Forecasts


def sine(steps: int) -> np.ndarray:
    random = np.random.RandomState(0)
    return 50 + 10 * np.sin(np.arange(steps) * 0.3) + random.normal(size=steps)


def test_a_forecast_has_the_next_values_and_counts_each_label_once():
    series, horizon = np.stack([sine(500), np.arange(500.0)], axis=1), 3
    task = Task.from_arrays(series, horizon=horizon, seq_len=20)
    preprocessing = fitted(task)
    assert preprocessing.kind == "forecast" and task.odim == 2 * horizon
    # In time order: 350, 50 and 100 steps, scaled by the first.
    np.testing.assert_allclose(preprocessing.mean, series[:350].mean(axis=0), rtol=1e-12)
    names = [f"channel {c}+{h}" for h in (1, 2, 3) for c in (0, 1)]
    assert list(preprocessing.targets) == names
    spans = {"train": (0, 347), "validation": (349, 397), "test": (399, 497)}
    for split, (first, end) in spans.items():
        counted: list[int] = []
        for record in records(getattr(task, split)):
            length = int(record["lengths"])
            scaled = record["inputs"][:length] * np.array(preprocessing.std)
            times = (scaled + np.array(preprocessing.mean))[:, 1].round().astype(int)
            labels = preprocessing.decode(record["labels"][:length])
            for h in (1, 2, 3):
                for channel in (0, 1):
                    found = labels[f"channel {channel}+{h}"]
                    np.testing.assert_allclose(found, series[times + h, channel], rtol=1e-4)
            counted += times[record["weight"][:length] > 0].tolist()
            assert not record["weight"][length:].any()
        if split == "train":
            assert len(task.train) == 347 - 20 + 1 and set(counted) == set(range(first, end))
        else:
            assert counted == list(range(first, end))


def test_the_baselines_of_a_forecast_repeat_the_last_value_and_the_last_season():
    random = np.random.RandomState(0)
    series = np.tile(random.normal(size=7), 72)[:500] + 0.1 * random.normal(size=500)
    task = Task.from_arrays(series, horizon=9, seq_len=30)
    # The labels of test are the values 400 to 499.
    at = np.arange(399, 491)[:, None] + np.arange(1, 10)
    guesses = {
        "persistence_nrmse": series[399:491, None],
        "seasonal_naive_nrmse": series[np.where(at - at[:, :1] < 7, at - 7, at - 14)],
    }
    assert task.baseline is not None
    found = task.baseline()
    assert found.keys() == guesses.keys()
    for name, guess in guesses.items():
        error = np.mean((series[at] - guess) ** 2) / series[at].var(axis=0).mean()
        np.testing.assert_allclose(found[name], error**0.5, rtol=1e-5)


def test_parquet_has_columns_of_every_type(tmp_path: Path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path, count = tmp_path / "own.parquet", 200
    start, numbers = np.datetime64("2024-05-31"), np.arange(count)
    columns = {
        "day": pa.array(start + numbers, pa.date32()),
        "when": pa.array((start + numbers).astype("datetime64[us]"), pa.timestamp("us", "UTC")),
        "value": pa.array([None if n == 3 else n for n in numbers.tolist()], pa.int64()),
        "flag": pa.array(numbers % 2 == 0),
        "who": pa.array(numbers // 5),
        "state": pa.array(np.where(numbers // 5 % 2, "on", "off")).dictionary_encode(),
    }
    parquet.write_table(pa.table(columns), path)
    with pytest.raises(ValueError, match="own.parquet, step 3, column 'value'"):
        task_from(path, time="day", inputs="value")
    for time in ("day", "when"):
        task = task_from(path, time=time, inputs="value,flag", missing="mask")
        assert fitted(task).interval == 86400 and task.idim == 4
    task = task_from(path, group="who", label="state", inputs="flag")
    assert fitted(task).classes == ("off", "on")
    assert fitted(task).read(path).names[3] == "3"
    named = task_from(path, group="who", label="flag", inputs="value", missing="mask")
    assert fitted(named).classes == ("False", "True")
    for name in ("a", "b"):
        (tmp_path / "both").mkdir(exist_ok=True)
        parquet.write_table(pa.table(columns), tmp_path / "both" / f"{name}.parquet")
    both = fitted(task).read(tmp_path / "both").names
    assert both[0] == f"{tmp_path}/both/a.parquet, group '0'" and len(set(both)) == 80
    columns["far"] = pa.array((numbers // 5).astype(np.int64) + (1 << 60))
    parquet.write_table(pa.table(columns), path)
    task = task_from(path, group="far", label="state", inputs="flag")
    assert fitted(task).read(path).names[3] == str((1 << 60) + 3)
    columns["lists"] = pa.array([[1.0, 2.0]] * count)
    parquet.write_table(pa.table(columns), path)
    with pytest.raises(ValueError, match="each row is a series, since .*; leave out group$"):
        task_from(path, group="who", label="state", inputs="lists")
    columns["lists"] = pa.array([["a", "b"]] * count)
    parquet.write_table(pa.table(columns), path)
    with pytest.raises(ValueError, match="row 0: its lists must have finite numbers"):
        task_from(path, label="state", inputs="lists")
    columns["who"] = pa.array([None, *columns["who"].to_pylist()[1:]])
    parquet.write_table(pa.table(columns), path)
    with pytest.raises(ValueError, match="row 0, column 'who': the group is missing"):
        task_from(path, group="who", label="state", inputs="flag")


def test_labels_are_of_no_use_for_a_forecast(tmp_path: Path):
    path = tmp_path / "own_TRAIN.ts"
    path.write_text(TS + "".join(f"{','.join(map(repr, sine(50).tolist()))}:a\n" for _ in range(3)))
    path.with_name("own_TEST.ts").write_text(path.read_text())
    task = task_from(path, horizon=2)
    assert (task.name, task.odim) == ("own", 2)
    assert fitted(task).targets == ("channel 0+1", "channel 0+2")
    assert "labels" not in fitted(task).read(path)[0]


def test_a_long_csv_of_a_real_series_is_forecast(tmp_path: Path):
    path = aeon_folder("solar") / "solar.csv"
    values = np.loadtxt(path, delimiter=",", skiprows=1, usecols=1)
    task = task_from(path, time="datetime_gmt", horizon=12, seq_len=48)
    assert (task.name, task.idim, task.odim, task.seq_len) == ("solar", 1, 12, 48)
    assert not fitted(task).irregular and fitted(task).interval == 1800
    assert "intervals" not in task.train[0]
    new = fitted(task).read(path)
    last = new[0]["inputs"][:, 0] * fitted(task).std[0] + fitted(task).mean[0]
    np.testing.assert_allclose(last, values[-48:], atol=1e-3)
    plain = tmp_path / "plain.csv"
    plain.write_text("\n".join(map(repr, values.tolist())) + "\n")  # no header, one column
    assert_same(task_from(plain, horizon=12, seq_len=48), task)


def test_rows_that_are_steps_are_not_taken_for_series_of_one_step(tmp_path: Path):
    path = tmp_path / "series.csv"
    lines = [f"{math.sin(n / 5)},{math.cos(n / 5)},{n // 20}" for n in range(120)]
    path.write_text("\n".join(["load,heat,day", *lines]))
    with pytest.raises(ValueError, match="of the 120 series .* one step.*--horizon 1.*--form long"):
        task_from(path, label="load", inputs="heat")
    assert task_from(path, label="load", inputs="heat", horizon=1, seq_len=8).labels == "step"
    assert task_from(path, label="load", group="day").labels == "step"
    with pytest.raises(ValueError, match="no column is left .*--horizon N"):
        task_from(path, label="load,heat,day")


def test_some_columns_are_forecast_from_all(tmp_path: Path):
    path = tmp_path / "own.csv"
    lines = ["load,heat,note"] + [f"{v},{n % 7},x" for n, v in enumerate(sine(300).tolist())]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match="line 2, column 'note': 'x' is not a number; if the"):
        task_from(path, horizon=4, label="load")
    task = task_from(path, horizon=4, label="load", inputs="heat", seq_len=10)
    assert fitted(task).columns == ("heat", "load") and task.idim == 2
    assert fitted(task).targets == ("load+1", "load+2", "load+3", "load+4")


def test_several_series_and_gaps_in_a_forecast():
    long, short = sine(200), sine(90)
    long[10] = np.nan
    with pytest.raises(ValueError, match="1 values are missing"):
        Task.from_arrays([long, short], kind="forecast")
    task = Task.from_arrays([long, short], kind="forecast", missing="mask", seq_len=8)
    first = records(task.train)[:12]
    # The label of step 9 is the missing value.
    weights = [record["weight"].tolist() for record in first]
    for start, weight in enumerate(weights):
        expected = [0.0 if start + step == 9 else 1.0 for step in range(8)]
        assert weight == expected
    assert all(np.isfinite(record["labels"]).all() for record in first)
    # Windows are of one series only: 140 + 63 training steps.
    assert len(task.train) == (140 - 1 - 8 + 1) + (63 - 1 - 8 + 1)


# Irregular samples


def test_times_become_intervals_in_units_of_the_training_data(tmp_path: Path):
    random = np.random.RandomState(0)
    path, lines = tmp_path / "own.CSV", ["when,who,a,label"]
    times = {who: np.sort(random.uniform(0, 100, 10)) for who in range(30)}
    for who, of_series in times.items():
        for step in random.permutation(10):  # rows are sorted by their times
            lines.append(f"{of_series[step]!r},{who},{step},{who % 2}".replace("np.float64", ""))
    path.write_text("\n".join(lines).replace("(", "").replace(")", "") + "\n")
    task = task_from(path, group="who", time="when", label="label")
    preprocessing = fitted(task)
    assert preprocessing.irregular
    new = preprocessing.read(path)
    for who, record in enumerate(records(new)):
        expected = np.diff(times[who]) / preprocessing.interval
        assert record["intervals"][0] == 1
        np.testing.assert_allclose(record["intervals"][1:], expected, rtol=1e-4)
        steps = record["inputs"][:, 0] * preprocessing.std[0] + preprocessing.mean[0]
        np.testing.assert_allclose(steps, np.arange(10), atol=1e-4)


def test_new_arrays_can_have_times(tmp_path: Path):
    random = np.random.RandomState(0)
    times = 1e9 + np.cumsum(random.uniform(1, 5, size=(20, 6)), axis=1)
    inputs, labels = random.normal(size=(20, 6)), np.arange(20) % 2
    np.savez(tmp_path / "new.npz", inputs=inputs[..., None], times=times)
    preprocessing = fitted(Task.from_arrays(inputs, labels, times=times))
    expected = records(preprocessing.read(tmp_path / "new.npz"))
    for given in (times, list(times)):
        found = records(preprocessing.read(inputs, times=given))
        for record, other in zip(found, expected, strict=True):
            assert record.keys() == other.keys() and "intervals" in record
            np.testing.assert_array_equal(record["intervals"], other["intervals"])
    with pytest.raises(ValueError, match="the array has no times.*; give .* as times"):
        preprocessing.read(inputs)
    with pytest.raises(ValueError, match="new.npz has its own, leave them out"):
        preprocessing.read(tmp_path / "new.npz", times=times)
    with pytest.raises(ValueError, match="training data had no times; leave out times"):
        fitted(Task.from_arrays(inputs, labels)).read(inputs, times=times)
    long = np.cumsum(random.uniform(1, 5, size=60))
    forecast = fitted(Task.from_arrays(sine(60), times=long, seq_len=4))
    (record,) = records(forecast.read(sine(60), times=long))
    assert forecast.interval is not None
    np.testing.assert_allclose(
        record["intervals"][1:], np.diff(long)[-3:] / forecast.interval, rtol=1e-5
    )


def test_evenly_spaced_times_need_no_intervals_and_new_data_must_be_so_too(tmp_path: Path):
    def write(path: Path, hours: int) -> Path:
        start = np.datetime64("2024-05-31T22:00")
        rows = [f"{start + np.timedelta64(hours * n, 'h')}Z,{v}" for n, v in enumerate(sine(200))]
        path.write_text("\n".join(["when,x", *rows]) + "\n")
        return path

    task = task_from(write(tmp_path / "own.csv", 1), time="when")
    assert "intervals" not in task.train[0] and fitted(task).interval == 3600
    with pytest.raises(ValueError, match="steps must be 3600 apart, .*; they are 7200 to 7200"):
        fitted(task).read(write(tmp_path / "other.csv", 2))


# Packed rows and text


def test_packed_rows_of_tokens_and_of_labelled_series(tmp_path: Path):
    tokens = [np.arange(n) % 7 for n in range(5, 60)]
    documents = data.next_token(data.SequenceArrays({"tokens": tokens}))
    data.write_packed(documents, tmp_path / "tokens", 20)
    task = task_from(tmp_path / "tokens")
    assert (task.inputs, task.idim, task.classes, task.labels) == ("tokens", 7, 7, "step")
    every = [record for split in SPLITS for record in records(getattr(task, split))]
    assert sum(record["weight"].sum() for record in every) == sum(map(len, tokens)) - len(tokens)

    inputs, labels = two_classes(60, 0)
    arrays = {"inputs": [*inputs.astype(np.float32)]}
    series = data.SequenceArrays(arrays, {"labels": labels.astype(np.int32)})
    data.write_packed(series, tmp_path / "series", 25)
    task = task_from(tmp_path / "series", split=(0.6, 0.2, 0.2))
    assert (task.inputs, task.idim, task.classes, task.labels) == ("features", 2, 2, "step")
    # Each row has two series of 12 steps and one step of padding.
    trained = np.stack([record["inputs"][:24] for record in records(task.train)])
    np.testing.assert_allclose(trained.mean(axis=(0, 1)), 0, atol=1e-4)
    np.testing.assert_allclose(trained.std(axis=(0, 1)), 1, atol=1e-4)
    with pytest.raises(ValueError, match="must be next_token or classification; got regression"):
        task_from(tmp_path / "tokens", kind="regression")
    with pytest.raises(ValueError, match="packed rows, which have no columns .*; leave out label"):
        task_from(tmp_path / "tokens", label="y", split=(0.5, 0.2, 0.3))
    data.write_packed(data.SequenceArrays(arrays), tmp_path / "unlabelled", 25)
    with pytest.raises(ValueError, match="need 'inputs' and 'labels' .*; these have inputs, reset"):
        task_from(tmp_path / "unlabelled")
    flat = {"inputs": [*inputs[..., 0]], "labels": [*inputs[..., :1]]}
    data.write_packed(data.SequenceArrays(flat), tmp_path / "flat", 25)
    with pytest.raises(ValueError, match=r"inputs .* must have the shape \(steps, features\)"):
        task_from(tmp_path / "flat")


@pytest.mark.parametrize(
    ("end", "size", "metric"), [(0, 256, "bits_per_byte"), (300, 301, "accuracy")]
)
def test_packed_text_with_an_end_that_may_be_no_byte(end, size, metric, tmp_path: Path):
    documents = data.SequenceArrays({"tokens": [np.arange(97, 107)] * 9})
    rows = data.next_token(documents, end=end)
    data.write_packed(rows, tmp_path / "rows", 10, notes={"kind": "text"})
    task = task_from(tmp_path / "rows")
    assert (task.idim, task.classes, task.metric) == (size, size, metric)


def test_new_numbers_of_a_csv_file_are_read_with_their_labels(tmp_path: Path):
    lines = [f"{2 * n},{n},{n + 1}" for n in range(20)]
    file = tmp_path / "own.csv"
    file.write_text("\n".join(["y,a,b", *lines]))
    preprocessing = fitted(task_from(file, label="y", kind="regression"))
    found = np.array([record["labels"] for record in records(preprocessing.read(file))])
    found = found * np.array(preprocessing.target_std) + np.array(preprocessing.target_mean)
    np.testing.assert_allclose(found[:, 0], 2 * np.arange(20), atol=1e-4)
    file.write_text("y,a,b\n1,2,3\n,2,3\n")
    with pytest.raises(ValueError, match="line 3: its label is missing or not finite"):
        preprocessing.read(file)


def test_text_of_a_folder_and_of_one_file(tmp_path: Path):
    for n in range(40):
        (tmp_path / f"{n}.txt").write_text(f"text {n} é\n" * 20)
    task = task_from(tmp_path, seq_len=16)
    assert (task.inputs, task.metric, task.classes) == ("tokens", "bits_per_byte", 256)
    one = tmp_path / "0.txt"
    task = task_from(one, seq_len=1, split=(0.5, 0.2, 0.3))
    content = one.read_bytes()
    found = b""
    for split in SPLITS:
        windows = records(getattr(task, split))
        found += bytes([int(w["inputs"][0]) for w in windows] + [int(windows[-1]["labels"][0])])
    assert found == content  # in order, each byte in one split
    assert len(task.train) == round(0.5 * len(content)) - 1


def test_sources_can_be_sent_to_workers_and_files_are_not_held_in_memory(tmp_path: Path):
    (tmp_path / "text.txt").write_text("some text\n" * 20_000)
    documents = data.next_token(data.TextFiles(tmp_path / "text.txt"), end=0)
    data.write_packed(documents, tmp_path / "rows", 256)
    inputs, labels = two_classes(40, 0)
    held = (Task.from_arrays(inputs, labels), Task.from_arrays(sine(500), horizon=3))
    streamed = (task_from(tmp_path / "text.txt", seq_len=64), task_from(tmp_path / "rows"))
    for task in (*held, *streamed):
        for split in SPLITS:
            source = getattr(task, split)
            sent = pickle.dumps(source)
            copy = pickle.loads(sent)
            assert len(copy) == len(source)
            for name, array in source[len(source) - 1].items():
                np.testing.assert_array_equal(copy[len(source) - 1][name], array)
            # Of 200 kB of text and 1 MB of rows.
            assert task in held or len(sent) < 10_000


# What is understood, and errors


def test_what_is_understood_is_described(tmp_path: Path):
    inputs, labels = two_classes(40, 0)
    inputs[3, 4, 1] = np.nan
    np.savez(tmp_path / "own.npz", X=inputs, y=np.where(labels, "up", "down"))
    lines = [*describe(tmp_path / "own.npz", missing="mask")]
    text = "\n".join(lines)
    for expected in (
        f"files    {tmp_path / 'own.npz'}",
        "series   40, of 12 steps",
        "missing  1 of 960 values: channel 1 1",
        "kind     classification, a label for each series; metric accuracy",
        "split    train 28, validation 4, test 8",
        "classes  down  train 14, validation 2, test 4",
    ):
        assert expected in text
    # The files are described before the error that ends the task.
    found = describe(tmp_path / "own.npz")
    assert next(found).startswith("files")
    with pytest.raises(ValueError, match="1 values are missing"):
        list(found)


LONG = "who,a,name\n1,2,x\n"


@pytest.mark.parametrize(
    "name, content, options, message",
    [
        ("x.csv", "", {}, "x.csv is empty"),
        ("x.csv", "a,b\n", {}, "x.csv has no rows"),
        ("x.csv", "a,b\n1,2\n3\n", {}, "x.csv, line 3 has 1 fields; expected 2"),
        ("x.csv", "a,b\n1,2\n\n3,x\n", {}, "x.csv, line 4, column 'b': 'x' is not a number"),
        ("x.csv", "a;b\n1;0,126\n", {}, "line 2, column 'b': '0,126' .* decimal=','"),
        ("x.csv", "a,b\n1,01/31/2024\n", {"time": "b"}, "01/31/2024 is not .* format='%m/%d/%Y'"),
        ("x.csv", "a,b\n1,inf\n", {}, "x.csv, line 2, column 'b': the value is infinite"),
        ("x.csv", "a,a\n1,2\n", {}, "two columns have the name 'a'"),
        ("x.csv", ",a,y\n0,1,u\n", {"label": "y"}, "x.csv: column 1 has no name, as the index"),
        ("x.csv", "a,b\n1,\xff2\n", {}, "line 1 or later: it can't be read as CSV: 'utf-8'"),
        ("x.csv", 'a,b\n1,"2\n', {}, "line 3 or later: it can't be read as CSV: unexp"),
        ("x.csv", LONG, {"label": "y"}, "x.csv has no column 'y'; it has who, a, name"),
        ("x.csv", LONG, {"inputs": "a", "time": "name"}, "line 2, column 'name': x is not a time"),
        (
            "x.csv",
            LONG,
            {"inputs": "a", "split": "name"},
            "must be train, validation or test; got x",
        ),
        ("x.csv", "t,a\n1,2\n1,3\n", {"time": "t"}, "line 2 and .*, line 3 have the same time"),
        ("x.csv", "y,0,1\na,1,2\nb,,\n", {"label": "y"}, "x.csv, line 3 has no values"),
        ("x.csv", LONG, {"label": ("who", "a", "name")}, "no column is left for the inputs"),
        ("x.csv", "a\n1\n2\n", {}, "at least 2 steps in each .* validation split have at most 0"),
        ("x.csv", "a,b\n1,2\n", {"split": "a"}, "must be train, .*; got 1"),
        ("x.csv", LONG, {"split": "a", "inputs": "a"}, "the column 'a' has two roles"),
        ("x.csv", LONG, {"label": "a", "inputs": "a"}, "the column 'a' has two roles"),
        ("x.csv", "y,a,b\n1,2,3\n", {"label": "y"}, "validation split is empty: 1 series"),
        ("x.csv", "y,a\nu,1\n,2\n", {"label": "y"}, "x.csv, line 3: its label is missing"),
        ("x.csv", "y,a\n0,1\nNA,2\n", {"label": "y"}, "x.csv, line 3: its label is missing"),
        (
            "x.csv",
            "y,a\n" + "".join(f"{n}.5,{n}\n" for n in range(9)) + "?,9\n",
            {"label": "y"},
            "line 11: its label is missing or not",
        ),
        ("x.csv", "g,a\nu,1\nNaN,2\n", {"group": "g"}, "line 3, column 'g': the group is missing"),
        ("x.csv", "g,a\nu,1\n,2\n", {"group": "g"}, "line 3, column 'g': the group is missing"),
        (
            "x.csv",
            "y,a,b\n" + "u,1,1\nv,2,2\n" * 9,
            {"label": "y", "seq_len": 9},
            "has 2 steps, got seq_len=9: leave it out",
        ),
        ("x.npz", "PK\x03\x04 no more", {}, "x.npz can't be read as arrays of NumPy"),
        ("x.ts", TS + "1,2:3:a\n", {}, r"x.ts, line 5: its channels have different lengths"),
        ("x.ts", TS, {}, "x.ts has no series"),
        ("x.ts", TS + "1:2:a\n", {"label": "y"}, "a .ts file has no columns; leave out label"),
        ("x.npz", "not an array", {}, "x.npz can't be read as arrays of NumPy"),
        ("x.parquet", "not a table", {}, "x.parquet is not a Parquet file"),
        ("x.bin", "\x00", {}, "no text file"),
        ("x.txt", "text", {"label": "y"}, "x.txt is read as text, .* series end in .ts, "),
        ("x.txt", "text", {"horizon": 3, "form": "long"}, "leave out form, horizon$"),
        ("x.txt", "text", {"kind": "regression"}, "leave out kind=regression$"),
        ("x.ts", TS + "1:2:a\n", {"split": "fold"}, "leave out split$"),
        ("x.txt", "text", {}, "less than one window of seq_len"),
        ("x.csv", LONG, {"horizon": 0}, "horizon must be .* at least 1 step; got 0"),
        ("x.csv", LONG, {"horizon": 2.5}, "horizon must be a whole number .*; got 2.5"),
        ("x.csv", LONG, {"seq_len": True, "inputs": "a"}, "seq_len must be a whole .*; got True"),
        ("x.csv", LONG, {"kind": "guess"}, "kind must be one of classification, .*; got 'guess'"),
        ("x.csv", LONG, {"split": (0.5, 0.5, 0.5)}, "three positive fractions that add up to 1"),
        ("x.csv", LONG, {"label": "a", "group": "a"}, "the column 'a' has two roles"),
        (
            "x.csv",
            LONG,
            {"form": "wide", "group": "a"},
            "a row is a series, so group and time have",
        ),
        ("x.csv", LONG, {"horizon": 2, "kind": "regression"}, "horizon is for forecasts"),
        ("x.csv", "y,a\nu,1\n", {"label": "y", "kind": "regression"}, "must be a number; got u$"),
    ],
)
def test_files_and_options_that_can_not_be_used(name, content, options, message, tmp_path: Path):
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    path = tmp_path / name
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        task_from(path, **options)


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"X": np.zeros((4, 5, 2)), "y": np.zeros(3)}, "labels must have 4 rows, as inputs; got 3"),
        ({"X": np.zeros((4, 5)), "z": np.zeros(4)}, "has an array 'z'; expected inputs/x/data"),
        ({"y": np.zeros(4)}, "has no array 'inputs'; it has y"),
        ({"X": np.zeros((4, 5)), "X_train": np.zeros((4, 5))}, "either all arrays or none"),
        ({"X": np.zeros((4, 5, 2, 2)), "y": np.zeros(4)}, r"inputs must have the shape .*; got \("),
        ({"X": np.array([["a"]]), "y": np.zeros(1)}, "series 0 must be real numbers"),
        ({"X": np.zeros((2, 3)), "y": [0, 1], "t": [[0, 1, 2], [0, 1, 1]]}, "series 1 must incr"),
        ({"X": [[1, np.inf]], "y": [0]}, "series 0, step 1, channel 0 is infinite"),
        ({"X": np.zeros((2, 5)), "y": [0, 1], "split": ["train", "x"]}, "row 1 is not"),
        ({"X": np.zeros((2, 5)), "y": np.zeros(2), "lengths": [6, 1]}, "series 0 must have 1 to 5"),
        ({"X": np.zeros((2, 5)), "y": np.zeros((2, 3, 4))}, "labels must have the shape"),
        ({"X": np.zeros((2, 5)), "y": np.zeros(2), "t": np.zeros((2, 4))}, "times must be real"),
    ],
)
def test_arrays_that_can_not_be_used(arrays, message, tmp_path: Path):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=f"x.npz.*{message}"):
        task_from(tmp_path / "x.npz")


@pytest.mark.parametrize(
    "given, message",
    [
        ({"inputs": None}, r"inputs must have the shape .*; got \("),
        ({"inputs": []}, "inputs have no series"),
        ({"inputs": "abc"}, "inputs must have the shape"),
        ({"inputs": np.ones((4, 5)) * 1j}, "series 0 must be real numbers .*; got complex128"),
        ({"labels": [None] * 4}, "labels must be real numbers or strings; .* series 0 is object"),
        ({"labels": np.ones(4) * 1j}, "labels must be real numbers or strings"),
        ({"labels": [0, np.nan, 1, 1]}, "arrays, series 1: its label is missing"),
        ({"labels": [0, np.inf, 1, 1]}, "arrays, series 1: its label is missing or not finite"),
        ({"inputs": [np.ones(5), np.ones(0)] * 2}, r"series 1 has the shape \(0, 1\)"),
        ({"lengths": 3}, "lengths must have 4 rows"),
        ({"lengths": np.full(4, 2.5)}, "series 0 must have 1 to 5 steps, whole numbers; got 2.5"),
        ({"times": "abc"}, "times must have 4 rows"),
        ({"times": [["a"] * 5] * 4}, "times must be real numbers .* series 0 are <U1"),
        ({"split": None}, "split must be three fractions, or a name for each series; got None"),
        ({"split": 0.8}, "split must be three fractions, or a name for each series; got 0.8"),
        ({"split": (0.5, 0.6, 0.1)}, "three positive fractions that add up to 1"),
        ({"split": (float("nan"), 0.5, 0.5)}, "three positive fractions that add up to 1"),
        ({"missing": None}, "missing must be one of error, mask; got None"),
    ],
)
def test_odd_arrays_are_named(given, message):
    arguments = {"inputs": np.zeros((4, 5)), "labels": np.arange(4) % 2}
    with pytest.raises(ValueError, match=message):
        Task.from_arrays(**{**arguments, **given})


def test_a_header_of_numbers(tmp_path: Path):
    """That of pandas, which names the columns of an array 0, 1, 2, ...; two may be a step."""
    for header, steps in (("0,1,2", 300), ("0,1", 301)):
        lines = (f"{n}.5" + ",1" * header.count(",") for n in range(300))
        (tmp_path / "x.csv").write_text("\n".join([header, *lines]))
        assert f"1, of {steps} steps" in "\n".join(describe(tmp_path / "x.csv"))


def test_the_splits_of_a_file_are_those_next_to_it(tmp_path: Path):
    """Not those of another folder, and no file without a split."""
    inputs, labels = two_classes(30, 0)
    (tmp_path / "old").mkdir()
    for name in ("own_TRAIN", "own_TEST", "old/own_TRAIN", "old/own_TEST"):
        np.savez(tmp_path / f"{name}.npz", inputs=inputs, labels=labels)
    (tmp_path / "own_notes.npz").write_text("no arrays")
    task = task_from(tmp_path / "own_TRAIN.npz")
    assert len(task.train) + len(task.validation) == len(task.test) == 30
    (tmp_path / "own_notes.npz").unlink()
    with pytest.raises(ValueError, match="are both the test split; give the file for training"):
        task_from(tmp_path)


def test_one_series_for_each_split(tmp_path: Path):
    random = np.random.default_rng(0)
    train, validation, test = (random.normal(size=(n, 2)) for n in (400, 80, 120))
    np.savez(
        tmp_path / "own.npz", inputs_train=train, inputs_validation=validation, inputs_test=test
    )
    task = task_from(tmp_path / "own.npz", horizon=1)
    assert (task.idim, task.odim) == (2, 2)


def test_the_only_series_of_a_class_stays_in_training():
    inputs, labels = two_classes(40, 0)
    labels[3] = 2
    split = np.repeat(["train", "test"], [30, 10])
    task = Task.from_arrays(inputs, labels, split=split)
    trained, validated = (
        {int(r["labels"]) for r in records(x)} for x in (task.train, task.validation)
    )
    assert trained == {0, 1, 2} and validated == {0, 1}


def test_a_constant_input_has_a_deviation_of_one(tmp_path: Path):
    """The mean of equal numbers is rounded, so that they seem to deviate from it."""
    inputs, labels = two_classes(40, 0)
    inputs[..., 1] = 0.3
    task = Task.from_arrays(inputs, labels)
    assert fitted(task).std[1] == 1
    assert fitted(task).read(np.full((1, 12, 2), 0.4))[0]["inputs"][0, 1] == pytest.approx(0.1)
    random = np.random.default_rng(0)
    large = random.normal(1e8, 1.0, (60, 25, 2)) * [1, 0] + [0, 101325.7]
    rows = {"inputs": [*large], "labels": [*random.normal(size=(60, 25, 1))]}
    data.write_packed(data.SequenceArrays(rows), tmp_path / "rows", 25)
    found = np.concatenate([r["inputs"] for r in records(task_from(tmp_path / "rows").train)])
    np.testing.assert_allclose(found[:, 0].std(), 1, atol=1e-3)
    np.testing.assert_allclose(found[:, 1], 0, atol=1e-6)


def test_a_gap_over_a_window_of_a_forecast():
    values = np.sin(np.arange(1200) * 2 * np.pi / 24)
    values[1000:1120] = np.nan
    task = Task.from_arrays(values, missing="mask", horizon=1)
    assert task.baseline is not None
    figures = task.baseline()
    assert figures["seasonal_naive_nrmse"] < 1e-6 < 0.1 < figures["persistence_nrmse"] < 1


def test_what_would_make_other_records():
    inputs, labels = two_classes(40, 0)
    first = fitted(Task.from_arrays(inputs, labels))
    assert first.difference(fitted(Task.from_arrays(inputs * (1 + 1e-13), labels))) is None
    assert first.difference(fitted(Task.from_arrays(inputs[:, :6], labels))) == "mean"
    assert first.difference(fitted(Task.from_arrays(inputs, labels + 1))) == "classes"
    assert first.difference(fitted(Task.from_arrays(inputs * 2, labels))) == "mean"
    assert first.difference(fitted(Task.from_arrays(inputs, labels, missing="mask"))) == (
        "options.missing"
    )


def test_names_of_columns_are_strings():
    all_wrong: list[dict[str, Any]] = [{"group": 3}, {"label": 3}, {"inputs": [1]}, {"path": None}]
    for wrong in all_wrong:
        with pytest.raises(TypeError, match="must be (a string|named by strings); got"):
            DataOptions(**wrong)


def test_paths_that_can_not_be_used(tmp_path: Path):
    with pytest.raises(ValueError, match="there is no file or folder .*missing"):
        task_from(tmp_path / "missing")
    with pytest.raises(ValueError, match="no text file .* in"):
        task_from(tmp_path)


def test_a_folder_has_one_format_or_a_data_set_of_the_archives(tmp_path: Path):
    inputs, labels = two_classes(40, 0)
    np.savez(tmp_path / "a.npz", X=inputs, y=labels)
    (tmp_path / "b.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"several formats \(a.npz, b.csv\); give one of them"):
        task_from(tmp_path)
    for split in ("train", "test"):
        np.savez(tmp_path / f"a_{split}.npz", X=inputs, y=labels)
    (tmp_path / "a.npz").unlink()
    assert len(task_from(tmp_path).test) == 40


def test_options_survive_json():
    options = DataOptions("own.csv", label=("a", "b"), split="0.5,0.25,0.25", horizon=3)
    assert options.label == ("a", "b") and options.split == (0.5, 0.25, 0.25)
    assert DataOptions.from_json(json.loads(json.dumps(asdict(options)))) == options
    assert DataOptions("own.csv", label="a,b").label == ("a", "b")  # type: ignore[arg-type]
