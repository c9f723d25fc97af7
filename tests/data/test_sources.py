"""Sources of files: they return what was written, and bad files are errors that name the file."""

import contextlib
import hashlib
import logging
import os
import pickle
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import grain
import numpy as np
import pytest
from absl import flags
from array_record.python.array_record_module import ArrayRecordWriter
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp

from rnnscale import data

LENGTHS = [3, 1, 700, 5]
type Case = tuple[data.Source, list[data.Record], Path]


def sequences(channels: int = 2, dtype: str = "float32") -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 99, (length, channels)).astype(dtype) for length in LENGTHS]


def documents() -> list[bytes]:
    return ["naïve ".encode() * 70000, b"a", b"second\r\nfile\n"]


def decode(content: bytes) -> data.Record:
    return {"inputs": np.frombuffer(content, np.int16).copy()}


def write_records(path: Path, records: list[bytes]) -> Path:
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    return path


def write_parquet(path: Path, columns: dict, group: int = 2) -> Path:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.table(columns), path, row_group_size=group)
    return path


def array_files(folder: Path) -> Case:
    inputs, labels = np.arange(24, dtype="<f4").reshape(4, 3, 2), np.arange(4, dtype=">i2")
    np.save(folder / "labels.npy", labels)
    np.savez(folder / "data.npz", inputs=inputs, unused=labels)
    source = data.ArrayFiles(
        inputs=data.open_npz(folder / "data.npz")["inputs"], labels=folder / "labels.npy"
    )
    records = [
        {"inputs": x, "labels": y} for x, y in zip(inputs, labels.astype("=i2"), strict=True)
    ]
    return source, records, folder / "data.npz"


def sequence_files(folder: Path) -> Case:
    inputs, labels = sequences(), np.arange(4) % 2
    np.save(folder / "inputs.npy", np.concatenate(inputs))
    np.save(folder / "labels.npy", labels)
    np.save(folder / "offsets.npy", np.cumsum([0, *LENGTHS]))
    source = data.SequenceFiles(
        {"inputs": folder / "inputs.npy"},
        folder / "offsets.npy",
        {"labels": folder / "labels.npy"},
    )
    records = [{"inputs": x, "labels": y} for x, y in zip(inputs, labels, strict=True)]
    return source, records, folder / "inputs.npy"


def equal_sequences(folder: Path) -> Case:
    inputs = np.arange(40, dtype=np.uint8).reshape(4, 5, 2)
    np.save(folder / "inputs.npy", inputs)
    source = data.SequenceFiles({"inputs": folder / "inputs.npy"})
    return source, [{"inputs": x} for x in inputs], folder / "inputs.npy"


def array_records(folder: Path) -> Case:
    rows = np.arange(30, dtype=np.int16).reshape(6, 5)
    paths = [
        write_records(folder / "a.arrayrecord", [r.tobytes() for r in rows[:4]]),
        write_records(folder / "b.arrayrecord", [r.tobytes() for r in rows[4:]]),
    ]
    source = data.ArrayRecordFiles(paths, decode)
    return source, [{"inputs": row} for row in rows], paths[0]


def parquet_rows(folder: Path) -> Case:
    pa = pytest.importorskip("pyarrow")
    pair = pa.array([[i, i + 0.5] for i in range(5)], pa.list_(pa.float32(), 2))
    path = write_parquet(
        folder / "rows.parquet", {"inputs": pair, "labels": pa.array([3, 1, 4, 1, 5], pa.int8())}
    )
    source = data.ParquetRows([path])
    records = [
        {"inputs": np.array([i, i + 0.5], np.float32), "labels": np.array(label, np.int8)}
        for i, label in enumerate([3, 1, 4, 1, 5])
    ]
    return source, records, path


