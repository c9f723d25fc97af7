"""The adding and copy problems: each record against its definition, and what is random in it."""

import math
import pickle

import numpy as np
import pytest

from rnnscale import data, tasks

SPLITS = ("train", "validation", "test")


def first_records(task: tasks.Task, split: str, count: int = 200) -> list[dict[str, np.ndarray]]:
    source = getattr(task, split)
    return [source[index] for index in range(count)]


@pytest.mark.parametrize("seq_len", [2, 3, 10, 101, 500])
def test_the_label_of_adding_is_the_sum_of_one_mark_in_each_half(seq_len):
    task = tasks.load_task("adding", seq_len=seq_len)
    places = []
    for record in first_records(task, "train"):
        numbers, marks = record["inputs"].T
        assert record["inputs"].shape == (seq_len, 2)
        assert record["inputs"].dtype == record["labels"].dtype == np.float32
        assert numbers.min() >= 0 and numbers.max() < 1
        first, second = np.flatnonzero(marks)
        assert marks[first] == marks[second] == 1
        assert 0 <= first < seq_len // 2 <= second < seq_len
        expected = float(numbers[first]) + float(numbers[second])
        np.testing.assert_allclose(record["labels"], [expected], rtol=1e-6)
        places.append((first, second))
    if seq_len <= 10:  # every step can be marked
        for found, half in zip(zip(*places, strict=True), (0, 1), strict=True):
            steps = range(seq_len // 2) if half == 0 else range(seq_len // 2, seq_len)
            assert set(found) == set(steps)


def test_the_numbers_of_adding_are_uniform():
    task = tasks.load_task("adding", seq_len=100)
    numbers = np.stack([r["inputs"][:, 0] for r in first_records(task, "test", 400)])
    counts, _ = np.histogram(numbers, bins=10, range=(0, 1))
    # Chi-square with nine degrees of freedom: above 30 once in two thousand seeds.
    assert np.sum((counts - 4000) ** 2 / 4000) < 30


def test_the_baseline_of_adding_is_the_error_of_answering_one():
    # A sum of two uniform numbers has variance 1/6; of 10000 squares the mean deviates by 0.002.
    task = tasks.load_task("adding", seq_len=2)
    labels = np.concatenate([task.test[i]["labels"] for i in range(len(task.test))])
    got = task.baseline()["constant_mse"]
    assert got == pytest.approx(np.mean((labels.astype(np.float64) - 1) ** 2), rel=1e-6)
    assert got == pytest.approx(1 / 6, abs=0.008)


@pytest.mark.parametrize("seq_len", [21, 22, 120])
def test_copy_has_its_symbols_then_a_wait_a_delimiter_and_blanks(seq_len):
    task = tasks.load_task("copy", seq_len=seq_len)
    wait = seq_len - 20
    drawn = []
    for record in first_records(task, "train"):
        inputs, labels = record["inputs"], record["labels"]
        assert inputs.dtype == np.float32 and labels.dtype == np.int32
        assert inputs.shape == (seq_len, task.idim) and (inputs.sum(-1) == 1).all()
        assert set(np.unique(inputs)) == {0, 1}
        symbols, *rest = np.split(inputs.argmax(-1), [10, 9 + wait, 10 + wait])
        blanks, delimiter, after = rest
        assert symbols.max() < 8
        assert blanks.tolist() == [8] * (wait - 1)
        assert delimiter.tolist() == [9]
        assert after.tolist() == [8] * 10
        assert labels.tolist() == [8] * (wait + 10) + symbols.tolist()
        assert record["scored"].dtype == bool
        assert record["scored"].tolist() == [False] * (wait + 10) + [True] * 10
        assert labels.max() < task.classes
        drawn.append(symbols)
    # At each of the ten places all symbols come up.
    assert all(set(place) == set(range(8)) for place in np.transpose(drawn))


def test_the_baseline_of_copy_is_that_of_a_model_that_knows_all_but_the_symbols():
    task = tasks.load_task("copy", seq_len=60)
    records = first_records(task, "test")
    losses = []
    for record in records:
        probability = np.where(record["scored"], 1 / 8, 1.0)
        assert (record["labels"][~record["scored"]] == 8).all()
        losses.append(-np.log(probability).mean())
    baseline = task.baseline()
    assert baseline["memoryless_loss"] == pytest.approx(np.mean(losses))
    assert baseline["memoryless_loss"] == pytest.approx(10 * math.log(8) / 60)
    assert baseline["memoryless_accuracy"] == 1 / 8


@pytest.mark.parametrize("make", [tasks.adding, tasks.copy_memory])
def test_a_record_is_a_function_of_seed_split_and_index(make):
    task, again, other = make(40), make(40), make(40, seed=1)
    seen = set()
    for split in SPLITS:
        source = getattr(task, split)
        backwards = [getattr(again, split)[index] for index in reversed(range(50))][::-1]
        unpickled = pickle.loads(pickle.dumps(source))  # as workers get it
        for index, expected in enumerate(backwards):
            for got in (source[index], unpickled[index]):
                assert got.keys() == expected.keys()
                for name in expected:
                    np.testing.assert_array_equal(got[name], expected[name])
            seen.add(expected["inputs"].tobytes())
            seen.add(getattr(other, split)[index]["inputs"].tobytes())
    # Not one is in two splits, under two seeds, or twice in a split.
    assert len(seen) == 2 * 50 * len(SPLITS)


def test_records_stay_what_they_are():
    """Pinned, for a new version must not change what was measured with an older one."""
    adding, copy = tasks.adding(6).train[7], tasks.copy_memory(21).test[7]
    assert (adding["inputs"] * 2**24).astype(int).tolist() == [
        [187429, 0],
        [2443429, 16777216],
        [15583095, 0],
        [299501, 16777216],
        [6467444, 0],
        [15210041, 0],
    ]
    assert copy["labels"][-10:].tolist() == [6, 1, 6, 7, 4, 0, 4, 3, 5, 2]


def test_batches_of_copy_carry_what_is_scored():
    task = tasks.load_task("copy", seq_len=30)
    with data.batches(task.train, 4, seed=0) as stream:
        batch = next(stream)
    assert batch["scored"].dtype == bool and batch["scored"].shape == (4, 30)
    assert np.asarray(batch["scored"]).sum(-1).tolist() == [10] * 4


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: tasks.load_task("adding", seq_len=1), "seq_len must be at least 2.*got 1"),
        (lambda: tasks.load_task("copy", seq_len=20), "seq_len must be at least 21.*got 20"),
        (lambda: tasks.adding(seed=-1), r"seed must be 0 to 2\*\*32 - 1; got -1"),
        (lambda: tasks.copy_memory(seed=2**32), "seed must be 0"),
        (lambda: tasks.load_task("copy", text="."), "'copy' takes no text; tasks that do: bytes"),
        (lambda: tasks.GeneratedSource(dict, 0, seed=0, split=0), "count must be 1"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("index", [-1, 1000])
def test_an_index_out_of_range(index):
    with pytest.raises(IndexError, match=f"record {index} of 1000"):
        tasks.adding(10).validation[index]
