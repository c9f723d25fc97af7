"""Stop signals and the watchdog where there is one process, without starting any other."""

import signal
import threading
from typing import Any

import pytest

from rnnscale.distributed import StopSignals, Watchdog, _watchdog


def test_handlers_are_back_after_the_block_and_untouched_in_threads():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as stop:
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
    assert not stop.reached()

    def enter() -> None:
        with StopSignals():
            seen.append(signal.getsignal(signal.SIGTERM))

    seen: list[Any] = []
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_request_between_two_steps_is_reached_once_and_for_all():
    with StopSignals() as stop:
        assert not stop.reached()
        stop.request()
        assert stop.reached() and stop.reached()


def test_every_item_of_an_activity_is_a_sign_of_life():
    heard = []

    class Listener(Watchdog):
        def busy(self, activity: str) -> None:
            heard.append(activity)

    watchdog = Listener(1.0)
    assert list(watchdog.watched("evaluating", "ab")) == ["a", "b"]
    assert heard == ["starting", "evaluating", "evaluating"]
    with pytest.raises(ValueError, match="minutes must be positive, got 0"):
        Watchdog(0)


def test_a_stuck_step_ends_the_process(monkeypatch: pytest.MonkeyPatch):
    ended = threading.Event()

    def end(message: str, code: int) -> None:
        messages.append((message, code))
        ended.set()

    messages: list[tuple[str, int]] = []
    monkeypatch.setattr(_watchdog, "end", end)
    with Watchdog(minutes=0.01) as watchdog:
        for step in range(1, 8):
            watchdog.finished(step)
        assert ended.wait(30)
    assert messages[0] == (
        "no step finished for 0.01 minutes, the last was step 7; stuck while waiting for the next "
        "step",
        1,
    )