def parquet_sequences(folder: Path) -> Case:
    pa = pytest.importorskip("pyarrow")
    inputs, labels = sequences(), [1, 0, 1, 1]
    columns = {
        "inputs": pa.array([x.tolist() for x in inputs], pa.list_(pa.list_(pa.float32(), 2))),
        "labels": pa.array(labels, pa.int32()),
        "text": pa.array(list("abcd")),
    }
    path = write_parquet(folder / "lists.parquet", columns, group=3)
    source = data.ParquetSequences([path], columns=["inputs", "labels"])
    records = [
        {"inputs": x, "labels": np.array(y, np.int32)} for x, y in zip(inputs, labels, strict=True)
    ]
    return source, records, path


def text_files(folder: Path) -> Case:
    (folder / "sub").mkdir()
    paths = [folder / "a.txt", folder / "b.md", folder / "sub" / "a.txt"]
    for path, content in zip(paths, documents(), strict=True):
        path.write_bytes(content)
    (folder / ".hidden").write_bytes(b"\0")
    records = [{"tokens": np.frombuffer(content, np.uint8)} for content in documents()]
    return data.TextFiles(folder), records, paths[0]


def byte_files(folder: Path) -> Case:
    contents = [bytes(range(256)), b"\0"]
    for name, content in zip("ab", contents, strict=True):
        (folder / f"{name}.bin").write_bytes(content)
    (folder / "c.txt").touch()
    records = [{"tokens": np.frombuffer(content, np.uint8)} for content in contents]
    return data.ByteFiles(folder, ".bin"), records, folder / "a.bin"


def csv_series(folder: Path) -> Case:
    inputs = sequences(channels=3)
    for name, values in zip("abcd", inputs, strict=True):
        rows = [",".join(map(str, row)) for row in values.tolist()]
        (folder / f"{name}.csv").write_bytes("\r\n".join(["x, y, z", "", *rows, ""]).encode())
    source = data.CsvSeries(folder, labels=["y"])
    records = [{"inputs": x[:, [0, 2]], "labels": x[:, [1]]} for x in inputs]
    return source, records, folder / "a.csv"


def token_shards(folder: Path) -> Case:
    tokens = [np.arange(1, length + 1, dtype=np.uint16) for length in LENGTHS]
    first = np.concatenate([tokens[0], [0], tokens[1], [0]]).astype(np.uint16)
    np.concatenate([tokens[2], [0], tokens[3]]).astype(np.uint16).tofile(folder / "b.bin")
    np.save(folder / "a.npy", first)
    source = data.TokenShards([folder / "a.npy", folder / "b.bin"], dtype="uint16", end=0)
    return source, [{"tokens": x} for x in tokens], folder / "a.npy"


def packed_rows(folder: Path) -> Case:
    rows = data.ArraySource(inputs=np.arange(20, dtype=np.int32).reshape(5, 4), weight=np.ones(5))
    source = data.write_rows(rows, folder / "packed", rows_per_shard=2)
    path = folder / "packed" / "00000-of-00003.arrayrecord"
    return source, [rows[i] for i in range(5)], path


SEQUENCES = [
    *(sequence_files, equal_sequences, parquet_sequences),
    *(text_files, byte_files, csv_series, token_shards),
]
CASES = [*SEQUENCES, array_files, array_records, parquet_rows, packed_rows]


@pytest.fixture(params=CASES, ids=lambda make: make.__name__)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    return request.param(tmp_path)


def assert_same(got: data.Record, expected: data.Record) -> None:
    assert list(got) == list(expected)
    for name, array in expected.items():
        assert isinstance(got[name], np.ndarray)
        assert (got[name].dtype, got[name].shape) == (array.dtype, np.shape(array))
        assert np.array_equal(got[name], array)


def test_records_are_what_was_written(case: Case):
    source, expected, _ = case
    assert len(source) == len(expected)
    spec = data.element_spec(source)
    for index in np.random.default_rng(0).permutation(len(source)).tolist():
        record = source[index]
        assert_same(record, expected[index])
        for name, array in record.items():
            varying = name in data.arrays_over_time(spec)
            assert spec[name].dtype == array.dtype
            assert spec[name].shape == ((None, *array.shape[1:]) if varying else array.shape)
            # A record must be a copy of what the source stores.
            array.flags.writeable = True
            array[...] = 0
        assert_same(source[index], expected[index])
    for outside in (-1, len(source)):
        with pytest.raises(IndexError):
            source[outside]


