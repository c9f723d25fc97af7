"""What the benchmark `data` loads: each job with rnnscale's functions and with plain Grain.

Where Grain has no such source or pipeline, a function of a few lines makes a record from its index.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grain
import numpy as np
from absl import flags
from array_record.python.array_record_module import ArrayRecordWriter

from rnnscale import data

from ._harness import Rows

# Enough records: the cost of Grain's shuffle per record grows below some ten thousand.
BATCH, RECORDS, TIME, FEATURES = 32, 8192, 64, 8
SHORTEST, LONGEST = 20, 200
WINDOW, ROW, BOUNDS = 64, 512, (64, 128, LONGEST)
LAYOUT = np.dtype([("inputs", np.float32, (TIME, FEATURES)), ("labels", np.int32)])

type Record = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """Endless rows of ours, and the same as endless batches of plain Grain."""

    kind: str
    name: str
    ours: grain.MapDataset
    plain: grain.MapDataset
    workers: int = 0


def plain_rows(count: int, read: Callable[[int], Any]) -> grain.MapDataset:
    return grain.MapDataset.source(Rows(count, read))


def record_at(arrays: Mapping[str, Sequence[Any]], index: int) -> Record:
    return {name: array[index] for name, array in arrays.items()}


def plain_arrays(arrays: Mapping[str, Any]) -> grain.MapDataset:
    # A partial function, unlike a local one, can be sent to worker processes.
    return plain_rows(RECORDS, partial(record_at, arrays))


def shuffled(dataset: grain.MapDataset) -> grain.MapDataset:
    return dataset.seed(0).shuffle().repeat(None)


def batched(rows: grain.MapDataset) -> grain.MapDataset:
    return rows.batch(BATCH, drop_remainder=True)


def array_records(time: int = TIME) -> Record:
    random = np.random.default_rng(0)
    return {
        "inputs": random.standard_normal((RECORDS, time, FEATURES), np.float32),
        "labels": random.integers(10, size=RECORDS, dtype=np.int32),
    }


def decode(content: bytes) -> Record:
    (record,) = np.frombuffer(content, LAYOUT)
    return {name: record[name] for name in LAYOUT.names or ()}


def write_records(path: Path, arrays: Record) -> None:
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for index in range(RECORDS):
        writer.write(b"".join(array[index].tobytes() for array in arrays.values()))
    writer.close()


def case_of_source(name: str, source: Any, plain: grain.MapDataset) -> Case:
    rows = data.repeat(data.shuffle(source, seed=0))
    return Case("source", name, rows, batched(shuffled(plain)))


def sources(folder: Path) -> Iterator[Case]:
    """Records in memory and in files, in a random order. The files are in the page cache."""
    yield from array_sources(folder)
    yield from document_sources(folder)


def array_sources(folder: Path) -> Iterator[Case]:
    """The same records of fixed shape in all formats that can hold them."""
    arrays = array_records()
    yield case_of_source("arrays", data.ArraySource(**arrays), plain_arrays(arrays))

    lists = {name: list(array) for name, array in arrays.items()}
    yield case_of_source(
        "sequences",
        data.SequenceArrays({"inputs": lists["inputs"]}, {"labels": arrays["labels"]}),
        plain_arrays(lists),
    )

    files = {name: folder / f"{name}.npy" for name in arrays}
    for name, file in files.items():
        np.save(file, arrays[name])
    mapped = {name: np.load(file, mmap_mode="r") for name, file in files.items()}
    yield case_of_source(".npy, mapped", data.ArrayFiles(**files), plain_arrays(mapped))

    shard = folder / "records.arrayrecord"
    write_records(shard, arrays)
    stored = grain.sources.ArrayRecordDataSource([str(shard)])
    yield case_of_source(
        "ArrayRecord",
        data.ArrayRecordFiles([shard], decode),
        plain_rows(RECORDS, stored.__getitem__).map(decode),
    )

    data.write_rows(data.ArraySource(**arrays), folder / "packed")
    (shard,) = (folder / "packed").glob("*.arrayrecord")
    packed = grain.sources.ArrayRecordDataSource([str(shard)])
    yield case_of_source(
        "packed shards",
        data.PackedSource(folder / "packed"),
        plain_rows(RECORDS, packed.__getitem__).map(decode),
    )
    yield parquet(folder, arrays)


def parquet(folder: Path, arrays: dict[str, np.ndarray]) -> Case:
    import pyarrow as pa
    import pyarrow.parquet as pq

    steps = pa.FixedSizeListArray.from_arrays(arrays["inputs"].reshape(-1), TIME * FEATURES)
    pq.write_table(pa.table({"inputs": steps, "labels": arrays["labels"]}), folder / "rows.parquet")
    table = pq.read_table(folder / "rows.parquet").combine_chunks()
    flat = table["inputs"].chunk(0).flatten().to_numpy().reshape(RECORDS, -1)
    columns = {"inputs": flat, "labels": table["labels"].to_numpy()}
    source = data.ParquetRows([folder / "rows.parquet"])
    return case_of_source("Parquet", source, plain_arrays(columns))


def document_sources(folder: Path) -> Iterator[Case]:
    """Tokens, a folder of texts, and a folder of CSV files."""
    time = 1024
    tokens = np.random.default_rng(1).integers(32, 127, (RECORDS, time), np.uint16)
    tokens.tofile(folder / "tokens.bin")
    np.save(folder / "offsets.npy", np.arange(RECORDS + 1) * time)
    long = np.memmap(folder / "tokens.bin", np.uint16, "r")
    yield case_of_source(
        "token shards",
        data.TokenShards([folder / "tokens.bin"], dtype="uint16", offsets=[folder / "offsets.npy"]),
        plain_rows(RECORDS, lambda i: {"tokens": long[i * time : (i + 1) * time]}),
    )

    texts = [folder / "texts" / f"{index:04}.txt" for index in range(RECORDS)]
    texts[0].parent.mkdir()
    for path, document in zip(texts, tokens, strict=True):
        path.write_bytes(document.astype(np.uint8).tobytes())
    yield case_of_source(
        "text folder",
        data.TextFiles(folder / "texts"),
        plain_rows(RECORDS, lambda i: {"tokens": np.frombuffer(texts[i].read_bytes(), np.uint8)}),
    )

    tables = [folder / "tables" / f"{index:04}.csv" for index in range(RECORDS // 8)]
    tables[0].parent.mkdir()
    for path, table in zip(tables, array_records()["inputs"], strict=False):
        np.savetxt(path, table, delimiter=",", fmt="%.6g")
    yield case_of_source(
        "CSV folder",
        data.CsvSeries(folder / "tables"),
        plain_rows(
            len(tables), lambda i: {"inputs": np.loadtxt(tables[i], np.float32, delimiter=",")}
        ),
    )


def noisy(record: Record, random: np.random.Generator) -> Record:
    inputs = record["inputs"]
    return {**record, "inputs": inputs + random.standard_normal(inputs.shape, np.float32)}


def filtered(record: Record, random: np.random.Generator) -> Record:
    """Some milliseconds of arithmetic, which are worth a worker process."""
    inputs = record["inputs"]
    for _ in range(20):
        spectrum = np.fft.rfft(inputs, axis=0)
        spectrum *= random.uniform(0.9, 1.1, (len(spectrum), 1))
        inputs = np.fft.irfft(spectrum, len(inputs), axis=0)
    return {**record, "inputs": inputs.astype(np.float32)}


@dataclass(frozen=True)
class Sequences:
    """Sequences of many lengths in memory, with a label at each step."""

    inputs: list[np.ndarray]
    labels: list[np.ndarray]
    lengths: np.ndarray

    @classmethod
    def draw(cls, random: np.random.Generator) -> "Sequences":
        lengths = random.integers(SHORTEST, LONGEST + 1, RECORDS)
        inputs = [random.standard_normal((n, FEATURES), np.float32) for n in lengths]
        return cls(inputs, [random.integers(10, size=n, dtype=np.int32) for n in lengths], lengths)

    def source(self) -> data.SequenceArrays:
        return data.SequenceArrays({"inputs": self.inputs, "labels": self.labels})

    def padded(self, index: int, start: int, stop: int, steps: int) -> Record:
        """A piece of a sequence, with zeros up to `steps`."""
        row = {
            "inputs": np.zeros((steps, FEATURES), np.float32),
            "labels": np.zeros(steps, np.int32),
            "lengths": np.asarray(stop - start, np.int32),
        }
        row["inputs"][: stop - start] = self.inputs[index][start:stop]
        row["labels"][: stop - start] = self.labels[index][start:stop]
        return row

    def packed(self, together: Sequence[int]) -> Record:
        """Several sequences, one after another."""
        row = {
            "inputs": np.zeros((ROW, FEATURES), np.float32),
            "labels": np.zeros(ROW, np.int32),
            "reset": np.zeros(ROW, bool),
            "weight": np.zeros(ROW, np.float32),
        }
        start = 0
        for each in together:
            stop = start + len(self.inputs[each])
            row["inputs"][start:stop] = self.inputs[each]
            row["labels"][start:stop] = self.labels[each]
            row["reset"][start] = True
            row["weight"][start:stop] = 1
            start = stop
        row["reset"][start : start + 1] = True
        return row

    def lane(self, index: int, order: np.ndarray, ends: np.ndarray) -> Record:
        """Row `index` of parallel streams through all sequences. `ends`: where each sequence ends
        if they stand in this order. It copies from one sequence at a time, because a corpus need
        not fit into memory."""
        step, lane = divmod(index, BATCH)
        at = (lane * ends[-1] // BATCH + step * ROW) % ends[-1]
        place = int(ends.searchsorted(at, side="right"))
        start = at - (ends[place] - self.lengths[order[place]])
        row = {
            "inputs": np.empty((ROW, FEATURES), np.float32),
            "labels": np.empty(ROW, np.int32),
            "reset": np.zeros(ROW, bool),
        }
        filled = 0
        while filled < ROW:
            each = order[place]
            count = min(self.lengths[each] - start, ROW - filled)
            row["inputs"][filled : filled + count] = self.inputs[each][start : start + count]
            row["labels"][filled : filled + count] = self.labels[each][start : start + count]
            row["reset"][filled] = start == 0
            filled += count
            place, start = (place + 1) % RECORDS, 0
        return row


def pipelines() -> Iterator[Case]:
    """Every function from sources to rows, on records and on sequences of many lengths."""
    large = array_records(time=4 * TIME)
    records = data.repeat(data.shuffle(data.ArraySource(**large), seed=0))
    plain = shuffled(plain_arrays(large))
    yield Case("pipeline", "shuffle", records, batched(plain))
    yield Case(
        "pipeline",
        "shuffle, augment",
        data.augment(records, noisy, seed=1),
        batched(plain.random_map(noisy, seed=1)),
    )

    random = np.random.default_rng(2)
    sequences = Sequences.draw(random)
    source, lengths = sequences.source(), sequences.lengths
    pieces = [
        (i, k, min(k + WINDOW, n)) for i, n in enumerate(lengths) for k in range(0, n, WINDOW)
    ]
    windows = plain_rows(len(pieces), lambda i: sequences.padded(*pieces[i], WINDOW))
    yield Case(
        "pipeline",
        "window, pad",
        data.repeat(data.pad(data.window(source, WINDOW), WINDOW)),
        batched(windows.repeat(None)),
    )

    together = first_fit(lengths, ROW)
    packed = plain_rows(len(together), lambda i: sequences.packed(together[i]))
    yield Case(
        "pipeline", "pack", data.repeat(data.pack(source, ROW)), batched(packed.repeat(None))
    )

    yield Case(
        "pipeline",
        "bucket",
        data.bucket(source, BOUNDS, BATCH, seed=0),
        plain_buckets(sequences),
    )

    order = random.permutation(RECORDS)
    ends = np.cumsum(lengths[order])
    lanes = grain.MapDataset.range(2**40).map(lambda i: sequences.lane(i, order, ends))
    yield Case("pipeline", "lanes", data.lanes(source, BATCH, ROW, seed=0), batched(lanes))


def plain_buckets(sequences: Sequences) -> grain.MapDataset:
    """Batches of sequences of similar length, padded to one of `BOUNDS`."""
    bucket = np.searchsorted(BOUNDS, sequences.lengths)
    members = [np.flatnonzero(bucket == index) for index in range(len(BOUNDS))]

    def of_bucket(ids: np.ndarray, steps: int) -> grain.MapDataset:
        def read(index: int) -> Record:
            row = sequences.padded(ids[index], 0, int(sequences.lengths[ids[index]]), steps)
            return {**row, "weight": np.asarray(1, np.float32)}

        return batched(shuffled(plain_rows(len(ids), read)))

    buckets = [of_bucket(ids, steps) for ids, steps in zip(members, BOUNDS, strict=True)]
    return grain.MapDataset.mix(buckets, [len(ids) for ids in members])


def first_fit(lengths: np.ndarray, steps: int) -> list[list[int]]:
    """The sequences of each row. The longest come first, each in the first row with enough room."""
    rows, room = [], []
    for each in np.argsort(lengths)[::-1]:
        row = next((i for i, left in enumerate(room) if left >= lengths[each]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(steps)
        rows[row].append(int(each))
        room[row] -= int(lengths[each])
    return rows


def with_workers() -> Iterator[Case]:
    # Grain's worker processes read the flags.
    flags.FLAGS.mark_as_parsed()
    arrays = array_records()
    plain = plain_arrays(arrays).repeat(None)
    for workers in (0, 1, 2):
        yield Case(
            "workers",
            f"augment, {workers} workers",
            data.augment(data.repeat(data.ArraySource(**arrays)), filtered, seed=1),
            batched(plain.random_map(filtered, seed=1)),
            workers,
        )
