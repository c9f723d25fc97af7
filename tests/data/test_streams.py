"""Pipelines put together: the same batches after any restart, in any processes and workers."""

import runpy
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rnnscale import data

SCRIPT = Path(__file__).with_name("streams_script.py")
_script = runpy.run_path(str(SCRIPT))
BATCH, STEPS, rows = _script["BATCH"], _script["STEPS"], _script["rows"]
LONGEST = 10 + STEPS


@pytest.fixture(scope="module")
def uninterrupted():
    """The batches from the beginning on, by one process without workers."""
    with data.stream(rows(), BATCH) as stream:
        return [{k: np.asarray(v) for k, v in next(stream).items()} for _ in range(LONGEST)]


# For each process of a group, its streams: where it starts, with how many workers.
GROUPS = [
    [[(0, 1), (3, 0), (9, 2), (10, 3)]],
    [[(1, 3), (10, 0)], [(1, 2), (10, 1)]],
    [[(7, 0)], [(7, 1)], [(7, 2)], [(7, 3)]],
]


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: f"{len(group)} processes")
def test_batches_are_those_of_the_uninterrupted_stream(group, uninterrupted, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, SCRIPT, *map(str, (port, len(group), rank, tmp_path)), *given],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank, streams in enumerate(group)
        for given in [[str(value) for stream in streams for value in stream]]
    ]
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0 and "done" in output, output
        assert "leaked" not in output
    for number, (start, _) in enumerate(group[0]):
        parts: dict[tuple[int, str], dict[int, np.ndarray]] = {}
        for rank in range(len(group)):
            for label, array in np.load(tmp_path / f"{number}-{rank}.npz").items():
                step, name, first = label.split()
                here = parts.setdefault((int(step), name), {})
                assert int(first) not in here  # no row is loaded for two devices
                here[int(first)] = array
        assert {step for step, _ in parts} == set(range(start, start + STEPS))
        for (step, name), arrays in parts.items():
            whole = np.concatenate([arrays[first] for first in sorted(arrays)])
            np.testing.assert_array_equal(whole, uninterrupted[step][name], strict=True)
        names = {name for _, name in parts}
        assert names == set(uninterrupted[0]) and len(names) == 11


def test_records_of_a_batch_must_be_alike():
    class Mixed:
        def __init__(self, change):
            self.change = change

        def __len__(self):
            return 8

        def __getitem__(self, index):
            record = {"inputs": np.zeros(3, np.float32), "labels": np.int32(index)}
            return {**record, **self.change} if index == 5 else record

    for change, message in [
        ({"inputs": np.zeros(3)}, r"'inputs' of record 5 is float64\[3\].* float32\[3\]"),
        ({"inputs": np.zeros(4, np.float32)}, r"'inputs' of record 5 is float32\[4\]"),
        ({"other": np.zeros(3)}, "record 5 has the arrays inputs, labels, other"),
    ]:
        with data.stream(Mixed(change), 4) as stream:
            next(stream)
            with pytest.raises(ValueError, match=message):
                next(stream)


def test_a_stream_ends_where_no_batch_is_full():
    source = data.ArraySource(inputs=np.arange(10))
    with data.stream(source, 4) as stream:
        assert [np.asarray(b["inputs"]).tolist() for b in stream] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert list(data.stream(source, 4, start_step=2)) == []
    with pytest.raises(ValueError, match="10 records do not fill a batch of 11"):
        data.stream(source, 11)


def test_augmenting_depends_on_seed_and_index_only():
    def drawn(record, random):
        return {"inputs": record["inputs"], "drawn": random.integers(2**31)}

    source = data.ArraySource(inputs=np.arange(5))
    one, again, other = (data.augment(data.repeat(source), drawn, seed=s) for s in (0, 0, 1))
    numbers = [int(one[i]["drawn"]) for i in range(10)]
    assert len(set(numbers)) == 10  # another number in the second epoch
    assert [int(again[i]["drawn"]) for i in reversed(range(10))] == numbers[::-1]
    assert int(other[3]["drawn"]) != numbers[3]
