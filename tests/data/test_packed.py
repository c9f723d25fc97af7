"""Packed rows in files: they are the rows of `pack`, and every damage is an error."""

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, strategies as st

from rnnscale import data


def documents(lengths: list[int]) -> data.SequenceArrays:
    tokens = np.random.default_rng(0).integers(1, 200, sum(lengths)).astype(np.uint8)
    return data.SequenceArrays({"tokens": np.split(tokens, np.cumsum(lengths)[:-1])})


def rows_of(source) -> list[data.Record]:
    return [source[index] for index in range(len(source))]


def assert_same(got: list[data.Record], expected: list[data.Record]) -> None:
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert list(a) == list(b)
        for name in b:
            assert (a[name].dtype, a[name].shape) == (b[name].dtype, b[name].shape)
            assert np.array_equal(a[name], b[name])


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    steps=st.integers(9, 20),
    rows_per_shard=st.none() | st.integers(1, 3),
    labelled=st.booleans(),
    dtype=st.sampled_from(["float32", "int8", "float64", "bool"]),
)
def test_rows_are_those_of_pack(tmp_path_factory, lengths, steps, rows_per_shard, labelled, dtype):
    folder = tmp_path_factory.mktemp("packed") / "rows"
    inputs = [np.random.default_rng(n).integers(0, 2, (n, 2)).astype(dtype) for n in lengths]
    labels = {"labels": np.arange(len(lengths), dtype=np.int32)} if labelled else {}
    sequences = data.SequenceArrays({"inputs": inputs}, labels)
    written = data.write_packed(sequences, folder, steps, rows_per_shard=rows_per_shard)
    expected = rows_of(data.pack(sequences, steps))
    for source in (written, data.PackedSource(folder), pickle.loads(pickle.dumps(written))):
        assert_same(rows_of(source), expected)
        assert {name: x.shape for name, x in source.element_spec.items()} == {
            name: x.shape for name, x in expected[0].items()
        }
    written.verify()
    assert written.notes["sequences"] == len(lengths) and written.notes["steps"] == steps
    assert written.notes["fill"] == sum(lengths) / (len(expected) * steps)
    sizes = [shard.rows for shard in written.shards]
    assert sum(sizes) == len(expected)
    assert set(sizes[:-1]) <= {rows_per_shard}


