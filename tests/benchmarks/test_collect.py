"""Rows that were measured one by one are put into the committed results."""

import json

import pytest

from benchmarks import _collect
from benchmarks.__main__ import WRONG, main
from rnnscale.experiments import Entry, Experiment

PRESET = Experiment(
    name="toy",
    description="",
    entries=[Entry(name, {}) for name in ("lstm", "gru", "s5")],
    measure=lambda options, seed, folder: None,
    metric="test accuracy",
    better="higher",
    differs="in all.",
    minutes=1,
)


def document(*rows, command="rnnscale experiment toy", **given):
    return {
        "experiment": "toy", "command": command, "metric": "m", "differs": "d",
        "versions": {"jax": "1"}, "rows": rows, **given,
    }  # fmt: skip


def row(entry, mean):
    return {"entry": entry, "mean": mean}


def curve(entry, seed, value):
    return {"entry": entry, "seed": seed, "values": [value]}


@pytest.fixture
def results(tmp_path, monkeypatch):
    """The folder of the results."""
    monkeypatch.setattr(_collect, "EXPERIMENTS", {"toy": PRESET})
    monkeypatch.setattr(_collect, "RESULTS", tmp_path)
    (tmp_path / "experiments" / "curves").mkdir(parents=True)
    return tmp_path / "experiments"


@pytest.fixture
def collect(tmp_path, results):
    """A function that collects documents, and returns the exit code."""

    def collected(*documents):
        files = [tmp_path / f"{i}.json" for i in range(len(documents))]
        for file, each in zip(files, documents, strict=True):
            file.write_text(json.dumps(each))
        return main(["collect", *map(str, files)])

    return collected


def read(file):
    return json.loads(file.read_text(encoding="utf-8"))


def test_rows_replace_those_of_their_entries_and_stand_in_the_order_of_the_preset(collect, results):
    first = document(row("s5", 0.5), row("lstm", 0.6), command="rnnscale experiment toy --row x")
    assert collect(first) == 0
    found = read(results / "toy.json")
    assert found == {
        **document(), "command": "rnnscale experiment toy --row lstm s5",
        "rows": [row("lstm", 0.6), row("s5", 0.5)],
    }  # fmt: skip
    new = document(row("s5", 0.9), differs="new", command="rnnscale experiment toy --row s5")
    assert collect(new, document(row("gru", 0.7), differs="new")) == 0
    found = read(results / "toy.json")
    assert found["rows"] == [row("lstm", 0.6), row("gru", 0.7), row("s5", 0.9)]
    assert found["command"] == "rnnscale experiment toy" and found["differs"] == "new"
    assert not (results / "curves" / "toy.json").exists()


def test_curves_are_a_line_each_and_all_seeds_of_an_entry_are_replaced(collect, results):
    assert collect(document(curve("gru", 0, 0.1), curve("gru", 1, 0.2), curve("s5", 0, 0.3))) == 0
    assert collect(document(curve("gru", 0, 0.4))) == 0
    file = results / "curves" / "toy.json"
    assert read(file)["rows"] == [curve("gru", 0, 0.4), curve("s5", 0, 0.3)]
    assert f"\n  {json.dumps(curve('s5', 0, 0.3))}\n" in file.read_text()
    assert not (results / "toy.json").exists()


def test_all_rows_may_be_measured_in_another_way(collect, results):
    assert collect(document(row("gru", 0.1), row("s5", 0.2))) == 0
    again = [document(row(name, 0.3), versions={"jax": "2"}) for name in ("gru", "s5")]
    assert collect(*again) == 0
    found = read(results / "toy.json")
    assert found["rows"] == [row("gru", 0.3), row("s5", 0.3)] and found["versions"] == {"jax": "2"}


def test_options_of_the_command_are_kept(collect, results):
    command = "rnnscale experiment toy --row s5 --seeds 0 1"
    assert collect(document(row("s5", 0.5), command=command)) == 0
    assert read(results / "toy.json")["command"] == command


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            document(row("gru", 1), versions={"jax": "2"}),
            "versions: {'jax': '2'}, and {'jax': '1'} for",
        ),
        (document(row("gru", 1), metric="other"), "metric: other, and m for other rows"),
        (document(row("gru", 1), command="rnnscale experiment toy --steps 9"), "'9'], and [] for"),
        (document(row("mlp", 1)), "toy has no entry mlp"),
        (document(), "has no rows of an experiment"),
        (document(row("gru", 1), experiment="other"), "has no rows of an experiment"),
        ([], "has no rows of an experiment"),
    ],
)
def test_rows_that_do_not_fit_change_no_file(wrong, said, collect, results, capsys):
    assert collect(document(row("gru", 0.5))) == 0
    before = (results / "toy.json").read_text()
    assert collect(document(row("s5", 0.9)), wrong) == WRONG
    assert said in capsys.readouterr().err
    assert (results / "toy.json").read_text() == before


def test_a_file_that_is_not_there_is_named(results, capsys):
    assert main(["collect", "nowhere.json"]) == WRONG
    assert "cannot read nowhere.json: " in capsys.readouterr().err