@pytest.mark.parametrize("make", SEQUENCES)
def test_parts_are_slices(make: Callable[[Path], Case], tmp_path: Path):
    source, expected, _ = make(tmp_path)
    assert isinstance(source, data.SequenceSource)
    over_time = data.arrays_over_time(source.element_spec)
    assert source.lengths.dtype == np.int64
    random = np.random.default_rng(0)
    for index, record in enumerate(expected):
        steps = int(source.lengths[index])
        assert steps == len(record[over_time[0]])
        parts = np.sort(random.integers(0, steps + 1, (20, 2)), axis=1).tolist()
        for start, stop in [(0, 0), (steps, steps), (0, steps), *parts]:
            part = {
                name: array[start:stop] if name in over_time else array
                for name, array in record.items()
            }
            assert_same(source.read(index, start, stop), part)


def test_a_pickled_source_reads_the_files(case: Case):
    source, expected, _ = case
    source[0]
    content = pickle.dumps(source)
    assert len(content) < 5000
    for index, record in enumerate(expected):
        assert_same(pickle.loads(content)[index], record)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def replace(path: Path) -> None:
    # With the same size and modification time, as some tools write files.
    content, found = path.read_bytes(), path.stat()
    other = path.with_name("other")
    other.write_bytes(content[::-1])
    os.utime(other, ns=(found.st_atime_ns, found.st_mtime_ns))
    other.replace(path)


def change(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"?")
    os.utime(path, ns=(0, 10**18))


@pytest.mark.parametrize("harm", [truncate, replace, change, Path.unlink])
@pytest.mark.parametrize("read_before", [True, False])
def test_files_that_change_are_noticed(case: Case, harm, read_before):
    source, _, path = case
    copy = pickle.loads(pickle.dumps(source))
    if read_before:
        source[0]
    harm(path)
    for reader in (source, copy):
        with pytest.raises(ValueError, match=f"{path.name}, record 0: the file"):
            reader[0]


def test_short_reads_are_continued(tmp_path: Path, monkeypatch):
    source, expected, _ = sequence_files(tmp_path)
    preadv = os.preadv
    monkeypatch.setattr(
        "os.preadv", lambda file, buffers, offset: preadv(file, [buffers[0][:7]], offset)
    )
    for index, record in enumerate(expected):
        assert_same(source[index], record)


def test_a_file_that_is_read_stays_open(tmp_path: Path, monkeypatch):
    """Also if another thread meanwhile opens more files than the cache holds."""
    for number in range(200):
        (tmp_path / f"{number:03}").write_bytes(bytes([number]))
    source = data.ByteFiles(tmp_path)
    preadv = os.preadv

    def read_late(file, buffers, offset):
        monkeypatch.setattr("os.preadv", preadv)
        for index in range(1, len(source)):
            source[index]
        return preadv(file, buffers, offset)

    monkeypatch.setattr("os.preadv", read_late)
    assert source[0]["tokens"].tolist() == [0]


def test_a_worker_process_reads_the_same(tmp_path: Path):
    cases = []
    for make in CASES:
        if make is array_records:
            continue  # a worker can't import its decoder, a function of this module
        (tmp_path / make.__name__).mkdir()
        cases.append(make(tmp_path / make.__name__))
    expected = [record for _, records, _ in cases for record in records]
    every = grain.MapDataset.concatenate([grain.MapDataset.source(case[0]) for case in cases])
    nothing_ahead = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    options = grain.MultiprocessingOptions(num_workers=1, per_worker_buffer_size=1)
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's workers read absl's flags
    dataset = every.repeat(None).to_iter_dataset(nothing_ahead).mp_prefetch(options)
    path = cases[0][2]
    with contextlib.closing(iter(dataset)) as records:
        for record in expected:
            assert_same(next(records), record)
        os.truncate(path, 10)
        with pytest.raises(Exception, match=rf"{path}, record \d: the file had"):
            for _ in range(2 * len(expected)):
                next(records)


