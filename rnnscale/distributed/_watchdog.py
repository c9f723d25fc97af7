import threading
from collections.abc import Iterable, Iterator
from time import monotonic

import jax

from rnnscale._errors import UserError
from rnnscale.distributed._agree import ask, new_key, tell
from rnnscale.distributed._connect import end, process_count, process_index

# Compiling, restoring, evaluating and saving may take so many times as long as a step.
_PATIENCE = 6
# Long enough for a process to fail by itself in the same way, and to say so in its own words.
_GRACE_SECONDS = 5.0
_SHUTDOWN_SECONDS = 20.0


class Watchdog:
    """Inside the `with`, ends the process with a message and exit code 1 where it would wait for
    ever: when nothing happened for too long, or when another process has failed.

    A step that doesn't finish hangs in a collective or a kernel, where no exception reaches it.

    **Arguments:**

    - `minutes`: how long a step may take, positive. Whatever else is going on may take six times
        as long.
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
            tell(self._failures, {"error": f"process {process_index()} failed: {text}"})

    def finished(self, step: int) -> None:
        """A step has finished, and another one may start."""
        self._step = step
        self._waits("waiting for the next step", self._minutes)

    def busy(self, what: str) -> None:
        """Something else than a step has started."""
        self._waits(what, _PATIENCE * self._minutes)

    def watched[T](self, what: str, items: Iterable[T]) -> Iterator[T]:
        """The items; each is a sign of life."""
        for item in items:
            self.busy(what)
            yield item

    def _waits(self, what: str, minutes: float) -> None:
        self._now = what, minutes, monotonic() + 60 * minutes

    def _watch(self) -> None:
        while not self._closed.wait(1.0):
            what, minutes, until = self._now
            if monotonic() > until:
                last = "none did yet" if self._step is None else f"the last was step {self._step}"
                end(f"no step finished for {minutes:g} minutes, {last}; stuck while {what}", 1)
            failure = ask(self._failures, 0) if process_count() > 1 else None
            if failure is not None and not self._closed.wait(_GRACE_SECONDS):
                self._leave()
                end(f"{failure['error']}; this is the end of process {process_index()} too", 1)

    def _leave(self) -> None:
        """The one that failed can leave when the others say that they do."""
        leaving = threading.Thread(target=jax.distributed.shutdown, daemon=True)
        leaving.start()
        leaving.join(_SHUTDOWN_SECONDS)
