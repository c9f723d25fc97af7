"""Presets fit their tasks; results are stored, combined, and never mixed with others."""

import collections
import inspect
import json
import math
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from rnnscale import cells
from rnnscale._errors import DivergedError
from rnnscale._fields import parameters
from rnnscale.cells import Cell
from rnnscale.cli import main
from rnnscale.experiments import (
    EXPERIMENTS,
    Entry,
    Experiment,
    Figure,
    Result,
    _reservoirs,
    curves,
)
from rnnscale.experiments._experiment import folder_of
from rnnscale.experiments._state_tracking import width
from rnnscale.experiments._train import configs, train
from rnnscale.runs import (
    MODELS,
    RunFolder,
    TrainConfig,
    kept_programs,
    load_run,
    load_task_of,
    set_up,
)
from rnnscale.runs._build import make_sequence_layer
from rnnscale.runs._defaults import default_options
from rnnscale.runs._models import CellEntry, LayerEntry
from rnnscale.sharding import make_mesh
from rnnscale.tasks import Task, TaskSpec, load_task

KEY = jax.eval_shape(lambda: jax.random.key(0))

TRAINED = [
    each
    for each in EXPERIMENTS.values()
    if not each.name.startswith("reservoirs")
    and each.name not in ("uea", "state-tracking", "bytes")
]


def experiment(measure, **given):
    entries = [Entry("a", {"x": 1}, Figure(0.5, "a paper")), Entry("b", {"x": 2})]
    shared = {"name": "n", "description": "", "metric": "m", "better": "higher", "differs": ""}
    return Experiment(entries=entries, measure=measure, minutes=1, **{**shared, **given})


class Counted:
    """A measurement that records its calls."""

    def __init__(self, stop_at=None):
        self.calls = []
        self.stop_at = stop_at

    def __call__(self, options, seed, folder):
        if len(self.calls) == self.stop_at:
            return None
        self.calls.append((dict(options), seed, folder.name))
        ended = (None, "budget", "patience")[seed % 3]
        return Result(options["x"] + seed, 7, 2.0, {"loss": float(seed)}, ended)


def test_a_row_has_all_seeds_their_mean_and_spread(tmp_path):
    first, second = experiment(Counted()).run(tmp_path)
    assert first == {
        "entry": "a", "options": {"x": 1}, "parameters": 7, "seeds": [0, 1, 2],
        "figures": [1, 2, 3], "mean": 2, "spread": 1.0, "seconds": [2.0] * 3,
        "ended": [None, "budget", "patience"],
        "more": {"loss": 1.0}, "paper": {"value": 0.5, "source": "a paper"},
    }  # fmt: skip
    assert second is not None and second["mean"] == 3 and second["paper"] is None
    (alone,) = experiment(Counted()).run(tmp_path / "other", seeds=[4], rows=["b"])
    assert alone is not None and alone["figures"] == [6] and alone["spread"] is None


def test_stored_results_are_not_measured_again(tmp_path):
    stopped = Counted(stop_at=4)
    rows = list(experiment(stopped).run(tmp_path))
    assert [row and row["entry"] for row in rows] == ["a", None]
    rest = Counted()
    rows = list(experiment(rest).run(tmp_path))
    assert [seed for _, seed, _ in rest.calls] == [1, 2]
    assert rows == list(experiment(Counted()).run(tmp_path / "other"))


def test_a_result_of_other_options_is_refused(tmp_path):
    list(experiment(Counted()).run(tmp_path))
    with pytest.raises(ValueError, match=r"seed-0 is of other options \(x was 1 and is 3\)"):
        list(experiment(Counted()).run(tmp_path, x=3))


def test_a_result_of_other_versions_is_refused(tmp_path):
    """A table says of all its figures with which versions they were measured."""
    list(experiment(Counted()).run(tmp_path))
    file = tmp_path / "a" / "seed-1" / "result.json"
    stored = json.loads(file.read_text())
    stored["environment"]["versions"]["jax"] = "0.1"
    file.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=r"seed-1 was measured with other versions.*\(versions: "):
        list(experiment(Counted()).run(tmp_path))
    file.write_text(json.dumps({**stored, "environment": None}))
    with pytest.raises(ValueError, match="seed-1 does not say where it was measured"):
        list(experiment(Counted()).run(tmp_path))


