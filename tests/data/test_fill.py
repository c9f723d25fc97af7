"""How much of packed rows holds a step, on real sequences."""

import importlib.util

import pytest

from rnnscale import data, tasks


def with_features(row: data.Record) -> int:
    """The steps of a row that are not the zeros at its end."""
    return int((row["inputs"] != 0).any(axis=1).sum())


def with_labels(row: data.Record) -> int:
    return int(row["weight"].sum())


@pytest.mark.parametrize(
    ("task", "splits", "steps", "held"),
    [
        ("japanese-vowels", ("train", "test"), 64, with_features),
        ("bytes", ("train", "validation", "test"), 1024, with_labels),
    ],
)
def test_packed_rows_are_at_least_95_percent_full(task, splits, steps, held):
    if task == "japanese-vowels" and importlib.util.find_spec("aeon") is None:
        pytest.skip("needs rnnscale[datasets]")
    sequences = tasks.load_task(task).sequences
    for split in splits:
        rows = data.pack(sequences[split], steps)
        filled = sum(held(rows[index]) for index in range(len(rows)))
        assert filled == sequences[split].lengths.sum()
        assert filled >= 0.95 * len(rows) * steps
