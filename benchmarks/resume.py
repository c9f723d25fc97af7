"""Seconds from the start of `rnnscale train` to its first step, in a new run and in a resumed one.

The new run is killed after its first checkpoint, and then resumed. What it compiled is in its
folder. `cpu_s` is the processor time until the first step of a session is saved, on all cores: on a
busy machine it says more than the seconds.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rnnscale.runs import RunFolder
from rnnscale.training import saved_steps

from ._benchmark import Benchmark, Figure, Row, columns

MODELS = ("s5", "lru", "lstm", "cornn")
QUICK = ("indrnn",)
SMALL = ["--dim", "8", "--depth", "1", "--batch-size", "8"]


def run(options: argparse.Namespace) -> Iterator[Row]:
    for model in QUICK if options.quick else MODELS:
        found: dict[str, list[tuple[float, float]]] = {"new": [], "resumed": []}
        for _ in range(options.rounds):
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "run"
                given = ["digits", "--model", model, "--steps", "1000", "--save-every", "1"]
                given += ["--log-every", "1", *(SMALL if options.quick else [])]
                found["new"].append(session(given, out))
                # What follows the checkpoint is about to be written again.
                RunFolder(out).metrics.truncate(saved_steps(out / "checkpoints")[-1])
                found["resumed"].append(session(["--resume"], out))
        for name, sessions in found.items():
            seconds, cpu_s = (statistics.median(each) for each in zip(*sessions, strict=True))
            yield {"model": model, "session": name, "seconds": seconds, "cpu_s": cpu_s}


def session(arguments: list[str], out: Path) -> tuple[float, float]:
    """Seconds until the first row of the log, and processor seconds until a checkpoint follows."""
    folder = RunFolder(out)
    rows, saves = len(folder.rows()), saved_steps(folder.checkpoints)
    command = [sys.executable, "-m", "rnnscale", "train", *arguments, "--out", str(out)]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:

        def wait_for(happened: Callable[[], bool]) -> None:
            while not happened():
                if process.poll() is not None:
                    assert process.stderr is not None
                    raise RuntimeError(process.stderr.read().decode())
                time.sleep(0.01)

        wait_for(lambda: len(folder.rows()) > rows)
        seconds = time.perf_counter() - start
        wait_for(lambda: saved_steps(folder.checkpoints) != saves)
        process.kill()
        _, _, usage = os.wait4(process.pid, 0)
        process.returncode = -9
    return seconds, usage.ru_utime + usage.ru_stime


def plot(rows: Sequence[Row], figure: Figure) -> None:
    figure.set_size_inches(5, 3)
    panel = figure.subplots()
    models = list(dict.fromkeys(row["model"] for row in rows))
    for i, name in enumerate(("new", "resumed")):
        chosen = {row["model"]: row["cpu_s"] for row in rows if row["session"] == name}
        places = [k + 0.4 * i for k in range(len(models))]
        panel.bar(places, [chosen[model] for model in models], width=0.4, label=name)
    panel.set_xticks([k + 0.2 for k in range(len(models))], models)
    panel.set_ylabel("processor seconds to the first step")
    panel.legend()


BENCHMARK = Benchmark(
    run=run,
    table=columns("model", "session", "seconds", "cpu_s"),
    plot=plot,
    rounds=3,
    quick_rounds=1,
)
