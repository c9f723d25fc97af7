"""Checks that no figure of the pages is typed by hand: all come from `benchmarks/results/`."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import _tables
from rnnscale.experiments import EXPERIMENTS

ROOT = Path(__file__).parents[2]
GUIDES = {
    path.name: path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks").glob("*.md")
}


def test_the_tables_are_those_of_the_results():
    for page in _tables.pages():
        text = page.read_text(encoding="utf-8")
        assert _tables.updated(text) == text, f"run `python -m benchmarks readme`: {page}"


def test_every_table_but_the_headline_is_in_one_guide():
    found = [name for text in GUIDES.values() for name in _tables.blocks(text)]
    assert sorted([*found, "headline"]) == sorted(_tables.TABLES)


def test_a_figure_that_was_changed_by_hand_is_found():
    guide = GUIDES["speed.md"]
    table = guide[guide.index("<!-- figures: train-step -->") :]
    figure = re.search(r"\| ([\d.,]+) ms \|", table)
    assert figure is not None
    changed = guide.replace(figure[0], "| 1.23456 ms |", 1)
    assert changed != guide and _tables.updated(changed) == guide


def test_a_block_without_a_table_is_found():
    with pytest.raises(ValueError, match="no tables are called .'pixel'."):
        _tables.updated(
            GUIDES["README.md"].replace("<!-- figures: pixels -->", "<!-- figures: pixel -->")
        )


def test_no_figure_stands_outside_of_the_tables():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    start = readme.index("## Figures")
    for text in (*GUIDES.values(), readme[start : readme.index("\n## ", start)]):
        prose = re.sub(r"<!-- figures: .*? -->.*?<!-- end -->", "", text, flags=re.DOTALL)
        prose = re.sub(r"^```.*?^```$|`[^`]*`", "", prose, flags=re.DOTALL | re.MULTILINE)
        # Measured figures have a point, a unit or a percent sign; sizes of tasks have not.
        assert re.findall(r"\d\.\d|\d ?(?:ms|us|s|MB|GB|%|times)\b", prose) == []


def test_every_result_is_in_a_table_or_a_picture(monkeypatch):
    read, read_text = set(), Path.read_text

    def recorded(file, *arguments, **options):
        read.add(file)
        return read_text(file, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", recorded)
    for table in _tables.TABLES.values():
        table()
    unread = set(_tables.RESULTS.rglob("*.json")) - read
    assert [file.name for file in unread if not file.with_suffix(".svg").is_file()] == []


def test_results_say_where_they_are_from():
    files = sorted(_tables.RESULTS.rglob("*.json"))
    assert files
    for file in files:
        document = json.loads(file.read_text(encoding="utf-8"))
        assert {"command", "versions", "device", "rows"} <= document.keys(), file.name


def test_results_of_experiments_are_those_of_the_presets():
    files = sorted((_tables.RESULTS / "experiments").glob("*.json"))
    assert files
    for file in files:
        document = json.loads(file.read_text(encoding="utf-8"))
        preset = EXPERIMENTS[file.stem]
        assert document["differs"] == preset.differs, file.name
        entries = {each.name: json.loads(json.dumps(each.options)) for each in preset.entries}
        for row in document["rows"]:
            assert row["options"] == entries[row["entry"]], (file.name, row["entry"])


def test_who_is_ahead_and_what_differs_in_a_job_is_told(monkeypatch):
    row: dict[str, Any] = {
        "layer": "LongShortTermMemoryCell",
        "contender": "rnnscale",
        "ms": 4.0,
        "ratio": 1.0,
    }
    slow = {**row, "contender": "memax", "ratio": 2.0, "note": "more zeros"}
    fast = {**row, "contender": "flax", "ratio": 0.5, "ahead": True, "note": "no bias"}
    rows = [*(row, slow, fast), *({**each, "layer": "LRU"} for each in (row, slow))]
    rows.append({"layer": "S5", "contender": "rnnscale", "stopped": "took more than 60 s"})
    monkeypatch.setattr(_tables, "load", lambda name: {"rows": rows})
    table = "any", lambda row: row["layer"], ("layer",), "ms", "ms"
    with pytest.raises(ValueError, match="any: a contender is ahead, and there is no reason"):
        _tables.compared(*table)
    text = _tables.compared(*table, "a reason.")
    assert "\nWhere others are ahead: a reason.\n" in text
    assert "| 4.00 ms | memax 2.00, **flax 0.50** |" in text
    assert "| S5 | took more than 60 s |  |" in text
    assert text.endswith(
        "\n- memax: more zeros (LongShortTermMemory, LRU)\n- flax: no bias (LongShortTermMemory)\n"
    )


def test_numbers_have_three_digits():
    given = [0, 0.0123, 0.123, 1.234, 12.34, 123.4, 1234.5, 3e-5]
    expected = ["0", "0.0123", "0.123", "1.23", "12.3", "123", "1,234", "3.00e-05"]
    assert [_tables.number(each) for each in given] == expected