numbers = hnp.scalar_dtypes().filter(lambda dtype: dtype.kind in "biufc")


@given(
    shape=hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=5),
    dtypes=st.lists(numbers, min_size=1, max_size=3),
    seed=st.integers(0, 9),
    zipped=st.booleans(),
)
def test_arrays_of_any_dtype(tmp_path_factory, shape, dtypes, seed, zipped):
    folder = tmp_path_factory.mktemp("arrays")
    random = np.random.default_rng(seed)
    arrays: dict[str, Any] = {
        f"a{i}": random.integers(0, 2, (3, *shape)).astype(dtype) for i, dtype in enumerate(dtypes)
    }
    if zipped:
        np.savez(folder / "x.npz", **arrays)
        source = data.ArrayFiles(**data.open_npz(folder / "x.npz"))
    else:
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)
        source = data.ArrayFiles(**{name: folder / f"{name}.npy" for name in arrays})
    for index in (2, 0, 1):
        native = {name: x[index].astype(x.dtype.newbyteorder("=")) for name, x in arrays.items()}
        assert_same(source[index], native)


@given(
    shards=st.lists(st.lists(st.integers(0, 3), max_size=12), min_size=1, max_size=4),
    dtype=st.sampled_from(["uint8", "<u2", ">i4", "int64"]),
    raw=st.booleans(),
)
def test_documents_of_token_shards(tmp_path_factory, shards, dtype, raw):
    """Against a loop over the tokens; 0 ends a document, and empty ones are left out."""
    folder = tmp_path_factory.mktemp("shards")
    expected, empty, paths = [], 0, []
    for number, tokens in enumerate(shards):
        array = np.array(tokens, dtype)
        paths.append(folder / f"{number}.{'bin' if raw else 'npy'}")
        array.tofile(paths[-1]) if raw else np.save(paths[-1], array)
        document = []
        for token in tokens:
            if token:
                document.append(token)
            else:
                expected.append(document)
                document = []
        expected += [document] if document else []
    empty = expected.count([])
    expected = [document for document in expected if document]

    def make() -> data.TokenShards:
        return data.TokenShards(paths, dtype=dtype, end=0, skip=True)

    if not expected:
        with pytest.raises(ValueError, match="no document"):
            make()
        return
    source = make()
    assert len(source.skipped) == empty
    assert source.lengths.tolist() == [len(document) for document in expected]
    got = [source[index]["tokens"] for index in range(len(source))]
    assert [document.tolist() for document in got] == expected
    assert {document.dtype for document in got} == {np.dtype(dtype).newbyteorder("=")}


def test_token_shards_with_offsets_or_without_documents(tmp_path: Path):
    np.save(tmp_path / "a.npy", np.arange(10))
    np.save(tmp_path / "o.npy", np.array([0, 4, 10], np.uint32))
    joined = data.TokenShards([tmp_path / "a.npy"])
    assert joined.lengths.tolist() == [10]
    parts = data.TokenShards([tmp_path / "a.npy"], offsets=[tmp_path / "o.npy"])
    assert [parts[i]["tokens"].tolist() for i in range(2)] == [[0, 1, 2, 3], [4, 5, 6, 7, 8, 9]]


