"""`rnnscale data`: every kind of source packed, checked, and its errors in one line."""

import json
import os
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from rnnscale import data
from rnnscale.cli import main
from rnnscale.tasks import task_from


def make_text(folder: Path) -> list[str]:
    for name in ("a", "b"):
        (folder / f"{name}.txt").write_text("some text of 22 bytes.")
    return []


def make_bytes(folder: Path) -> list[str]:
    (folder / "a").write_bytes(bytes(range(22)))
    (folder / "b").write_bytes(bytes(range(22)))
    return ["--kind", "bytes"]


def make_tokens(folder: Path) -> list[str]:
    np.array([1, 2, 3, 4, 0] * 11, np.uint16).tofile(folder / "a.bin")
    return ["--end", "0", "--dtype", "uint16"]


def make_npz(folder: Path) -> list[str]:
    inputs = np.zeros((44, 3), np.float32)
    np.savez(folder / "x.npz", inputs=inputs, labels=np.arange(2), offsets=[0, 40, 44])
    return []


def make_npy(folder: Path) -> list[str]:
    np.save(folder / "inputs.npy", np.zeros((4, 11, 3), np.float32))
    np.save(folder / "labels.npy", np.zeros((4, 11), np.int32))
    return ["--kind", "npy"]


def make_parquet(folder: Path) -> list[str]:
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"tokens": pa.array([list(range(22))] * 2, pa.list_(pa.int32()))})
    pytest.importorskip("pyarrow.parquet").write_table(table, folder / "x.parquet")
    return ["--end", "7"]


def make_csv(folder: Path) -> list[str]:
    for name in ("a", "b"):
        (folder / f"{name}.csv").write_text("x,y\n" + "1,2\n" * 22)
    return ["--labels", "y"]


