"""Tables and pictures of the experiments: a figure whose training was cut short is marked
everywhere, and pictures show the data that are there."""

import json
import re

import pytest

from benchmarks import _curves, _experiments, _tables
from benchmarks.__main__ import main
from benchmarks._families import FAMILIES
from rnnscale.runs import MODELS

EXPERIMENTS = _tables.RESULTS / "experiments"


def row(entry, mean, *ended, task="bytes", **more):
    return {
        "entry": entry, "options": {"task": task, "dim": 8}, "parameters": 9, "mean": mean,
        "seeds": list(range(len(ended))), "figures": [mean] * len(ended), "ended": list(ended),
        "spread": None if len(ended) == 1 else 0.01, "more": {}, "paper": None, **more,
    }  # fmt: skip


def unmarked(page: str, experiment: str, rows) -> list[str]:
    """The lines of a page's tables that show a figure of an experiment which the budget cut short,
    without a dagger."""
    wrong, title, columns = [], "", []
    for line in page.splitlines():
        if found := re.match(r"<!-- figures: ([\w-]+) -->", line):
            title = found[1]
        if not line.startswith("|"):
            columns = []
            continue
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        columns = columns or cells
        named = [x for x, cell in zip(columns, cells, strict=False) if x == f"`{experiment}`"]
        if not (named or f"`{experiment}`" in cells or title in (experiment, "headline")):
            continue
        for each in rows:
            # The figure of a line's entry, or of one that is named in front of it.
            short = each["entry"].removeprefix(f"{each['options'].get('task')}-")
            name = rf"(?<![\w-])({re.escape(each['entry'])}|{re.escape(short)})(?![\w-])"
            if "budget" not in each["ended"] or not re.search(name, line):
                continue
            for column, cell in zip(columns, cells, strict=False):
                if named and column not in named:
                    continue
                for digits in (3, 4, 5):
                    figure = rf"(?<![\d.]){each['mean']:.{digits}f}(?! ± [\d.]*†|†|\d)"
                    before = rf"{name} " if title in ("headline", "overview") else ""
                    if re.search(before + figure, cell):
                        wrong.append(line)
    return wrong


def test_no_page_has_an_unmarked_figure_that_the_budget_cut_short():
    for file in sorted(EXPERIMENTS.glob("*.json")):
        rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
        for page in _tables.pages():
            assert unmarked(page.read_text(encoding="utf-8"), file.stem, rows) == [], page


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("<!-- figures: headline -->\n| accuracy | s5 0.990, lstm 0.951 | |", True),
        ("<!-- figures: headline -->\n| accuracy | lstm 0.951†, s5 0.990 | |", False),
        ("<!-- figures: overview -->\n| family | `digits` |\n| gated | lstm 0.951 |", True),
        ("<!-- figures: pixels -->\n| model | `digits` |\n| lstm | 0.951 ± 0.010 |", True),
        ("<!-- figures: pixels -->\n| model | `digits` |\n| lstm | 0.951 ± 0.010† |", False),
        ("<!-- figures: pixels -->\n| model | `mnist5k` |\n| lstm | 0.951 |", False),
        ("<!-- figures: series -->\n| a | b | c |\n| `digits` | lstm | 0.95100 |", True),
        ("<!-- figures: series -->\n| a | b | c |\n| `vowels` | lstm | 0.951 |", False),
    ],
)
def test_an_unmarked_figure_is_found(line, found):
    rows = [row("lstm", 0.951, "budget"), row("s5", 0.99, "patience")]
    assert bool(unmarked(line, "digits", rows)) == found


def test_pages_say_below_a_table_what_its_daggers_mean():
    for page in _tables.pages():
        for block in re.findall("<!-- figures: (?s:.*?)<!-- end -->", page.read_text()):
            lines = block.splitlines()
            notes = [line for line in lines if line.startswith("† ")]
            marked = any("†" in line for line in lines if line not in notes)
            assert len(notes) == marked, block[:100]


