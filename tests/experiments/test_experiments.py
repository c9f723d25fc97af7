"""Presets fit their tasks, and results are kept, put together and never mixed."""

import inspect
import json
import math
from pathlib import Path

import jax
import pytest
import yaml

from rnnscale import cells
from rnnscale._fields import parameters
from rnnscale.cells import Cell
from rnnscale.cli import main
from rnnscale.data import load_task
from rnnscale.experiments import EXPERIMENTS, Entry, Experiment, Figure, Result
from rnnscale.sharding import make_mesh
from rnnscale.training import TrainConfig, set_up
from rnnscale.training._models import _CELLS, _LAYERS, _configured

WORKFLOW = Path(__file__).parents[2] / ".github/workflows/results.yml"
KEY = jax.eval_shape(lambda: jax.random.key(0))
TRAINED = [each for each in EXPERIMENTS.values() if not each.name.startswith("reservoirs")]


def experiment(measure, **given):
    entries = [Entry("a", {"x": 1}, Figure(0.5, "a paper")), Entry("b", {"x": 2})]
    shared = {"name": "n", "description": "", "metric": "m", "better": "higher", "differs": ""}
    return Experiment(entries=entries, measure=measure, minutes=1, **{**shared, **given})


class Counted:
    def __init__(self, stop_at=None):
        self.calls = []
        self.stop_at = stop_at

    def __call__(self, options, seed, folder):
        if len(self.calls) == self.stop_at:
            return None
        self.calls.append((dict(options), seed, folder.name))
        return Result(options["x"] + seed, 7, 2.0, {"loss": float(seed)})


def test_a_row_has_all_seeds_their_mean_and_spread(tmp_path):
    first, second = experiment(Counted()).run(tmp_path)
    assert first == {
        "entry": "a", "options": {"x": 1}, "parameters": 7, "seeds": [0, 1, 2],
        "figures": [1, 2, 3], "mean": 2, "spread": 1.0, "seconds": [2.0] * 3,
        "more": {"loss": 1.0}, "paper": {"value": 0.5, "source": "a paper"},
    }  # fmt: skip
    assert second["mean"] == 3 and second["paper"] is None
    (alone,) = experiment(Counted()).run(tmp_path / "other", seeds=[4], only=["b"])
    assert alone["figures"] == [6] and alone["spread"] is None


def test_what_was_measured_is_not_measured_again(tmp_path):
    stopped = Counted(stop_at=4)
    rows = list(experiment(stopped).run(tmp_path))
    assert [row and row["entry"] for row in rows] == ["a", None]
    rest = Counted()
    rows = list(experiment(rest).run(tmp_path))
    assert [seed for _, seed, _ in rest.calls] == [1, 2]
    assert rows == list(experiment(Counted()).run(tmp_path / "other"))


def test_a_result_of_other_options_is_not_taken(tmp_path):
    list(experiment(Counted()).run(tmp_path))
    with pytest.raises(ValueError, match=r"seed-0 holds a result of other options \(x was 1 and"):
        list(experiment(Counted()).run(tmp_path, x=3))


@pytest.mark.parametrize("seeds", [[], [1, 1]])
def test_seeds_that_are_none_or_come_twice(seeds, tmp_path):
    with pytest.raises(ValueError, match="seeds must be different"):
        list(experiment(Counted()).run(tmp_path, seeds=seeds))


def test_unknown_entries(tmp_path):
    with pytest.raises(ValueError, match="n has no entry c; it has a, b"):
        list(experiment(Counted()).run(tmp_path, only=["a", "c"]))


@pytest.mark.parametrize("preset", TRAINED, ids=lambda each: each.name)
def test_presets_fit_their_tasks(preset):
    mesh = make_mesh(devices=jax.devices()[:1])
    tasks = {}
    for entry in preset.entries:
        config = TrainConfig.for_task(**entry.options, out="unused")
        assert {name: getattr(config, name) for name in entry.options} == entry.options
        if preset.folder:  # the data are elsewhere, the layer is here
            make = _configured(config.model, _LAYERS[config.model], config.cell or {})
            layer = jax.eval_shape(lambda key: make(config.dim, config.state_dim, key=key), KEY)  # noqa: B023
            assert layer.forward.b_re.shape[1] == config.dim
            continue
        key = (config.task, config.seq_len)
        if key not in tasks:
            tasks[key] = load_task(config.task, seq_len=config.seq_len)
        # Traces the model with the options of its layers.
        state = set_up(config, tasks[key], mesh).abstract_state()
        assert any(each.trainable for each in parameters(state.model))


