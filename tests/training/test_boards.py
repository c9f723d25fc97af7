"""Logs for TensorBoard and Weights & Biases, and samples of text: real files, read back."""

import json
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rnnscale.training import Evaluation, Log, TensorBoard, TextSample, WandB, fit

CONFIG = {"learning_rate": 0.5, "mesh": {"data": 2}}


class State(NamedTuple):
    step: int


def train_step(state: State, batch: int) -> tuple[State, dict[str, Any]]:
    return State(state.step + 1), {"loss": 1 / (state.step + 1)}


def train(board: TensorBoard | WandB, start: int, steps: int) -> list[dict[str, float]]:
    """A session of a run, and the rows that it logged."""
    rows: list[Any] = []
    callbacks = [
        board,
        Log(rows.append, board.write, every=2),
        Evaluation(lambda state: {"accuracy": 0.25 * state.step}, every=3),
        TextSample(lambda state: f"after {state.step}\nsteps", board.write_text, every=4),
    ]
    fit(State(start), train_step, iter(range(100)), steps=steps, callbacks=callbacks)
    return rows


def records(file: Path) -> Iterator[bytes]:
    """The records of a TFRecord file, by its definition: length, checksum, data, checksum."""
    data = file.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        yield data[12 : 12 + length]
        data = data[16 + length :]


def events(folder: Path) -> list[Any]:
    """The events of the only file in a folder."""
    from tensorboardX.proto import event_pb2

    (file,) = folder.iterdir()
    kind: Any = vars(event_pb2)["Event"]
    return [kind.FromString(record) for record in records(file)]


def test_tensorboard(tmp_path: Path):
    rows = train(TensorBoard(tmp_path, config=CONFIG), 0, 5)
    scalars: dict[int, dict[str, float]] = {}
    texts = {}
    for event in events(tmp_path):
        for value in event.summary.value:
            if value.metadata.plugin_data.plugin_name == "text":
                texts[event.step, value.tag] = value.tensor.string_val[0].decode()
            else:
                scalars.setdefault(event.step, {})[value.tag] = value.simple_value
    assert list(scalars) == [2, 3, 4, 5]
    for row in rows:
        assert scalars[int(row.pop("step"))] == pytest.approx(row, rel=1e-6)
    assert scalars[3]["validation_accuracy"] == 0.75
    assert json.loads(texts[0, "config/text_summary"]) == CONFIG
    assert texts[4, "sample/text_summary"].split() == ["after", "4", "steps"]


def test_tensorboard_drops_what_a_resumed_run_writes_again(tmp_path: Path):

    started = 1  # of `SessionLog.SessionStatus`
    for step in (0, 3):  # a session that was killed may have left no checkpoint
        folder = tmp_path / str(step)
        train(TensorBoard(folder), step, 5)
        starts = [each.step for each in events(folder) if each.session_log.status == started]
        assert starts == [step + 1]  # its data from this step on are those of this session


def wandb_records(file: Path) -> Iterator[Any]:
    """The records of a .wandb file: LevelDB's log format in blocks of 32 KiB after a header of 7
    bytes, with a protocol buffer in each record."""
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportMissingImports]

    data, at, parts = file.read_bytes(), 7, b""
    assert data.startswith(b":W&B")
    while at < len(data):
        if 2**15 - at % 2**15 < 7:
            at += 2**15 - at % 2**15
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a full record, or its last part
            yield Record.FromString(parts)
            parts = b""


def test_weights_and_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("wandb", reason="needs the extra wandb, which is not in requirements.txt")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    rows = train(WandB("kept", folder=tmp_path, config=CONFIG), 0, 5)
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    history, options, runs = {}, {}, []
    for record in wandb_records(file):
        if record.HasField("run"):
            runs.append(record.run)
            options |= {x.key: json.loads(x.value_json) for x in record.run.config.update}
        if record.HasField("history"):
            items = {
                x.key or ".".join(x.nested_key): json.loads(x.value_json)
                for x in record.history.item
            }
            history[record.history.step.num] = items
    assert {name: options[name] for name in CONFIG} == CONFIG
    assert list(history) == [2, 3, 4, 5]
    for row in rows:
        found = history[int(row.pop("step"))]
        assert {name: found[name] for name in row} == pytest.approx(row, rel=1e-6)
    assert history[3]["validation_accuracy"] == 0.75
    assert history[4]["sample"] == "after 4\nsteps"
    # A resumed run goes on in the same one.
    name = (tmp_path / "wandb" / "run-id.txt").read_text()
    assert runs[0].project == "kept" and runs[0].run_id == name
    train(WandB("kept", folder=tmp_path), 3, 5)
    assert len({each.stem for each in tmp_path.glob("wandb/offline-run-*/*.wandb")}) == 1


@pytest.mark.parametrize("make", [TensorBoard, lambda folder: WandB("p", folder=folder)])
def test_other_processes_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any):
    if make is not TensorBoard:
        pytest.importorskip("wandb", reason="needs the extra wandb")
    for module in ("_tensorboard", "_wandb", "_log", "_text_sample"):
        monkeypatch.setattr(f"rnnscale.training.{module}.process_index", lambda: 1)
    board = make(tmp_path)
    callbacks = [board, Log(board.write), TextSample(str, board.write_text, every=1)]
    fit(State(0), train_step, iter(range(9)), steps=2, callbacks=callbacks)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("package", "make"),
    [("tensorboardX", TensorBoard), ("wandb", lambda folder: WandB("p", folder=folder))],
)
def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, package: str, make: Any):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"rnnscale\[{package.lower().rstrip('x')}\]"):
        make("unused")


def test_a_sample_needs_a_number_of_steps():
    with pytest.raises(ValueError, match="every must be at least 1 step, got 0"):
        TextSample(str, print, every=0)
