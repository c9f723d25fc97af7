"""The connection between `fit` and the watchdog, which knows nothing about training."""

from rnnscale._checks import check_arguments
from rnnscale.distributed import Watchdog
from rnnscale.training._callback import Callback, FinishedStep


class Heartbeat(Callback):
    """Reports each finished step to a `rnnscale.distributed.Watchdog`.

    **Arguments:**

    - `watchdog`: ends the process if no step finishes for too long.
    """

    @check_arguments
    def __init__(self, watchdog: Watchdog):
        self._watchdog = watchdog

    def on_step(self, finished: FinishedStep) -> None:
        self._watchdog.finished(finished.step)
