"""An iterator whose batches a thread prepares in advance, and which ends the thread reliably."""

import contextlib
import queue
import threading
import weakref
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Self

import jax

type Batch = dict[str, jax.Array]

# Batches that wait on the devices for the consumer.
_PREFETCH = 2


class Batches(Iterator[Batch]):
    """Batches that a thread prepares while the consumer is busy with an earlier one.

    The thread ends after the last batch, at an error, when `close` is called, at the end of a
    `with` block, and when nothing refers to the iterator any more. After `close` and after an error
    there are no more batches.

    **Attributes:**

    - `waited`: how long the consumer has waited for batches, in seconds.
    """

    def __init__(self, source: Generator[Batch]):
        self.waited = 0.0
        self._queue: queue.Queue[Batch | _End] = queue.Queue(_PREFETCH)
        stop = threading.Event()
        # The thread refers to the queue but not to this object, which could otherwise not be freed.
        thread = threading.Thread(
            target=_fill, args=(self._queue, stop, source), name="rnnscale-batches", daemon=True
        )
        self._close = weakref.finalize(self, _shut_down, self._queue, stop, thread)
        thread.start()

    def __next__(self) -> Batch:
        if not self._close.alive:
            raise StopIteration
        began = perf_counter()
        item = self._queue.get()
        self.waited += perf_counter() - began
        if isinstance(item, _End):
            self.close()
            if item.error is not None:
                raise item.error
            raise StopIteration
        return item

    def close(self) -> None:
        """Ends the thread and the worker processes. Waits for a batch that is being loaded."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class _End:
    """Marks the end of the batches in the queue."""

    error: BaseException | None = None


def _fill(
    batches: queue.Queue[Batch | _End], stop: threading.Event, source: Generator[Batch]
) -> None:
    end = _End()
    try:
        with contextlib.closing(source):
            for batch in source:
                batches.put(batch)
                if stop.is_set():
                    break
    except BaseException as error:  # The consumer raises it.
        end = _End(error)
    batches.put(end)


def _shut_down(
    batches: queue.Queue[Batch | _End], stop: threading.Event, thread: threading.Thread
) -> None:
    stop.set()
    # Make room for what the thread may still put: the batch it is preparing, and the end.
    with contextlib.suppress(queue.Empty):
        while True:
            batches.get_nowait()
    # The garbage collector may call this in the thread itself.
    if thread is not threading.current_thread():
        thread.join()
