"""The table of models of text: equal sizes, and baselines against their definitions."""

import gzip
import json
import math
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from rnnscale._fields import parameters
from rnnscale.cli import main
from rnnscale.experiments import EXPERIMENTS
from rnnscale.experiments._language import COMPRESSORS, PARAMETERS, compressed_bits_per_byte
from rnnscale.runs import RunFolder, TrainConfig, load_run, set_up
from rnnscale.sharding import make_mesh
from rnnscale.tasks import load_task

BYTES = EXPERIMENTS["bytes"]
TRAINED = [entry for entry in BYTES.entries if "baseline" not in entry.options]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Text files, of which the task takes the tenth for validation and another one for the test."""
    (tmp_path / "text").mkdir()
    for i in range(12):
        (tmp_path / "text" / f"{i}.txt").write_text(f"{i} banana bandana\n" * (3 + i % 3))
    return tmp_path / "text"


def test_models_have_as_many_parameters_and_read_as_many_bytes():
    task = load_task("bytes", seq_len=256)
    mesh = make_mesh(devices=jax.devices()[:1])
    read = set()
    for entry in TRAINED:
        config = TrainConfig.for_task(**entry.options, out="unused")
        assert {name: getattr(config, name) for name in entry.options} == entry.options
        model = set_up(config, task, mesh).abstract_state().model
        count = sum(math.prod(each.value.shape) for each in parameters(model))
        assert abs(count - PARAMETERS) <= 0.03 * PARAMETERS, (entry.name, count)
        read.add(config.steps * config.batch_size * task.seq_len)
        assert config.evaluate_every and config.steps % config.evaluate_every == 0
    assert len(read) == 1 and read.pop() >= 20e6


def test_count_models_predict_each_file_and_its_end(folder, tmp_path):
    files = load_task("bytes", text=folder, seq_len=1).sequences

    def text(split: str) -> bytes:
        documents = files[split]
        inputs = [documents[i]["inputs"] for i in range(len(documents))]
        assert all(each[0] == 0 for each in inputs)
        return b"".join(bytes(each[1:].tolist()) + b"\0" for each in inputs)

    after: dict[bytes, Counter[int]] = defaultdict(Counter)
    train, test = (bytes(2) + text(split) for split in ("train", "test"))
    for t in range(2, len(train)):
        for k in range(3):
            after[train[t - k : t]][train[t]] += 1
    bits = 0.0
    for t in range(2, len(test)):
        p = 1 / 256
        for k in range(3):
            counts = after[test[t - k : t]]
            if counts:
                p = (counts[test[t]] + len(counts) * p) / (counts.total() + len(counts))
        bits -= math.log2(p)
    (row,) = BYTES.run(tmp_path / "out", rows=["count-2"], text=str(folder))
    assert row is not None
    assert row["mean"] == pytest.approx(bits / (len(test) - 2), rel=1e-9)
    assert row["ended"] == [None] and row["parameters"] == 0


def test_compressors_have_read_the_training_text_as_far_as_their_window():
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, 100_000).astype(np.uint8)
    gzipped = gzip.compress(noise.tobytes() * 2, 9), gzip.compress(noise.tobytes(), 9)
    wanted = 8 * (len(gzipped[0]) - len(gzipped[1])) / len(noise)
    found = {
        name: compressed_bits_per_byte(noise, noise, each) for name, each in COMPRESSORS.items()
    }
    assert found["gzip"] == wanted > 8  # a window of 32 KB has forgotten it
    assert found["xz"] < 0.1
    recent = noise[-20_000:]
    assert compressed_bits_per_byte(noise, recent, COMPRESSORS["gzip"]) < 0.2


def test_baselines_are_not_trained(error_line, tmp_path):
    command = ["experiment", "bytes", "--row", "xz", "--steps", "3", "--out", str(tmp_path)]
    assert "xz is a baseline, not trained in steps; it has no steps" in error_line(*command)


def test_a_row_has_the_speed_and_a_text_of_its_model(folder, tmp_path, monkeypatch):
    (entry,) = [each for each in TRAINED if each.name == "gru"]
    small = {"dim": 8, "depth": 1, "batch_size": 8, "seq_len": 16, "evaluate_every": 2}
    entry = replace(entry, options={**entry.options, **small, "text": str(folder)})
    changed = {"bytes": replace(BYTES, entries=[entry])}
    monkeypatch.setattr("rnnscale.cli._experiment.EXPERIMENTS", changed)
    out, file = tmp_path / "runs", tmp_path / "rows.json"
    assert (
        main(["experiment", "bytes", "--steps", "2", "--out", str(out), "--json", str(file)]) == 0
    )
    (row,) = json.loads(file.read_text())["rows"]
    run = RunFolder(out / "gru" / "seed-0")
    summary = run.summary()
    assert summary is not None and row["more"]["tokens_per_second"] == summary["tokens_per_second"]
    assert row["sample"].startswith("def ") and "\0" not in row["sample"]
    # The state is carried through each file, however short the windows are.
    figures = load_run(run.path).evaluate("test", seq_len=7)
    assert row["mean"] == pytest.approx(figures["bits_per_byte"], rel=1e-5)
