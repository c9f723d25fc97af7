"""The lock of a run's folder: at most one run writes there, and one that died holds up nobody."""

import errno
import fcntl
import json
import logging
import os
import socket
import tempfile
import threading
import uuid
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from rnnscale import distributed
from rnnscale._errors import UserError

_log = logging.getLogger(__name__)

_BEAT_SECONDS = 10.0
# A process of another machine that has not renewed its lock for this long is dead.
_SILENT_SECONDS = 60.0
# The errors of a file system without the kernel's locks.
_NO_KERNEL_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


class FolderLock:
    """A file that names the process that writes into its folder: host, process id, and since when.

    Two signs say whether that process is alive:

    - The kernel's lock on the file (`flock`). It ends with the process, however that dies, and does
        not mistake another process with the same id for it. So a run that was killed can be resumed
        at once on the same machine, in any container.
    - The time of the file, which a thread renews every 10 seconds. Not all network file systems
        share the kernel's locks between machines, so a process of another machine is taken for dead
        when it has not renewed that time for a minute. The time is compared with another one of the
        same file system, so the clocks of the machines may differ.

    A process that finds its lock taken over, because it was suspended for longer, ends itself.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file = -1
        self._kernel = True  # whether the file system has the kernel's locks
        self._mine: dict[str, Any] = {}
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="rnnscale-lock", daemon=True)

    def acquire(self) -> None:
        """Takes the lock. If a process of another machine holds it, this first waits for up to a
        minute for a sign of life.

        **Raises:** `ValueError` if a process that is alive holds it.
        """
        while not self._take():
            pass
        self._mine = {
            "host": socket.gethostname(),
            "process": os.getpid(),
            "since": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
            "machine": _machine(),
            "id": uuid.uuid4().hex,
        }
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, json.dumps(self._mine, indent=2).encode() + b"\n", 0)
        self._thread.start()

    def release(self) -> None:
        """Removes the file, unless another process has taken it over."""
        self._closed.set()
        self._thread.join()
        if self._holder() == self._mine:
            self.path.unlink(missing_ok=True)
        os.close(self._file)

    def _take(self) -> bool:
        """Opens and locks the file. False if the process that held it has just removed it."""
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._lock()
            holder = self._holder()
            if holder and not (self._kernel and holder["machine"] == _machine()):
                self._wait_for_silence(holder)
            if os.path.samestat(os.fstat(self._file), self.path.stat()):
                return True
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(self._file)
            raise
        os.close(self._file)
        return False

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._in_use(self._holder()) from None
        except OSError as error:
            if error.errno not in _NO_KERNEL_LOCKS:
                raise
            self._kernel = False

    def _wait_for_silence(self, holder: dict[str, Any]) -> None:
        renewed = self.path.stat().st_mtime
        with tempfile.NamedTemporaryFile(dir=self.path.parent, prefix=self.path.name) as new:
            silent = os.fstat(new.fileno()).st_mtime - renewed
        until = monotonic() + _SILENT_SECONDS - silent
        if monotonic() < until:
            _log.info("waiting for a sign of life from %s", _words(holder))
        while monotonic() < until:
            sleep(1.0)
            # Opened again, since a network file system may otherwise answer from its cache.
            with self.path.open() as again:
                if os.fstat(again.fileno()).st_mtime != renewed:
                    raise self._in_use(holder)

    def _beat(self) -> None:
        while not self._closed.wait(_BEAT_SECONDS):
            try:
                if (holder := self._holder()) != self._mine:
                    distributed.end(f"out={self.path.parent} was taken over by {_words(holder)}", 1)
                os.utime(self._file)
            except OSError as error:
                _log.warning("the lock %s can't be renewed: %s", self.path, error)

    def _holder(self) -> dict[str, Any]:
        """What the file says; nothing if there is no file, or its process died before it wrote."""
        try:
            return json.loads(self.path.read_bytes())
        except (FileNotFoundError, ValueError):
            return {}

    def _in_use(self, holder: dict[str, Any]) -> UserError:
        return UserError(
            f"out={self.path.parent} is in use by {_words(holder)}; wait until that run ends, or "
            "choose another folder"
        )


def _words(holder: dict[str, Any]) -> str:
    if not holder:
        return "another process"
    return "process {process} on {host}, since {since}".format_map(holder)


def _machine() -> str:
    """The same for all processes that share the kernel's locks on a local disk. Names of hosts do
    not tell: containers of one machine have different ones, and those of others may have the
    same."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.exists() else socket.gethostname()
