"""No figure of the README was typed by hand: all are made of the files in `benchmarks/results/`."""

import json
import re
from pathlib import Path

import pytest

from benchmarks import _readme
from rnnscale.experiments import EXPERIMENTS

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_the_tables_are_those_of_the_results():
    assert _readme.written(README) == README


def test_a_figure_that_was_changed_by_hand_is_found():
    table = README[README.index("<!-- figures: train-step -->") :]
    figure = re.search(r"\| ([\d.,]+) ms \|", table)
    assert figure is not None
    changed = README.replace(figure[0], "| 1.23456 ms |", 1)
    assert changed != README and _readme.written(changed) == README


def test_a_table_without_a_block_and_a_block_without_a_table_are_found():
    with pytest.raises(ValueError, match="the blocks are"):
        _readme.written(README.replace("<!-- figures: pixels -->", "<!-- figures: pixel -->"))
    with pytest.raises(ValueError, match="the blocks are"):
        _readme.written("")


def test_no_figure_stands_outside_of_the_tables():
    start = README.index("## What is measured")
    section = README[start : README.index("\n## ", start + 1)]
    prose = re.sub(r"<!-- figures: .*? -->.*?<!-- end -->", "", section, flags=re.DOTALL)
    # Measured figures have a point, a unit or a percent sign; sizes of tasks have not.
    assert re.findall(r"\d\.\d|\d ?(?:ms|us|s|MB|GB|%|times)\b", prose) == []


def test_results_say_where_they_are_from():
    files = sorted(_readme.RESULTS.rglob("*.json"))
    assert files
    for file in files:
        document = json.loads(file.read_text(encoding="utf-8"))
        assert {"command", "versions", "device", "rows"} <= document.keys(), file.name


def test_results_of_experiments_are_those_of_the_presets():
    files = sorted((_readme.RESULTS / "experiments").glob("*.json"))
    assert files
    for file in files:
        document = json.loads(file.read_text(encoding="utf-8"))
        preset = EXPERIMENTS[file.stem]
        assert document["differs"] == preset.differs, file.name
        entries = {each.name: json.loads(json.dumps(each.options)) for each in preset.entries}
        for row in document["rows"]:
            assert row["options"] == entries[row["entry"]], (file.name, row["entry"])


def test_who_is_ahead_and_what_differs_in_a_job_is_told(monkeypatch):
    row = {"layer": "LongShortTermMemoryCell", "contender": "rnnscale", "ms": 4.0, "ratio": 1.0}
    slow = {**row, "contender": "memax", "ratio": 2.0, "note": "more zeros"}
    fast = {**row, "contender": "flax", "ratio": 0.5, "ahead": True, "note": "no bias"}
    rows = [*(row, slow, fast), *({**each, "layer": "LRU"} for each in (row, slow))]
    monkeypatch.setattr(_readme, "load", lambda name: {"rows": rows})
    table = "any", lambda row: row["layer"], ("layer",), "ms", "ms"
    with pytest.raises(ValueError, match="any: somebody is ahead, and nothing says why"):
        _readme.beside(*table)
    text = _readme.beside(*table, "a reason.")
    assert "\nWhere others are ahead: a reason.\n" in text
    assert "| 4.00 ms | memax 2.00, **flax 0.50** |" in text
    assert text.endswith(
        "\n- memax: more zeros (LongShortTermMemory, LRU)\n- flax: no bias (LongShortTermMemory)\n"
    )


def test_numbers_have_three_digits():
    given = [0, 0.0123, 0.123, 1.234, 12.34, 123.4, 1234.5, 3e-5]
    expected = ["0", "0.0123", "0.123", "1.23", "12.3", "123", "1,234", "3.00e-05"]
    assert [_readme.number(each) for each in given] == expected
