"""`rnnscale train --data` and `rnnscale predict`, from files to files."""

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rnnscale.cli import main
from rnnscale.runs import RunFolder, load_run

pytestmark = pytest.mark.usefixtures("quick_compilation")

TINY = "--model elman --dim 4 --depth 1 --batch-size 8 --steps 2 --log-every 1 --save-every 1"
LONG = ["--group", "id", "--label", "kind"]


def write_long(file: Path, lengths: Sequence[int], *, labels: bool = True) -> list[np.ndarray]:
    """A table with a line per step of two channels far from standard; returns the series."""
    random = np.random.default_rng(len(lengths))
    series = [random.normal(size=(n, 2)) * [10, 0.1] + [100, -3] for n in lengths]
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["id", "heat", "load", *(["kind"] if labels else [])])
        for number, steps in enumerate(series):
            kind = ["ill" if number % 3 else "well"] if labels else []
            writer.writerows([f"s{number:02}", *step, *kind] for step in steps.tolist())
    return series


def table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def standardised(run: Path, series: np.ndarray) -> np.ndarray:
    stored = json.loads((run / "preprocessing.json").read_text())
    return ((series - stored["mean"]) / stored["std"]).astype(np.float32)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "ward.csv"
    write_long(file, [4 + number % 3 for number in range(40)])
    return file


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    out = data.parent / "run"
    assert main(["train", "--data", str(data), *LONG, *TINY.split(), "--out", str(out)]) == 0
    return out


