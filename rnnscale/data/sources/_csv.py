"""Time series in files of comma-separated numbers."""

import codecs
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rnnscale._errors import UserError
from rnnscale.data.sources._documents import files_under
from rnnscale.data.sources._source import ArraySpec, ElementSpec, Record
from rnnscale.data.sources._unchanged import UnchangedFile
from rnnscale.data.sources._unusable import Skipped, Unusable

# Lines between two whose place in the file is noted.
_LINES = 256


class CsvSeries:
    """The CSV files of a folder and its subfolders, each a sequence with one step a line, in the
    order of their paths: `"inputs"`, float32, shape `(None, columns)`.

    Each file is read once when the source is made, to see that all of it are numbers; only the
    places of some lines are kept, so that a part can be read from near its first line on.

    **Arguments:**

    - `folder`: where to look.
    - `suffix`: what the names of the files end in.
    - `labels`: names of columns that are not inputs but `"labels"`, float32, shape
        `(None, labels)`. They stand in the header, the first line of each file. Without labels,
        files may have a header or none.
    - `delimiter`: between numbers.
    - `skip`: leave out files with anything but finite numbers, without steps, or with other columns
        than the first one, which are an error otherwise. `skipped` lists them.

    **Raises:** `ValueError` if there is no such folder, or no file that can be used, or a label is
    no column; and when it is read, with file and record, if a file is not as it was.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        suffix: str = ".csv",
        *,
        labels: Sequence[str] = (),
        delimiter: str = ",",
        skip: bool = False,
    ):
        self._delimiter = delimiter.encode()
        self._tables: list[_Table] = []
        unusable = Unusable(skip)
        for path in files_under(folder, suffix):
            file = UnchangedFile.note(path)
            table = _scan(file, self._delimiter)
            if isinstance(table, _Table) and self._tables:
                first = self._tables[0]
                if (table.columns, table.header) != (first.columns, first.header):
                    table = f"it has other columns than {first.file.path}"
            if isinstance(table, _Table):
                self._tables.append(table)
            else:
                unusable.note(file.path, table)
        self.skipped: Skipped = unusable.all()
        if not self._tables:
            raise UserError(f"no file that ends in {suffix!r} in {str(folder)!r} can be used")
        first = self._tables[0]
        for label in labels:
            if label not in first.header:
                raise UserError(
                    f"{first.file.path} has no column {label!r}; its header has: "
                    f"{', '.join(first.header) or 'nothing, there is none'}"
                )
        self._labels = [first.header.index(label) for label in labels]
        self._inputs = [c for c in range(first.columns) if c not in self._labels]
        if not self._inputs:
            raise UserError(f"{first.file.path}: all columns are labels, none is an input")
        self._lengths = np.array([table.steps for table in self._tables], np.int64)

    @property
    def lengths(self) -> np.ndarray:
        return self._lengths

    @property
    def element_spec(self) -> ElementSpec:
        single = np.dtype(np.float32)
        spec = {"inputs": ArraySpec((None, len(self._inputs)), single)}
        if self._labels:
            spec["labels"] = ArraySpec((None, len(self._labels)), single)
        return spec

    def __len__(self) -> int:
        return len(self._tables)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        return self.read(index, 0, self._tables[index].steps)

    def read(self, index: int, start: int, stop: int) -> Record:
        table = self._tables[index]
        first, last = start // _LINES, -(-stop // _LINES)
        content = table.file.read(table.places[first], table.places[max(first, last)], index)
        lines = [line for line in content.tobytes().splitlines() if line.strip()]
        skipped = start - first * _LINES
        wanted = lines[skipped : skipped + stop - start]
        fields = self._delimiter.join(wanted).split(self._delimiter) if wanted else []
        values = np.fromiter(map(float, fields), np.float32, (stop - start) * table.columns)
        values = values.reshape(stop - start, table.columns)
        record = {"inputs": values[:, self._inputs]}
        if self._labels:
            record["labels"] = values[:, self._labels]
        return record


@dataclass(frozen=True)
class _Table:
    """What is known of a file: where every `_LINES`th line begins, and where the last one ends."""

    file: UnchangedFile
    header: tuple[str, ...]
    columns: int
    steps: int
    places: list[int]


def _scan(file: UnchangedFile, delimiter: bytes) -> _Table | str:
    """What is known of a file, or why it can't be used."""
    header: tuple[str, ...] = ()
    columns = steps = stop = 0
    places = []
    with open(file.path, "rb") as opened:
        for number, line in enumerate(opened, 1):
            start, stop = stop, stop + len(line)
            if number == 1 and line.startswith(codecs.BOM_UTF8):
                start, line = len(codecs.BOM_UTF8), line.removeprefix(codecs.BOM_UTF8)
            if not line.strip():
                continue
            fields = line.split(delimiter)
            if not columns:
                columns = len(fields)
                if not all(map(_is_number, fields)):
                    names = line.decode("utf-8", errors="replace").split(delimiter.decode())
                    header = tuple(name.strip() for name in names)
                    continue
            if len(fields) != columns:
                return f"line {number} has {len(fields)} fields, and the first has {columns}"
            for field in fields:
                if not _is_number(field):
                    return f"line {number}: {field.strip()!r} is no number"
                if not abs(float(field)) <= _LARGEST:
                    return f"line {number}: {field.strip()!r} is no finite float32"
            if steps % _LINES == 0:
                places.append(start)
            steps += 1
    if not steps:
        return "it has no steps"
    file.check(0)
    return _Table(file, header, columns, steps, [*places, stop])


_LARGEST = float(np.finfo(np.float32).max)


def _is_number(field: bytes) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True
