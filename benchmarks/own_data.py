"""What `rnnscale train --data` and `rnnscale predict` reach on data sets given as files.

Eight data sets of the UCR and UEA archives, read from the files in the package aeon, half of them
named by their folder and half by a file, all with the default options. The accuracy on the test
split of the archives stands beside those of 1-nearest-neighbour and of ROCKET, both of aeon, which
get shorter series padded with zeros. ROCKET and our model have a row for each seed. Ours holds a
part of the training split out for validation; the others train on all of it.

Then an electrocardiogram of 7,500 samples, a CSV file in the package sktime, is forecast a tenth of
a second ahead, beside the forecasts that the last season comes again and that nothing changes.
"""

import argparse
import importlib.util
import json
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from time import process_time

import numpy as np
from rich.table import Table

from rnnscale.cli import main

from ._benchmark import OURS, Benchmark, Row, Unavailable
from ._series import SETS, add_seeds, rivals

HORIZON = 36  # samples, of which a second has 360
_QUICK = ["--steps", "3", "--dim", "8", "--depth", "1", "--state-dim", "8"]


def train(path: Path, out: Path, seed: int, *options: str) -> None:
    command = ["train", "--data", str(path), "--out", str(out), "--seed", str(seed), *options]
    if main([*command, "--log-every", "1000000"]):
        raise RuntimeError(f"rnnscale {' '.join(command)} failed")


def summary_of(out: Path) -> Row:
    return json.loads((out / "summary.json").read_text(encoding="utf-8"))


def ours(place: Path, name: str, seed: int, *, quick: bool) -> Row:
    """The accuracy of what `predict` writes for the test file, read back from its file."""
    as_folder = SETS.index(name) % 2 == 0
    test = place / name / f"{name}_TEST.ts"
    start = process_time()
    with tempfile.TemporaryDirectory() as folder:
        out, predictions = Path(folder) / "run", Path(folder) / "predictions.npz"
        train(
            place / name if as_folder else place / name / f"{name}_TRAIN.ts",
            out,
            seed,
            *(_QUICK if quick else ()),
        )
        if main(["predict", str(out), "--data", str(test), "--out", str(predictions)]):
            raise RuntimeError(f"rnnscale predict failed for {test}")
        predicted = np.load(predictions)["prediction"]
        summary = summary_of(out)
    _, labels = archive(test)
    return {
        "name": name,
        "library": OURS,
        "seed": seed,
        "given": "folder" if as_folder else "file",
        # aeon reads names in lower case.
        "accuracy": float(np.mean(np.char.lower(predicted) == labels)),
        "steps": summary["steps"],
        "ended": summary["ended"],
        "processor_seconds": round(process_time() - start, 1),
    }


def others(place: Path, name: str, seeds: Sequence[int], *, quick: bool) -> Iterator[Row]:
    """The accuracies of the classifiers of aeon, which train on all training series."""
    (series, labels), (test, test_labels) = (
        archive(place / name / f"{name}_{part}.ts") for part in ("TRAIN", "TEST")
    )
    steps = max(each.shape[-1] for each in [*series, *test])
    series, test = padded(series, steps), padded(test, steps)
    for row in rivals(series, labels, test, test_labels, seeds, quick=quick):
        yield {"name": name, **row}


def archive(path: Path) -> tuple[list[np.ndarray], np.ndarray]:
    """Series of shape (channels, time) and their labels, by aeon's own reader."""
    from aeon.datasets import load_from_ts_file

    series, labels, *_ = load_from_ts_file(str(path))
    return list(series), np.asarray(labels)


def padded(series: Sequence[np.ndarray], steps: int) -> np.ndarray:
    return np.stack([np.pad(x, ((0, 0), (0, steps - x.shape[-1]))) for x in series])


def forecast(file: Path, seed: int, *, quick: bool) -> Row:
    start = process_time()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        options = ["--label", "data", "--inputs", "data"]
        options += ["--horizon", str(HORIZON), *(_QUICK if quick else ())]
        train(file, out, seed, *options)
        summary = summary_of(out)
    return {
        "name": "electrocardiogram",
        "library": OURS,
        "seed": seed,
        "nrmse": summary["test_nrmse"],
        "seasonal_nrmse": summary["seasonal_naive_nrmse"],
        "persistence_nrmse": summary["persistence_nrmse"],
        "steps": summary["steps"],
        "ended": summary["ended"],
        "processor_seconds": round(process_time() - start, 1),
    }


def run(options: argparse.Namespace) -> Iterator[Row]:
    aeon, sktime = (importlib.util.find_spec(name) for name in ("aeon", "sktime"))
    if aeon is None or aeon.origin is None:
        raise Unavailable("needs the files in aeon: pip install 'rnnscale[datasets]'")
    place = Path(aeon.origin).parent / "datasets" / "data"
    seeds = options.seeds
    for name in SETS[:1] if options.quick else SETS:
        yield from others(place, name, seeds, quick=options.quick)
        for seed in seeds:
            yield ours(place, name, seed, quick=options.quick)
    if sktime is not None and sktime.origin is not None:
        file = Path(sktime.origin).parent / "datasets" / "data" / "mitdb" / "mitdb.csv"
        for seed in seeds:
            yield forecast(file, seed, quick=options.quick)


def about(options: argparse.Namespace) -> Row:
    return {"aeon": version("aeon")}


def table(rows: Sequence[Row]) -> Table:
    found = Table("", "", "accuracy, or NRMSE", "processor seconds", box=None)
    for name, library in dict.fromkeys((row["name"], row["library"]) for row in rows):
        each = [row for row in rows if (row["name"], row["library"]) == (name, library)]
        values = [row.get("accuracy", row.get("nrmse")) for row in each]
        seconds = statistics.median(row["processor_seconds"] for row in each)
        found.add_row(name, library, ", ".join(f"{x:.3f}" for x in values), f"{seconds:.0f}")
    return found


BENCHMARK = Benchmark(run=run, table=table, about=about, add_options=add_seeds, rounds=None)