def test_a_run_on_a_file_is_resumed_and_evaluated_where_the_file_is_now(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = shutil.copytree(run, tmp_path / "run")
    stored = RunFolder(out).config()
    assert "task" not in stored and stored["data"].items() >= {
        "path": str(data), "group": "id", "label": ["kind"], "missing": "error"
    }.items()  # fmt: skip
    assert None not in stored["data"].values()
    assert main(["train", "--resume", "--out", str(out), "--steps", "3"]) == 0
    assert [row["step"] for row in RunFolder(out).rows()] == [1, 2, 3]
    moved = shutil.copy(data, tmp_path / "moved.csv")
    (out / "config.json").write_text(
        json.dumps({**stored, "data": {**stored["data"], "path": "/gone.csv"}})
    )
    capsys.readouterr()
    assert main(["eval", str(out), "--data", str(moved), "--json", "-"]) == 0
    (figures,) = json.loads(capsys.readouterr().out)["figures"]
    summary = RunFolder(out).summary()
    assert summary is not None and summary["test_loss"] == pytest.approx(figures["loss"])


def test_predictions_equal_the_model_called_by_hand(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """For longer series than in training, with and without labels."""
    lengths = [12, 3, 5, 9, 1, 2, 7, 7, 6, 8, 4]
    series = write_long(tmp_path / "new.csv", lengths)
    write_long(tmp_path / "bare.csv", lengths, labels=False)
    saved: Any = load_run(run)
    logits = [saved.model(standardised(run, each)[None])[0][0] for each in series]
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    names = np.array(saved.preprocessing.classes)
    assert sorted(names) == ["ill", "well"]
    for name in ("new", "bare"):
        out = tmp_path / f"{name}-predictions.csv"
        capsys.readouterr()
        assert (
            main(["predict", str(run), "--data", f"{tmp_path}/{name}.csv", "--out", f"{out}"]) == 0
        )
        printed = capsys.readouterr().out
        rows = table(out)
        assert [row["prediction"] for row in rows] == list(names[expected.argmax(axis=1)])
        for number, kind in enumerate(names):
            found = [float(row[f"probability of {kind}"]) for row in rows]
            np.testing.assert_allclose(found, expected[:, number], rtol=1e-5)
        assert [row["series"] for row in rows] == [f"s{n:02}" for n in range(len(rows))]
        if name == "bare":
            assert "accuracy" not in printed
        else:
            true = ["ill" if number % 3 else "well" for number in range(len(lengths))]
            accuracy = np.mean(
                [row["prediction"] == kind for row, kind in zip(rows, true, strict=True)]
            )
            assert f"accuracy {accuracy:.4g}" in printed


def test_other_data_are_neither_evaluated_nor_trained_on(
    run: Path, data: Path, tmp_path: Path, error_line: Callable[..., str]
):
    """Their classes and scales would be fitted anew, under a model that knows the old ones."""
    out, other = shutil.copytree(run, tmp_path / "run"), tmp_path / "other.csv"
    other.write_text(data.read_text().replace("well", "able"))
    message = error_line("eval", str(out), "--data", str(other))
    assert "classes was ('ill', 'well') and is ('able', 'ill')" in message
    assert "rnnscale predict RUN --data PATH" in message
    before = (out / "preprocessing.json").read_bytes()
    write_long(other, [4 + number % 3 for number in range(44)])
    message = error_line("train", "--resume", "--out", str(out), "--data", str(other))
    assert "mean was (" in message and "in another folder (--out)" in message
    assert (out / "preprocessing.json").read_bytes() == before


def test_an_npz_has_the_same_columns(run: Path, data: Path, tmp_path: Path):
    for name in ("out.csv", "out.npz"):
        assert main(["predict", str(run), "--data", str(data), "--out", str(tmp_path / name)]) == 0
    rows = table(tmp_path / "out.csv")
    with np.load(tmp_path / "out.npz") as arrays:
        assert list(arrays) == list(rows[0])
        for name, array in arrays.items():
            assert [row[name] for row in rows] == list(map(str, array.tolist()))


def test_a_forecast_follows_the_end_in_the_units_of_the_data(tmp_path: Path):
    values = 50 + 8 * np.sin(np.arange(160) / 3)
    for name, part in (("past", values), ("now", values[:37])):
        (tmp_path / f"{name}.csv").write_text("\n".join(["level", *map(str, part)]))
    out = tmp_path / "run"
    options = ["--horizon", "3", "--seq-len", "12", *TINY.split(), "--out", str(out)]
    assert main(["train", "--data", f"{tmp_path}/past.csv", *options]) == 0
    file = tmp_path / "forecast.csv"
    assert main(["predict", str(out), "--data", f"{tmp_path}/now.csv", "--out", str(file)]) == 0
    saved: Any = load_run(out)
    inputs = standardised(out, values[25:37, None])
    _, outputs = saved.model.outputs(inputs[None], per_step=True)
    fitted = saved.preprocessing
    expected = np.asarray(outputs)[0, -1] * fitted.target_std + fitted.target_mean
    assert all(40 < value < 60 for value in expected)
    (row,) = table(file)
    found = [float(row[name]) for name in fitted.targets]
    assert len(found) == 3
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_labels_at_each_step_are_a_row_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    random = np.random.default_rng(0)
    inputs = random.normal(size=(30, 5, 1))
    np.savez(tmp_path / "all.npz", X=inputs, y=100 + 10 * np.cumsum(inputs, axis=1))
    out, file = tmp_path / "run", tmp_path / "out.csv"
    assert main(["train", "--data", f"{tmp_path}/all.npz", *TINY.split(), "--out", f"{out}"]) == 0
    capsys.readouterr()
    assert main(["predict", f"{out}", "--data", f"{tmp_path}/all.npz", "--out", f"{file}"]) == 0
    rows = table(file)
    assert [row["step"] for row in rows] == list("01234") * 30
    saved = load_run(out)
    assert saved.preprocessing is not None
    in_memory = saved.predict(inputs[..., 0])
    assert not in_memory.figures and in_memory.steps is not None
    assert list(map(str, in_memory.steps)) == [row["step"] for row in rows]
    with pytest.raises(ValueError, match="training data had no times; leave out times"):
        saved.predict(inputs[..., 0], times=np.tile(np.arange(5), (30, 1)))
    for name, values in in_memory.values.items():
        assert [row[name] for row in rows] == list(map(str, values))
    (target,) = saved.preprocessing.targets
    predicted = np.array([float(row[target]) for row in rows])
    errors = predicted - 100 - 10 * np.cumsum(inputs, axis=1).ravel()
    rmse = np.sqrt(np.mean(np.square(errors)))
    assert f"rmse of {target} {rmse:.4g}" in capsys.readouterr().out


def test_bad_input_is_one_line(
    run: Path, data: Path, bytes_run: Path, tmp_path: Path, error_line: Callable[..., str]
):
    def error(file: Path, *, of: Path = run, out: str = "out.csv") -> str:
        return error_line("predict", str(of), "--data", str(file), "--out", str(tmp_path / out))

    text = data.read_text()
    (tmp_path / "fewer.csv").write_text(text.replace("load", "weight"))
    assert "heat, weight" in error(tmp_path / "fewer.csv")
    (tmp_path / "other.csv").write_text(text.replace("well", "dead"))
    assert "the class 'dead' is not one of ill, well" in error(tmp_path / "other.csv")
    (tmp_path / "ungrouped.csv").write_text(text.replace("id,", "name,"))
    assert "'id'" in error(tmp_path / "ungrouped.csv")
    assert "there is no file or folder" in error(tmp_path / "none.csv")
    assert ".csv or an .npz" in error(data, out="out.txt")
    assert "there is no folder" in error(data, out="no/out.csv")
    without = shutil.copytree(run, tmp_path / "without")
    (without / "preprocessing.json").unlink()
    assert "keeps no preprocessing" in error(data, of=without)
    of_text = error(data, of=bytes_run)
    assert "rnnscale generate RUN" in of_text and "eval RUN, with --text FOLDER" in of_text

    def train(*options: str) -> str:
        return error_line("train", *options, "--out", str(tmp_path / "run"))

    assert "not both" in train("digits", "--data", str(data))
    assert "give it as --data" in train("--label", "kind")
    assert "unknown missing 'no'; known: error, mask" in train(
        "--data", str(data), "--missing", "no"
    )
    assert "has 6 steps, got seq_len=5" in train("--data", str(data), *LONG, "--seq-len", "5")
    assert "no file or folder" in train("--data", str(tmp_path / "none.csv"))