def test_a_file_is_no_place_for_runs(tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match="file is a file; name a folder"):
            list(experiment(Counted()).run(out))


def test_only_what_a_budget_stopped_is_measured_with_a_longer_one(tmp_path):
    list(experiment(Counted()).run(tmp_path, cpu_minutes=2.0))
    longer = Counted()
    rows = list(experiment(longer).run(tmp_path, cpu_minutes=3.0))
    calls = [({"x": x, "cpu_minutes": 3.0}, 1, "seed-1") for x in (1, 2)]
    assert longer.calls == calls and all(row and row["options"]["cpu_minutes"] == 3 for row in rows)
    with pytest.raises(
        ValueError, match=r"seed-1 is of other options \(cpu_minutes was 3\.0 and is"
    ):
        list(experiment(Counted()).run(tmp_path, seeds=[1], cpu_minutes=2.0))
    with pytest.raises(ValueError, match=r"seed-1 is of other options \(x was 1 and is 3\)"):
        list(experiment(Counted()).run(tmp_path, seeds=[1], rows=["a"], cpu_minutes=4.0, x=3))


SHORT = {
    "task": "adding", "model": "elman", "dim": 4, "batch_size": 8, "seq_len": 6, "steps": 5,
}  # fmt: skip


def test_a_run_that_its_budget_stopped_goes_on_with_a_longer_one(tmp_path):
    with kept_programs(tmp_path / "programs"):
        cut = train("mse", {**SHORT, "cpu_minutes": 1e-9}, 0, tmp_path / "cut")
        continued = train("mse", {**SHORT, "cpu_minutes": 60.0}, 0, tmp_path / "cut")
        whole = train("mse", SHORT, 0, tmp_path / "whole")
    assert cut is not None and continued is not None and whole is not None
    assert cut.ended == "budget" and continued.ended == whole.ended == "steps"
    assert cut.figure != continued.figure == whole.figure
    with pytest.raises(ValueError, match=r"cut is of other options \(cpu_minutes was 60\.0 and is"):
        train("mse", {**SHORT, "cpu_minutes": 1.0}, 0, tmp_path / "cut")


@pytest.mark.parametrize(
    ("given", "later", "message"),
    [
        (
            {"before": [{"seq_len": 4}]},
            {"cpu_minutes": 60.0},
            r"run-1 .*cpu_minutes was 1\.0 and is",
        ),
        (
            {"before": [{"seq_len": 4}]},
            {"cpu_minutes": None},
            r"run-1 .*cpu_minutes was 1\.0 and is",
        ),
        ({"text": "a"}, {"text": None}, r"run is of other options \(text was a and is None\)"),
    ],
)
def test_a_curriculum_and_a_run_on_other_data_do_not_go_on(
    given, later, message, tmp_path, monkeypatch
):
    summary = {"test_mse": 0.5, "parameters": 7, "cpu_seconds": 1.0, "test_loss": 0.5}

    def run(config, *, resume):
        RunFolder(config.out).open(config.as_json())
        return {**summary, "ended": "budget"}

    monkeypatch.setattr("rnnscale.runs.run", run)
    options = {**SHORT, "cpu_minutes": 1.0, **given}
    assert train("mse", options, 0, tmp_path / "run") is not None
    with pytest.raises(ValueError, match=message):
        train("mse", {**options, **later}, 0, tmp_path / "run")


def test_a_run_that_was_stopped_does_not_continue_with_other_options(tmp_path, monkeypatch):
    (entry,) = [each for each in EXPERIMENTS["digits"].entries if each.name == "elman"]
    options = {**entry.options, "dim": 4, "steps": 2, "warmup": 0}
    monkeypatch.setattr("rnnscale.distributed.StopSignals.reached", lambda self: True)
    assert train("accuracy", options, 0, tmp_path / "run") is None  # stopped after a step
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"run is of other options \(learning_rate was 0\.002 and"):
        train("accuracy", {**options, "learning_rate": 0.1}, 0, tmp_path / "run")
    assert train("accuracy", options, 0, tmp_path / "run") is not None


