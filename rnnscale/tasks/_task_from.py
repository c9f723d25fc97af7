"""`task_from`: a task from one's own file or folder."""

from os import PathLike
from pathlib import Path
from typing import Any

from rnnscale.tasks._data_options import DataOptions
from rnnscale.tasks._task import Task
from rnnscale.tasks.files._fields import fields_of_table
from rnnscale.tasks.files._read import read_table


def task_from(path: str | PathLike[str], *, seq_len: int | None = None, **options: Any) -> Task:
    """A task from one's own file or folder.

    **Arguments:**

    - `path`: a file or a folder, see the guide of `rnnscale.tasks` for the formats.
    - `seq_len`: steps in a record, for forecasts and text, at least 1.
    - `options`: see `DataOptions`.

    **Returns:**

    The task. Its split is the same every time; its `preprocessing` makes records of new data.

    **Raises:** `ValueError` with the place if the data can't be used.
    """
    chosen = DataOptions(path=str(path), **options)
    table = read_table(path, chosen)
    return Task(
        name=Path(path).resolve().stem,
        notes={"data": str(path)},
        **fields_of_table(table, chosen, seq_len),
    )
