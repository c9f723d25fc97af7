"""Parquet files, read with pyarrow: columns of numbers and text, or lists, one for each series."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rnnscale._errors import UserError
from rnnscale.data import open_parquet
from rnnscale.tasks._data_options import DataOptions
from rnnscale.tasks.files._columns import Columns, Roles, roles_of, table_of_columns
from rnnscale.tasks.files._series_table import SeriesTable


def read(path: Path, options: DataOptions, *, new: bool) -> SeriesTable:
    """The series of a Parquet file.

    If the inputs are lists, each row is a series and each list a channel. Otherwise it is a table
    as in a CSV file.

    **Raises:** `ValueError` with file and row if a value can't be used; `ImportError` if pyarrow is
    not installed.
    """
    import pyarrow as pa

    with open_parquet(path) as file:
        table = file.read()
    if not table.num_rows:
        raise UserError(f"{path} has no rows")
    roles = roles_of(path, table.column_names, options, new=new)
    rows = range(table.num_rows)
    texts = {name: _text(table.column(name)) for name in roles.texts}
    is_list = [
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        for kind in (table.schema.field(name).type for name in roles.inputs)
    ]
    if any(is_list) and not all(is_list):
        raise UserError(f"{path}: the inputs must all be lists or all be numbers; name them")
    if any(is_list):
        if roles.group or roles.time:
            raise UserError(
                f"{path}: each row is a series, since its inputs are lists; leave out "
                f"{' and '.join(x for x in ('group', 'time') if getattr(roles, x))}"
            )
        return _lists(table, Columns(path, "row", rows, np.zeros((len(rows), 1)), texts), roles)
    inputs = [_numbers(table.column(name), f"{path}, column {name!r}") for name in roles.inputs]
    columns = Columns(path, "row", rows, np.stack(inputs, axis=1), texts)
    return table_of_columns(columns, roles)


def _text(column: Any) -> np.ndarray:
    """A column that is not an input: as float64 if it has fractions, otherwise as strings, which
    have all digits of an integer."""
    import pyarrow as pa

    if pa.types.is_floating(column.type):
        return column.cast(pa.float64()).to_numpy()
    if pa.types.is_boolean(column.type):  # as Python and pandas write it
        return np.array(["" if each is None else str(each) for each in column.to_pylist()])
    return np.array(["" if each is None else each for each in column.cast(pa.string()).to_pylist()])


def _numbers(column: Any, where: str) -> np.ndarray:
    import pyarrow as pa

    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise UserError(
            f"{where} has {kind}, not numbers; if it is no input, say what it is (label, group, "
            "time, split), or name the columns that are inputs"
        )
    values = np.array(column.to_pylist(), np.float64)  # None becomes NaN
    if np.isinf(values).any():
        raise UserError(f"{where}, row {np.isinf(values).argmax()}: the value is infinite")
    return values


def _lists(table: Any, columns: Columns, roles: Roles) -> SeriesTable:
    """A series in each row, with a list for each channel."""
    channels = [table.column(name).to_pylist() for name in roles.inputs]
    inputs = []
    for row, lists in enumerate(zip(*channels, strict=True)):
        lengths = sorted({len(values or ()) for values in lists})
        if len(lengths) != 1 or 0 in lengths:
            raise UserError(
                f"{columns.name(row)}: its lists must have the same length, at least 1; got "
                f"{', '.join(map(str, lengths))}"
            )
        wrong = UserError(f"{columns.name(row)}: its lists must have finite numbers")
        try:
            series = np.array(lists, np.float64)
        except (TypeError, ValueError) as error:
            raise wrong from error
        if series.ndim != 2 or np.isinf(series).any():
            raise wrong
        inputs.append(series.T)
    # Labels and splits are as in a wide table.
    others = table_of_columns(columns, replace(roles, wide=True))
    return replace(others, columns=roles.inputs, inputs=inputs, step_names=[()] * len(inputs))
