"""`task_from`: a task from one's own file or folder."""

from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from rnnscale._errors import UserError
from rnnscale.tasks._bytes import bytes_task
from rnnscale.tasks._data_options import DataOptions
from rnnscale.tasks._task import Task
from rnnscale.tasks.files._fields import fields_of_table
from rnnscale.tasks.files._packed import is_packed, packed_fields
from rnnscale.tasks.files._read import READERS, has_series, name_of, read_table
from rnnscale.tasks.files._series_table import SeriesTable


def task_from(path: str | PathLike[str], *, seq_len: int | None = None, **options: Any) -> Task:
    """A task from one's own file or folder.

    **Arguments:**

    - `path`: a file or a folder, see the guide of `rnnscale.tasks` for the formats.
    - `seq_len`: steps in a record, for forecasts and text, at least 1.
    - `options`: see `DataOptions`.

    **Returns:**

    The task. Its split is the same every time; its `preprocessing` makes records of new data.

    **Raises:** `ValueError` with the place if the data can't be used; `TypeError` if `path` is no
    path.
    """
    if not isinstance(path, str | PathLike):
        raise TypeError(f"path must be that of a file or a folder; got {path!r}")
    chosen = DataOptions(path=str(path), **options)
    path = Path(path)
    if is_series(path, chosen):
        return task_of_table(path, read_table(path, chosen), chosen, seq_len)
    if is_packed(path):
        return Task(name=name_of(path), **packed_fields(path, chosen, seq_len))
    return _text_task(path, chosen, seq_len)


def is_series(path: Path, options: DataOptions) -> bool:
    """Whether a path has series, not packed rows or text.

    **Raises:** `ValueError` if there is no such file or folder.
    """
    if not path.exists():
        raise UserError(f"there is no file or folder {path}")
    return options.kind != "next_token" and not is_packed(path) and has_series(path)


def task_of_table(
    path: Path, table: SeriesTable, options: DataOptions, seq_len: int | None
) -> Task:
    """The task of the series that were read from a path."""
    fields = fields_of_table(table, options, seq_len)
    return Task(name=name_of(path), notes={"data": str(path)}, **fields)


def _text_task(path: Path, options: DataOptions, seq_len: int | None) -> Task:
    why = (
        f"{path} is read as text, of which the next bytes are predicted (files of series end in "
        f"{', '.join(READERS)})"
    )
    options.refuse(why, "label", "inputs", "group", "time", "form", "horizon", "split", "missing")
    if options.kind not in (None, "next_token"):
        raise UserError(f"{why}; leave out kind={options.kind}")
    task = bytes_task(1024 if seq_len is None else seq_len, path, options.fractions)
    return replace(task, name=name_of(path))