def test_a_training_that_diverges_costs_its_row_only(tmp_path, monkeypatch, capsys):
    def measure(options, seed, folder):
        if options["x"] == 1 and seed == 1:
            raise DivergedError("step 7")
        return Result(seed + 0.25, 7, 2.0, {})

    preset = experiment(measure)
    rows = preset.run(tmp_path)
    (row,) = (next(rows),)
    assert row is not None and row["entry"] == "b" and row["figures"] == [0.25, 1.25, 2.25]
    with pytest.raises(FloatingPointError, match="a, seed 1: step 7"):
        next(rows)
    monkeypatch.setattr("rnnscale.cli._experiment.EXPERIMENTS", {preset.name: preset})
    file = tmp_path / "rows.json"
    command = ["experiment", preset.name, "--out", str(tmp_path), "--json", str(file)]
    assert main(command) == 1 and not file.exists()
    printed = capsys.readouterr()
    assert "a, seed 1: step 7" in printed.err and "1.25" in printed.out


@pytest.mark.parametrize("option", ["--row lstm digits", "--seeds 0", "--json rows.json"])
def test_options_without_an_experiment_are_refused(option, capsys):
    assert main(["experiment", *option.split()]) == 2
    assert "name the experiment first" in capsys.readouterr().err


@pytest.mark.parametrize("seeds", [[], [1, 1], [0, -1]])
def test_no_seeds_and_wrong_ones(seeds, tmp_path):
    with pytest.raises(ValueError, match="seeds must be different"):
        list(experiment(Counted()).run(tmp_path, seeds=seeds))


def test_unknown_entries(tmp_path):
    with pytest.raises(ValueError, match="n has no row c; it has a, b"):
        list(experiment(Counted()).run(tmp_path, rows=["a", "c"]))


TRACED: dict[str, Any] = {}


def _traced(config: TrainConfig, task: Task, mesh: Mesh) -> Any:
    """The shapes of the model with the options of its layers, traced once for tasks that are read
    in two orders."""
    spec = replace(task.spec, name=task.name.removesuffix("-permuted"))
    options = (config.model, config.cell, config.dim, config.depth, config.state_dim, config.block)
    key = repr((spec, options, config.every, config.every_cell))
    if key not in TRACED:
        TRACED[key] = set_up(config, task, mesh).abstract_state().model
    return TRACED[key]


@pytest.mark.parametrize("preset", TRAINED, ids=lambda each: each.name)
def test_presets_fit_their_tasks(preset):
    mesh = make_mesh(devices=jax.devices()[:1])
    tasks = {}
    for entry in preset.entries:
        options = {name: x for name, x in entry.options.items() if name != "before"}
        *before, config = configs(entry.options, 0, Path("unused"))
        assert {name: getattr(config, name) for name in options} == options
        # What a recipe for users adds would stand in no row of the results.
        added = default_options(options["task"], config.model).keys() - options.keys()
        has_states = config.model != "slstm" and isinstance(MODELS[config.model], LayerEntry)
        without_effect = set() if has_states else {"state_dim"}
        if preset.name == "state-tracking":  # which chooses the width itself
            without_effect.add("dim")
        assert added <= without_effect
        if preset.folder:  # the data are elsewhere, the layer is here
            model = MODELS[config.model]
            assert isinstance(model, LayerEntry)
            layer: Any = jax.eval_shape(
                partial(make_sequence_layer, config, model, config.cell or {}), KEY
            )
            assert layer.forward.b_re.shape[1] == config.dim
            continue
        models = []
        for each in (*before, config):
            key = (each.task, each.seq_len)
            if key not in tasks:
                tasks[key] = load_task_of(each)
            models.append(_traced(each, tasks[key], mesh))
        assert any(each.trainable for each in parameters(models[0]))
        # Each run can start from the one before.
        assert all(jax.tree.leaves(each) == jax.tree.leaves(models[0]) for each in models)