@pytest.mark.parametrize("table", ["bytes", "long-range", "pixels", "state-tracking"])
def test_a_row_that_was_cut_short_is_marked_and_stands_last(table, monkeypatch):
    higher = table != "bytes"
    cut = row("gru", 0.95 if higher else 0.55, "patience", "budget", "patience")
    rows = [cut, row("lstm", 0.91, "patience"), row("elman", 0.72, "steps", "steps")]
    if table == "state-tracking":
        for each in rows:
            each["more"] = {"width": 4.0, **{str(40 * n): each["mean"] for n in range(1, 6)}}
    for each in rows:
        each["seconds"] = [60.0] * len(each["ended"])
    document = {"rows": rows, "metric": "test accuracy", "differs": "in all.", "solved": 0.99}
    curves = {"rows": []}
    monkeypatch.setattr(_experiments, "load", lambda name: curves if "curves" in name else document)
    text = _tables.TABLES[table]()
    shown = f"<!-- figures: {table} -->\n{text}"
    experiment = {"pixels": "digits", "long-range": "copy"}.get(table, table)
    assert unmarked(shown, experiment, rows) == []
    assert unmarked(shown.replace("†", ""), experiment, rows) != []
    assert "\n† A training was stopped before its end by its budget" in text
    assert "\n‡ Trained for a fixed number of steps.\n" in text and text.count("‡") > 1
    assert text.count("in all.\n") == 1  # said once for all experiments of the table
    if table in ("bytes", "pixels"):
        order = re.findall(r"^\| (lstm|gru|elman) ", text, re.MULTILINE)
        assert order == (["lstm", "elman", "gru"] if higher else ["elman", "lstm", "gru"])


def test_the_best_of_a_family_was_not_cut_short_if_another_was_not(monkeypatch):
    rows = [row("gru", 0.95, "budget"), row("lstm", 0.91, "patience"), row("s5", 0.95, "budget")]
    tracked = [row("parity-lstm", 1.0, "steps"), row("parity-gru", 0.5, "steps")]
    for each in tracked:
        each["options"] = {"task": "parity", "model": each["entry"].removeprefix("parity-")}
    monkeypatch.setattr(
        _experiments,
        "load",
        lambda name: {"rows": tracked if name.endswith("tracking") else rows},
    )
    lines = _experiments.overview().splitlines()
    # The third figure is taken for bits per byte, of which the lowest is the best.
    assert "| gated | lstm 0.910 | lstm 0.910 | lstm 0.910 | lstm |" in lines
    assert "| linear recurrences | s5 0.950† | s5 0.950† | s5 0.950† |  |" in lines


def test_a_table_of_fixed_steps_says_so_once(monkeypatch):
    rows = [row("lstm", 1.5, "steps"), row("order-4", 1.8, None)]
    rows[0]["options"].update(batch_size=8, seq_len=256)
    speed = curve("lstm", 0, [1.9, 1.6, 1.5], "steps")  # 40 steps in 0.4 seconds
    document = {"rows": rows, "differs": "in all."}
    curves = {"rows": [speed]}
    monkeypatch.setattr(_experiments, "load", lambda name: curves if "curves" in name else document)
    text = _experiments.language()
    assert "| lstm | gated | 8 | 9 | 1.500 | 204,800 |" in text
    assert "‡" not in text and text.count("\nAll trainings had a fixed number of steps.\n") == 1


def test_tables_of_series_mark_what_was_not_trained_until_it_stopped_improving(monkeypatch):
    def trained(name: str, figure: str, ended: str, **others: object) -> dict[str, object]:
        kept = {"name": name, "library": "rnnscale", "seed": 0, "ended": ended, "layer": "S5"}
        return {**kept, figure: 0.5, **others}

    naive = {"seasonal_nrmse": 1.4, "persistence_nrmse": 1.3}
    rows = [
        {"name": "ACSF1", "library": "ROCKET", "seed": 0, "accuracy": 0.9},
        trained("ACSF1", "accuracy", "patience"),
        trained("ACSF1", "accuracy", "steps"),
        {"name": "GunPoint", "library": "ROCKET", "seed": 0, "accuracy": 0.7},
        trained("GunPoint", "accuracy", "patience"),
        trained("heart", "nrmse", "steps", **naive),
        trained("heart", "nrmse", "patience", **naive),
    ]
    monkeypatch.setattr(_tables, "load", lambda name: {"rows": rows})
    series, forecast = _tables.TABLES["own-series"](), _tables.TABLES["own-forecast"]()
    assert "| `ACSF1` | 0.900 | 0.500 ± 0.000‡ |" in series
    assert "| `GunPoint` | 0.700 | 0.500 |" in series and "| mean | 0.800 | 0.500‡ |" in series
    assert "| 0 | 0.500‡ | 1.400 | 1.300 |\n| 0 | 0.500 | 1.400 | 1.300 |" in forecast
    for each in (series, forecast):
        assert "\n‡ Trained for a fixed number of steps.\n" in each


def test_a_table_without_published_figures_has_no_column_for_them(monkeypatch):
    rows = [row("lstm", 0.9, "patience"), row("gru", 0.8, "patience")]
    document = {"rows": rows, "metric": "test accuracy", "differs": "in all."}
    monkeypatch.setattr(_experiments, "load", lambda name: document)
    assert "published" not in _experiments.TABLES["series"]()
    rows[1]["paper"] = {"value": 0.85, "source": "Somebody 2020"}
    assert _experiments.TABLES["series"]().count("| 0.85; Somebody 2020 |") == 2


