"""Combined pipelines: the same batches after any restart, in any number of processes."""

import functools
import os
import pickle
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnscale import data
from rnnscale.data.pipelines import _load
from rnnscale.data.sources._array_record import DamagedRecordError

SCRIPT = Path(__file__).with_name("streams_script.py")
_script = runpy.run_path(str(SCRIPT))
BATCH, STEPS, rows = _script["BATCH"], _script["STEPS"], _script["rows"]
LONGEST = 10 + STEPS


@pytest.fixture(scope="module")
def uninterrupted():
    """The batches from the first step on, loaded by one process without workers."""
    with data.stream(rows(), BATCH) as stream:
        return [{k: np.asarray(v) for k, v in next(stream).items()} for _ in range(LONGEST)]


def test_processes_load_the_batches_of_one_process(uninterrupted, tmp_path: Path):
    """From any step on, with any numbers of workers. The processes also check what they read."""
    # For each process its streams: their first step and their number of workers.
    streams = [["1", "2", "10", "0"], ["1", "1", "10", "0"], *2 * [["1", "0", "10", "0"]]]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, SCRIPT, str(port), str(rank), tmp_path, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank, arguments in enumerate(streams)
    ]
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0 and "done" in output, output
        assert "leaked" not in output
    for number, start in enumerate((1, 10)):
        parts: dict[tuple[int, str], dict[int, np.ndarray]] = {}
        for rank in range(len(streams)):
            for label, array in np.load(tmp_path / f"{number}-{rank}.npz").items():
                step, name, first = label.split()
                here = parts.setdefault((int(step), name), {})
                assert int(first) not in here  # no row is loaded for two devices
                here[int(first)] = array
        assert {step for step, _ in parts} == set(range(start, start + STEPS))
        for (step, name), arrays in parts.items():
            joined = np.concatenate([arrays[first] for first in sorted(arrays)])
            np.testing.assert_array_equal(joined, uninterrupted[step][name], strict=True)
        names = {name for _, name in parts}
        assert names == set(uninterrupted[0]) and len(names) == 11


PLUGIN = """
from jax._src import xla_bridge

def initialize():
    xla_bridge.register_backend_factory("accelerator", start, priority=500)

def start():
    raise RuntimeError("the accelerator was started")
"""


def squared(record: data.Record) -> data.Record:
    """Computes with jax, which starts its devices."""
    return {"inputs": np.asarray(jnp.square(record["inputs"])), "process": np.asarray(os.getpid())}


