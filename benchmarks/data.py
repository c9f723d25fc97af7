"""What loading costs, beside the same written with plain Grain; how long training waits for it.

All forms end in arrays on the default device, and take turns in one process. Ours is
`rnnscale.data.stream`, which loads in a thread, and sees that records are alike and all numbers
finite. Plain Grain is a `MapDataset` of records, `batch`, and `grain.experimental.device_put`,
which loads in threads too; it checks nothing. Bare is the same with `jax.device_put` in the loop,
so that nothing is loaded while the consumer is busy. Where Grain has no such pipeline or source, a
function of a few lines makes records of their index.

Figures are medians over the rounds; behind an overhead stand its quartiles. Examples and bytes are
those of a second of processor time of all threads together, and with worker processes, where the
first batch does not count, those of a second that passed. Then follow the fraction of a training
run in which it waits for batches, and how full packed rows are.
"""

import argparse
import asyncio
import collections
import contextlib
import itertools
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import grain
import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl import flags
from array_record.python.array_record_module import ArrayRecordWriter
from grain.experimental import device_put
from rich.console import Group
from rich.table import Table

from rnnscale import data, runs, tasks
from rnnscale_kernels.testing import orders, quartiles

from ._benchmark import Benchmark, Row

# So many records, because what Grain's shuffle takes for one grows below some ten thousand.
BATCH, RECORDS, TIME, FEATURES = 32, 8192, 64, 8
SHORTEST, LONGEST = 20, 200
WINDOW, ROW, BOUNDS = 64, 512, (64, 128, LONGEST)
LAYOUT = np.dtype([("inputs", np.float32, (TIME, FEATURES)), ("labels", np.int32)])
# Seconds of a turn.
TURN = 0.2

type Record = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """Endless rows of ours, and endless batches of plain Grain, of `BATCH` rows each."""

    kind: str
    name: str
    ours: grain.MapDataset
    plain: grain.MapDataset
    workers: int = 0


@dataclass(frozen=True)
class Rows:
    """What plain Grain takes as a source."""

    count: int
    read: Callable[[int], Any]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.read(index)


def plain_rows(count: int, read: Callable[[int], Any]) -> grain.MapDataset:
    return grain.MapDataset.source(Rows(count, read))


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


