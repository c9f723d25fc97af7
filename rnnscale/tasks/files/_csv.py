"""CSV files, read with Python's own module `csv`, so that no package is needed."""

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from rnnscale._errors import UserError
from rnnscale.tasks._data_options import DataOptions
from rnnscale.tasks.files._columns import MISSING, Columns, Roles, roles_of, table_of_columns
from rnnscale.tasks.files._series_table import SeriesTable

# The fields of a line, and its number.
type Line = tuple[list[str], int]

# A whole number with a decimal point.
_WHOLE = re.compile(r"^([+-]?\d+)\.0*$")
# A number with a decimal comma.
_DECIMAL_COMMA = re.compile(r"^\s*[+-]?\d*,\d+\s*$")

# Rows that are kept as text before they become numbers.
_ROWS = 4096


def read(path: Path, options: DataOptions, *, new: bool) -> SeriesTable:
    """The series of a CSV file, separated by tabs, semicolons or commas.

    The first line is a header unless it has only numbers where inputs are. Without a header,
    columns are named by their numbers: `"0"`, `"1"`, ... A first line `0,1,2,...`, as pandas writes
    for an array of three columns or more, is a header too.

    **Raises:** `ValueError` with file and line if a line can't be used.
    """
    with path.open("rb") as file:
        start = file.readline()
    separator = next((mark for mark in "\t;," if mark.encode() in start), ",")
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=separator, strict=True)
        # The number of a line is known only after it is read.
        lines = ((line, reader.line_num) for line in reader)
        try:
            return _read(path, (line for line in lines if line[0]), options, new)
        except (UnicodeDecodeError, csv.Error) as error:
            where = f"{path}, line {reader.line_num + 1} or later"
            raise UserError(f"{where}: it can't be read as CSV: {error}") from error


def _read(path: Path, lines: Iterator[Line], options: DataOptions, new: bool) -> SeriesTable:
    first, number = next(lines, (None, 0))
    if first is None:
        raise UserError(f"{path} is empty")
    header = _is_header(first, options)
    names = [name.strip() for name in first] if header else [str(n) for n in range(len(first))]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{path}: two columns have the name {twice!r}")
    roles = roles_of(path, names, options, new=new)
    parser = _Parser(path, names, roles)
    if not header:
        parser.add(first, number)
    for line, number in lines:
        parser.add(line, number)
    return table_of_columns(parser.columns(), roles)


def _is_header(first: Sequence[str], options: DataOptions) -> bool:
    split = options.split if isinstance(options.split, str) else None
    named = (*options.label, *options.inputs, options.group, options.time, split)
    named = [name for name in named if name is not None]
    if any(not name.isdecimal() for name in named):
        return True
    if len(first) > 2 and first == [str(n) for n in range(len(first))]:
        return True
    return any(not _is_number(field) for n, field in enumerate(first) if str(n) not in named)


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return field.strip().lower() in MISSING
    return True


class _Parser:
    """Collects the lines of a file; numbers are not kept as text."""

    def __init__(self, path: Path, names: Sequence[str], roles: Roles):
        self._path, self._names, self._wide = path, names, roles.wide
        self._inputs = [names.index(name) for name in roles.inputs]
        self._texts = {name: names.index(name) for name in roles.texts}
        self._targets = roles.targets
        self._fields: list[list[str]] = []
        self._blocks: list[np.ndarray] = []
        self._found: dict[str, list[str]] = {name: [] for name in roles.texts}
        self._lines: list[int] = []

    def add(self, line: Sequence[str], number: int) -> None:
        if len(line) != len(self._names) and not (self._wide and len(line) < len(self._names)):
            raise UserError(
                f"{self._path}, line {number} has {len(line)} fields; expected {len(self._names)}"
            )
        line = [*line, *[""] * (len(self._names) - len(line))]
        for name, column in self._texts.items():
            text = line[column].strip()
            if text.lower() in MISSING:
                text = ""
            if name in self._targets:  # pandas writes whole numbers as 1.0 if one is missing
                text = _WHOLE.sub(r"\1", text)
            self._found[name].append(text)
        self._fields.append([line[column] for column in self._inputs])
        self._lines.append(number)
        if len(self._fields) == _ROWS:
            self._convert()

    def columns(self) -> Columns:
        self._convert()
        if not self._lines:
            raise UserError(f"{self._path} has no rows")
        return Columns(
            path=self._path,
            word="line",
            numbers=self._lines,
            inputs=np.concatenate(self._blocks),
            texts={name: np.array(found) for name, found in self._found.items()},
        )

    def _convert(self) -> None:
        try:
            block = np.array(self._fields, np.float64)
        except ValueError:
            block = np.empty((len(self._fields), len(self._inputs)))
            for row, fields in enumerate(self._fields):
                block[row] = [self._number(row, n, field) for n, field in enumerate(fields)]
        if np.isinf(block).any():
            row, column = np.argwhere(np.isinf(block))[0]
            raise UserError(f"{self._where(row, column)}: the value is infinite")
        self._blocks.append(block.reshape(len(self._fields), len(self._inputs)))
        self._fields = []

    def _number(self, row: int, column: int, field: str) -> float:
        if field.strip().lower() in MISSING:
            return np.nan
        try:
            return float(field)
        except ValueError as error:
            hint = (
                "if the column is no input, say what it is (label, group, time, split), or name "
                "the columns that are inputs"
            )
            if _DECIMAL_COMMA.match(field):
                hint = (
                    "write it with a decimal point, for example with "
                    "pandas.read_csv(FILE, sep=';', decimal=',').to_csv(NEW_FILE, index=False)"
                )
            raise UserError(
                f"{self._where(row, column)}: {field!r} is not a number; {hint}"
            ) from error

    def _where(self, row: int, column: int) -> str:
        line = self._lines[len(self._lines) - len(self._fields) + row]
        return f"{self._path}, line {line}, column {self._names[self._inputs[column]]!r}"
