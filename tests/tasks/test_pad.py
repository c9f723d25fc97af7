"""Sequences that are padded to a multiple of some steps."""

import numpy as np
import pytest

from rnnscale.data import ArraySource, PaddedSource
from rnnscale.tasks import load_task, pad_time


def source(time=5):
    rng = np.random.default_rng(0)
    return ArraySource(
        inputs=rng.normal(size=(3, time, 2)).astype(np.float32),
        labels=rng.integers(1, 9, (3, time)).astype(np.int8),
        scored=np.ones((3, time), bool),
        other=rng.normal(size=(3, time)),
    )


@pytest.mark.parametrize(("multiple", "total"), [(1, 5), (4, 8), (5, 5), (8, 8), (7, 7)])
def test_records(multiple, total):
    plain, padded = (
        source(),
        PaddedSource(source(), multiple, per_step=("inputs", "labels", "scored")),
    )
    assert len(padded) == len(plain) == 3
    for i in range(3):
        before, after = plain[i], padded[i]
        assert after.keys() == {*before, "lengths"}
        assert after["lengths"] == 5 and after["lengths"].dtype == np.int32
        for name in ("inputs", "labels", "scored"):
            assert after[name].shape == (total, *before[name].shape[1:])
            assert after[name].dtype == before[name].dtype
            np.testing.assert_array_equal(after[name][:5], before[name])
            assert not after[name][5:].any()
        np.testing.assert_array_equal(after["other"], before["other"])
    with pytest.raises(IndexError):
        padded[3]


def test_lengths_that_are_there_stay():
    varying = ArraySource(inputs=np.ones((2, 5, 1), np.float32), lengths=np.array([3, 5]))
    padded = PaddedSource(varying, 4, per_step=("inputs",))
    assert [int(padded[i]["lengths"]) for i in range(2)] == [3, 5]
    assert padded[0]["inputs"].shape == (8, 1)


@pytest.mark.parametrize(("name", "per_step"), [("adding", False), ("copy", True)])
def test_tasks(name, per_step):
    task = load_task(name, seq_len=30)
    padded = pad_time(task, 8)
    assert padded.seq_len == task.seq_len == 30
    for split in ("train", "validation", "test"):
        before, after = getattr(task, split)[0], getattr(padded, split)[0]
        assert after["inputs"].shape[0] == 32 and after["lengths"] == 30
        assert after["labels"].shape[:1] == ((32,) if per_step else before["labels"].shape[:1])
        assert after.get("scored", np.zeros(32)).shape == (32,)
        np.testing.assert_array_equal(after["inputs"][:30], before["inputs"])
        if not per_step:
            np.testing.assert_array_equal(after["labels"], before["labels"])
    assert pad_time(task, 10) is task


def test_errors():
    with pytest.raises(ValueError, match="multiple_of must be at least 1; got 0"):
        pad_time(load_task("adding", seq_len=30), 0)
    uneven = ArraySource(inputs=np.zeros((2, 5, 1)), labels=np.zeros((2, 4)))
    with pytest.raises(
        ValueError, match="the same number of steps; got {'inputs': 5, 'labels': 4}"
    ):
        PaddedSource(uneven, 4, per_step=("inputs", "labels"))[0]
