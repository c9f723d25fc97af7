"""Sources of documents: the text files, or all files, of a folder."""

import abc
import codecs
import os
from collections.abc import Iterator, Set
from pathlib import Path

import numpy as np

from rnnscale._checks import check_arguments
from rnnscale._errors import UserError
from rnnscale.data.sources._source import AbstractSequences, ArraySpec, Record
from rnnscale.data.sources._unchanged import UnchangedFile
from rnnscale.data.sources._unusable import Unusable

_BLOCK = 1 << 20


class _Documents(AbstractSequences):
    """The files of a folder and its subfolders, each a document of bytes, in the order of their
    paths. A subclass decides which files can be used."""

    @check_arguments
    def __init__(self, folder: str | os.PathLike[str], suffix: str = "", *, skip: bool = False):
        self._files: list[UnchangedFile] = []
        unusable = Unusable(skip)
        for path in files_under(folder, suffix):
            file = UnchangedFile.note(path)
            reason = self._reason_against(file)
            if reason is None:
                self._files.append(file)
            else:
                unusable.note(file.path, reason)
        self.skipped = unusable.all()
        if not self._files:
            named = f" that ends in {suffix!r}" if suffix else ""
            raise UserError(f"no file{named} in {str(folder)!r} can be used")
        self.lengths = np.array([file.size for file in self._files], np.int64)
        self.element_spec = {"tokens": ArraySpec((None,), np.dtype(np.uint8))}

    @abc.abstractmethod
    def _reason_against(self, file: UnchangedFile) -> str | None:
        """Why a file can't be used, or None if it can."""

    def read(self, index: int, start: int, stop: int) -> Record:
        return {"tokens": self._files[index].read(start, stop, index)}


class ByteFiles(_Documents):
    """The files of a folder and its subfolders, each a document of bytes: `"tokens"`, uint8, shape
    `(None,)`. Hidden ones (`.git`) are left out.

    **Arguments:**

    - `folder`: the folder to search, or one file.
    - `suffix`: the end of the files' names, such as `".bin"`; by default, anything.
    - `skip`: whether to leave out empty files, which are an error otherwise. `skipped` lists them.

    **Raises:** `ValueError` if there is no such folder, or no file can be used; and at an index,
    with file and record, if a file has changed.
    """

    def _reason_against(self, file: UnchangedFile) -> str | None:
        return None if file.size else "it is empty"


class TextFiles(_Documents):
    """The text files of a folder and its subfolders, each a document of bytes: `"tokens"`, uint8,
    shape `(None,)`. Hidden ones (`.git`) are left out.

    A file is text if it is valid UTF-8 without zero bytes, so zero can mark the end of a document.
    To check that, the constructor reads each file once.

    **Arguments, raises:** see `ByteFiles`; `skip` leaves out files that are not text too.
    """

    def _reason_against(self, file: UnchangedFile) -> str | None:
        if file.size == 0:
            return "it is empty"
        decoder = codecs.getincrementaldecoder("utf-8")()
        for start in range(0, file.size, _BLOCK):
            stop = min(start + _BLOCK, file.size)
            block = file.read(start, stop, 0).tobytes()
            if b"\0" in block:
                return "it is not text: it has a zero byte"
            try:
                decoder.decode(block, final=stop == file.size)
            except UnicodeDecodeError:
                return "it is not text: it is not UTF-8"
        return None


@check_arguments
def files_under(
    folder: str | os.PathLike[str], suffix: str = "", left_out: Set[str] = frozenset()
) -> list[Path]:
    """The files in a folder and its subfolders, without hidden ones, in the order of their paths.
    Links to files are followed, those to folders are not.

    **Arguments:**

    - `folder`: the folder; or a file, which is then the only one.
    - `suffix`: the end of the files' names; by default, anything.
    - `left_out`: names of subfolders to leave out.

    **Raises:** `ValueError` if there is no such folder.
    """
    folder = Path(folder)
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise UserError(f"there is no folder {str(folder)!r}")
    return sorted(_walk(folder, suffix, left_out), key=lambda p: p.relative_to(folder).as_posix())


def _walk(folder: Path, suffix: str, left_out: Set[str]) -> Iterator[Path]:
    for parent, folders, names in folder.walk():
        folders[:] = [f for f in folders if f not in left_out and not f.startswith(".")]
        for name in names:
            path = parent / name
            # A directory entry can also be a pipe, or a link to nowhere.
            if not name.startswith(".") and name.endswith(suffix) and path.is_file():
                yield path