@given(
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=9),
    name=st.sampled_from(["uint8", "int16", "int64", "float32", "float64", "bool"]),
    group=st.integers(1, 5),
    size=st.integers(1, 3),
    large=st.booleans(),
)
def test_parquet_lists_of_any_length(tmp_path_factory, lengths, name, group, size, large):
    pa = pytest.importorskip("pyarrow")
    folder = tmp_path_factory.mktemp("parquet")
    random = np.random.default_rng(0)
    dtype = np.dtype(name)
    wide = [random.integers(0, 2, (length, size)).astype(dtype) for length in lengths]
    kind = pa.from_numpy_dtype(dtype)
    make = pa.large_list if large else pa.list_
    path = write_parquet(
        folder / "x.parquet",
        {
            "wide": pa.array([x.tolist() for x in wide], make(pa.list_(kind, size))),
            "narrow": pa.array([x[:, 0].tolist() for x in wide], make(kind)),
        },
        group,
    )
    kept = [index for index, length in enumerate(lengths) if length]
    if not kept:
        with pytest.raises(ValueError, match="no row"):
            data.ParquetSequences([path], skip=True)
        return
    source = data.ParquetSequences([path, path], skip=True)
    assert len(source.skipped) == 2 * (len(lengths) - len(kept))
    assert source.lengths.tolist() == 2 * [lengths[index] for index in kept]
    for at, index in enumerate(2 * kept):
        assert_same(source[at], {"wide": wide[index], "narrow": wide[index][:, 0]})


def ts_file(name: str) -> Path:
    pytest.importorskip("aeon")
    located = metadata.distribution("aeon").locate_file(f"aeon/datasets/data/{name}.ts")
    return Path(str(located))


@pytest.mark.parametrize(
    "name", ["JapaneseVowels/JapaneseVowels_TRAIN", "CardanoSentiment/CardanoSentiment_TEST"]
)
def test_ts_files_are_what_aeon_reads(name):
    path = ts_file(name)
    loaders = pytest.importorskip("aeon.datasets")
    series, labels, about = loaders.load_from_ts_file(str(path), return_meta_data=True)
    source = data.read_ts(path)
    if about["classlabel"]:
        labels = [about["class_values"].index(label) for label in labels]
    labels = np.array(labels, np.int32 if about["classlabel"] else np.float32)
    assert len(source) == len(series)
    for index, (inputs, label) in enumerate(zip(series, labels, strict=True)):
        assert_same(source[index], {"inputs": inputs.T.astype(np.float32), "labels": label})


TS = "# about\n@problemName x\n@univariate false\n@equalLength {}\n@classLabel true b a\n@data\n"


def test_classes_are_counted_in_the_order_of_the_header(tmp_path: Path):
    path = tmp_path / "x.ts"
    path.write_text(TS.format("false") + "1,2:3,4:a\n\n5:6:b\n")
    source = data.read_ts(path)
    assert_same(
        source[0],
        {"inputs": np.array([[1, 3], [2, 4]], np.float32), "labels": np.array(1, np.int32)},
    )
    assert_same(
        source[1], {"inputs": np.array([[5, 6]], np.float32), "labels": np.array(0, np.int32)}
    )


@pytest.mark.parametrize(
    "line, reason",
    [
        ("1,?:3,4:a", "the value of step 1 is missing"),
        ("1,2:3,NaN:a", "the value of step 1 is missing"),
        ("1,x:3,4:a", "step 1: 'x' is not a number"),
        ("1,inf:3,4:a", "infinite"),
        ("1,2:3:a", r"different lengths: \[2, 1\]"),
        ("1,2:3,4:c", "its class 'c' is not one of b, a"),
        ("1,2:3,4", "its class '3,4' is not one of b, a"),
        ("1,2:a", "it has 1 channels, and the first has 2"),
        ("1,2,3:4,5,6:a", "it has 3 steps, and the first has 2"),
    ],
)
def test_series_that_can_not_be_used(tmp_path: Path, line, reason, caplog):
    path = tmp_path / "x.ts"
    path.write_text(TS.format("true") + f"1,2:3,4:a\n{line}\n1,2:3,4:b\n")
    with pytest.raises(ValueError, match=f"{path}, line 8: .*{reason}"):
        data.read_ts(path)
    with caplog.at_level(logging.WARNING, "rnnscale"):
        source = data.read_ts(path, skip=True)
    assert [int(source[i]["labels"]) for i in range(len(source))] == [1, 0]
    ((where, _),) = source.skipped
    assert where == f"{path}, line 8"
    assert "left out 1, the first: " in caplog.text


