"""Reading data sets from a user's folder: finding their files, and records in files."""

from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path

import numpy as np

from rnnscale._errors import UserError
from rnnscale.data import Record, UnchangedFile


def file_of_folder(folder: str | PathLike[str], path: str, contents: str) -> Path:
    """The path of a file in the folder.

    **Arguments:**

    - `path`: relative to the folder.
    - `contents`: what belongs in the folder, for the error: `"the archive ..., unpacked"`.

    **Raises:** `ValueError` if there is no such file; it says what to put there.
    """
    found = Path(folder) / path
    if not found.is_file():
        raise UserError(_missing(folder, found, "file", contents))
    return found


def files_of_folder(
    folder: str | PathLike[str], path: str, suffix: str, contents: str
) -> list[Path]:
    """The files in a subfolder, sorted by name; there must be at least one.

    **Arguments:**

    - `suffix`: the end of the files' names.
    - `path`, `contents`: see `file_of_folder`.

    **Raises:** see `file_of_folder`.
    """
    place = Path(folder) / path
    if not place.is_dir():
        raise UserError(_missing(folder, place, "folder", contents))
    found = sorted(place.glob(f"*{suffix}"))
    if not found:
        raise UserError(_missing(folder, place / f"*{suffix}", "file", contents))
    return found


def _missing(folder: str | PathLike[str], found: Path, kind: str, contents: str) -> str:
    return f"there is no {kind} {str(found)!r}; put into {str(folder)!r} {contents}"


class FileRecords[T]:
    """Records in files. Each access reads a record.

    **Arguments:**

    - `items`: for each record, where it is.
    - `read`: reads a record: `read(item, index)`; the index is for errors. A pipeline with workers
        pickles it, so it must be a function of a module, or a `functools.partial` of one.
    """

    def __init__(self, items: Sequence[T], read: Callable[[T, int], Record]):
        self._items = items
        self._read = read

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} records")
        return self._read(self._items[index], index)


class LineRecords:
    """Records that are the lines of a text file. A line is read and parsed at each access.

    **Arguments:**

    - `path`: the file. It must not change.
    - `parse`: converts a line, without its line break, to a record; raises `ValueError` if the line
        is not a valid record. A pipeline with workers pickles it.
    - `header`: number of lines at the beginning that are not records.

    **Raises:** `ValueError` if there is no record; and at an index, with file and line, if the line
    can't be parsed or the file has changed.
    """

    def __init__(self, path: Path, parse: Callable[[bytes], Record], *, header: int = 0):
        self._file = UnchangedFile.note(path)
        self._parse = parse
        self._header = header
        with path.open("rb") as lines:
            self._ends = np.cumsum([0, *(len(line) for line in lines)], dtype=np.int64)
        if len(self) < 1:
            raise UserError(f"{path} has no records")

    def __len__(self) -> int:
        return len(self._ends) - 1 - self._header

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} records")
        line = index + self._header
        start, stop = self._ends[line : line + 2].tolist()
        text = self._file.read(start, stop, index).tobytes().rstrip(b"\r\n")
        try:
            return self._parse(text)
        except ValueError as error:
            raise UserError(f"{self._file.path}, line {line + 1}: {error}") from error


def padded_tokens(tokens: np.ndarray, label: int, steps: int) -> Record:
    """A record of tokens and their class, padded with zeros to `steps`."""
    return {
        "inputs": np.pad(tokens.astype(np.int32), (0, steps - len(tokens))),
        "labels": np.asarray(label, np.int32),
        "lengths": np.asarray(len(tokens), np.int32),
    }