def test_the_results_of_every_experiment_are_in_a_table():
    shown = {*_experiments.PIXELS, "bytes", "state-tracking"}
    shown |= {name for names in _experiments.LISTS.values() for name in names}
    assert {file.stem for file in EXPERIMENTS.glob("*.json")} <= shown


def test_a_sample_cannot_end_its_block(monkeypatch):
    sample = row("s5", 1.5, "steps", sample="def f():\n  ```\x1b[31m\n\n")
    monkeypatch.setattr(_experiments, "load", lambda name: {"rows": [sample]})
    text = _experiments.samples()
    assert "s5, 1.500 bits per byte:\n\n```text\ndef f():\n  '''�[31m\n```\n" in text


def test_every_model_is_in_one_family():
    assert sorted(MODELS) == sorted(name for names in FAMILIES.values() for name in names)


def curve(entry, seed, values, ended="patience"):
    steps = [10 * 2**n for n in range(len(values))]
    return {
        "entry": entry, "seed": seed, "parameters": 1, "ended": ended, "steps": steps,
        "cpu_seconds": [x / 100 for x in steps], "values": values,
    }  # fmt: skip


@pytest.mark.parametrize("metric", ["accuracy", "bits per byte"])
def test_curves_are_drawn_with_their_names(metric, tmp_path):
    pytest.importorskip("matplotlib")
    rows = [
        curve("lstm", 0, [0.5, 0.75, 0.7], "budget"),
        curve("lstm", 1, [0.5, 0.85, 0.9]),
        curve("gru", 0, [0.5, 0.75, 0.7]),
        curve("s5", 0, [0.5, 0.99, 1.0]),
        curve("a-hybrid", 0, [0.4, 0.6, 0.7]),
    ]
    data = tmp_path / "any.json"
    data.write_text(
        json.dumps({"experiment": "any", "metric": f"validation {metric}", "rows": rows})
    )
    _curves.write_picture(data)
    text = _curves.picture(data).read_text(encoding="utf-8")
    # The mean over the seeds of the best value, once by steps and once by time.
    best = {"accuracy": ("0.825†", "0.750", "1.00"), "bits per byte": ("0.500†", "0.500", "0.500")}
    for name, value in zip(("lstm", "gru", "s5"), best[metric], strict=True):
        assert text.count(f">{name} {value}</text>") == 2
    assert ">a-hybrid 0." in text and ">linear recurrences</text>" in text
    assert ">oscillators</text>" not in text
    assert _curves.source(data) in text and "fill: #ffffff" in text
    again = tmp_path / "again.png"
    assert main(["plot", str(data), "--out", str(again)]) == 0 and again.stat().st_size > 10_000


def test_a_picture_of_few_families_has_room_for_its_title_and_enough_ticks():
    pytest.importorskip("matplotlib")
    from rnnscale.analysis import figure_class

    rows = [curve("lstm", 0, [2.5, 2.0, 1.7]), curve("s5", 0, [2.5, 1.9, 1.6])]
    for row in rows:
        row["steps"] = [1400, 5600, 9800]
    figure = figure_class()(layout="constrained")
    metric = "validation bits per byte"
    _curves.draw({"experiment": "bytes", "metric": metric, "rows": rows}, figure)
    figure.draw_without_rendering()
    (title,) = figure.texts
    assert 0 <= title.get_window_extent().x0 < title.get_window_extent().x1 <= figure.bbox.width
    for panel in figure.axes[:2]:
        low, high = panel.get_xlim()
        assert sum(low <= tick <= high for tick in panel.get_xticks()) >= 3


def test_labels_do_not_overlap():
    wanted = {"a": 0.5, "b": 0.52, "c": 0.99, "d": 0.98, "e": 0.1}
    places = _curves._apart(wanted, 0.1)
    assert sorted(places, key=lambda name: places[name]) == ["e", "a", "b", "d", "c"]
    ordered = sorted(places.values())
    assert all(y - x >= 0.1 - 1e-9 for x, y in zip(ordered, ordered[1:], strict=False))
    assert places["e"] == 0.1 and places["a"] == 0.5 and max(ordered) <= 1


def test_pictures_show_the_curves_that_are_there():
    for data in sorted(_curves.FOLDER.glob("*.json")):
        document = json.loads(data.read_text(encoding="utf-8"))
        picture = _curves.picture(data)
        text = picture.read_text(encoding="utf-8")
        assert _curves.source(data) in text, "run `python -m benchmarks readme`"
        assert picture.stat().st_size < 300_000
        for each in document["rows"]:
            (label, *_) = re.findall(rf">{re.escape(each['entry'])} [\d.e+-]+(†?)</text>", text)
            assert label or each["ended"] != "budget", each["entry"]
