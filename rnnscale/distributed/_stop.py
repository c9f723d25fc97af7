"""Signals that end a program between two steps instead of at once."""

import logging
import signal
import threading
from types import FrameType
from typing import Any

from rnnscale.distributed._event import Event

_log = logging.getLogger(__name__)


class StopSignals:
    """Inside the `with`, SIGINT (Ctrl-C) and SIGTERM request a stop instead of forcing it:

    ```python
    with StopSignals() as stop:
        while not stop.reached():
            ...
    ```

    A signal to any process stops all of them at the same call of `reached`. Therefore all processes
    must call it equally often.

    The previous handlers are restored after the first signal, so that a second one has its usual
    effect, and at the end of the block. Python delivers signals to the main thread only; in other
    threads this changes nothing and sees no signal.
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
        """Requests a stop, as a signal does."""
        self._requested = True
        self._event.request()

    def reached(self) -> bool:
        """Whether to stop here. Once true, it stays true."""
        if not self._reached and self._event.has_occurred():
            self._reached = True
            if not self._requested:
                _log.warning("another process was asked to stop: stopping here too")
        return self._reached

    def _handle(self, number: int, _: FrameType | None) -> None:
        self.request()
        self._restore()
        _log.warning("%s: stopping after this step", signal.Signals(number).name)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
