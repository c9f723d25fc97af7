"""Data sets in a folder of the user's, as they were published."""

from collections.abc import Callable
from os import PathLike
from pathlib import Path

import numpy as np

from rnnscale._errors import UserError
from rnnscale.data.sources import Record, UnchangedFile


def file_of_folder(folder: str | PathLike[str], path: str, where_from: str) -> Path:
    """A file that has to be in the folder.

    **Arguments:**

    - `path`: in the folder.
    - `where_from`: what to put there, as a sentence's end: `"the archive of ..., unpacked"`.

    **Raises:** `ValueError` that says so where it is missing.
    """
    found = Path(folder) / path
    if not found.is_file():
        raise UserError(_missing(folder, found, "file", where_from))
    return found


def files_of_folder(
    folder: str | PathLike[str], path: str, suffix: str, where_from: str
) -> list[Path]:
    """The files of a subfolder by their names, of which there has to be one.

    **Arguments:**

    - `suffix`: of the files' names.

    **Raises:** as `file_of_folder`.
    """
    place = Path(folder) / path
    if not place.is_dir():
        raise UserError(_missing(folder, place, "folder", where_from))
    found = sorted(place.glob(f"*{suffix}"))
    if not found:
        raise UserError(_missing(folder, place / f"*{suffix}", "file", where_from))
    return found


def _missing(folder: str | PathLike[str], found: Path, kind: str, where_from: str) -> str:
    return f"there is no {kind} {str(found)!r}; put into {str(folder)!r} {where_from}"


class LineRecords:
    """Records that are the lines of a text file, each read when it is asked for.

    **Arguments:**

    - `path`: of a file that has to stay as it is.
    - `parse`: makes a record of a line without its end; raises `ValueError` where it is none. A
        pipeline with workers pickles it.
    - `header`: lines at the beginning that are no records.

    **Raises:** `ValueError` if there is no record, and for one that is read, with file and line, if
    it can't be parsed or the file is not as it was.
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
            raise IndexError(f"record {index} of {len(self)}")
        line = index + self._header
        start, stop = self._ends[line : line + 2].tolist()
        text = self._file.read(start, stop, index).tobytes().rstrip(b"\r\n")
        try:
            return self._parse(text)
        except ValueError as error:
            raise UserError(f"{self._file.path}, line {line + 1}: {error}") from error


def padded_tokens(tokens: np.ndarray, label: int, steps: int) -> Record:
    """A record of tokens filled up with zeros, its class, and where the zeros begin."""
    return {
        "inputs": np.pad(tokens.astype(np.int32), (0, steps - len(tokens))),
        "labels": np.asarray(label, np.int32),
        "lengths": np.asarray(len(tokens), np.int32),
    }
