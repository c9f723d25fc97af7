"""Windows, packing, padding, buckets and lanes: every step comes exactly once."""

import grain
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from rnnscale import data

# Short sequences, and few: all relations to the size of a row or batch come up often enough.
LENGTHS = st.lists(st.integers(0, 9), min_size=1, max_size=8)
STEPS = st.integers(1, 13)
MANY = settings(max_examples=300)


def numbered(lengths, labelled=False):
    """Sequences whose steps are numbered from 1 on across sequences, in two arrays."""
    ends = np.cumsum(lengths)
    steps = [np.arange(end - n, end) + 1 for end, n in zip(ends, lengths, strict=True)]
    arrays = {"inputs": steps, "twice": [2 * np.stack([x, x], 1) for x in steps]}
    per_sequence = {"labels": np.arange(len(lengths)) + 1} if labelled else {}
    return data.SequenceArrays(arrays, per_sequence)


def row_of(dataset: grain.MapDataset, index: int) -> data.Record:
    row = dataset[index]
    assert row is not None
    return row


def all_rows(dataset: grain.MapDataset) -> list[data.Record]:
    return [row_of(dataset, index) for index in range(len(dataset))]


def segments(row):
    """The parts of a packed row between its resets, without the padding."""
    used = row["inputs"] > 0
    starts = np.flatnonzero(row["reset"])
    for start, stop in zip(starts, [*starts[1:], len(used)], strict=True):
        if used[start]:
            assert used[start:stop].all()
            yield row["inputs"][start:stop]
        else:
            assert not used[start:].any()


@MANY
@given(lengths=LENGTHS, steps=STEPS)
def test_packing_keeps_every_step_in_order(lengths, steps):
    source = numbered(lengths)
    if not sum(lengths):
        with pytest.raises(ValueError, match="nothing to pack"):
            data.pack(source, steps)
        return
    rows = all_rows(data.pack(source, steps))
    found = [run.tolist() for row in rows for run in segments(row)]
    expected = []
    for n, end in zip(lengths, np.cumsum(lengths), strict=True):
        sequence = list(range(end - n + 1, end + 1))
        expected += [sequence[i : i + steps] for i in range(0, n, steps)]
    assert sorted(found) == sorted(expected)
    for row in rows:
        assert row["reset"][0]
        np.testing.assert_array_equal(row["weight"], row["inputs"] > 0)
        np.testing.assert_array_equal(row["twice"], 2 * np.stack([row["inputs"]] * 2, 1))
    # Best fit starts a new row only for a piece that fits in no other.
    free = sorted(int((row["inputs"] == 0).sum()) for row in rows)
    assert len(free) < 2 or steps - free[-1] > free[-2]


@MANY
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8), steps=st.integers(9, 27))
def test_a_packed_label_is_at_the_end_of_its_sequence(lengths, steps):
    source = numbered(lengths, labelled=True)
    seen = []
    for row in all_rows(data.pack(source, steps)):
        last = np.flatnonzero(row["weight"])
        np.testing.assert_array_equal(row["labels"] > 0, row["weight"] == 1)
        for step in last:
            label = int(row["labels"][step])
            assert row["inputs"][step] == sum(lengths[:label])
            seen.append(label)
    assert sorted(seen) == list(range(1, len(lengths) + 1))


@MANY
@given(lengths=LENGTHS, steps=STEPS, stride=STEPS)
def test_windows(lengths, steps, stride):
    source = numbered(lengths)
    if stride > steps:
        with pytest.raises(ValueError, match="stride 1 to steps"):
            data.window(source, steps, stride=stride)
        return
    pieces = data.window(source, steps, stride=stride)
    found = [pieces[i]["inputs"].tolist() for i in range(len(pieces))]
    expected = []
    for i, n in enumerate(lengths):
        sequence, start = source[i]["inputs"].tolist(), 0
        while n:
            expected.append(sequence[start : start + steps])
            if start + steps >= n:
                break
            start += stride
    assert found == expected
    assert [len(x) for x in found] == pieces.lengths.tolist()


