"""The cost of loading, compared with plain Grain, and how long training waits for its batches.

All forms end in arrays on the default device, and take turns in one process. Ours is
`rnnscale.data.stream`, which loads in a thread, and checks that records are alike and all numbers
finite. Plain Grain is a `MapDataset` of records, `batch`, and `grain.experimental.device_put`,
which loads in threads too and checks nothing. Bare is the same with `jax.device_put` in the loop,
so that nothing is loaded while the consumer is busy.

Figures are medians over the rounds; overheads also have quartiles. Examples and bytes are per
second of processor time of all threads. With worker processes they are per second of wall time, and
the first batch does not count. Then follow the fraction of a training run in which it waits for
batches, and how full packed rows are.
"""

import argparse
import asyncio
import collections
import contextlib
import importlib.util
import itertools
import os
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import grain
import jax
import numpy as np
from grain.experimental import device_put
from rich.console import Group
from rich.table import Table

from rnnscale import data, runs, tasks
from rnnscale_kernels.testing import orders, quartiles

from ._benchmark import Benchmark, Row, Unavailable
from ._loading import BATCH, Case, pipelines, sources, with_workers

# Seconds of a turn.
TURN = 0.2


def ours(case: Case, batches: int) -> Iterator[Any]:
    # The last of the endless rows, so that no thread loads more batches than are used.
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
    """Seconds of wall time and of processor time."""
    if workers:
        next(batches)
    wall, processor = perf_counter(), process_time()
    (last,) = collections.deque(batches, maxlen=1)
    jax.block_until_ready(last)
    return perf_counter() - wall, process_time() - processor


def measure_case(case: Case, rounds: int, seconds: float) -> Row:
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
    """The fraction of the slots of packed rows that hold a step."""
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
    if importlib.util.find_spec("pyarrow") is None:
        raise Unavailable("needs pyarrow: pip install 'rnnscale[parquet]'")
    # After an array of this size is freed, glibc keeps memory that is freed later. Otherwise it
    # returns the memory of each batch to the system, which a thread that loads large ones pays for.
    del [np.ones(31 << 17)][0]
    with tempfile.TemporaryDirectory() as folder:
        for case in itertools.chain(sources(Path(folder)), pipelines()):
            yield measure_case(case, options.rounds, 0 if options.quick else TURN)
    if not options.quick:
        for case in with_workers():
            yield measure_case(case, 2, 2.0)
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
