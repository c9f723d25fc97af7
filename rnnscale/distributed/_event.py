import threading

from rnnscale.distributed._agree import ask, decide, new_key, tell
from rnnscale.distributed._connect import process_count


class Event:
    """Something that any process can ask for, and that comes at the same point in all of them.

    All processes call `has_come` at the same points of the program, as often as they like. When
    one of them has asked, a thread in each holds up its next call, until all have told how many
    calls they have made. The event comes at the first call that none has made yet. So it doesn't
    matter how far the processes are apart, there is no collective, and it costs nothing until
    somebody asks. Where there is one process, the event comes at the next call.
    """

    def __init__(self):
        self._asked = False
        self._calls = 0
        self._comes_at: set[int] = set()
        self._round = 0
        self._held = threading.Lock()
        self._closed = False
        self._thread = None
        if process_count() > 1:
            self._key = new_key()
            self._thread = threading.Thread(target=self._listen, name="rnnscale-event", daemon=True)
            self._thread.start()

    def ask(self) -> None:
        """Asks for it. A signal handler may do so."""
        self._asked = True

    def has_come(self) -> bool:
        """Whether the event comes at this call; once for all who have asked so far."""
        if self._thread is None:
            asked, self._asked = self._asked, False
            return asked
        with self._held:
            self._calls += 1
            if self._calls in self._comes_at:
                self._comes_at.remove(self._calls)
                self._asked = False
                return True
            if self._asked and not self._comes_at:
                tell(f"{self._key}/{self._round}", {})
            return False

    def close(self) -> None:
        """Ends the thread. After that, the event doesn't come any more."""
        self._closed = True
        if self._thread is not None:
            self._thread.join()

    def _listen(self) -> None:
        while not self._closed:
            key = f"{self._key}/{self._round}"
            if ask(key, 1.0) is None:
                continue
            with self._held:
                last = decide(self._calls, max, key=f"{key}/calls")
                self._comes_at.add(last + 1)
                self._round += 1
