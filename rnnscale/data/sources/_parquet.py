"""Sources of Parquet files: rows of one shape, and sequences of different lengths."""

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from rnnscale._checks import check_arguments
from rnnscale._errors import MissingPackageError, UserError
from rnnscale.data.sources._source import (
    AbstractSequences,
    ArraySpec,
    ElementSpec,
    Record,
    arrays_over_time,
    describe_spec,
)
from rnnscale.data.sources._unchanged import UnchangedFile
from rnnscale.data.sources._unusable import Unusable


class ParquetRows:
    """The rows of Parquet files, with columns of numbers and of fixed-size lists of numbers.

    An access reads a complete row group, and each process keeps the last four, so random access is
    fast if there are few row groups, or groups of few rows.

    **Arguments:**

    - `files`: the files, in the order of the rows.
    - `columns`: the columns to read, all by default; each is an array of a record.

    **Raises:** `ValueError` if there is no row, or a file can't be used or has other columns than
    the first file; and at an index, with file and record, if the row has nulls, NaN or infinity, or
    the file is damaged or has changed. Records are numbered within their file. `ImportError` if
    pyarrow is not installed.
    """

    @check_arguments
    def __init__(
        self, files: Sequence[str | os.PathLike[str]], columns: Sequence[str] | None = None
    ):
        self._table = _Table.open(files, columns)
        for name in arrays_over_time(self._table.spec):
            raise UserError(
                f"{self._table.files[0].path}: {name!r} has lists of different lengths, for which "
                "there is ParquetSequences"
            )
        self.element_spec = self._table.spec

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} rows")
        group, row = self._table.find(index)
        return {name: np.array(column.values[row]) for name, column in group.columns.items()}


class ParquetSequences(AbstractSequences):
    """The rows of Parquet files with columns of variable-size lists, which are the arrays over
    time. The elements of a list are numbers, or fixed-size lists of numbers.

    The constructor reads the files once, for the lengths. An access reads a complete row group, and
    each process keeps the last four, so random access is fast if there are few row groups, or
    groups of few rows.

    **Arguments:**

    - `files`: the files, in the order of the rows.
    - `columns`: the columns to read, all by default; each is an array of a record.
    - `skip`: whether to leave out rows that have nulls, NaN or infinity, empty lists, or lists of
        different lengths; otherwise they are an error. `skipped` lists them.

    **Raises:** `ValueError` if no row can be used, no column has variable-size lists, or a file
    can't be used or has other columns than the first file; and at an index, with file and record,
    if the file is damaged or has changed. Records are numbered within their file. `ImportError` if
    pyarrow is not installed.
    """

    @check_arguments
    def __init__(
        self,
        files: Sequence[str | os.PathLike[str]],
        columns: Sequence[str] | None = None,
        *,
        skip: bool = False,
    ):
        self._table = _Table.open(files, columns)
        self.element_spec = self._table.spec
        if not arrays_over_time(self.element_spec):
            raise UserError(
                f"{self._table.files[0].path}: no column has variable-size lists; for rows of one "
                "shape there is ParquetRows"
            )
        unusable = Unusable(skip)
        lengths = np.zeros(len(self._table), np.int64)
        for number, first in enumerate(self._table.first[:-1]):
            group = self._table.group(number)
            lengths[first : first + len(group.lengths)] = group.lengths
            for row, reason in group.unusable.items():
                unusable.note(self._table.name(number, row), reason)
                lengths[first + row] = 0
        self.skipped = unusable.all()
        self._rows = np.flatnonzero(lengths)
        self.lengths = lengths[self._rows]
        if not len(self):
            raise UserError(f"no row of {len(files)} Parquet files can be used")

    def read(self, index: int, start: int, stop: int) -> Record:
        group, row = self._table.find(int(self._rows[index]))
        record = {}
        for name, column in group.columns.items():
            if column.offsets is None:
                record[name] = np.array(column.values[row])
            else:
                first = column.offsets[row]
                record[name] = column.values[first + start : first + stop].copy()
        return record