@pytest.mark.parametrize(
    "make",
    [make_text, make_bytes, make_tokens, make_npz, make_npy, make_parquet, make_csv],
)
def test_pack_and_check(make, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source, folder = tmp_path / "source", tmp_path / "rows"
    source.mkdir()
    options = make(source)
    if make is make_npz:
        source = source / "x.npz"
    # All of them have 44 steps, bytes without an end 42.
    steps = 42 if make is make_bytes else 44
    assert main(["data", "pack", str(source), str(folder), "--steps", "44", *options]) == 0
    assert f" {steps} steps in 1 rows of 44, {steps / 44:.1%} filled" in capsys.readouterr().out
    packed = data.PackedSource(folder)
    assert list(packed.element_spec) == ["inputs", "labels", "reset", "weight"]
    assert packed[0]["reset"].sum() == packed.notes["sequences"] + (steps < 44)
    assert packed.notes["source"] == str(source)
    assert main(["data", "check", str(folder)]) == 0
    assert "is unchanged: 1 rows in 1 shards" in capsys.readouterr().out


def test_text_ends_with_zero(tmp_path: Path):
    (tmp_path / "source").mkdir()
    make_text(tmp_path / "source")
    main(["data", "pack", str(tmp_path / "source"), str(tmp_path / "rows"), "--steps", "44"])
    row = data.PackedSource(tmp_path / "rows")[0]
    assert bytes(row["inputs"].tolist()) == b"some text of 22 bytes." * 2
    assert bytes(row["labels"].tolist()) == b"ome text of 22 bytes.\0" * 2


def test_a_ts_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("aeon")
    name = "aeon/datasets/data/JapaneseVowels/JapaneseVowels_TRAIN.ts"
    path = str(metadata.distribution("aeon").locate_file(name))
    assert main(["data", "pack", path, str(tmp_path / "rows"), "--steps", "128"]) == 0
    packed = data.PackedSource(tmp_path / "rows")
    assert packed.notes["fill"] > 0.95
    assert sum(packed[i]["weight"].sum() for i in range(len(packed))) == 270
    assert "270 sequences, 4,274 steps" in capsys.readouterr().out


def test_what_is_left_out_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source, folder = tmp_path / "source", tmp_path / "rows"
    source.mkdir()
    make_text(source)
    (source / "c.txt").touch()
    pack = ["data", "pack", str(source), str(folder), "--steps", "11"]
    assert main(pack) == 2
    error = f"rnnscale: error: {source / 'c.txt'}: it is empty; correct it, or skip it\n"
    assert capsys.readouterr().err == error
    assert not folder.exists()
    assert main([*pack, "--skip", "--rows-per-shard", "3"]) == 0
    said = capsys.readouterr()
    assert "4 rows of 11, 100.0% filled, 2 shards" in said.out and "1 left out" in said.out
    assert "warning: left out 1, the first: " in said.err
    index = json.loads((folder / "index.json").read_text())
    assert index["notes"]["skipped"] == [[str(source / "c.txt"), "it is empty"]]


def test_errors_are_one_line(tmp_path: Path, error_line: Callable[..., str]):
    source, folder = tmp_path / "source", tmp_path / "rows"
    source.mkdir()
    pack = ["data", "pack", str(source), str(folder), "--steps", "44"]

    assert "(no files) don't say what it is; give --kind, one of text" in error_line(*pack)
    (source / "a.npy").touch()
    assert "(.npy) don't say what it is; give --kind" in error_line(*pack)
    assert "a.npy is not a .npy file" in error_line(*pack, "--kind", "npy")
    np.save(source / "a.npy", np.arange(3))
    assert "must have an array 'inputs'" in error_line(*pack, "--kind", "npy")
    assert "has no file that ends in .parquet" in error_line(*pack, "--kind", "parquet")
    assert "there is no file or folder nowhere" in error_line("data", "pack", "nowhere", *pack[3:])
    assert "has no index.json" in error_line("data", "check", str(source))
    tokens = [*pack, "--kind", "tokens", "--dtype"]
    assert "--dtype is that of .bin files" in error_line(*tokens, "uint8")
    (source / "b.bin").write_bytes(b"abcd")
    assert "dtype must be a dtype" in error_line(*tokens, "foo16")
    (source / "b.bin").unlink()
    assert "--labels are columns of CSV" in error_line(*pack, "--kind", "npy", "--labels", "y")
    assert "--dtype is that of shards" in error_line(*pack, "--kind", "npy", "--dtype", "uint8")
    np.savez(tmp_path / "x.npz", inputs=np.zeros((2, 44, 1), np.float32))
    arrays = ["data", "pack", str(tmp_path / "x.npz"), str(folder), "--steps", "44"]
    assert "--end is a token, and" in error_line(*arrays, "--end", "5")
    for kind, end in (("text", "256"), ("bytes", "-1")):
        assert "--end must be a byte" in error_line(*pack, "--kind", kind, "--end", end)
    assert main([*pack, "--kind", "tokens"]) == 0
    assert "must be a new or an empty folder" in error_line(*pack, "--kind", "tokens")
    shard = folder / "00000-of-00001.arrayrecord"
    content = shard.read_bytes()
    shard.write_bytes(b"x" + content[1:])
    assert "1 of 1 shards have changed since they were written: 00000-of" in error_line(
        "data", "check", str(folder)
    )
    os.truncate(shard, 10)
    assert "was truncated or replaced" in error_line("data", "check", str(folder))


def test_describe_and_its_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "own.csv"
    lines = [f"{n % 3 + n / 8},{n},{'ab'[n % 2]}" for n in range(40)]
    path.write_text("\n".join(["x,y,name", *lines]) + "\n")
    assert main(["data", "describe", str(path), "--label", "name", "--split", "0.5,0.2,0.3"]) == 0
    out = capsys.readouterr().out
    assert "series   40, of 2 steps" in out and "split    train 20, validation 8, test 12" in out
    assert main(["data", "describe", str(path)]) == 2
    assert "line 2, column 'name': 'a' is not a number" in capsys.readouterr().err
    path.write_text(path.read_text().replace("1.125", ""))
    options = ["--label", "x,y", "--inputs", "x", "--horizon", "2", "--seq-len", "5"]
    assert main(["data", "describe", str(path), *options]) == 2
    out, err = capsys.readouterr()
    # What the file has is printed before the error.
    assert "missing" in out and "own.csv, step" in err and "--missing mask" in err


@pytest.mark.parametrize("make, options", [(make_text, []), (make_csv, ["--labels", "y"])])
def test_pack_of_a_single_file_can_be_trained_on(make, options, tmp_path: Path):
    source, folder = tmp_path / "source", tmp_path / "rows"
    source.mkdir()
    make(source)
    file = min(source.iterdir())
    assert main(["data", "pack", str(file), str(folder), "--steps", "4", *options]) == 0
    assert data.PackedSource(folder).notes["sequences"] == 1
    task = task_from(folder, split=(0.4, 0.3, 0.3))
    rows = sum(len(source) for source in (task.train, task.validation, task.test))
    assert rows == len(data.PackedSource(folder)) == 6
    assert task.inputs == ("tokens" if make is make_text else "features")
