import logging
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rnnscale.distributed import process_index

_log = logging.getLogger(__name__)

# What fits beside the bar in 80 columns.
_IN_BAR = ("loss", "accuracy", "bits_per_byte", "tokens_per_second")


class StepProgress:
    """Shows how far training is: a bar on a terminal, a log line per logged step elsewhere. Where
    there are several processes, the first one has the bar."""

    def __init__(self, step: int, steps: int):
        console = Console(stderr=True)
        self._steps = steps
        self._bar = Progress(
            MofNCompleteColumn(),
            BarColumn(bar_width=16),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            console=console,
            disable=not console.is_terminal or process_index() != 0,
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
        if self._bar.disable:
            figures = {k: x for k, x in row.items() if k not in ("step", "elapsed")}
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
