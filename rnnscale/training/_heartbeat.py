"""The connection between `fit` and the watchdog, which knows nothing about training."""

from rnnscale.distributed import Watchdog
from rnnscale.training._callback import Callback, FinishedStep


class Heartbeat(Callback):
    """Tells a `rnnscale.distributed.Watchdog` of each step that has finished.

    **Arguments:**

    - `watchdog`: ends the process if no step finishes for too long.
    """

    def __init__(self, watchdog: Watchdog):
        self._watchdog = watchdog

    def on_step(self, finished: FinishedStep) -> None:
        self._watchdog.finished(finished.step)
