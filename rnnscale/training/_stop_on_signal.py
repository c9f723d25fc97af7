"""The connection between `fit` and signals such as Ctrl-C, which end training between two steps."""

from rnnscale._checks import check_arguments
from rnnscale.distributed import StopSignals
from rnnscale.training._callback import Callback


class StopOnSignal(Callback):
    """Ends training after the step during which SIGINT or SIGTERM came to any process.

    **Arguments:**

    - `signals`: a `rnnscale.distributed.StopSignals`, entered by the caller.
    """

    @check_arguments
    def __init__(self, signals: StopSignals):
        self._signals = signals

    def should_stop(self) -> bool:
        return self._signals.reached()
