"""Ends a process that would hang for ever: in a step that does not finish, or in a collective whose
other processes have failed. No exception reaches the main thread there, so a thread watches it."""

import math
import threading
from collections.abc import Iterable, Iterator
from time import monotonic

import jax

from rnnscale._errors import UserError
from rnnscale.distributed._connect import end, process_count, process_index
from rnnscale.distributed._store import get, new_key, put

# Restoring, evaluating and saving may take this many times as long as a step.
_PATIENCE = 6
# Long enough for a process that fails in the same way to print its own message.
_GRACE_SECONDS = 5.0
_SHUTDOWN_SECONDS = 20.0


class Watchdog:
    """Inside the `with`, ends the process with a message and exit code 1 when a step takes too
    long, or when another process has failed.

    **Arguments:**

    - `minutes`: how long a step may take, positive. Everything else may take six times as long,
        except for what was announced by `unlimited`.

    **Raises:** `ValueError` if `minutes` is not positive.
    """

    def __init__(self, minutes: float):
        if not minutes > 0:
            raise UserError(f"minutes must be positive, got {minutes}")
        self._minutes = minutes
        self._step = None
        self.busy("starting")
        self._failures = new_key()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="rnnscale-watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._closed.set()
        self._thread.join()
        if error is not None and process_count() > 1:
            text = " ".join(str(error).split())
            put(self._failures, {"error": f"process {process_index()} failed: {text}"})

    def finished(self, step: int) -> None:
        """A step has finished, and another one may start."""
        self._step = step
        self._expect("waiting for the next step", self._minutes)

    def busy(self, activity: str) -> None:
        """Something other than a step has started, which the message calls `activity`."""
        self._expect(activity, _PATIENCE * self._minutes)

    def unlimited(self, activity: str) -> None:
        """Something has started that may take any time, such as the first compilation."""
        self._expect(activity, math.inf)

    def watched[T](self, activity: str, items: Iterable[T]) -> Iterator[T]:
        """Iterates over `items`, and restarts the time limit of `activity` at each of them."""
        for item in items:
            self.busy(activity)
            yield item

    def _expect(self, activity: str, minutes: float) -> None:
        self._now = activity, minutes, monotonic() + 60 * minutes

    def _watch(self) -> None:
        while not self._closed.wait(1.0):
            activity, minutes, until = self._now
            if monotonic() > until:
                last = "none did yet" if self._step is None else f"the last was step {self._step}"
                end(f"no step finished for {minutes:g} minutes, {last}; stuck while {activity}", 1)
            failure = get(self._failures, 0) if process_count() > 1 else None
            if failure is not None and not self._closed.wait(_GRACE_SECONDS):
                self._leave()
                end(f"{failure['error']}; this ends process {process_index()} too", 1)

    def _leave(self) -> None:
        """Disconnects from the other processes: the one that failed waits for that when it ends."""
        leaving = threading.Thread(target=jax.distributed.shutdown, daemon=True)
        leaving.start()
        leaving.join(_SHUTDOWN_SECONDS)