@dataclass(frozen=True)
class _Column:
    """The values of a column in a row group. For variable-size lists, `offsets` says where each
    row begins and the last one ends; otherwise it is None."""

    values: np.ndarray
    offsets: np.ndarray | None


@dataclass(frozen=True)
class _Group:
    """A row group: its columns, the lengths of the lists in its rows, and for each row that can't
    be used the reason."""

    columns: Mapping[str, _Column]
    lengths: np.ndarray
    unusable: Mapping[int, str]


@dataclass(frozen=True)
class _Table:
    """The rows of several files.

    For each row group: `file` is its file, `number` its number there, `first_in_file` its first row
    there, and `first` its first row counted over all files.
    """

    files: tuple[UnchangedFile, ...]
    spec: ElementSpec
    file: np.ndarray
    number: np.ndarray
    first_in_file: np.ndarray
    first: np.ndarray

    @classmethod
    def open(
        cls, paths: Sequence[str | os.PathLike[str]], columns: Sequence[str] | None
    ) -> "_Table":
        if not paths:
            raise UserError("there must be at least one Parquet file")
        files = tuple(UnchangedFile.note(path) for path in paths)
        spec: ElementSpec = {}
        groups = []
        for index, file in enumerate(files):
            with open_parquet(file.path) as opened:
                found = _spec(file, opened.schema_arrow, columns)
                metadata = opened.metadata
                sizes = [metadata.row_group(n).num_rows for n in range(opened.num_row_groups)]
            spec = spec or found
            if found != spec:
                raise UserError(
                    f"{file.path} has {describe_spec(found)}, and {files[0].path} has "
                    f"{describe_spec(spec)}"
                )
            firsts = np.cumsum([0, *sizes])
            groups += [(index, number, firsts[number], size) for number, size in enumerate(sizes)]
        file, number, first_in_file, rows = np.array(groups, np.int64).reshape(-1, 4).T
        if rows.sum() == 0:
            raise UserError(f"there is no row in {len(files)} Parquet files")
        return cls(files, spec, file, number, first_in_file, np.cumsum([0, *rows]))

    def __len__(self) -> int:
        return int(self.first[-1])

    def name(self, group: int, row: int) -> str:
        """The name in messages of a row of a group."""
        return f"{self.files[self.file[group]].path}, record {self.first_in_file[group] + row}"

    def group(self, group: int, row: int = 0) -> _Group:
        """Reads a group. `row` is the row that an error names."""
        file, names = self.files[self.file[group]], tuple(self.spec)
        record = int(self.first_in_file[group]) + row
        try:
            content = _read_group(file, int(self.number[group]), names)
        except (OSError, ValueError) as error:
            # Errors of pyarrow are among these. The cause may be that the file has changed.
            file.check(record)
            raise UserError(f"{self.name(group, row)}: it can't be read: {error}") from error
        file.check(record)
        return content

    def find(self, index: int) -> tuple[_Group, int]:
        """The group of a row, and the number of the row there."""
        number = int(self.first.searchsorted(index, side="right")) - 1
        row = int(index - self.first[number])
        group = self.group(number, row)
        if row in group.unusable:
            raise UserError(f"{self.name(number, row)}: {group.unusable[row]}")
        return group, row


@functools.lru_cache(maxsize=4)
def _read_group(file: UnchangedFile, number: int, columns: tuple[str, ...]) -> _Group:
    with open_parquet(file.path) as opened:
        table = opened.read_row_group(number, columns=list(columns))
    unusable: dict[int, str] = {}
    read = {}
    lengths = np.zeros(table.num_rows, np.int64)
    for name in columns:
        read[name], wrong = _column(table.column(name))
        for reason, rows in wrong.items():
            for row in np.flatnonzero(rows).tolist():
                unusable.setdefault(row, f"column {name!r}: {reason}")
        if read[name].offsets is None:
            continue
        found = np.diff(read[name].offsets)
        for row in np.flatnonzero(found == 0).tolist():
            unusable.setdefault(row, f"column {name!r}: the list is empty")
        for row in np.flatnonzero((found != lengths) & (lengths != 0)).tolist():
            unusable.setdefault(row, "its lists have different lengths")
        lengths = np.where(lengths == 0, found, lengths)
    return _Group(read, lengths, dict(sorted(unusable.items())))


