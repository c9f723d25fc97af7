import logging
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_log = logging.getLogger(__name__)


class StepProgress:
    """Shows how far training is: a bar on a terminal, a log line per logged step elsewhere."""

    def __init__(self, step: int, steps: int):
        console = Console(stderr=True)
        self._steps = steps
        self._bar = Progress(
            MofNCompleteColumn(),
            BarColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("compiling the step", total=steps, completed=step)

    def __enter__(self) -> "StepProgress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, step: int) -> None:
        self._bar.update(self._task, completed=step)

    def show(self, row: Mapping[str, float]) -> None:
        figures = "  ".join(
            f"{name.replace('_', ' ')} {value:,.0f}"
            if name == "tokens_per_second"
            else f"{name.replace('_', ' ')} {value:.4g}"
            for name, value in row.items()
            if name not in ("step", "elapsed")
        )
        if self._bar.disable:
            _log.info("step %d/%d  %s", row["step"], self._steps, figures)
        else:
            self._bar.update(self._task, description=figures)
