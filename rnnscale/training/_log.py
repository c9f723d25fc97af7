"""A row of figures every few steps: which steps are logged, what a row holds, and the clock that
its rates come from. Where rows go is up to writers, in files of their own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter, process_time
from typing import Any

from rnnscale._checks import Size, check_arguments
from rnnscale.distributed import process_index
from rnnscale.training._callback import Callback, FinishedStep
from rnnscale.training._loss import with_metric

type Row = Mapping[str, float]

# `SkippedSteps` reports these.
_NOT_LOGGED = {"skipped", "skipped_in_a_row"}


@dataclass
class Clock:
    """Time spent in a run, over all of its sessions. Checkpoints hold it.

    **Attributes:**

    - `elapsed`: seconds in `fit`.
    - `cpu_seconds`: processor time of this process in `fit`, summed over its threads, with that of
        compiling. Unlike `elapsed` it hardly depends on what else the machine does.
    - `tokens`, `seconds`: time steps of training data, and the seconds that they took. The first
        step of a session, which compiles, and evaluations are not counted.
    - `waiting`: seconds among these in which the next batch was not ready.
    """

    elapsed: float = 0.0
    cpu_seconds: float = 0.0
    tokens: int = 0
    seconds: float = 0.0
    waiting: float = 0.0

    @property
    def input_stall(self) -> float:
        """The fraction of the time in which the next batch was not ready."""
        return self.waiting / self.seconds if self.seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Time steps of training data per second; 0 before any were counted."""
        return self.tokens / self.seconds if self.seconds else 0.0


class Log(Callback):
    """Gives a row of figures to each of its writers: every few steps, at the last step, and at each
    step after which a callback measured something.

    A row has `step`, all metrics of the train step, which must have a `loss`, then the rate and the
    time, and the figures that callbacks measured. Only process 0 writes.

    ```python
    from rnnscale.training import Log

    callbacks = [Log(print, every=50)]
    ```

    **Arguments:**

    - `writers`: functions of a row: a `MetricsFile`, the `show` of a `ProgressBar`, `print`.
    - `every`: steps between two rows, at least 1.
    - `tokens_per_step`: time steps in a batch, for `tokens_per_second`, the rate since the row
        before; None to leave that out.
    - `clock`: the time spent in earlier sessions of the run, which goes on from there.
    - `metric`: with `"bits_per_byte"`, rows have the loss in bits as well, with `"mse"` under that
        name.

    **Raises:** `ValueError` if `every` is below 1.
    """

    @check_arguments
    def __init__(
        self,
        *writers: Callable[[Row], Any],
        every: Size = 10,
        tokens_per_step: Size | None = None,
        clock: Clock | None = None,
        metric: str | None = None,
    ):
        self.clock = Clock() if clock is None else clock
        self._writers = writers
        self._every = every
        self._tokens = tokens_per_step
        self._metric = metric

    def on_start(self, step: int, steps: int, state: Any) -> None:
        self._steps, self._first = steps, step
        self._start, self._cpu_start = perf_counter(), process_time()
        self._before, self._cpu_before = self.clock.elapsed, self.clock.cpu_seconds
        self._window = Clock()  # since the last row

    def on_step(self, finished: FinishedStep) -> None:
        session = perf_counter() - self._start
        self.clock.elapsed = self._before + session
        self.clock.cpu_seconds = self._cpu_before + process_time() - self._cpu_start
        if finished.seconds is not None:
            for clock in (self.clock, self._window):
                clock.tokens += self._tokens or 0
                clock.seconds += finished.seconds
                clock.waiting += finished.waiting
        step = finished.step
        if finished.figures or step % self._every == 0 or step == self._steps:
            row = self._row(finished, session)
            self._window = Clock()
            if process_index() == 0:
                for write in self._writers:
                    write(row)

    def _row(self, finished: FinishedStep, session: float) -> Row:
        metrics = {k: x for k, x in finished.metrics.items() if k not in _NOT_LOGGED}
        row = {"step": finished.step, "loss": metrics["loss"], **with_metric(metrics, self._metric)}
        if self._tokens is not None:
            # Steps with an evaluation have no time of their own. Where no step has, the session
            # counts with all that it does.
            steps = finished.step - self._first
            rate = (
                self._window.tokens_per_second
                or self.clock.tokens_per_second
                or self._tokens * steps / session
            )
            row["tokens_per_second"] = round(rate, 1)
        times = {
            "elapsed": round(self.clock.elapsed, 3),
            "cpu_seconds": round(self.clock.cpu_seconds, 3),
        }
        return {**row, **times, **finished.figures}
