"""The progress of training: a bar on a terminal, lines in a log elsewhere."""

import logging
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rnnscale.distributed import process_index
from rnnscale.training._callback import Callback, FinishedStep

_log = logging.getLogger(__name__)

# The figures for which there is room next to the bar in 80 columns.
_IN_BAR = ("loss", "accuracy", "bits_per_byte", "tokens_per_second")


class ProgressBar(Callback):
    """Shows a progress bar on a terminal, in process 0. Where stderr is not a terminal, there is no
    bar, and rows are logged as lines, without the figures of single layers, such as
    `parallel_residual/layer_0`.

    `show` is a writer for `Log`, which gives it the figures:

    ```python
    from rnnscale.training import Log, ProgressBar

    bar = ProgressBar()
    callbacks = [bar, Log(bar.show)]
    ```
    """

    def __init__(self):
        console = Console(stderr=True, markup=False)
        self._bar = Progress(
            MofNCompleteColumn(),
            BarColumn(bar_width=16),
            TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False),
            console=console,
            disable=not console.is_terminal or process_index() != 0,
        )

    def on_start(self, step: int, steps: int, state: Any) -> None:
        self._steps = steps
        self._task = self._bar.add_task("compiling the step", total=steps, completed=step)
        self._bar.start()

    def on_step(self, finished: FinishedStep) -> None:
        self._bar.update(self._task, completed=finished.step)

    def close(self) -> None:
        self._bar.stop()

    def show(self, row: Mapping[str, float]) -> None:
        """Shows the figures of a row."""
        if self._bar.disable:
            left_out = ("step", "elapsed", "cpu_seconds")
            figures = {k: x for k, x in row.items() if k not in left_out and "/" not in k}
            _log.info("step %d/%d  %s", row["step"], self._steps, _text(figures))
        else:
            figures = {k: row[k] for k in _IN_BAR if k in row}
            self._bar.update(self._task, description=_text(figures))


def _text(figures: Mapping[str, float]) -> str:
    texts = [
        f"{x:,.0f} tokens/s" if name == "tokens_per_second" else f"{name.replace('_', ' ')} {x:.4g}"
        for name, x in figures.items()
    ]
    return "  ".join(texts)
