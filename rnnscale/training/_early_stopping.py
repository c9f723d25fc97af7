"""An end of the training when evaluations have not improved for a while."""

import logging
from typing import Any

from rnnscale._checks import Size, check_arguments
from rnnscale.training._best import Best
from rnnscale.training._callback import Callback, FinishedStep

_log = logging.getLogger(__name__)


class EarlyStopping(Callback):
    """Ends training after `patience` evaluations in a row that did not improve on the best one.

    **Arguments:**

    - `best`: the figure to go by, and its best value so far.
    - `patience`: number of evaluations, at least 1.

    **Raises:** `ValueError` if `patience` is below 1.
    """

    @check_arguments
    def __init__(self, best: Best, *, patience: Size):
        self._best = best
        self._patience = patience

    def on_step(self, finished: FinishedStep) -> None:
        self._best.update(finished)

    def should_stop(self) -> bool:
        return self._best.failures >= self._patience

    def on_end(self, step: int, state: Any) -> None:
        best = self._best
        if best.last == 0:
            _log.warning(
                "%s was not measured within %d steps, so early stopping had no effect; evaluate "
                "more often",
                best.figure,
                step,
            )
        elif self.should_stop():
            _log.info(
                "stopped early after step %d: %s was best at step %s, %d evaluations ago",
                step,
                best.figure,
                best.step,
                best.failures,
            )