@MANY
@given(lengths=LENGTHS, batch_size=st.integers(1, 5), seed=st.integers(0, 2**32 - 1))
def test_buckets_give_every_sequence_once_an_epoch(lengths, batch_size, seed):
    bounds = [2, 5, 10]
    if not sum(lengths):
        with pytest.raises(ValueError, match="no sequences with steps"):
            data.bucket(numbered(lengths), bounds, batch_size, seed=seed)
        return
    rows = data.bucket(numbered(lengths), bounds, batch_size, seed=seed)
    counts = np.histogram(lengths, [1, 3, 6, 11])[0]
    per_epoch = int(sum(-(-n // batch_size) for n in counts))
    for epoch in range(2):
        seen = []
        for step in range(epoch * per_epoch, (epoch + 1) * per_epoch):
            batch = [row_of(rows, step * batch_size + i) for i in range(batch_size)]
            (padded,) = {row["inputs"].shape[0] for row in batch}
            for row in batch:
                if row["weight"] == 0:
                    assert row["lengths"] == 0
                    continue
                n = int(row["lengths"])
                assert padded == bounds[np.searchsorted(bounds, n)]
                assert not row["inputs"][n:].any()
                seen.append(row["inputs"][:n].tolist())
        source = numbered(lengths)
        expected = (source[i]["inputs"].tolist() for i in range(len(lengths)) if lengths[i])
        assert sorted(seen) == sorted(expected)


@MANY
@given(
    lengths=LENGTHS,
    batch_size=st.integers(1, 5),
    steps=STEPS,
    seed=st.integers(0, 2**32 - 1),
)
def test_lanes_go_round_without_a_gap(lengths, batch_size, steps, seed):
    total = sum(lengths)
    source = numbered(lengths)
    if total < batch_size:
        with pytest.raises(ValueError, match="too few"):
            data.lanes(source, batch_size, steps, seed=seed)
        return
    rows = data.lanes(source, batch_size, steps, seed=seed)
    count = -(-2 * total // steps)
    streams = [
        [row_of(rows, step * batch_size + lane) for step in range(count)]
        for lane in range(batch_size)
    ]
    starts = {end - n + 1 for end, n in zip(np.cumsum(lengths), lengths, strict=True) if n}
    walks = []
    for lane in streams:
        walk = np.concatenate([row["inputs"] for row in lane])
        reset = np.concatenate([row["reset"] for row in lane])
        assert reset[0]
        np.testing.assert_array_equal(reset[1:], np.isin(walk[1:], list(starts)))
        # Steps that are not the first of a sequence follow the one before.
        follows = ~reset[1:]
        np.testing.assert_array_equal(walk[1:][follows], walk[:-1][follows] + 1)
        # All steps come once before any comes again.
        assert sorted(walk[:total]) == list(range(1, total + 1))
        np.testing.assert_array_equal(walk[total : 2 * total], walk[:total])
        walks.append(walk)
    # After each batch all steps have been read about equally often.
    for step in range(1, count + 1):
        visits = np.bincount(np.concatenate([w[: step * steps] for w in walks]))[1:]
        assert visits.max() - visits.min() <= 1 + (total % batch_size > 0)


@MANY
@given(lengths=LENGTHS, batch_size=st.integers(1, 5), steps=STEPS)
def test_lanes_once_read_every_step_once(lengths, batch_size, steps):
    total = sum(lengths)
    if total < batch_size:
        return
    rows = data.lanes_once(numbered(lengths), batch_size, steps)
    assert len(rows) % batch_size == 0
    lanes = [
        [row_of(rows, i) for i in range(lane, len(rows), batch_size)] for lane in range(batch_size)
    ]
    seen = []
    for lane in lanes:
        walk = np.concatenate([row["inputs"] for row in lane])
        weight = np.concatenate([row["weight"] for row in lane])
        np.testing.assert_array_equal(weight, walk > 0)
        # A lane has complete sequences, one after another, and then padding.
        assert (np.diff(weight) <= 0).all()
        seen += walk[weight == 1].tolist()
    assert seen == list(range(1, total + 1))


@MANY
@given(
    documents=st.lists(st.lists(st.integers(1, 9), max_size=5), min_size=1, max_size=3),
    start=st.sampled_from([None, 0]),
    end=st.sampled_from([None, 0]),
)
def test_next_token(documents, start, end):
    tokens = [np.array(document, np.uint8) for document in documents]
    source = data.next_token(data.SequenceArrays({"tokens": tokens}), start=start, end=end)
    for i, document in enumerate(documents):
        marked = [*([] if start is None else [start]), *document, *([] if end is None else [end])]
        record = source[i]
        assert record["inputs"].tolist() == marked[:-1]
        assert record["labels"].tolist() == marked[1:]
        assert source.lengths[i] == len(record["inputs"]) == len(record["labels"])
        assert {x.dtype for x in record.values()} == {np.dtype(np.int32)}
        for first in range(source.lengths[i] + 1):
            for stop in range(first, source.lengths[i] + 1):
                part = source.read(i, first, stop)
                assert part["inputs"].tolist() == record["inputs"][first:stop].tolist()
                assert part["labels"].tolist() == record["labels"][first:stop].tolist()


@pytest.mark.parametrize("over_time", [True, False])
def test_weights_of_sequences_are_kept_in_packed_rows(over_time):
    inputs, each = [np.arange(3) + 1, np.arange(2) + 1], [np.full(3, 2.0), np.full(2, 3.0)]
    if over_time:
        source = data.SequenceArrays({"inputs": inputs, "labels": inputs, "weight": each})
    else:
        per_sequence = {"weight": np.array([2.0, 3.0]), "speaker": np.array([5, 6])}
        source = data.SequenceArrays({"inputs": inputs, "labels": inputs}, per_sequence)
    (row,) = all_rows(data.pack(source, 6))
    assert row["weight"].tolist() == [2, 2, 2, 3, 3, 0] and row["weight"].dtype == np.float32
    assert over_time or row["speaker"].tolist() == [0, 0, 5, 0, 6, 0]


@pytest.mark.parametrize(
    "make",
    [
        data.next_token,
        data.pad,
        lambda s: data.window(s, 3),
        lambda s: data.pack(s, 3),
        lambda s: data.bucket(s, [3], 1, seed=0),
        lambda s: data.lanes(s, 1, 3, seed=0),
        lambda s: data.lanes_once(s, 1, 3),
    ],
)
def test_records_of_one_length_are_not_sequences(make):
    for source in (data.ArraySource(inputs=np.zeros((2, 3))), grain.MapDataset.range(3)):
        with pytest.raises(TypeError, match=r"must be a rnnscale\.data.*SequenceSource"):
            make(source)


def test_padding():
    rows = all_rows(data.pad(numbered([3, 0, 5], labelled=True)))
    assert [row["inputs"].tolist() for row in rows] == [
        [1, 2, 3, 0, 0],
        [0] * 5,
        [4, 5, 6, 7, 8],
    ]
    assert [int(row["lengths"]) for row in rows] == [3, 0, 5]
    assert [int(row["labels"]) for row in rows] == [1, 2, 3]
    assert row_of(data.pad(numbered([3]), 8), 0)["twice"].shape == (8, 2)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda s: data.pad(s, 4), r"sequence 2 has 5 steps, more than steps=4"),
        (lambda s: data.bucket(s, [4], 2, seed=0), "sequence 2 has 5 steps, more than the last"),
        (
            lambda s: data.bucket(s, [5, 4], 2, seed=0),
            r"bounds must be increasing lengths .* got \[5, 4\]",
        ),
        (lambda s: data.bucket(s, [5], 0, seed=0), "batch_size must be at least 1; got 0"),
        (lambda s: data.bucket(s, [5], 1, seed=-1), "seed must be 0 to"),
        (lambda s: data.window(s, 0), "steps must be at least 1"),
        (lambda s: data.lanes(s, 0, 3, seed=0), "batch_size and steps must be at least 1"),
        (lambda s: data.next_token(s), "needs records with 'tokens'; these have inputs, twice"),
        (
            lambda s: data.next_token(data.SequenceArrays({"tokens": [np.arange(2)]}), end=1 << 31),
            "start and end must fit into int32; got 2147483648",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make(numbered([3, 1, 5]))


def test_sequences_with_a_label_of_their_own_are_not_cut():
    labelled = numbered([3, 1, 5], labelled=True)
    with pytest.raises(ValueError, match="sequence 2 .* labels has one value per sequence"):
        data.pack(labelled, 4)
    with pytest.raises(ValueError, match="labels has one value per sequence"):
        data.lanes(labelled, 2, 3, seed=0)
