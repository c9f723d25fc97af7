"""An event that all processes see at the same point of the program, whichever of them it came
from: a signal, or a save that is due by the clock of one process."""

import threading

from rnnscale.distributed._collectives import all_reduce
from rnnscale.distributed._connect import process_count
from rnnscale.distributed._store import get, new_key, put


class Event:
    """Any process can request it, and it occurs at the same call of `has_occurred` in all of them.

    All processes call `has_occurred` at the same points of the program, as often as they like. The
    calls are counted. When a process has requested the event, a thread in each process holds up its
    next call until all processes have reported how many calls they have made; the event then occurs
    at the first call that none of them has made yet. So processes may be any number of calls
    apart, there is no device collective, and nothing is sent until the event is requested. Where
    there is one process, the event occurs at its next call.
    """

    def __init__(self):
        self._requested = False
        self._calls = 0
        self._occurs_at: set[int] = set()
        self._round = 0
        self._held = threading.Lock()
        self._closed = False
        self._thread = None
        if process_count() > 1:
            self._key = new_key()
            self._thread = threading.Thread(target=self._listen, name="rnnscale-event", daemon=True)
            self._thread.start()

    def request(self) -> None:
        """Makes the event occur soon. A signal handler may call this."""
        self._requested = True

    def has_occurred(self) -> bool:
        """Whether the event occurs at this call; once for all requests until then."""
        if self._thread is None:
            requested, self._requested = self._requested, False
            return requested
        with self._held:
            self._calls += 1
            if self._calls in self._occurs_at:
                self._occurs_at.remove(self._calls)
                self._requested = False
                return True
            if self._requested and not self._occurs_at:
                put(f"{self._key}/{self._round}", {})
            return False

    def close(self) -> None:
        """Ends the thread. The event does not occur after that."""
        self._closed = True
        if self._thread is not None:
            self._thread.join()

    def _listen(self) -> None:
        while not self._closed:
            key = f"{self._key}/{self._round}"
            if get(key, 1.0) is None:
                continue
            with self._held:
                last = all_reduce(self._calls, max, key=f"{key}/calls")
                self._occurs_at.add(last + 1)
                self._round += 1