@pytest.mark.slow
def test_workers_leave_the_accelerator_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Also where the source computes with jax. The workers find a platform that fails when it is
    started; this process runs already."""
    jax.devices()
    plugin = tmp_path / "jax_plugins" / "accelerator" / "__init__.py"
    plugin.parent.mkdir(parents=True)
    plugin.write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("JAX_PLATFORMS", "accelerator")
    records = grain.MapDataset.source(data.ArraySource(inputs=np.arange(8.0))).map(squared)
    with data.stream(records, 4, workers=1) as stream:
        batch = next(stream)
    assert batch["inputs"].tolist() == [0.0, 1.0, 4.0, 9.0]
    assert os.getpid() not in batch["process"].tolist()
    monkeypatch.setattr(_load, "_stay_on_the_cpu", None)
    with data.stream(records, 4, workers=1) as stream:
        with pytest.raises(RuntimeError, match="the accelerator was started"):
            next(stream)


def test_records_of_a_batch_have_the_same_arrays():
    def record(index: int, change: data.Record) -> data.Record:
        plain = {"inputs": np.zeros(3, np.float32), "labels": np.asarray(index)}
        return plain | change if index == 5 else plain

    for change, message in [
        ({"inputs": np.zeros(3)}, r"'inputs' of record 5 is float64\[3\].* float32\[3\]"),
        ({"inputs": np.zeros(4, np.float32)}, r"'inputs' of record 5 is float32\[4\]"),
        ({"other": np.zeros(3)}, "record 5 has the arrays inputs, labels, other"),
    ]:
        mixed = grain.MapDataset.range(8).map(functools.partial(record, change=change))
        with data.stream(mixed, 4) as stream:
            next(stream)
            with pytest.raises(ValueError, match=message):
                next(stream)


def test_a_stream_ends_when_no_full_batch_is_left():
    source = data.ArraySource(inputs=np.arange(10))
    with data.stream(source, 4) as stream:
        assert [np.asarray(b["inputs"]).tolist() for b in stream] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert list(data.stream(source, 4, start_step=2)) == []
    with pytest.raises(ValueError, match="10 records do not fill a batch of 11"):
        data.stream(source, 11)


def test_augmenting_depends_on_seed_and_index_only():
    def drawn(record: data.Record, random: np.random.Generator) -> data.Record:
        return {"inputs": record["inputs"], "drawn": np.asarray(random.integers(2**31))}

    source = data.ArraySource(inputs=np.arange(5))
    one, again, other = (data.augment(data.repeat(source), drawn, seed=s) for s in (0, 0, 1))

    def number(records: grain.MapDataset, index: int) -> int:
        record = records[index]
        assert record is not None
        return int(record["drawn"])

    numbers = [number(one, i) for i in range(10)]
    assert len(set(numbers)) == 10  # another number in the second epoch
    assert [number(again, i) for i in reversed(range(10))] == numbers[::-1]
    assert number(other, 3) != numbers[3]


def test_bytes_in_another_order_are_the_same_numbers(tmp_path):
    numbers = np.arange(6)
    arrays = {"inputs": [numbers[:4].astype(">f4"), numbers[4:].astype(">f4")]}
    source = data.SequenceArrays(arrays, {"labels": np.array([7, 9], ">i4")})
    packed = data.write_packed(source, tmp_path / "rows", 6)
    with data.stream(data.pack(source, 6), 1) as rows, data.stream(packed, 1) as stored:
        for stream in (rows, stored):
            batch = next(stream)
            assert np.asarray(batch["inputs"])[0].tolist() == numbers.tolist()
            assert np.asarray(batch["labels"])[0].tolist() == [0, 0, 0, 7, 0, 9]


@pytest.mark.parametrize(
    "array, message",
    [
        (np.array([1, 2**32 + 5]), r"do not fit into int32: batch of step 0, 'inputs', rows \[1\]"),
        (np.array([1e39, 1]), r"NaN or infinity in the data: batch of step 0, 'inputs', rows \[0"),
    ],
)
def test_values_that_do_not_fit_on_the_devices_are_an_error(array, message):
    with data.stream(data.ArraySource(inputs=array), 2) as stream:
        with pytest.raises(ValueError, match=message):
            next(stream)


def test_numbers_may_lose_precision():
    with data.stream(data.ArraySource(inputs=np.array([0.1, 0.2])), 2) as stream:
        np.testing.assert_array_equal(next(stream)["inputs"], np.array([0.1, 0.2], np.float32))


def test_records_are_not_changed_in_place():
    def add_one(record: data.Record, random: np.random.Generator) -> data.Record:
        record["inputs"] += 1
        return record

    source = data.ArraySource(inputs=np.zeros((4, 3)))
    with pytest.raises(ValueError, match="read-only"):
        data.augment(source, add_one, seed=0)[0]

    class Stored(data.AbstractSequences):
        """A source that returns the record it stores, not a copy."""

        lengths = np.array([3])
        element_spec = {"inputs": data.ArraySpec((None,), np.dtype(int))}
        record = {"inputs": np.arange(3)}

        def read(self, index: int, start: int, stop: int) -> data.Record:
            return self.record

    rows = data.pad(Stored(), 5)
    for row in (rows[0], rows[0]):
        assert row is not None and row["inputs"].shape == (5,)
    assert Stored.record["inputs"].shape == (3,)


def test_lanes_and_buckets_are_for_their_own_batch_size():
    sequences = data.SequenceArrays({"inputs": [np.arange(9), np.arange(5)]})
    for rows in (
        data.lanes(sequences, 4, 2, seed=0),
        data.bucket(sequences, [9], 4, seed=0),
        data.augment(data.lanes(sequences, 4, 2, seed=0), lambda record, _: record, seed=0),
    ):
        with pytest.raises(ValueError, match="made for batch_size=4, by lanes or bucket; got 2"):
            data.stream(rows, 2)
    with pytest.raises(ValueError, match="made for batch_size=4"):
        data.evaluation_batches(data.lanes_once(sequences, 4, 2), 2)


def test_filtered_records_are_named():
    odd = grain.MapDataset.range(6).filter(lambda x: x % 2 == 1)
    with pytest.raises(ValueError, match="record 0 was filtered out"):
        data.stream(odd, 2)
    even = grain.MapDataset.range(6).filter(lambda x: x % 2 == 0).map(lambda x: {"inputs": x})
    with data.stream(even, 2) as stream, pytest.raises(ValueError, match="record 1 was filtered"):
        next(stream)


def test_endless_records_are_not_shuffled():
    source = data.ArraySource(inputs=np.arange(3))
    with pytest.raises(ValueError, match="call repeat after shuffle"):
        data.shuffle(data.repeat(source), seed=0)


def test_a_damaged_record_is_named_by_a_worker_too():
    error = DamagedRecordError("rows/0.arrayrecord, record 3", "it is damaged")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (type(error), str(error))
