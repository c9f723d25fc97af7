"""Committed rows are trained again by their own options, and figures that have moved are found."""

import argparse
import json
import math
import statistics
from pathlib import Path

import pytest
import yaml

from benchmarks import reruns
from benchmarks.__main__ import FAILED, WRONG, main
from rnnscale.experiments import Entry, Experiment, Result

WORKFLOW = Path(__file__).parents[2] / ".github/workflows/results.yml"


def experiment(name, figure, entries=("a",), **given):
    """An experiment that measures `figure(option, seed)`."""

    def measure(options, seed, folder):
        assert not folder.exists()  # nothing of an earlier run
        return Result(figure(options["x"], seed), 3, 1.0, {}, "patience")

    return Experiment(
        **{
            "name": name, "description": "", "measure": measure, "metric": "test accuracy",
            "better": "higher", "differs": "", "minutes": 1,
            "entries": [Entry(each, {"x": i}) for i, each in enumerate(entries)], **given,
        }
    )  # fmt: skip


def committed(preset, entry, *figures, seconds=1.0, ended="patience"):
    (settings,) = (each.options for each in preset.entries if each.name == entry)
    return {
        "entry": entry, "options": dict(settings), "seeds": list(range(len(figures))),
        "figures": list(figures), "mean": statistics.mean(figures),
        "spread": statistics.stdev(figures) if len(figures) > 1 else None,
        "seconds": [seconds] * len(figures), "ended": [ended] * len(figures),
    }  # fmt: skip


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A function that commits rows of experiments."""
    (tmp_path / "experiments").mkdir()

    def commit(*pairs):
        for preset, rows in pairs:
            file = tmp_path / "experiments" / f"{preset.name}.json"
            file.write_text(json.dumps({"rows": rows}))
        for module in ("benchmarks.reruns", "benchmarks._markdown"):
            monkeypatch.setattr(f"{module}.RESULTS", tmp_path)
        monkeypatch.setattr(reruns, "EXPERIMENTS", {preset.name: preset for preset, _ in pairs})

    return commit


def test_rows_are_trained_again_and_those_that_are_off_fail(results, tmp_path):
    same = experiment("same", lambda x, seed: 0.75 + 0.125 * seed)
    # Three standard errors of the difference: 3 * 0.02 * sqrt(2 / 4) = 0.042.
    near, far = (experiment(name, lambda x, seed, by=by: 0.9 - by) for name, by in
        (("near", 0.04), ("far", 0.045)))  # fmt: skip
    spread = [0.9 - 0.02 * math.sqrt(0.75), 0.9 + 0.02 * math.sqrt(0.75)] * 2
    # The figures of "a" are near each other by chance, as those of the other rows say.
    lucky = experiment("lucky", lambda x, seed: 0.94, ["a", "b", "c"])
    alone = experiment("alone", lambda x, seed: x / 10, ["zero", "point"], metric="bits")
    results(
        (same, [committed(same, "a", 0.75, 0.875)]),
        (near, [committed(near, "a", *spread)]),
        (far, [committed(far, "a", *spread)]),
        (
            lucky,
            [committed(lucky, "a", *[0.9] * 4)]
            + [committed(lucky, each, *(x + 0.04 for x in spread)) for each in ("b", "c")],
        ),
        # Three hundredths for one seed; and a budget that cut a row short.
        (alone, [committed(alone, "point", 0.1029), committed(alone, "zero", 9.0, ended="budget")]),
    )
    file = tmp_path / "rows.json"
    assert main(["reruns", "--json", str(file)]) == FAILED
    found = {row["experiment"]: row for row in json.loads(file.read_text())["rows"]}
    assert [name for name, row in found.items() if "error" in row] == ["far"]
    assert found["same"]["same"] and found["same"]["off"] == 0 and not found["near"]["same"]
    assert found["far"]["allowed"] == pytest.approx(0.042, abs=1e-3)
    assert found["alone"]["command"] == "rnnscale experiment alone --row point --seeds 0"
    assert main(["reruns", "--experiment", "near", "same", "alone"]) == 0


def test_a_budget_that_is_too_short_on_this_machine_is_told(results):
    preset = experiment("n", lambda x, seed: 0.5)
    row = committed(preset, "a", 0.5, 0.52)
    results((preset, [row]))
    given = reruns.Committed(preset, row)
    assert not reruns.compared(given, row)["cut"]
    cut = {**row, "figures": [0.5, 0.515], "mean": 0.5075, "ended": ["patience", "budget"]}
    found = reruns.compared(given, cut)
    assert found["cut"] and not found["same"] and "error" not in found


def options(**given):
    nothing = {"experiment": None, "row": None, "quick": False, "longest": None, "draw": None}
    return argparse.Namespace(**{**nothing, "seed": 0, "shard": (1, 1), **given})


def test_what_counts_is_whether_a_task_is_solved_and_with_which_options(results):
    solved = experiment("solved", lambda x, seed: 0.9951 + seed / 2, solved=0.99)
    lost = experiment("lost", lambda x, seed: 0.9951 - seed / 2, solved=0.99)
    changed = experiment("changed", lambda x, seed: 0.5)
    results(
        (solved, [committed(solved, "a", 0.992, 0.992)]),
        (lost, [committed(lost, "a", 0.992, 0.992)]),
        (changed, [{**committed(changed, "a", 0.5), "options": {"x": 5}}]),
    )
    rows = {row["experiment"]: row for row in reruns.run(options())}
    assert rows["solved"]["off"] > rows["solved"]["allowed"] and "error" not in rows["solved"]
    assert "0.7451 is off by 0.25, more than 0.01" in rows["lost"]["error"]
    assert "options of the experiment have changed" in rows["changed"]["error"]


def test_which_rows_are_run(results, capsys):
    preset = experiment("n", lambda x, seed: 0.5, [f"m{i}" for i in range(9)])
    folder = experiment("f", lambda x, seed: 0.5, folder=True)
    rows = [committed(preset, f"m{i}", 0.5, seconds=120.0 * i) for i in range(9)]
    results((preset, rows), (folder, [committed(folder, "a", 0.5)]))

    def names(**given):
        return [each.row["entry"] for each in reruns.chosen(options(**given))]

    assert sorted(names()) == ["m0", "m1", "m2", "m3", "m4"]
    assert sorted(names(longest=5)) == ["m0", "m1", "m2"] and names(quick=True) == ["m0"]
    assert names(row=["m2", "m7"]) == ["m2", "m7"] and names(row=["m2", "m7"], longest=5) == ["m2"]
    drawn = [sorted(names(draw=4, seed=seed)) for seed in (1, 1, 4)]
    assert drawn[0] == drawn[1] != drawn[2] and max(map(max, drawn)) > "m4"
    parts = [names(longest=99, shard=(i, 3)) for i in (1, 2, 3)]
    assert sorted(name for part in parts for name in part) == [f"m{i}" for i in range(9)]
    minutes = [sum(2 * int(name[1]) for name in part) for part in parts]
    assert max(minutes) - min(minutes) <= 4
    with pytest.raises(SystemExit) as end:
        main(["reruns", "--shard", "4/3"])
    assert end.value.code == WRONG and "must be such as 2/6" in capsys.readouterr().err
    assert main(["reruns", "--row", "m1", "m9"]) == WRONG
    assert "no row m9 that can be compared" in capsys.readouterr().err


def test_the_workflow_runs_all_short_rows_within_an_hour():
    if not WORKFLOW.is_file():
        pytest.skip("an installed wheel is tested without its workflows")
    job = yaml.safe_load(WORKFLOW.read_text())["jobs"]["rows"]
    shards = job["strategy"]["matrix"]["shard"]
    assert shards == list(range(1, len(shards) + 1))
    (command,) = (step["run"] for step in job["steps"] if "reruns" in step.get("run", ""))
    assert f"--shard ${{{{ matrix.shard }}}}/{len(shards)} " in command
    rows = [each for each in reruns.committed() if each.minutes < reruns.LONGEST]
    for index in shards:
        minutes = sum(each.cost for each in reruns.shard(rows, index, len(shards)))
        assert minutes <= 45, "give the workflow results.yml more shards"