@pytest.mark.parametrize(
    "content, message",
    [
        ("@problemName x\n", "no line @data"),
        ("@timeStamps true\n@data\n(0,1):a\n", "time stamps, which are not supported"),
        ("@classLabel true\n@data\n", "no classes"),
        ("@data\n", "no series"),
    ],
)
def test_bad_ts_files(tmp_path: Path, content, message):
    path = tmp_path / "x.ts"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"{path}.*{message}"):
        data.read_ts(path)


@pytest.mark.parametrize(
    "content, reason",
    [
        ("", "no steps"),
        ("x,y\n", "no steps"),
        ("1,2\n3,\n", "line 2: b'' is not a number"),
        ("1,2\n3,x\n", "line 2: b'x' is not a number"),
        ("1,2\n3,nan\n", "line 2: b'nan' is not a finite float32"),
        ("1,2\n3,1e39\n", "line 2: b'1e39' is not a finite float32"),
        ("1,2\n3\n", "line 2 has 1 fields, and the first has 2"),
        ("1\n2\n", "other columns than"),
        ("x,y\n1,2\n", "other columns than"),
    ],
)
def test_csv_files_that_can_not_be_used(tmp_path: Path, content, reason):
    (tmp_path / "a.csv").write_text("1,2\n3,4\n")
    (tmp_path / "b.csv").write_text(content)
    with pytest.raises(ValueError, match=f"b.csv: .*{reason}"):
        data.CsvSeries(tmp_path)
    source = data.CsvSeries(tmp_path, skip=True)
    assert source.lengths.tolist() == [2]
    assert [where for where, _ in source.skipped] == [str(tmp_path / "b.csv")]


@pytest.mark.parametrize(
    "content, reason",
    [(b"", "empty"), (b"a\0b", "zero byte"), (b"caf\xe9", "UTF-8"), ("é".encode()[:1], "UTF-8")],
)
def test_files_that_are_not_text(tmp_path: Path, content, reason):
    (tmp_path / "a").write_text("text")
    (tmp_path / "b").write_bytes(content)
    with pytest.raises(ValueError, match=f"{tmp_path / 'b'}: it is .*{reason}.*or skip it"):
        data.TextFiles(tmp_path)
    source = data.TextFiles(tmp_path, skip=True)
    assert len(source) == 1
    assert [where for where, _ in source.skipped] == [str(tmp_path / "b")]


def test_a_character_between_two_blocks_is_text(tmp_path: Path):
    # Files are read in blocks of 2**20 bytes.
    (tmp_path / "a").write_bytes(b"a" * (2**20 - 1) + "é".encode())
    assert data.TextFiles(tmp_path).lengths.tolist() == [2**20 + 1]


def test_records_of_another_kind(tmp_path: Path):
    rows = [np.arange(4, dtype=np.int16).tobytes() for _ in range(5)]
    rows[3] = rows[3][:6]
    path = write_records(tmp_path / "x.arrayrecord", [*rows, b"odd"])
    source = data.ArrayRecordFiles([path], decode)
    for index, message in [
        (3, r"it has inputs int16\[3\], and the first record inputs int16\[4\]"),
        (5, "it can't be decoded: ValueError"),
    ]:
        with pytest.raises(ValueError, match=f"{path}, record {index}: {message}"):
            source[index]
    source = data.ArrayRecordFiles([path], decode, skip=True)
    assert len(source) == 4 and len(source.skipped) == 2
    assert [where for where, _ in source.skipped] == [f"{path}, record {i}" for i in (3, 5)]