def test_settings_of_the_archive_make_layers():
    preset = EXPERIMENTS["uea"]
    assert len(preset.entries) == 6 * 5
    for entry in preset.entries:
        options = {name: x for name, x in entry.options.items() if name != "data_set"}
        config = TrainConfig.for_task(**options, out="unused")
        assert {name: getattr(config, name) for name in options} == options
        model = MODELS[config.model]
        assert isinstance(model, LayerEntry)
        layer: Any = jax.eval_shape(
            partial(make_sequence_layer, config, model, config.cell or {}), KEY
        )
        assert layer.idim == config.dim


def test_the_table_of_the_archive_from_a_small_one(tmp_path, monkeypatch, capsys):
    """One command. With such a rate no answer changes, so all evaluations are equally good, and the
    model of the last one is tested."""
    random = np.random.default_rng(0)
    folder = tmp_path / "archive" / "EthanolConcentration"
    folder.mkdir(parents=True)
    for split in ("TRAIN", "TEST"):
        lines = ["@equalLength true", "@classLabel true E35 E38", "@data"]
        for row in range(25):
            channels = [",".join(map(str, random.normal(size=8))) for _ in range(3)]
            lines.append(":".join([*channels, ("E35", "E38")[row % 2]]))
        (folder / f"EthanolConcentration_{split}.ts").write_text("\n".join(lines) + "\n")
    preset = EXPERIMENTS["uea"]
    (entry,) = [x for x in preset.entries if x.name == "EthanolConcentration-linoss"]
    quick = {"evaluate_every": 1, "learning_rate": 1e-12, "recurrence_rate": 1e-12, "depth": 1}
    entry = replace(entry, options={**entry.options, **quick})
    changed = {"uea": replace(preset, entries=[entry])}
    monkeypatch.setattr("rnnscale.cli._experiment.EXPERIMENTS", changed)
    out, file = tmp_path / "runs", tmp_path / "rows.json"
    command = ["experiment", "uea", "--folder", str(tmp_path / "archive"), "--steps", "3"]
    command += ["--seeds", "2345", "--out", str(out), "--json", str(file)]
    drawn = tmp_path / "curves.json"
    assert main([*command, "--curves", str(drawn)]) == 0
    (row,), (curve,) = (json.loads(each.read_text())["rows"] for each in (file, drawn))
    assert curve["steps"] == [1, 2, 3] and curve["ended"] == "steps"
    assert json.loads(drawn.read_text())["metric"] == "validation accuracy"
    summary = RunFolder(out / entry.name / "seed-2345").summary()
    assert summary is not None and summary["best_step"] == 3
    assert row["figures"] == [summary["test_accuracy"]] and row["paper"]["value"] == 0.299
    assert "layer norm in place of batch norm" in " ".join(capsys.readouterr().out.split())
    config = RunFolder(out / entry.name / "seed-2345").config()
    assert config["folder"] == str(folder) and config["protocol"] == "linoss"


def test_the_pixels_are_read_by_every_model():
    exported = [getattr(cells, name) for name in dir(cells)]
    classes = {each for each in exported if inspect.isclass(each) and issubclass(each, Cell)}
    concrete = {each for each in classes if not inspect.isabstract(each)}
    made = {entry.load() for entry in MODELS.values() if isinstance(entry, CellEntry)}
    # These two are layers in the table.
    assert made | {cells.RGLRUCell, cells.SLSTMCell} == concrete
    for name in ("digits", "digits-permuted", "mnist5k", "mnist5k-permuted"):
        entries = EXPERIMENTS[name].entries
        assert {entry.name for entry in entries} == MODELS.keys()
        for entry in entries:
            assert entry.options["patience"] and entry.options["cpu_minutes"] <= 60


