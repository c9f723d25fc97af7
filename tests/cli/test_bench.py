"""Checks `rnnscale bench` and the timing of `linear_scan` below it."""

import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnscale.cells import LinearCell
from rnnscale.cli import main
from rnnscale.cli._bench_operations import OPERATIONS
from rnnscale.runs import MODELS
from rnnscale.runs._models import CellEntry
from rnnscale_kernels.testing import (
    MODES,
    ScanArguments,
    _baselines,
    _call_timing,
    measure_call,
    reference,
    take_turns,
    usable_implementations,
)

BASELINES = ScanArguments().baselines
TINY = "bench scan --tokens 64 --channels 4 --rounds 3"


def bench(arguments: str) -> int:
    return main(arguments.split())


@pytest.mark.parametrize("varying", [True, False])
@pytest.mark.parametrize("planar", [True, False])
def test_the_textbook_forms_are_the_recurrence(planar: bool, varying: bool):
    arrays = ScanArguments(planar=planar, varying=varying, h0=False).arrays()
    a, b, h0 = (
        jnp.asarray(arrays[name], "complex64" if planar else "float32") for name in ("a", "b", "h0")
    )
    expected, _ = reference.linear_scan(*(arrays[name] for name in ("a", "b", "h0")))
    for run in BASELINES.values():
        h, _ = jax.jit(run)(h0, (a, b))
        np.testing.assert_allclose(h, expected, rtol=1e-5, atol=1e-5)


def test_the_bytes_that_have_to_be_moved():
    def counts(**kind):
        arguments = ScanArguments(batch=(3, 2), time=5, channels=7, **kind)
        b = math.prod((3, 2, 5, 7)) * (2 if kind.get("dtype") == "bfloat16" else 4)
        return [arguments.minimal_bytes(mode) / b for mode in MODES]

    assert counts() == counts(dtype="bfloat16") == [3, 8]
    assert counts(varying=False) == [2, 5]
    assert counts(planar=True) == [6, 16]