def test_parquet_rows_that_can_not_be_used(tmp_path: Path):
    pa = pytest.importorskip("pyarrow")
    columns = {
        "x": pa.array([[1.0], [], [2.0, None], None, [float("nan")], [1.0, 2.0], [3.0]]),
        "y": pa.array([[1], [2], [3, 4], [5], [6], [7], [8]]),
    }
    path = write_parquet(tmp_path / "x.parquet", columns, group=4)
    with pytest.raises(ValueError, match=f"{path}, record 1: column 'x': the list is empty"):
        data.ParquetSequences([path])
    source = data.ParquetSequences([path], skip=True)
    assert source.lengths.tolist() == [1, 1] and source[1]["x"].tolist() == [3.0]
    reasons = {where.split()[-1]: reason for where, reason in source.skipped}
    assert reasons == {
        "1": "column 'x': the list is empty",
        "2": "column 'x': it is null",
        "3": "column 'x': it is null",
        "4": "column 'x': it is not finite",
        "5": "its lists have different lengths",
    }
    path = write_parquet(tmp_path / "y.parquet", {"x": pa.array([1.0, 2.0, None])})
    source = data.ParquetRows([path])
    assert source[1]["x"] == 2
    with pytest.raises(ValueError, match=f"{path}, record 2: column 'x': it is null"):
        source[2]