def test_entries_by_pattern(tmp_path):
    names = ["parity-lstm", "parity-gru", "s3-lstm"]
    preset = replace(experiment(Counted()), entries=[Entry(name, {"x": 1}) for name in names])

    def chosen(*rows: str) -> list[str]:
        return [row["entry"] for row in preset.run(tmp_path, seeds=[0], rows=rows) if row]

    assert chosen("parity-*") == names[:2]
    assert chosen("s3-lstm", "*-lstm", "parity-lstm") == ["parity-lstm", "s3-lstm"]
    with pytest.raises(ValueError, match=r"n has no row a5-\*, lstm; it has parity-lstm, "):
        chosen("a5-*", "lstm", "*")


def test_every_model_tracks_states():
    """Each model that a causal block can hold has a line, and its options make a model."""
    mesh = make_mesh(devices=jax.devices()[:1])
    entries = EXPERIMENTS["state-tracking"].entries
    task = load_task("parity")
    made = set()
    for entry in entries:
        options = {name: x for name, x in entry.options.items() if name != "parameters"}
        config = TrainConfig.for_task(**options, dim=16, out="unused")
        assert {name: getattr(config, name) for name in options} == options
        if entry.options["task"] == "parity":
            set_up(config, task, mesh).abstract_state()
            made.add(config.model)
    assert made == MODELS.keys() - {"s5-bidirectional", "urnn", "clockwork"}
    per_task = collections.Counter(entry.options["task"] for entry in entries)
    assert len(per_task) == 9 and len(set(per_task.values())) == 1


def test_delta_rules_may_reflect_their_memory_but_in_positive_lines():
    bounds = {}
    for entry in EXPERIMENTS["state-tracking"].entries:
        options = {name: x for name, x in entry.options.items() if name != "parameters"}
        model = MODELS[options["model"]]
        if options["task"] == "parity" and "beta_max" in model.options:
            assert isinstance(model, LayerEntry)
            config = TrainConfig.for_task(**options, dim=16, out="unused")
            layer: Any = make_sequence_layer(config, model, config.cell or {}, jax.random.key(0))
            bounds[entry.name.removeprefix("parity-")] = float(layer.beta_max)
    assert bounds == {
        **dict.fromkeys(("deltanet", "gated-deltanet", "deltaproduct", "deltaproduct-4"), 2.0),
        **{f"{n}-positive": 1.0 for n in ("deltanet", "gated-deltanet", "deltaproduct")},
    }


@pytest.mark.parametrize(
    "task, model, parameters",
    [("word-s3", "lstm", 16_000), ("k-hop", "linear-attention", 30_000)],
)
def test_models_that_track_have_as_many_parameters(task, model, parameters):
    options = {"task": task, "model": model, "depth": 1}
    dim = width(options, parameters)
    config = TrainConfig.for_task(**options, dim=dim, out="unused")
    mesh = make_mesh(devices=jax.devices()[:1])
    state = set_up(config, load_task_of(config), mesh).abstract_state()
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.model))
    assert dim % 4 == 0 and abs(count - parameters) < 0.1 * parameters


def test_tracking_is_tested_on_longer_sequences(tmp_path, capsys, monkeypatch):
    preset = EXPERIMENTS["state-tracking"]
    (entry,) = [each for each in preset.entries if each.name == "word-s3-elman"]
    entry = replace(entry, options={**entry.options, "parameters": 500, "batch_size": 8})
    preset = replace(preset, entries=[entry], columns=("width", "40", "41", "50"))
    monkeypatch.setattr("rnnscale.cli._experiment.EXPERIMENTS", {preset.name: preset})
    monkeypatch.setattr("rnnscale.experiments._state_tracking.TESTED", (41, 50))
    monkeypatch.setattr("rnnscale.experiments._state_tracking.JUDGED", 41)
    out, file = tmp_path / "runs", tmp_path / "rows.json"
    command = ["experiment", "state-tracking", "--steps", "2", "--out", str(out)]
    assert main([*command, "--json", str(file)]) == 0
    (row,) = json.loads(file.read_text())["rows"]
    folder, more = RunFolder(out / "word-s3-elman" / "seed-0"), row["more"]
    summary = folder.summary()
    assert summary is not None and more["40"] == summary["test_accuracy"]
    assert more["50"] == load_run(folder.path).evaluate(seq_len=50)["accuracy"]
    assert row["mean"] == more["41"]
    assert more["width"] == folder.config()["dim"] and row["parameters"] == summary["parameters"]
    shown = " ".join(capsys.readouterr().out.split())
    assert f"{more['50']:.4g}" in shown and "solved)" in shown and "Merrill" in shown