def _column(chunks: Any) -> tuple[_Column, Mapping[str, np.ndarray]]:
    """The values of a column, and for each possible defect the rows that have it."""
    import pyarrow as pa

    column = chunks.chunk(0) if chunks.num_chunks == 1 else pa.concat_arrays(chunks.chunks)
    if not _is_list(column.type):
        values, null = _values(column)
        return _Column(values, None), {"it is null": null, "it is not finite": _not_finite(values)}
    offsets = column.offsets.to_numpy().astype(np.int64)
    values, null = _values(column.values)

    def rows(elements: np.ndarray) -> np.ndarray:
        """Whether any of each row's elements has the property."""
        before = np.concatenate([[0], np.cumsum(elements)])
        return before[offsets[1:]] > before[offsets[:-1]]

    missing = column.is_null().to_numpy(zero_copy_only=False) | rows(null)
    wrong = {"it is null": missing, "it is not finite": rows(_not_finite(values))}
    return _Column(values, offsets), wrong


def _values(array: Any) -> tuple[np.ndarray, np.ndarray]:
    """The elements, with fixed-size lists as further axes, and which of them are null."""
    import pyarrow as pa

    null = array.is_null().to_numpy(zero_copy_only=False)
    if pa.types.is_fixed_size_list(array.type):
        size, start = array.type.list_size, array.offset
        inner, inner_null = _values(array.values[start * size : (start + len(array)) * size])
        values = inner.reshape(len(array), size, *inner.shape[1:])
        return values, null | inner_null.reshape(len(array), size).any(axis=1)
    zero = pa.scalar(0).cast(array.type)
    return array.fill_null(zero).to_numpy(zero_copy_only=False), null


def _not_finite(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind != "f":
        return np.zeros(len(values), bool)
    return np.asarray(~np.isfinite(values).all(axis=tuple(range(1, values.ndim))))


def _spec(file: UnchangedFile, schema: Any, columns: Sequence[str] | None) -> ElementSpec:
    spec = {}
    for name in schema.names if columns is None else columns:
        if name not in schema.names:
            raise UserError(f"{file.path} has no column {name!r}; it has {', '.join(schema.names)}")
        kind = schema.field(name).type
        element = _element_spec(kind.value_type if _is_list(kind) else kind)
        if element is None:
            raise UserError(
                f"{file.path}, column {name!r}: columns must have numbers or lists of numbers; got "
                f"{kind}; choose others with columns="
            )
        if _is_list(kind):
            element = ArraySpec((None, *element.shape), element.dtype)
        spec[name] = element
    if not spec:
        raise UserError(f"{file.path} has no columns")
    return spec


def _element_spec(kind: Any) -> ArraySpec | None:
    import pyarrow as pa

    if pa.types.is_fixed_size_list(kind):
        inner = _element_spec(kind.value_type)
        return inner and ArraySpec((kind.list_size, *inner.shape), inner.dtype)
    numbers = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    if any(is_kind(kind) for is_kind in numbers):
        return ArraySpec((), np.dtype(kind.to_pandas_dtype()))
    return None


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


@check_arguments
def open_parquet(path: str | os.PathLike[str]) -> Any:
    """Opens a file as a `pyarrow.parquet.ParquetFile`.

    **Raises:** `ValueError` if it is not a Parquet file; `ImportError` if pyarrow is not installed.
    """
    parquet = _pyarrow_parquet()
    try:
        # This verifies the checksums of pages, if the file has them.
        return parquet.ParquetFile(path, page_checksum_verification=True)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a Parquet file, or is truncated or damaged: {error}"
        ) from error


def _pyarrow_parquet() -> ModuleType:
    # Imported here, because it is an optional package.
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise MissingPackageError(
            "Parquet files are read with pyarrow, which is not installed; install it with: "
            "pip install 'rnnscale[parquet]'"
        ) from error
    return pyarrow.parquet
