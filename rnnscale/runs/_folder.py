"""The folder of a run: which files it has, and when a run may use it. Importing it needs no jax."""

import errno
import importlib.util
import json
import logging
import os
import platform
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from rnnscale import distributed
from rnnscale._errors import SaveFailedError, UserError
from rnnscale.runs._config import VERSIONS, options_from, overridden
from rnnscale.runs._curves import draw_curves
from rnnscale.runs._lock import FolderLock
from rnnscale.tasks import Preprocessing, Task, TaskSpec
from rnnscale.training import MetricsFile, saved_steps, where_to_resume

_SHARED = ".shared-"  # what the name of a file begins with that all processes should see
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

_log = logging.getLogger(__name__)

_PACKAGES = ("rnnscale", "jax", "equinox", "optax")


class RunFolder:
    """The files of one training run. Where there are several processes, process 0 writes them.

    ```
    config.json      the options, with the values used, and the versions of Python and packages
    task.json        what the model knows about its task
    preprocessing.json  for one's own data: what was fitted to the training split
    metrics.jsonl    one line per logged step
    summary.json     the figures at the end
    curves.png       loss and metrics over the steps
    checkpoints/     see `Checkpointer`
    samples/         for a model of bytes, a text of its own after each evaluation
    tensorboard/     with `tensorboard`, the metrics for TensorBoard
    wandb/           with `wandb`, the files of Weights & Biases
    programs/        what was compiled, for the next session
    run.lock         which process writes here, while one does
    ```

    Nothing is read or made before it is needed, so a folder that `check` refuses stays as it was.

    **Raises:** `ValueError` if the path is empty.
    """

    def __init__(self, path: str | Path):
        if not str(path):
            raise UserError("out='' names no folder; give the folder of the run")
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.programs = self.path / "programs"
        self.tensorboard = self.path / "tensorboard"
        self._samples = self.path / "samples"
        self._config = self.path / "config.json"
        self._task = self.path / "task.json"
        self._preprocessing = self.path / "preprocessing.json"
        self._summary = self.path / "summary.json"
        self._curves = self.path / "curves.png"
        self._lock = self.path / "run.lock"

    @cached_property
    def metrics(self) -> MetricsFile:
        """The rows of the metrics, in a file."""
        return MetricsFile(self.path / "metrics.jsonl")  # checks its argument, which needs jax

    @classmethod
    def existing(cls, path: str | Path) -> "RunFolder":
        """The folder of a run that was started.

        **Raises:** `ValueError` if the folder holds no run.
        """
        folder = cls(path)
        if not folder.is_run:
            raise UserError(
                f"{path} holds no run (it has no config.json); name the folder that `rnnscale "
                "train` wrote"
            )
        return folder

    @property
    def is_run(self) -> bool:
        """Whether a run was ever started here."""
        return self._config.is_file()

    def check(self, *, resume: bool, steps: int | None = None) -> None:
        """**Raises:** `ValueError` if a run can't be written here: the path is a file; the folder
        holds something other than a run; without `resume`, a run that has checkpoints; or with it,
        a run that has done more than `steps`, if that is given."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"out={self.path} is a file; name a folder")
        # A run that was killed before it had written its config has not begun.
        left = (_partial(self._config).name, self._lock.name, _SHARED)
        others = [path for path in _entries(self.path) if not path.name.startswith(left)]
        if others and not self.is_run:
            raise UserError(
                f"out={self.path} is not empty and holds no run (it has no {self._config.name}); "
                "choose a new or an empty folder"
            )
        saved = saved_steps(self.checkpoints)
        if saved and not resume:
            raise UserError(
                f"out={self.path} holds another run's checkpoints, up to step {saved[-1]}; "
                "continue that run with --resume, or choose another folder"
            )
        if saved and steps is not None and saved[-1] > steps:
            raise UserError(
                f"the run in {self.path} is already at step {saved[-1]}; got steps={steps}, which "
                "counts from the start of the run: give a larger number"
            )

    def check_shared(self, *, seconds: float = 30.0) -> None:
        """Checks that all processes see the same folder. Where there are several, this makes the
        folder. All processes call it.

        **Arguments:**

        - `seconds`: how long it may take until a machine sees a new file of another one.

        **Raises:** `ValueError` in all processes if one does not see what process 0 writes here.
        """
        if distributed.process_count() == 1:
            return

        def write() -> str:
            name = f"{_SHARED}{uuid.uuid4().hex}"
            with self._errors_of_writing():
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

        name = distributed.on_process_0(write)
        until = monotonic() + seconds
        while not (sees := (self.path / name).exists()) and monotonic() < until:
            sleep(0.2)
        distributed.all_reduce(sees, compare)

    @contextmanager
    def locked(self, *, resume: bool) -> Iterator[None]:
        """Inside the `with`, no other run writes here; see `FolderLock`. This makes the folder. All
        processes enter it, and process 0 holds the lock.

        **Raises:** `ValueError`, in all processes, if another run does, or as `check`; and
        `SaveFailedError` if the disk is full, whatever was being written inside the `with`.
        """
        lock = FolderLock(self._lock)

        def acquire() -> None:
            with self._errors_of_writing():
                self.path.mkdir(parents=True, exist_ok=True)
                lock.acquire()

        distributed.on_process_0(acquire)
        try:
            # Another run may have come and gone since the first check.
            distributed.on_process_0(lambda: self.check(resume=resume))
            yield
        except OSError as error:
            if error.errno in _DISK_FULL:
                raise self._cannot_write(error) from error
            raise
        finally:
            if distributed.process_index() == 0:
                lock.release()

    def open(self, config: Mapping[str, Any]) -> None:
        """Makes the folder and writes the options, with the versions that are in use.

        **Raises:** `ValueError` if the folder can't be written to, or `SaveFailedError` if there is
        a checkpoint in it.
        """
        versions = {name: version(name) for name in _PACKAGES}
        versions["python"] = platform.python_version()
        with self._errors_of_writing():
            self.path.mkdir(parents=True, exist_ok=True)
            _write(self._config, {**config, VERSIONS: versions})

    def config(self) -> dict[str, Any]:
        """The options that the run was started or last resumed with; see `read_options`."""
        return read_options(self._config)

    def write_task(self, task: Task) -> None:
        """Writes what is needed of the task to use the trained model."""
        _write(self._task, asdict(task.spec))
        if task.preprocessing is not None:
            _write(self._preprocessing, task.preprocessing.to_json())

    def task_spec(self) -> TaskSpec | None:
        """What the model knows about its task; None in a run of an older version."""
        return TaskSpec(**json.loads(self._task.read_bytes())) if self._task.is_file() else None

    def preprocessing(self) -> Preprocessing | None:
        """What was fitted to the training split; None if the task has none."""
        if not self._preprocessing.is_file():
            return None
        return Preprocessing.from_json(json.loads(self._preprocessing.read_bytes()))

    def rows(self) -> list[dict[str, Any]]:
        """The rows of the metrics."""
        return self.metrics.rows()

    def write_sample(self, step: int, text: str) -> None:
        """Writes a text that the model wrote after a step, and logs its first line."""
        with self._errors_of_writing():
            self._samples.mkdir(exist_ok=True)
            (self._samples / f"{step}.txt").write_text(text, encoding="utf-8")
        _log.info("step %d writes: %s", step, text.split("\n")[0])

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes the figures at the end of the run."""
        _write(self._summary, summary)

    def remove_summary(self) -> None:
        """Removes that of a run that goes on, since its presence says that the run is done."""
        self._summary.unlink(missing_ok=True)

    def summary(self) -> dict[str, Any] | None:
        """The figures at the end of the run; None before it has ended."""
        return json.loads(self._summary.read_bytes()) if self._summary.is_file() else None

    def plot(self) -> None:
        """Draws the metrics over the steps. Without matplotlib, logs which extra installs it."""
        if importlib.util.find_spec("matplotlib") is None:
            _log.warning("no %s without matplotlib: install rnnscale[plots]", self._curves.name)
            return
        # Not through pyplot, which would look for a display.
        from matplotlib.figure import Figure

        figure = Figure(layout="constrained")
        panels = self.draw_curves(figure)
        figure.set_size_inches(4 * max(panels, 1), 3)
        figure.savefig(self._curves, dpi=150)

    def draw_curves(self, figure: Any) -> int:
        """Draws the metrics onto a figure of matplotlib and returns the number of panels."""
        return draw_curves(self.rows(), figure)

    @contextmanager
    def _errors_of_writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._cannot_write(error) from error

    def _cannot_write(self, error: OSError) -> UserError | SaveFailedError:
        failure = f"out={self.path} can't be written to ({error.strerror})"
        if saved_steps(self.checkpoints):
            return SaveFailedError(f"{failure}; {where_to_resume(self.checkpoints)}")
        return UserError(f"{failure}; choose another folder")


def read_options(file: Path, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The options that a `config.json` holds, for `TrainConfig.from_json`.

    **Arguments:**

    - `file`: the file.
    - `given`: options that override those of the file; for `data`, each one for itself.

    **Raises:** `ValueError` if it can't be read or has an option that is unknown.
    """
    try:
        stored = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(
            f"{file} can't be read ({reason}); name the config.json of a run"
        ) from error
    if not isinstance(stored, dict):
        raise UserError(f"{file} holds no options; name the config.json of a run")
    return overridden(options_from(stored), given or {})


def _write(file: Path, content: Mapping[str, Any]) -> None:
    """All or nothing: a process that is killed here leaves the old file."""
    partial = _partial(file)
    partial.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(partial, file)


def _partial(file: Path) -> Path:
    return file.with_name(file.name + ".partial")


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []
