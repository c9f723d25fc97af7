"""An end of the training when it has used as much processor time as it may."""

import logging
from typing import Any

from rnnscale._checks import Positive, check_arguments
from rnnscale.distributed import Event
from rnnscale.training._callback import Callback, FinishedStep
from rnnscale.training._log import Clock

_log = logging.getLogger(__name__)


class CpuBudget(Callback):
    """Ends training when the run has used this much processor time, over all of its sessions.

    Where there are several processes, all of them end at the same step, soon after the first one
    has used up its own.

    **Arguments:**

    - `clock`: the time spent so far, which a `Log` before this callback keeps up to date.
    - `minutes`: processor time of a process, summed over its threads, positive.

    **Raises:** `ValueError` if `minutes` is not positive.
    """

    @check_arguments
    def __init__(self, clock: Clock, *, minutes: Positive):
        self._clock = clock
        self._minutes = minutes
        self._event = Event()
        self.used_up = False

    def on_start(self, step: int, steps: int, state: Any) -> None:
        self._request_if_used_up()

    def on_step(self, finished: FinishedStep) -> None:
        self._request_if_used_up()

    def should_stop(self) -> bool:
        self.used_up = self.used_up or self._event.has_occurred()
        return self.used_up

    def on_end(self, step: int, state: Any) -> None:
        if self.used_up:
            _log.info("%g minutes of processor time were used up at step %d", self._minutes, step)

    def close(self) -> None:
        self._event.close()

    def _request_if_used_up(self) -> None:
        if self._clock.cpu_seconds >= 60 * self._minutes:
            self._event.request()
