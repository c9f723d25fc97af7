import logging
import signal
import threading
from types import FrameType
from typing import Any

from rnnscale.distributed._event import Event

_log = logging.getLogger(__name__)


class StopSignals:
    """Inside the `with`, SIGINT (Ctrl-C) and SIGTERM ask for an end instead of forcing it:

    ```python
    with StopSignals() as stop:
        while not stop.reached():
            ...
    ```

    A signal to one of several processes ends all of them at the same call of `reached`, which they
    therefore make equally often.

    The handlers from before are back after the first signal already, so a second one does what it
    always did, and after the block. Python delivers signals to the main thread only; elsewhere
    nothing is changed and no signal is seen.
    """

    def __init__(self):
        self._event = Event()
        self._requested = False
        self._reached = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()
        self._event.close()

    def request(self) -> None:
        """Asks for an end, as a signal does."""
        self._requested = True
        self._event.ask()

    def reached(self) -> bool:
        """Whether to end here. Stays true."""
        if not self._reached and self._event.has_come():
            self._reached = True
            if not self._requested:
                _log.warning("another process was told to stop: stopping here too")
        return self._reached

    def _handle(self, number: int, _: FrameType | None) -> None:
        self.request()
        self._restore()
        _log.warning("%s: stopping after this step", signal.Signals(number).name)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