def test_every_mode_has_a_row_for_every_contender(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "rows.json"
    kinds = "--dtype bfloat16 --numbers planar --decay invariant"
    assert bench(f"{TINY} --length 32 {kinds} --json {file}") == 0
    rows = json.loads(file.read_text())
    names = [*usable_implementations(ScanArguments()), *BASELINES]
    assert not [name for name in names if name.endswith("_interpreted")]
    assert [(row["mode"], row["name"]) for row in rows] == [
        (mode, name) for mode in MODES for name in names
    ]
    for row in rows:
        assert (row["batch"], row["time"]) == (2, 32)
        assert (row["dtype"], row["numbers"], row["decay"]) == ("bfloat16", "planar", "invariant")
        assert 0 < row["best_ms"] <= row["time_ms"] and row["rounds"] == 3
        seconds = 1e-3 * row["time_ms"]
        assert row["bytes_per_second"] == pytest.approx(row["minimal_bytes"] / seconds)
        assert row["percent_of_copy"] == pytest.approx(
            100 * row["bytes_per_second"] / row["copy_bytes_per_second"]
        )
        assert row["peak_bytes"] > row["minimal_bytes"] / 8 and row["compile_s"] > 0
        assert row["platform"] == "cpu" and "jax" in row["versions"]
        if row["name"] == "associative_scan":
            assert row["speed_up"] == 1
    assert sum(row["default"] for row in rows) == 2

    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 100
    for text in (
        "B=2 L=32 D=4, bfloat16 planar, invariant decay",
        ", default",
        "of copy",
        "bytes",
    ):
        assert text in printed


def test_a_contender_that_fails_has_an_error_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def breaks(h0, inputs):
        raise FloatingPointError("no luck")

    monkeypatch.setitem(_baselines.SCAN_BASELINES, "lax_scan", breaks)
    wanted = "--mode forward --implementation sequential lax_scan --json -"
    assert bench(f"{TINY} {wanted}") == 1
    said = capsys.readouterr()
    ours, broken = json.loads(said.out)
    assert "time_ms" in ours and ours["speed_up"] is None
    assert broken["error"] == "FloatingPointError: no luck" and "time_ms" not in broken
    assert "lax_scan FAILED: FloatingPointError: no luck" in said.err


@pytest.mark.parametrize(("planar", "mode"), [(True, "gradient"), (False, "forward")])
def test_calls_in_a_row_and_in_a_queue_as_on_an_accelerator(
    planar: bool, mode: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(_call_timing, "_calls", lambda *_: 3)
    monkeypatch.setattr(
        _call_timing,
        "take_turns",
        lambda *given, seconds, queue: take_turns(*given, seconds=seconds, queue=True),
    )
    names = ["sequential", *BASELINES]
    rows = measure_call(ScanArguments(planar=planar, time=16), mode, names, rounds=3)
    assert [(row["name"], row["calls"]) for row in rows] == [(name, 3) for name in names]
    assert all(0 < row["time_ms"] < 1e3 * row["compile_s"] for row in rows)


def test_what_does_not_take_the_arguments_is_left_out_with_the_reason():
    (row,) = measure_call(ScanArguments(), "forward", ["triton"], rounds=3)
    assert "triton" in row["unsupported"] and "error" not in row


def test_every_length_has_its_rows_and_the_plot_is_drawn_from_them(tmp_path: Path):
    pytest.importorskip("matplotlib")
    file, picture = tmp_path / "rows.json", tmp_path / "scan.svg"
    names = ["sequential", "lax_scan"]
    chosen = f"--length 16 64 --mode forward --implementation {' '.join(names)}"
    assert bench(f"{TINY} {chosen} --json {file}") == 0
    assert [(row["batch"], row["time"], row["name"]) for row in json.loads(file.read_text())] == [
        (64 // time, time, name) for time in (16, 64) for name in names
    ]
    assert bench(f"bench plot {file} --out {picture}") == 0
    assert picture.read_text().startswith("<?xml")
    # Rows of two operations, which do not have the same sizes.
    other, shown = tmp_path / "other.json", tmp_path / "both.svg"
    options = "--tokens 64 --length 16 --features 4 --states 4 --mode forward --rounds 3"
    assert bench(f"bench ssm {options} --implementation chunked --json {other}") == 0
    rows = json.loads(file.read_text())
    wider = [{**row, "channels": size} for row in rows for size in (8, 16, 32)]
    file.write_text(json.dumps(wider))
    assert bench(f"bench plot {file} {other} --out {shown}") == 0


BAD = {
    "no benchmark": ("bench", ["BENCHMARK"]),
    "length": ("bench scan --tokens 64 --length 24", ["--length 24", "64 tokens"]),
    "batch": ("bench scan --tokens 64 --batch 3", ["--batch 3", "64 tokens"]),
    "both": ("bench scan --length 8 --batch 8", ["--batch", "--length"]),
    "negative": ("bench scan --channels -1", ["--channels", "positive", "-1"]),
    "zero": ("bench scan --tokens 0", ["--tokens", "positive", "0"]),
    "rounds": ("bench scan --rounds 2", ["--rounds", "at least 3", "2"]),
    "dtype": ("bench scan --dtype float16", ["float16", "bfloat16"]),
    "name": ("bench scan --implementation fast", ["fast", "unknown", "sequential", "lax_scan"]),
    "other platform": ("bench scan --implementation mosaic_gpu", ["mosaic_gpu", "sequential"]),
    "interpreter": (
        "bench scan --implementation mosaic_gpu_interpreted",
        ["unknown", "did you mean 'mosaic_gpu'"],
    ),
    "planes": ("bench block-scan --planes 5", ["--planes", "at most 4", "5"]),
    "units": ("bench cell --cell clockwork --units 7 --quick", ["multiple of 4", "7"]),
    "states": ("bench ssm --states 0", ["--states", "positive", "0"]),
    "cell": ("bench cell --cell lsmt", ["lsmt", "did you mean 'lstm'"]),
    "linear cell": ("bench cell --cell mingru", ["mingru", "mgu"]),
    "kernel of others": (
        "bench cell --cell lstm --implementation cudnn_lstm",
        ["cudnn_lstm", "choose from loop, "],
    ),
    "folder": ("bench scan --json {tmp}/absent/rows.json", ["--json", "{tmp}/absent"]),
    "no rows": ("bench plot {tmp}/absent.json --out x.png", ["{tmp}/absent.json"]),
    "other rows": ("bench plot {tmp}/other.json --out x.png", ["{tmp}/other.json"]),
    "empty": ("bench plot {tmp}/empty.json --out x.png", ["{tmp}/empty.json", "no times"]),
}


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_all_implementations_can_be_named(operation):
    sizes = {name: size.quick for name, size in operation.sizes.items()}
    kinds = {name: choices[0] for name, choices in operation.kinds.items()}
    found = set()
    cells = ("lstm", "indrnn", "elman") if "cell" in kinds else ("",)
    for cell in cells:
        call = operation.make(2, 8, sizes, kinds | {"cell": cell})
        found |= {name for name, *_ in call.describe("cpu")} | {*call.baselines}
    found = {name for name in found if not name.endswith("_interpreted")}
    found |= {"cudnn_lstm"} if operation.name == "cell" else set()  # on NVIDIA GPUs only
    assert found == set(operation.implementations)


def test_every_nonlinear_cell_can_be_timed():
    (cell,) = [each for each in OPERATIONS if each.name == "cell"]
    entries = [entry for entry in MODELS.values() if isinstance(entry, CellEntry)]
    names = [entry.name for entry in entries if not issubclass(entry.load(), LinearCell)]
    assert sorted(cell.kinds["cell"]) == sorted(names)


@pytest.mark.parametrize(
    ("given", "sizes"),
    [
        (
            "ssm --features 3 --states 5 --implementation unfused lax_scan",
            {"features": 3, "states": 5, "outputs": 3},
        ),
        (
            "block-scan --channels 3 --planes 3 --decay invariant --implementation sequential",
            {"channels": 3, "planes": 3},
        ),
        (
            "cell --cell indrnn --features 3 --units 5 --implementation loop",
            {"cell": "indrnn", "units": 5},
        ),
    ],
    ids=lambda given: given.split()[0] if isinstance(given, str) else "",
)
def test_layers_blocks_and_cells_have_the_figures_of_the_scan(
    given: str, sizes: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file, picture = tmp_path / "rows.json", tmp_path / "rows.svg"
    assert bench(f"bench {given} --tokens 32 --length 16 --rounds 3 --json {file}") == 0
    rows = json.loads(file.read_text())
    assert {row["mode"] for row in rows} == set(MODES)
    assert {row["name"] for row in rows} == set(given.partition("--implementation ")[2].split())
    for row in rows:
        assert row.items() >= {**sizes, "batch": 2, "time": 16}.items()
        assert row["time_ms"] > 0 and row["bytes_accessed"] > row["minimal_bytes"] > 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 100
    if importlib.util.find_spec("matplotlib") is not None:
        assert bench(f"bench plot {file} --out {picture}") == 0
        assert picture.read_text().startswith("<?xml")


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error_line: Callable[..., str]
):
    monkeypatch.setattr("rnnscale_kernels.testing.measure_call", lambda *_, **__: pytest.fail())
    (tmp_path / "other.json").write_text('{"rows": 3}')
    (tmp_path / "empty.json").write_text("[]")
    command, words = BAD[name]
    line = error_line(*command.format(tmp=tmp_path).split())
    assert all(word.format(tmp=tmp_path) in line for word in words), line