def test_the_pixels_are_read_by_every_cell():
    classes = {c for c in vars(cells).values() if inspect.isclass(c) and issubclass(c, Cell)}
    concrete = {each for each in classes if not inspect.isabstract(each)}
    made = {*_CELLS.values(), cells.RGLRUCell}
    assert made == concrete
    for name in ("digits", "digits-permuted", "mnist5k", "mnist5k-permuted"):
        assert {*_CELLS, "rglru", "s5", "lru", "linear-attention"} == {
            entry.name for entry in EXPERIMENTS[name].entries
        }


def test_models_of_bytes_have_as_many_parameters():
    preset = EXPERIMENTS["bytes"]
    task = load_task("bytes", seq_len=256)
    mesh = make_mesh(devices=jax.devices()[:1])
    for entry in preset.entries:
        config = TrainConfig.for_task(**entry.options, out="unused")
        model = set_up(config, task, mesh).abstract_state().model
        count = sum(math.prod(each.value.shape) for each in parameters(model))
        assert abs(count - 200_000) <= 6_000, (entry.name, count)


def test_a_preset_trains_and_a_second_call_reads(tmp_path, capsys):
    out, file = tmp_path / "runs", tmp_path / "rows.json"
    command = ["experiment", "digits", "--only", "elman", "--seeds", "0", "3", "--steps", "2"]
    command += ["--out", str(out), "--json"]
    assert main([*command, str(file)]) == 0
    document = json.loads(file.read_text())
    (row,) = document["rows"]
    assert row["seeds"] == [0, 3] and all(0 <= each <= 1 for each in row["figures"])
    assert row["options"]["steps"] == 2
    given = "digits --only elman --seeds 0 3 --steps 2"
    assert document["command"] == f"rnnscale experiment {given}" and "incomplete" not in document
    assert document["versions"]["jax"] == jax.__version__
    assert "Differs from the papers" in capsys.readouterr().out
    written = {path: path.stat().st_mtime_ns for path in out.rglob("summary.json")}
    assert len(written) == 2
    assert main([*command, "-"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == [row]
    assert written == {path: path.stat().st_mtime_ns for path in out.rglob("summary.json")}


def test_what_was_stopped_is_written_as_incomplete(tmp_path, capsys, monkeypatch):
    stopped = {"n": experiment(Counted(stop_at=4))}
    monkeypatch.setattr("rnnscale.experiments.EXPERIMENTS", stopped)
    assert main(["experiment", "n", "--out", str(tmp_path), "--json", "-"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["incomplete"] is True and [row["entry"] for row in document["rows"]] == ["a"]


def test_reservoirs_are_as_good_as_they_were():
    result = EXPERIMENTS["reservoirs"].measure(
        {"series": "santafe", "library": "rnnscale"}, 0, Path("unused")
    )
    assert result.figure < 0.12 and result.parameters == 501


def test_all_experiments_are_listed(capsys):
    assert main(["experiment"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in EXPERIMENTS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digit"], "did you mean 'digits'"),
        (["lra-text"], "give it as --folder"),
        (["digits", "--json", "nowhere/rows.json"], "no such folder"),
        (["digits", "--only", "s6"], "digits has no entry s6"),
        (["reservoirs", "--steps", "3"], "a reservoir is fitted, not trained; it has no steps"),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["experiment", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_short_experiments_are_run_again_by_the_workflow():
    if not WORKFLOW.is_file():
        pytest.skip("an installed wheel is tested without its workflows")
    matrix = yaml.safe_load(WORKFLOW.read_text())["jobs"]["experiment"]["strategy"]["matrix"]
    assert set(matrix["name"]) == {e.name for e in EXPERIMENTS.values() if e.minutes < 10}
