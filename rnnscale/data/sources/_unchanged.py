"""Files that must not change while records are read from them."""

import functools
import os
import weakref
from dataclasses import dataclass
from typing import Self

import numpy as np

from rnnscale._errors import UserError


@dataclass(frozen=True)
class UnchangedFile:
    """A file in the state in which a source found it.

    Every access checks that the file has not changed, by its size, modification time and inode. It
    is not mapped into memory, because a process that touches a mapped page of a truncated file is
    killed. Each process opens it at its first read, so that this object can be pickled.
    """

    path: str
    size: int
    modified_ns: int
    inode: int

    @classmethod
    def note(cls, path: str | os.PathLike[str]) -> Self:
        """Notes the present state of a file.

        **Raises:** `ValueError` if there is no such file.
        """
        path = os.path.abspath(path)
        if not os.path.isfile(path):
            raise UserError(f"there is no file {path}")
        found = os.stat(path)
        return cls(path, found.st_size, found.st_mtime_ns, found.st_ino)

    def check(self, record: int) -> None:
        """**Raises:** `ValueError` with file and record if the file has changed."""
        try:
            found = os.stat(self.path)
        except OSError as error:
            raise self._changed(record, f"can't be found any more ({error.strerror})") from error
        if found.st_size != self.size:
            raise self._changed(record, f"had {self.size} bytes and has {found.st_size} now")
        if (found.st_mtime_ns, found.st_ino) != (self.modified_ns, self.inode):
            raise self._changed(record, "was changed or replaced")

    def read_into(self, array: np.ndarray, offset: int, record: int) -> None:
        """Fills an array in C order with the bytes from `offset` on.

        **Raises:** see `check`.
        """
        left = array.reshape(-1).view(np.uint8)
        try:
            # Held, so that the file stays open even if other threads fill the cache meanwhile.
            opened = _opened(self)
            # One call reads at most 2 GiB.
            while left.size and (read := os.preadv(opened.number, [left], offset)):
                left, offset = left[read:], offset + read
        except OSError as error:
            raise self._changed(record, f"can't be read ({error.strerror})") from error
        # After reading, so that a change during the read is noticed too.
        self.check(record)
        if left.size:
            raise self._changed(record, f"ends {left.size} bytes too early")

    def read(self, start: int, stop: int, record: int) -> np.ndarray:
        """The bytes `start` to `stop - 1`, uint8.

        **Raises:** see `check`.
        """
        content = np.empty(stop - start, np.uint8)
        self.read_into(content, start, record)
        return content

    def _changed(self, record: int, what: str) -> UserError:
        return UserError(
            f"{self.path}, record {record}: the file {what}; files must not change while a source "
            "reads them"
        )


class _Descriptor:
    """An open file, closed when nothing refers to this object any more."""

    def __init__(self, path: str):
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self.number)


# One cache per process. It is bounded because the number of open files is limited.
@functools.lru_cache(maxsize=128)
def _opened(file: UnchangedFile) -> _Descriptor:
    return _Descriptor(file.path)