def test_files_and_notes(tmp_path: Path):
    calls = []
    source = data.write_packed(
        data.next_token(documents([5] * 7), end=0),
        tmp_path / "a" / "rows",
        10,
        rows_per_shard=3,
        notes=cast(Any, {"from": "here", 10: 1, 2: 1}),
        progress=lambda *counts: calls.append(counts),
    )
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    names = ["00000-of-00002.arrayrecord", "00001-of-00002.arrayrecord"]
    assert sorted(os.listdir(tmp_path / "a" / "rows")) == [*names, "index.json"]
    assert os.listdir(tmp_path / "a") == ["rows"]
    assert [shard.name for shard in source.shards] == names
    assert source.notes == {
        "sequences": 7,
        "steps": 10,
        "fill": 35 / 40,
        "from": "here",
        "10": 1,
        "2": 1,
    }
    for shard in source.shards:
        assert shard.bytes == (tmp_path / "a" / "rows" / shard.name).stat().st_size
    calls.clear()
    source.verify(progress=lambda *counts: calls.append(counts))
    total = sum(shard.bytes for shard in source.shards)
    assert calls == [(source.shards[0].bytes, total), (total, total)]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / "rows"
    data.write_packed(data.next_token(documents([40] * 30)), folder, 64, rows_per_shard=16)
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A copy of the folder, to be damaged."""
    return Path(shutil.copytree(written, tmp_path / "rows"))


FIRST = "00000-of-00002.arrayrecord"


def test_no_flipped_byte_gives_a_wrong_row(written: Path, tmp_path: Path):
    """Some of the bytes that are not zero, and some of the zeros between them."""
    expected = rows_of(data.PackedSource(written))
    content = (written / FIRST).read_bytes()
    used = np.flatnonzero(np.frombuffer(content, np.uint8))
    places = np.union1d(used[:: max(1, len(used) // 250)], np.arange(0, len(content), 4001))
    found = 0
    for place in places.tolist():
        folder = Path(shutil.copytree(written, tmp_path / str(place)))
        damaged = bytearray(content)
        damaged[place] ^= 0x41
        (folder / FIRST).write_bytes(damaged)
        source = data.PackedSource(folder)
        with pytest.raises(ValueError, match=f"1 of 2 shards have changed since .*: {FIRST}"):
            source.verify()
        for index in range(16):
            try:
                assert_same([source[index]], [expected[index]])
            except ValueError as error:
                assert f"{FIRST}, record {index}: it is damaged" in str(error)
                found += 1
    assert found > 200


def test_missing_truncated_and_replaced_shards(folder: Path):
    source = data.PackedSource(folder)
    os.truncate(folder / FIRST, 65536)
    with pytest.raises(ValueError, match=f"{FIRST}, record 3: the file had .* and has 65536 now"):
        source[3]
    with pytest.raises(ValueError, match=f"{FIRST} was truncated or replaced: it has 65536 bytes"):
        data.PackedSource(folder)
    (folder / FIRST).unlink()
    with pytest.raises(ValueError, match=f"no file .*{FIRST}"):
        data.PackedSource(folder)
    with pytest.raises(ValueError, match=f"{FIRST}, record 3: the file can't be found any more"):
        source[3]


def test_a_shard_of_other_rows(folder: Path):
    """Its checksums are right, so only the index can tell."""
    other = data.write_rows(data.ArraySource(x=np.zeros((16, 3))), folder.with_name("other"))
    shutil.copy(folder.with_name("other") / other.shards[0].name, folder / FIRST)
    index = json.loads((folder / "index.json").read_text())
    size = (folder / FIRST).stat().st_size
    if size != index["shards"][0]["bytes"]:
        with pytest.raises(ValueError, match="was truncated or replaced"):
            data.PackedSource(folder)
        return
    with pytest.raises(ValueError, match=f"{FIRST}, record 0: it has 24 bytes, and rows have 832"):
        data.PackedSource(folder)[0]


def test_every_flipped_byte_of_the_index_is_an_error(folder: Path):
    path = folder / "index.json"
    content = path.read_bytes()
    for place in range(0, len(content) - 1, 11):
        damaged = bytearray(content)
        damaged[place] ^= 0x02
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="index.json is damaged"):
            data.PackedSource(folder)
    path.unlink()
    with pytest.raises(ValueError, match=f"{folder} has no index.json"):
        data.PackedSource(folder)


def test_folders_that_are_not_empty_are_not_written_to(tmp_path: Path):
    rows = data.ArraySource(x=np.arange(3))
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    data.write_rows(rows, tmp_path / "empty")
    for name in ("file", "empty", "."):
        before = sorted(os.listdir(tmp_path / "empty"))
        with pytest.raises(ValueError, match="must be a new or an empty folder"):
            data.write_rows(rows, tmp_path / name)
        assert sorted(os.listdir(tmp_path / "empty")) == before


class Failing:
    """Rows whose last one can't be read, or differs from the others."""

    def __init__(self, last: data.Record | None):
        self.last = last

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> data.Record:
        if index < 2:
            return {"x": np.arange(2)}
        if self.last is None:
            raise KeyboardInterrupt
        return self.last


def test_an_interrupted_run_leaves_nothing(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        data.write_rows(Failing(None), tmp_path / "rows", rows_per_shard=1)
    for last in ({"x": np.arange(3)}, {"x": np.ones(2, np.float32)}, {"y": np.arange(2)}):
        with pytest.raises(ValueError, match="rows must be like the first one, .*; row 2 is"):
            data.write_rows(Failing(last), tmp_path / "rows")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "rows, options, message",
    [
        (np.zeros((0, 2)), {}, "no rows to write"),
        (np.zeros((1, 2)), {"rows_per_shard": 0}, "rows_per_shard must be at least 1; got 0"),
    ],
)
def test_bad_arguments(tmp_path: Path, rows, options, message):
    with pytest.raises(ValueError, match=message):
        data.write_rows(data.ArraySource(x=rows), tmp_path / "rows", **options)
    assert os.listdir(tmp_path) == []