def test_a_preset_trains_and_a_second_call_reads(tmp_path, capsys):
    out, file = tmp_path / "runs", tmp_path / "rows.json"
    command = ["experiment", "digits", "--row", "elman", "--seeds", "0", "3", "--steps", "2"]
    command += ["--out", str(out), "--json"]
    assert main([*command, str(file)]) == 0
    document = json.loads(file.read_text())
    (row,) = document["rows"]
    assert row["seeds"] == [0, 3] and all(0 <= each <= 1 for each in row["figures"])
    assert row["options"]["steps"] == 2
    given = "digits --row elman --seeds 0 3 --steps 2"
    assert document["command"] == f"rnnscale experiment {given}"
    assert document["versions"]["jax"] == jax.__version__
    assert "Differs from the papers" in capsys.readouterr().out
    written = {path: path.stat().st_mtime_ns for path in out.rglob("summary.json")}
    assert len(written) == 2
    assert main([*command, "-"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == [row]
    assert written == {path: path.stat().st_mtime_ns for path in out.rglob("summary.json")}
    assert jax.config.jax_compilation_cache_dir is None  # as before


def test_a_curriculum_trains_run_after_run(tmp_path):
    options = {
        "task": "adding", "model": "elman", "dim": 4, "batch_size": 8, "seq_len": 6, "steps": 3,
        "log_every": 1, "evaluate_every": 1, "before": [{"seq_len": 4, "steps": 2}],
    }  # fmt: skip
    out = folder_of(tmp_path, "a", 5)
    result = train("mse", options, 5, out)
    assert result is not None
    folders = [RunFolder(out / "run-1"), RunFolder(out / "run-2")]
    configs = [folder.config() for folder in folders]
    assert [(c["seq_len"], c["steps"], c["seed"]) for c in configs] == [(4, 2, 5), (6, 3, 5)]
    assert [c.get("start_from") for c in configs] == [None, str(folders[0].path)]
    first, last = (folder.summary() for folder in folders)
    assert first is not None and last is not None
    assert result.figure == last["test_mse"] and result.parameters == 33
    assert result.seconds == first["cpu_seconds"] + last["cpu_seconds"]
    assert result.ended == last["ended"] == "steps"
    row = {
        "entry": "a", "options": options, "parameters": 33, "seeds": [5], "ended": ["steps"],
        "seconds": [result.seconds],
    }  # fmt: skip
    (curve,) = curves(tmp_path, [row])["rows"]
    lines = (out / "run-2" / "metrics.jsonl").read_text().splitlines()
    assert curve["steps"] == [1, 2, 3] and curve["values"] == [
        pytest.approx(json.loads(line)["validation_mse"], rel=1e-3) for line in lines
    ]


def test_a_curve_has_few_points_and_the_best_one(tmp_path):
    row = {
        "entry": "a", "options": {}, "parameters": 1, "seeds": [0, 1], "ended": ["budget", None],
        "seconds": [1000 / 3, 1.0],
    }  # fmt: skip
    with pytest.raises(ValueError, match="nothing was evaluated during training"):
        curves(tmp_path, [row])
    folder = folder_of(tmp_path, "a", 0)
    folder.mkdir(parents=True)
    spec = TaskSpec("t", "tokens", 2, "step", 4, "bits_per_byte", classes=2)
    (folder / "task.json").write_text(json.dumps(asdict(spec)))
    (folder / "summary.json").write_text(json.dumps({"best_step": 77}))
    figures = [{"step": n, "cpu_seconds": n / 3, "validation_bits_per_byte": n / 7} for n in
        range(1, 1001)]  # fmt: skip
    broken = {**figures[0], "step": 1000, "validation_bits_per_byte": math.nan}
    later = {"step": 1001, "cpu_seconds": 334.0, "validation_bits_per_byte": 9.0}  # it went on
    for each in (*figures, {"step": 1000.5}, broken, later):
        RunFolder(folder).metrics(each)
    found = curves(tmp_path, [row])
    (curve,) = found["rows"]  # the other seed trained nothing
    steps = np.array(curve["steps"])
    assert found["metric"] == "validation bits per byte" and curve["ended"] == "budget"
    assert 30 <= len(steps) <= 41 and {1, 77, 1000} <= set(steps.tolist())
    assert np.max(steps[1:] / steps[:-1]) <= 2 and np.all(np.diff(steps) > 0)
    np.testing.assert_allclose(curve["cpu_seconds"], steps / 3, rtol=1e-3)
    np.testing.assert_allclose(curve["values"], steps / 7, rtol=1e-3)


def test_a_stopped_curriculum_continues_where_it_was_stopped(tmp_path, monkeypatch):
    calls, stop_at = [], ["run-2"]

    def run(config, *, resume):
        name = Path(config.out).name
        calls.append((name, resume))
        RunFolder(config.out).open(config.as_json())
        if name in stop_at:
            return None
        ended = "budget" if name == "run-1" else "steps"
        summary = {"test_mse": 0.5, "parameters": 7, "cpu_seconds": 1.0, "test_loss": 0.5}
        return {**summary, "ended": ended}

    monkeypatch.setattr("rnnscale.runs.run", run)
    options = {"task": "adding", "before": [{"steps": 2}, {"steps": 3}]}
    assert train("mse", options, 0, tmp_path) is None
    stop_at.clear()
    assert train("mse", options, 0, tmp_path) == Result(
        0.5, 7, 3.0, {"test_loss": 0.5}, ended="budget"
    )
    assert calls == [
        ("run-1", False), ("run-2", False),
        ("run-1", True), ("run-2", True), ("run-3", False),
    ]  # fmt: skip


def test_a_stopped_experiment_leaves_the_earlier_file(tmp_path, capsys, monkeypatch):
    stopped = {"n": experiment(Counted(stop_at=4))}
    monkeypatch.setattr("rnnscale.cli._experiment.EXPERIMENTS", stopped)
    file = tmp_path / "rows.json"
    file.write_text("of before")
    assert main(["experiment", "n", "--out", str(tmp_path / "runs"), "--json", str(file)]) == 0
    assert file.read_text() == "of before" and "stopped" in capsys.readouterr().out
    stopped["n"] = experiment(Counted())
    assert main(["experiment", "n", "--out", str(tmp_path / "runs"), "--json", str(file)]) == 0
    assert [row["entry"] for row in json.loads(file.read_text())["rows"]] == ["a", "b"]


@pytest.mark.slow
def test_a_reservoir_predicts_the_laser(monkeypatch):
    """As well as it did when its published size was measured, with the better of two settings."""
    series = _reservoirs.SERIES["santafe"]
    settings = [series.settings[0], series.settings[-1]]
    monkeypatch.setitem(
        cast(dict, _reservoirs.SERIES), "santafe", replace(series, settings=settings)
    )
    result = EXPERIMENTS["reservoirs"].measure(
        {"series": "santafe", "library": "rnnscale"}, 0, Path("unused")
    )
    assert result is not None and result.figure < 0.12 and result.parameters == 501
    assert result.more["input_scale"] == 1.0


def test_all_experiments_are_listed(capsys):
    assert main(["experiment"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in EXPERIMENTS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digit"], "did you mean 'digits'"),
        (["lra-text"], "give it as --folder"),
        (["digits", "--json", "nowhere/rows.json"], "there is no folder nowhere"),
        (["digits", "--json", "."], "is a folder; name a file"),
        (["digits", "--row", "s6"], "digits has no row s6"),
        (["bytes", "--row", "gzip", "--cpu-minutes", "1"], "Name the rows that are trained"),
        (["reservoirs", "--steps", "3"], "a reservoir is fitted, not trained; it has no steps"),
    ],
)
def test_bad_input_is_one_line(arguments, message, error_line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in error_line("experiment", *arguments)
    assert list(tmp_path.iterdir()) == []
