"""How full packed rows are for real data sets, whose lengths no property test has."""

import importlib.util

import pytest

from rnnscale import data, tasks


@pytest.mark.parametrize(
    ("task", "splits", "steps"),
    [
        ("japanese-vowels", ("train", "test"), 64),
        ("bytes", ("train", "validation", "test"), 1024),
    ],
)
def test_packed_rows_are_at_least_95_percent_full(task: str, splits: tuple[str, ...], steps: int):
    if task == "japanese-vowels" and importlib.util.find_spec("aeon") is None:
        pytest.skip("needs rnnscale[datasets]")
    of_split = tasks.load_task(task).sequences
    for sequences in (of_split[split] for split in splits):
        rows = data.pack(sequences, steps)
        filled = 0
        for row in (rows[index] for index in range(len(rows))):
            assert row is not None
            # Labels are per step for bytes; features of padding are zero.
            used = row["weight"] if task == "bytes" else (row["inputs"] != 0).any(axis=1)
            filled += int(used.sum())
        assert filled == sequences.lengths.sum()
        assert filled >= 0.95 * len(rows) * steps