def sources(folder: Path) -> Iterator[Case]:
    """Records in memory and in files, in a random order. The files are in the page cache."""

    def case(name: str, source: Any, plain: grain.MapDataset) -> Case:
        rows = data.repeat(data.shuffle(source, seed=0))
        return Case("source", name, rows, batched(shuffled(plain)))

    arrays = array_records()

    def of_arrays(rows: Mapping[str, np.ndarray]) -> grain.MapDataset:
        return plain_rows(RECORDS, lambda i: {name: array[i] for name, array in rows.items()})

    yield case("arrays", data.ArraySource(**arrays), of_arrays(arrays))

    lists = {name: list(array) for name, array in arrays.items()}
    yield case(
        "sequences",
        data.SequenceArrays({"inputs": lists["inputs"]}, {"labels": arrays["labels"]}),
        plain_rows(RECORDS, lambda i: {name: each[i] for name, each in lists.items()}),
    )

    files = {name: folder / f"{name}.npy" for name in arrays}
    for name, file in files.items():
        np.save(file, arrays[name])
    mapped = {name: np.load(file, mmap_mode="r") for name, file in files.items()}
    yield case(".npy, mapped", data.ArrayFiles(**files), of_arrays(mapped))

    shard = folder / "records.arrayrecord"
    write_records(shard, arrays)
    stored = grain.sources.ArrayRecordDataSource([str(shard)])
    yield case(
        "ArrayRecord",
        data.ArrayRecordFiles([shard], decode),
        plain_rows(RECORDS, stored.__getitem__).map(decode),
    )

    data.write_rows(data.ArraySource(**arrays), folder / "packed")
    (shard,) = (folder / "packed").glob("*.arrayrecord")
    packed = grain.sources.ArrayRecordDataSource([str(shard)])
    yield case(
        "packed shards",
        data.PackedSource(folder / "packed"),
        plain_rows(RECORDS, packed.__getitem__).map(decode),
    )

    steps = pa.FixedSizeListArray.from_arrays(arrays["inputs"].reshape(-1), TIME * FEATURES)
    pq.write_table(pa.table({"inputs": steps, "labels": arrays["labels"]}), folder / "rows.parquet")
    table = pq.read_table(folder / "rows.parquet").combine_chunks()
    flat = table["inputs"].chunk(0).flatten().to_numpy().reshape(RECORDS, -1)
    columns = {"inputs": flat, "labels": table["labels"].to_numpy()}
    yield case("Parquet", data.ParquetRows([folder / "rows.parquet"]), of_arrays(columns))

    time = 1024
    tokens = np.random.default_rng(1).integers(32, 127, (RECORDS, time), np.uint16)
    tokens.tofile(folder / "tokens.bin")
    np.save(folder / "offsets.npy", np.arange(RECORDS + 1) * time)
    long = np.memmap(folder / "tokens.bin", np.uint16, "r")
    yield case(
        "token shards",
        data.TokenShards([folder / "tokens.bin"], dtype="uint16", offsets=[folder / "offsets.npy"]),
        plain_rows(RECORDS, lambda i: {"tokens": long[i * time : (i + 1) * time]}),
    )

    texts = [folder / "texts" / f"{index:04}.txt" for index in range(RECORDS)]
    texts[0].parent.mkdir()
    for path, document in zip(texts, tokens, strict=True):
        path.write_bytes(document.astype(np.uint8).tobytes())
    yield case(
        "text folder",
        data.TextFiles(folder / "texts"),
        plain_rows(RECORDS, lambda i: {"tokens": np.frombuffer(texts[i].read_bytes(), np.uint8)}),
    )

    tables = [folder / "tables" / f"{index:04}.csv" for index in range(RECORDS // 8)]
    tables[0].parent.mkdir()
    for path, table in zip(tables, arrays["inputs"], strict=False):
        np.savetxt(path, table, delimiter=",", fmt="%.6g")
    yield case(
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
    """What is worth a process: some milliseconds of arithmetic."""
    inputs = record["inputs"]
    for _ in range(20):
        spectrum = np.fft.rfft(inputs, axis=0)
        spectrum *= random.uniform(0.9, 1.1, (len(spectrum), 1))
        inputs = np.fft.irfft(spectrum, len(inputs), axis=0)
    return {**record, "inputs": inputs.astype(np.float32)}


def pipelines() -> Iterator[Case]:
    """Rows of sequences of many lengths in memory, with a label at each step."""
    random = np.random.default_rng(2)
    lengths = random.integers(SHORTEST, LONGEST + 1, RECORDS)
    inputs = [random.standard_normal((n, FEATURES), np.float32) for n in lengths]
    labels = [random.integers(10, size=n, dtype=np.int32) for n in lengths]
    sequences = data.SequenceArrays({"inputs": inputs, "labels": labels})

    def padded(index: int, start: int, stop: int, steps: int) -> Record:
        row = {
            "inputs": np.zeros((steps, FEATURES), np.float32),
            "labels": np.zeros(steps, np.int32),
            "lengths": np.asarray(stop - start, np.int32),
        }
        row["inputs"][: stop - start] = inputs[index][start:stop]
        row["labels"][: stop - start] = labels[index][start:stop]
        return row

    large = array_records(time=4 * TIME)
    records = data.repeat(data.shuffle(data.ArraySource(**large), seed=0))
    plain = shuffled(plain_rows(RECORDS, lambda i: {name: x[i] for name, x in large.items()}))
    yield Case("pipeline", "shuffle", records, batched(plain))
    yield Case(
        "pipeline",
        "shuffle, augment",
        data.augment(records, noisy, seed=1),
        batched(plain.random_map(noisy, seed=1)),
    )

    pieces = [
        (i, k, min(k + WINDOW, n)) for i, n in enumerate(lengths) for k in range(0, n, WINDOW)
    ]
    yield Case(
        "pipeline",
        "window, pad",
        data.repeat(data.pad(data.window(sequences, WINDOW), WINDOW)),
        batched(plain_rows(len(pieces), lambda i: padded(*pieces[i], WINDOW)).repeat(None)),
    )

    together = first_fit(lengths, ROW)

    def packed(index: int) -> Record:
        row = {
            "inputs": np.zeros((ROW, FEATURES), np.float32),
            "labels": np.zeros(ROW, np.int32),
            "reset": np.zeros(ROW, bool),
            "weight": np.zeros(ROW, np.float32),
        }
        start = 0
        for each in together[index]:
            stop = start + len(inputs[each])
            row["inputs"][start:stop] = inputs[each]
            row["labels"][start:stop] = labels[each]
            row["reset"][start] = True
            row["weight"][start:stop] = 1
            start = stop
        row["reset"][start : start + 1] = True
        return row

    yield Case(
        "pipeline",
        "pack",
        data.repeat(data.pack(sequences, ROW)),
        batched(plain_rows(len(together), packed).repeat(None)),
    )

    members = [np.flatnonzero(np.searchsorted(BOUNDS, lengths) == b) for b in range(len(BOUNDS))]

    def in_bucket(ids: np.ndarray, steps: int) -> grain.MapDataset:
        def read(index: int) -> Record:
            row = padded(ids[index], 0, int(lengths[ids[index]]), steps)
            return {**row, "weight": np.asarray(1, np.float32)}

        return batched(shuffled(plain_rows(len(ids), read)))

    yield Case(
        "pipeline",
        "bucket",
        data.bucket(sequences, BOUNDS, BATCH, seed=0),
        grain.MapDataset.mix(
            [in_bucket(ids, steps) for ids, steps in zip(members, BOUNDS, strict=True)],
            [len(ids) for ids in members],
        ),
    )

    order = random.permutation(RECORDS)
    ends = np.cumsum(lengths[order])

    def in_lane(index: int) -> Record:
        # In parts, since a corpus need not fit into memory.
        step, lane = divmod(index, BATCH)
        at = (lane * ends[-1] // BATCH + step * ROW) % ends[-1]
        place = int(ends.searchsorted(at, side="right"))
        start = at - (ends[place] - lengths[order[place]])
        row = {
            "inputs": np.empty((ROW, FEATURES), np.float32),
            "labels": np.empty(ROW, np.int32),
            "reset": np.zeros(ROW, bool),
        }
        filled = 0
        while filled < ROW:
            each = order[place]
            count = min(lengths[each] - start, ROW - filled)
            row["inputs"][filled : filled + count] = inputs[each][start : start + count]
            row["labels"][filled : filled + count] = labels[each][start : start + count]
            row["reset"][filled] = start == 0
            filled += count
            place, start = (place + 1) % RECORDS, 0
        return row

    yield Case(
        "pipeline",
        "lanes",
        data.lanes(sequences, BATCH, ROW, seed=0),
        batched(grain.MapDataset.range(2**40).map(in_lane)),
    )


def first_fit(lengths: np.ndarray, steps: int) -> list[list[int]]:
    """The sequences of each row: the longest first, each in the first row with room for it."""
    rows, room = [], []
    for each in np.argsort(lengths)[::-1]:
        row = next((i for i, left in enumerate(room) if left >= lengths[each]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(steps)
        rows[row].append(int(each))
        room[row] -= int(lengths[each])
    return rows


@dataclass(frozen=True)
class ArrayRows:
    """`Rows` of arrays, which worker processes can be given."""

    arrays: Record

    def __len__(self) -> int:
        return RECORDS

    def __getitem__(self, index: int) -> Record:
        return {name: array[index] for name, array in self.arrays.items()}


def with_workers() -> Iterator[Case]:
    # Grain's worker processes read them.
    flags.FLAGS.mark_as_parsed()
    arrays = array_records()
    plain = grain.MapDataset.source(ArrayRows(arrays)).repeat(None)
    for workers in (0, 1, 2):
        yield Case(
            "workers",
            f"augment, {workers} workers",
            data.augment(data.repeat(data.ArraySource(**arrays)), filtered, seed=1),
            batched(plain.random_map(filtered, seed=1)),
            workers,
        )


def ours(case: Case, batches: int) -> Iterator[Any]:
    # The last ones of the endless rows, so that no thread loads more than are asked for.
    start = len(case.ours) // BATCH - batches
    with data.stream(case.ours, BATCH, start_step=start, workers=case.workers) as stream:
        yield from stream


def plain(case: Case, batches: int) -> Iterator[Any]:
    with contextlib.closing(iter(device_put(loaded(case, batches), jax.devices()[0]))) as placed:
        yield from placed


def bare(case: Case, batches: int) -> Iterator[Any]:
    with contextlib.closing(iter(loaded(case, batches))) as on_host:
        yield from map(jax.device_put, on_host)


def loaded(case: Case, batches: int) -> grain.IterDataset:
    dataset = case.plain.slice(slice(0, batches)).to_iter_dataset(
        grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    )
    if case.workers:
        return dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=case.workers))
    return dataset


FORMS = {"ours": ours, "plain": plain, "bare": bare}


def spent(batches: Iterator[Any], workers: int) -> tuple[float, float]:
    """Seconds that passed, and of processor time."""
    if workers:
        next(batches)
    wall, processor = perf_counter(), process_time()
    (last,) = collections.deque(batches, maxlen=1)
    jax.block_until_ready(last)
    return perf_counter() - wall, process_time() - processor


def measured(case: Case, rounds: int, seconds: float) -> Row:
    first = case.plain[0]
    took = max(spent(ours(case, 4), 0)[0] / 4, 1e-5) if not case.workers else 0.05
    batches = max(2, int(seconds / took)) + (case.workers > 0)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in FORMS}
    for name in itertools.chain.from_iterable(orders(list(FORMS), rounds)):
        times[name].append(spent(FORMS[name](case, batches), case.workers))

    def overhead(form: str, clock: int) -> list[float]:
        pairs = zip(times["ours"], times[form], strict=True)
        return [round(q, 4) for q in quartiles([a[clock] / b[clock] - 1 for a, b in pairs])]

    clock = 0 if case.workers else 1
    counted = BATCH * (batches - (case.workers > 0))
    rate = {
        name: counted / statistics.median(each[clock] for each in times[name]) for name in FORMS
    }
    size = sum(array.nbytes for array in jax.tree.leaves(first)) // BATCH
    return {
        "kind": case.kind,
        "name": case.name,
        "workers": case.workers,
        "example_bytes": size,
        "batches": batches,
        "rounds": rounds,
        "examples_per_second": rate["ours"],
        "bytes_per_second": rate["ours"] * size,
        "plain_examples_per_second": rate["plain"],
        "bare_examples_per_second": rate["bare"],
        "overhead": overhead("plain", clock),
        "overhead_bare": overhead("bare", clock),
        "overhead_wall": overhead("plain", 0),
    }


def stall(task: str, rows: str, **options: Any) -> Row:
    """How long a training run waits for its batches."""
    with tempfile.TemporaryDirectory() as out:
        config = runs.TrainConfig.for_task(task, out=out, rows=rows, **options)
        summary: Any = runs.run(config)
    return {
        "kind": "stall",
        "name": f"{task}, {rows}",
        "steps": config.steps,
        "tokens_per_second": summary["tokens_per_second"],
        "input_stall": summary["input_stall"],
    }


def stalls(*, quick: bool) -> Iterator[Row]:
    if quick:
        yield stall("japanese-vowels", "records", steps=3, dim=8, depth=1, state_dim=8)
        return
    text = str(Path(asyncio.__file__).parent)
    for rows in ("records", "packed", "lanes"):
        yield stall("bytes", rows, steps=30, text=text)
    yield stall("japanese-vowels", "records", steps=60)


def fill(*, quick: bool) -> Iterator[Row]:
    """The part of the slots of packed rows that hold a step."""
    for name, steps in (("japanese-vowels", 64), ("bytes", 1024)):
        if quick and name == "bytes":
            continue
        sequences = tasks.load_task(name).sequences["train"]
        rows, counted = len(data.pack(sequences, steps)), int(sequences.lengths.sum())
        yield {
            "kind": "fill",
            "name": f"{name}, {steps} steps",
            "sequences": len(sequences),
            "steps": counted,
            "rows": rows,
            "fill": counted / (rows * steps),
        }


def run(options: argparse.Namespace) -> Iterator[Row]:
    # Once an array of that size was freed, glibc keeps what is freed later. Otherwise it gives the
    # memory of each batch back to the system, and a thread that loads large ones pays for that.
    del [np.ones(31 << 17)][0]
    with tempfile.TemporaryDirectory() as folder:
        for case in itertools.chain(sources(Path(folder)), pipelines()):
            yield measured(case, options.rounds, 0 if options.quick else TURN)
    if not options.quick:
        for case in with_workers():
            yield measured(case, 2, 2.0)
    yield from stalls(quick=options.quick)
    yield from fill(quick=options.quick)


def about(options: argparse.Namespace) -> Row:
    return {"grain": grain.__version__, "load": os.getloadavg()[1]}


def table(rows: Sequence[Row]) -> Group:
    found = Table("", "", "bytes each", "examples/s", "MB/s", "plain ex./s", box=None)
    for name in ("overhead, % over plain", "over bare", "over plain, time that passed"):
        found.add_column(name, justify="right")
    below = []
    for row in rows:
        if row["kind"] == "stall":
            below.append(
                f"{row['name']}: waits for batches {100 * row['input_stall']:.2f}% of the time, "
                f"{row['tokens_per_second']:,.0f} tokens/s"
            )
            continue
        if row["kind"] == "fill":
            below.append(
                f"{row['name']}: {row['steps']:,} steps of {row['sequences']} sequences in "
                f"{row['rows']:,} rows, {100 * row['fill']:.2f}% full"
            )
            continue
        overheads = (
            "{1:+.1f} ({0:+.1f}, {2:+.1f})".format(*(100 * quartile for quartile in row[name]))
            for name in ("overhead", "overhead_bare", "overhead_wall")
        )
        found.add_row(
            row["kind"],
            row["name"],
            f"{row['example_bytes']:,}",
            f"{row['examples_per_second']:,.0f}",
            f"{row['bytes_per_second'] / 1e6:,.1f}",
            f"{row['plain_examples_per_second']:,.0f}",
            *overheads,
        )
    return Group(found, *below)


BENCHMARK = Benchmark(run=run, table=table, about=about, rounds=11)
