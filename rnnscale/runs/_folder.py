import importlib.util
import json
import logging
import math
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from rnnscale._errors import UserError
from rnnscale.distributed import decide, on_first, process_count
from rnnscale.training import saved_steps

_log = logging.getLogger(__name__)


class RunFolder:
    """The files of one training run. Where there are several processes, the first one writes them.

    ```
    config.json      the options, all of them
    metrics.jsonl    one line per logged step
    summary.json     the figures at the end
    curves.png       loss and metrics over the steps
    checkpoints/     see `Checkpointer`
    ```

    Nothing is read or made before it is needed, so a folder that `check` refuses stays as it was.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self._config = self.path / "config.json"
        self._metrics = self.path / "metrics.jsonl"
        self._summary = self.path / "summary.json"
        self._curves = self.path / "curves.png"

    @property
    def is_run(self) -> bool:
        """Whether a run was ever started here."""
        return self._config.is_file()

    def check(self, *, resume: bool) -> None:
        """**Raises:** `ValueError` if a run can't be written here: the path is a file; the folder
        holds something else than a run; or, without `resume`, a run that has checkpoints."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"out={self.path} is a file; name a folder")
        # A run that was killed while it wrote its config has not begun.
        others = {p.name for p in _entries(self.path)} - {_partial(self._config).name}
        if others and not self.is_run:
            raise UserError(
                f"out={self.path} is not empty and holds no run (it has no {self._config.name}); "
                "choose a new or an empty folder"
            )
        steps = saved_steps(self.checkpoints)
        if steps and not resume:
            raise UserError(
                f"out={self.path} holds another run's checkpoints, up to step {steps[-1]}; "
                "continue that run with --resume, or choose another folder"
            )

    def check_shared(self, *, seconds: float = 30.0) -> None:
        """To be called by all processes. Where there are several, makes the folder.

        **Arguments:**

        - `seconds`: how long a machine may take to see a new file of another one.

        **Raises:** `ValueError` in all of them if one doesn't see what the first one writes here.
        """
        if process_count() == 1:
            return

        def write() -> str:
            name = f".shared-{uuid.uuid4().hex}"
            with self._written_to():
                self.path.mkdir(parents=True, exist_ok=True)
                (self.path / name).touch()
            return name

        def compare(seen: list[bool]) -> None:
            (self.path / name).unlink()
            blind = [str(process) for process, sees in enumerate(seen) if not sees]
            if blind:
                raise UserError(
                    f"out={self.path} is not the same folder in all processes: what process 0 "
                    f"writes there is not seen by process {', '.join(blind)}; name a folder on a "
                    "disk that they share"
                )

        name = on_first(write)
        until = monotonic() + seconds
        while not (sees := (self.path / name).exists()) and monotonic() < until:
            sleep(0.2)
        decide(sees, compare)

    def open(self, config: Mapping[str, Any]) -> None:
        """Makes the folder and writes the options.

        **Raises:** `ValueError` if the folder can't be written to.
        """
        with self._written_to():
            self.path.mkdir(parents=True, exist_ok=True)
            _write(self._config, json.dumps(config, indent=2) + "\n")

    def config(self) -> dict[str, Any]:
        """The options that the run was started or last resumed with.

        **Raises:** `ValueError` if they can't be read.
        """
        try:
            return json.loads(self._config.read_bytes())
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self._config} can't be read ({error}); start again in another folder"
            ) from error

    def log(self, row: Mapping[str, float]) -> None:
        """Appends a line to the metrics. Numbers that JSON lacks (NaN, infinity) become null.

        The line has left this process when `log` returns: killing it loses nothing.
        """
        finite = {k: None if not math.isfinite(v) else v for k, v in row.items()}
        with self._metrics.open("a") as file:
            file.write(json.dumps(finite) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """The lines of the metrics. A last line that was cut off while it was being written is not
        among them."""
        if not self._metrics.is_file():
            return []
        # What follows the last newline, if anything, is a torn line.
        *lines, _ = self._metrics.read_text().split("\n")
        return [json.loads(line) for line in lines]

    def truncate(self, step: int) -> None:
        """Drops the lines of steps after `step`, and a torn last line: a run that goes on from the
        checkpoint of `step` will write them again."""
        kept = [json.dumps(row) + "\n" for row in self.rows() if row["step"] <= step]
        _write(self._metrics, "".join(kept))

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes the figures at the end of the run."""
        _write(self._summary, json.dumps(summary, indent=2) + "\n")

    def summary(self) -> dict[str, Any] | None:
        """The figures at the end of the run, None before it."""
        return json.loads(self._summary.read_bytes()) if self._summary.is_file() else None

    def plot(self) -> None:
        """Draws the metrics over the steps. Without matplotlib, logs which extra has it."""
        if importlib.util.find_spec("matplotlib") is None:
            _log.warning("no %s without matplotlib: install rnnscale[plots]", self._curves.name)
            return
        # Without pyplot, which would look for a display.
        from matplotlib.figure import Figure

        figure = Figure(layout="constrained")
        panels = self.draw_curves(figure)
        figure.set_size_inches(4 * max(panels, 1), 3)
        figure.savefig(self._curves, dpi=150)

    def draw_curves(self, figure: Any) -> int:
        """Draws the metrics over the steps onto a figure of matplotlib, a panel for each.

        **Returns:** how many panels there are.
        """
        rows = self.rows()
        told = {"step", "elapsed", "tokens_per_second", "learning_rate"}
        names = [k for k in dict.fromkeys(k for row in rows for k in row) if k not in told]
        panels = [n for n in names if not n.startswith("validation_")]
        for i, name in enumerate(panels):
            axes = figure.add_subplot(1, len(panels), i + 1)
            for curve, style in ((name, "-"), (f"validation_{name}", "--")):
                points = [(r["step"], r[curve]) for r in rows if r.get(curve) is not None]
                if points:
                    # A lone point, such as a validation at the end only, is no line.
                    mark = "o" if len(points) == 1 else None
                    axes.plot(*zip(*points, strict=True), style, marker=mark, label=curve)
            axes.set(xlabel="step", title=name.replace("_", " "))
            axes.legend(fontsize="small")
        return len(panels)

    @contextmanager
    def _written_to(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"out={self.path} can't be written to ({error.strerror}); choose another folder"
            ) from error


def _write(file: Path, text: str) -> None:
    """All or nothing: a process that is killed here leaves the old file."""
    partial = _partial(file)
    partial.write_text(text)
    os.replace(partial, file)


def _partial(file: Path) -> Path:
    return file.with_name(file.name + ".partial")


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []
