"""The lock of a run's folder, with processes of this machine, and with files as other machines
write them."""

import errno
import fcntl
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rnnscale import distributed
from rnnscale.runs import _lock
from rnnscale.runs._lock import FolderLock

# What FolderLock does, without importing jax.
HOLD = """
import fcntl, pathlib, shutil, sys, time
path = pathlib.Path(sys.argv[1])
file = path.open("a")
fcntl.flock(file, fcntl.LOCK_EX)
file.write(sys.argv[2])
file.flush()
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def lock(tmp_path: Path) -> FolderLock:
    return FolderLock(tmp_path / "run.lock")


@pytest.fixture
def two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_lock, "_SILENT_SECONDS", 2.0)


def left_by(machine: str, lock: FolderLock, *, age: float = 0.0) -> None:
    """Writes a lock that a process of a machine left behind or holds."""
    holder = {"host": "node-7", "process": os.getppid(), "since": "yesterday", "machine": machine}
    new = lock.path.with_name("new")
    new.write_text(json.dumps({**holder, "id": "theirs"}))
    os.utime(new, (time.time() - age, time.time() - age))
    os.replace(new, lock.path)


def acquired_in(lock: FolderLock) -> float:
    """The seconds in which a new process gets the lock."""
    start = time.monotonic()
    new = FolderLock(lock.path)
    new.acquire()
    new.release()
    assert not lock.path.exists()
    return time.monotonic() - start


@pytest.fixture
def beating(lock: FolderLock) -> Iterator[None]:
    """A process of another machine that is alive."""
    left_by("another", lock)
    done = threading.Event()

    def beat() -> None:
        while not done.wait(0.2):
            os.utime(lock.path)

    thread = threading.Thread(target=beat)
    thread.start()
    yield
    done.set()
    thread.join()


def test_a_second_one_is_refused_and_the_first_one_named(lock: FolderLock):
    lock.acquire()
    held = lock.path.read_bytes()
    second = FolderLock(lock.path)
    with pytest.raises(
        ValueError, match=rf"is in use by process {os.getpid()} on .+, since 20.+Z?"
    ):
        second.acquire()
    assert lock.path.read_bytes() == held
    lock.release()
    assert acquired_in(lock) < 1


def test_of_a_process_until_it_is_killed(lock: FolderLock):
    holder = json.dumps(
        {"host": "here", "process": 7, "since": "noon", "machine": _lock._machine()}
    )
    command = [sys.executable, "-c", HOLD, str(lock.path), holder]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="in use by process 7 on here, since noon; wait until"):
            lock.acquire()
        process.kill()
    assert acquired_in(lock) < 1


def test_another_process_with_the_number_of_a_dead_one_holds_nothing(lock: FolderLock):
    left_by(_lock._machine(), lock)  # with the number of a process that is alive
    assert acquired_in(lock) < 1


@pytest.mark.parametrize("content", ["", '{"host": "no'])
def test_a_process_that_died_before_it_wrote_its_name(lock: FolderLock, content: str):
    lock.path.write_text(content)
    assert acquired_in(lock) < 1


def test_another_machine_that_is_alive(lock: FolderLock, beating: None, two_seconds: None):
    with pytest.raises(ValueError, match="in use by process .* on node-7, since yesterday"):
        lock.acquire()


def test_another_machine_that_died(lock: FolderLock, two_seconds: None):
    left_by("another", lock)
    assert 1 < acquired_in(lock) < 10
    left_by("another", lock, age=100)
    assert acquired_in(lock) < 1


def test_another_machine_whose_run_ends_meanwhile(lock: FolderLock):
    left_by("another", lock)
    threading.Timer(0.5, lock.path.unlink).start()
    assert acquired_in(lock) < 10


def test_a_file_system_without_locks_of_the_kernel(
    lock: FolderLock, two_seconds: None, monkeypatch: pytest.MonkeyPatch
):
    def flock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(_lock, "_BEAT_SECONDS", 0.2)
    lock.acquire()
    with pytest.raises(ValueError, match="is in use by"):
        FolderLock(lock.path).acquire()
    lock.release()
    left_by(_lock._machine(), lock)
    assert 1 < acquired_in(lock) < 10


def test_one_that_was_taken_over_ends_itself(lock: FolderLock, monkeypatch: pytest.MonkeyPatch):
    ended: queue.Queue[tuple[str, int]] = queue.Queue()
    monkeypatch.setattr(_lock, "_BEAT_SECONDS", 0.05)
    monkeypatch.setattr(distributed, "end", lambda message, code: ended.put((message, code)))
    lock.acquire()
    time.sleep(0.3)
    assert ended.empty()
    left_by("another", lock)
    message, code = ended.get(timeout=30)
    lock.release()
    assert lock.path.is_file()  # of the other one
    assert "was taken over by process" in message and "node-7" in message and code == 1