def test_parquet_needs_pyarrow(tmp_path: Path, monkeypatch):
    (tmp_path / "x.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r"pyarrow.*rnnscale\[parquet\]"):
        data.ParquetRows([tmp_path / "x.parquet"])


def flipped(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 0x41
    path.write_bytes(content)


def saved(path: Path, array: np.ndarray, **options) -> Path:
    np.save(path, array, **options)
    return path


def bad_sources(folder: Path) -> list[tuple[Callable[[], object], str]]:
    """Calls that must fail, each with a part of its message."""
    npy, numbers = folder / "x.npy", np.arange(6)
    cut = saved(folder / "cut.npy", numbers)
    os.truncate(cut, cut.stat().st_size - 8)
    np.savez_compressed(folder / "small.npz", x=numbers)
    (folder / "empty.npy").touch()
    (folder / "raw.bin").write_bytes(b"123")
    records = write_records(folder / "x.arrayrecord", [b"12"] * 3)
    os.truncate(records, 65536)
    saved(npy, numbers)
    saved(folder / "short.npy", numbers[:3])
    floats = saved(folder / "floats.npy", numbers.astype(float))
    other = saved(folder / "other.npy", numbers.astype(np.int16))
    saved(folder / "falls.npy", np.array([0, 4, 2, 6]))
    saved(folder / "late.npy", np.array([1, 6]))
    saved(folder / "empty_doc.npy", np.array([0, 2, 2, 6]))
    return [
        (lambda: data.open_npy(folder / "no.npy"), "no file .*no.npy"),
        (lambda: data.open_npy(folder / "empty.npy"), "empty.npy is not a .npy file"),
        (lambda: data.open_npz(npy), "x.npy is not a .npz file"),
        (lambda: data.open_npy(cut), "cut.npy is truncated: .*byte 176.* at 168"),
        (lambda: data.open_npz(folder / "small.npz"), "'x.npy' is compressed.*savez"),
        (
            lambda: data.open_npy(saved(folder / "o.npy", np.array([{}]), allow_pickle=True)),
            "o.npy has Python objects",
        ),
        (
            lambda: data.open_npy(saved(folder / "t.npy", np.array(["a"]))),
            "numbers; got <U1",
        ),
        (lambda: data.open_npy(saved(folder / "s.npy", np.array(1))), "no axis"),
        (
            lambda: data.open_npy(saved(folder / "f.npy", np.ones((2, 3), order="F"))),
            "f.npy is in Fortran order",
        ),
        (lambda: data.ArrayFiles(), "one leading axis"),
        (lambda: data.ArraySource(), "one leading axis"),
        (lambda: data.ArraySource(x=np.eye(3), y=np.arange(2)), "'x': 3, 'y': 2"),
        (lambda: data.ArrayFiles(x=npy, y=folder / "short.npy"), "'y': 3"),
        (
            lambda: data.SequenceFiles({"x": npy}, folder / "falls.npy"),
            "falls.npy: offsets must not decrease; they do after record 1",
        ),
        (
            lambda: data.SequenceFiles({"x": npy}, folder / "late.npy"),
            "begin with 0; got 1",
        ),
        (lambda: data.SequenceFiles({"x": npy}, floats), "must be integers"),
        (
            lambda: data.SequenceFiles({"x": folder / "short.npy"}, folder / "empty_doc.npy"),
            "short.npy: 'x' has 3 steps, and the offsets in .*empty_doc.npy end at 6",
        ),
        (
            lambda: data.SequenceFiles({"x": npy}, folder / "empty_doc.npy"),
            "empty_doc.npy, record 1: the sequence is empty",
        ),
        (
            lambda: data.TokenShards([npy], offsets=[folder / "empty_doc.npy"]),
            "x.npy, record 1: the document is empty",
        ),
        (
            lambda: data.TokenShards([npy, other]),
            "other.npy: shards must be of one dtype; it has int16, and .*x.npy has int64",
        ),
        (lambda: data.TokenShards([floats]), "must be integers; got float64"),
        (lambda: data.TokenShards([folder / "raw.bin"]), "give the dtype"),
        (
            lambda: data.TokenShards([folder / "raw.bin"], dtype="uint16"),
            "raw.bin: its 3 bytes are not a multiple of the size of uint16",
        ),
        (lambda: data.TokenShards([npy], end=0, offsets=[npy]), "not both"),
        (
            lambda: data.ArrayRecordFiles([records], decode),
            "x.arrayrecord is not an ArrayRecord file, or is truncated",
        ),
        (lambda: data.TextFiles(folder / "missing"), "there is no folder"),
        (lambda: data.TextFiles(npy), "x.npy: it is not text: it has a zero byte"),
        (lambda: data.ByteFiles(folder, ".csv"), "no file that ends in '.csv'"),
    ]


def test_bad_files_are_refused(tmp_path: Path):
    for make, message in bad_sources(tmp_path):
        with pytest.raises(ValueError, match=message):
            make()


def test_parquet_files_are_of_one_kind(tmp_path: Path):
    pa = pytest.importorskip("pyarrow")
    a = write_parquet(tmp_path / "a.parquet", {"x": pa.array([1, 2])})
    b = write_parquet(tmp_path / "b.parquet", {"x": pa.array([1.0])})
    with pytest.raises(
        ValueError, match=r"b.parquet has x float64\[\], and .*a.parquet has x int64"
    ):
        data.ParquetRows([a, b])
    with pytest.raises(ValueError, match="no.parquet is not a Parquet file"):
        (tmp_path / "no.parquet").write_bytes(b"PAR1")
        data.ParquetRows([tmp_path / "no.parquet"])
    with pytest.raises(ValueError, match="no column 'y'; it has x"):
        data.ParquetRows([a], columns=["y"])
    text = write_parquet(tmp_path / "c.parquet", {"x": pa.array(["a"])})
    with pytest.raises(ValueError, match="column 'x': columns must have numbers.*got string"):
        data.ParquetRows([text])
    lists = write_parquet(tmp_path / "d.parquet", {"x": pa.array([[1]])})
    with pytest.raises(ValueError, match="there is ParquetSequences"):
        data.ParquetRows([lists])
    with pytest.raises(ValueError, match="there is ParquetRows"):
        data.ParquetSequences([a])


def test_damaged_parquet(tmp_path: Path):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "x.parquet"
    table = pa.table({"x": np.random.default_rng(0).normal(size=1000)})
    parquet.write_table(table, path, write_page_checksum=True)
    flipped(path, 3000)
    with pytest.raises(ValueError, match=f"{path}, record 7: it can't be read"):
        data.ParquetRows([path])[7]


def test_the_standard_library_is_text():
    folder = Path(hashlib.__file__).parent / "json"
    source = data.TextFiles(folder, ".py")
    got = [source[index]["tokens"].tobytes() for index in range(len(source))]
    assert got == [path.read_bytes() for path in sorted(folder.rglob("*.py"))]
