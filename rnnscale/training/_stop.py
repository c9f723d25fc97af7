import logging
import signal
import threading
from types import FrameType
from typing import Any

_log = logging.getLogger(__name__)


class StopSignals:
    """Inside the `with`, SIGINT (Ctrl-C) and SIGTERM ask for an end instead of forcing it:

    ```python
    with StopSignals() as stop:
        while not stop.requested:
            ...
    ```

    The handlers from before are back after the first signal already, so a second one does what it
    always did, and after the block. Python delivers signals to the main thread only; elsewhere
    nothing is changed and nothing is ever requested.
    """

    def __init__(self):
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _request(self, number: int, _: FrameType | None) -> None:
        self.requested = True
        self._restore()
        _log.warning("%s: stopping after this step", signal.Signals(number).name)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
