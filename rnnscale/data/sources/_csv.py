"""Time series in files of comma-separated values."""

import codecs
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rnnscale._checks import check_arguments
from rnnscale._errors import UserError
from rnnscale.data.sources._documents import files_under
from rnnscale.data.sources._source import AbstractSequences, ArraySpec, Record
from rnnscale.data.sources._unchanged import UnchangedFile
from rnnscale.data.sources._unusable import Unusable

# Steps between two whose positions in the file are kept.
_LINES = 256


class CsvSeries(AbstractSequences):
    """The CSV files of a folder and its subfolders, in the order of their paths. Each is a sequence
    with one step per line: `"inputs"`, float32, shape `(None, columns)`.

    The constructor reads each file once, to check that it contains only numbers. It keeps the
    positions of some lines, so that reading a part begins near the part's first line.

    **Arguments:**

    - `folder`: the folder to search, or one file.
    - `suffix`: the end of the files' names.
    - `labels`: names of the columns that are `"labels"` instead of inputs, float32, shape
        `(None, labels)`. The first line of each file must then be a header with these names;
        without labels, a header is optional.
    - `delimiter`: separator of two numbers.
    - `skip`: whether to leave out files that contain anything but finite numbers, have no steps, or
        have other columns than the first file; otherwise they are an error. `skipped` lists them.

    **Raises:** `ValueError` if there is no such folder, no file can be used, or a label is not a
    column; and at an index, with file and record, if a file has changed.
    """

    @check_arguments
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
        self.skipped = unusable.all()
        if not self._tables:
            raise UserError(f"no file that ends in {suffix!r} in {str(folder)!r} can be used")
        first = self._tables[0]
        for label in labels:
            if label not in first.header:
                raise UserError(
                    f"{first.file.path} has no column {label!r}; its header has: "
                    f"{', '.join(first.header) or 'no names'}"
                )
        self._labels = [first.header.index(label) for label in labels]
        self._inputs = [c for c in range(first.columns) if c not in self._labels]
        if not self._inputs:
            raise UserError(f"{first.file.path}: all columns are labels, none is an input")
        self.lengths = np.array([table.steps for table in self._tables], np.int64)
        columns = {"inputs": self._inputs, "labels": self._labels}
        self.element_spec = {
            name: ArraySpec((None, len(numbers)), np.dtype(np.float32))
            for name, numbers in columns.items()
            if numbers
        }

    def read(self, index: int, start: int, stop: int) -> Record:
        table = self._tables[index]
        first, last = start // _LINES, -(-stop // _LINES)
        content = table.file.read(table.positions[first], table.positions[max(first, last)], index)
        lines = [line for line in content.tobytes().splitlines() if line.strip()]
        offset = start - first * _LINES
        lines = lines[offset : offset + stop - start]
        fields = self._delimiter.join(lines).split(self._delimiter) if lines else []
        values = np.fromiter(map(float, fields), np.float32, (stop - start) * table.columns)
        values = values.reshape(stop - start, table.columns)
        record = {"inputs": values[:, self._inputs]}
        if self._labels:
            record["labels"] = values[:, self._labels]
        return record


@dataclass(frozen=True)
class _Table:
    """What the first pass over a file finds. `positions` are the bytes at which every `_LINES`th
    step begins and the last one ends."""

    file: UnchangedFile
    header: tuple[str, ...]
    columns: int
    steps: int
    positions: list[int]


def _scan(file: UnchangedFile, delimiter: bytes) -> _Table | str:
    """What the first pass over a file finds, or why the file can't be used."""
    header: tuple[str, ...] = ()
    columns = steps = stop = 0
    positions = []
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
                    return f"line {number}: {field.strip()!r} is not a number"
                if not abs(float(field)) <= _LARGEST:
                    return f"line {number}: {field.strip()!r} is not a finite float32"
            if steps % _LINES == 0:
                positions.append(start)
            steps += 1
    if not steps:
        return "it has no steps"
    file.check(0)
    return _Table(file, header, columns, steps, [*positions, stop])


_LARGEST = float(np.finfo(np.float32).max)


def _is_number(field: bytes) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True
