"""`.ts` files, the format of the archives of UCR and UEA."""

from pathlib import Path

import numpy as np

from rnnscale._errors import UserError
from rnnscale.data import parse_ts
from rnnscale.tasks._data_options import DataOptions
from rnnscale.tasks.files._series_table import SeriesTable


def read(path: Path, options: DataOptions, *, new: bool) -> SeriesTable:
    """The series of a `.ts` file; its header says what the labels are.

    **Raises:** `ValueError` with file and line if a series can't be used.
    """
    why = f"{path}: a .ts file has no columns"
    options.refuse(why, "label", "group", "time", "inputs", "form", "split")
    file = parse_ts(path)
    series = []
    for line, found in file.lines:
        if isinstance(found, str):
            raise UserError(f"{path}, line {line}: {found}")
        series.append(found)
    if not series:
        raise UserError(f"{path} has no series")
    labelled = file.classes is not None or file.is_regression
    return SeriesTable(
        columns=tuple(f"channel {c}" for c in range(series[0].inputs.shape[1])),
        inputs=[each.inputs for each in series],
        names=[f"{path}, line {line}" for line, _ in file.lines],
        short_names=[f"{path.name}, line {line}" for line, _ in file.lines],
        targets=(("class" if file.classes else "target"),) if labelled else (),
        labels=[np.array([each.label]) for each in series] if labelled else (),
        times=[each.times for each in series if each.times is not None],
        kind=("classification" if file.classes else "regression") if labelled else None,
        classes=file.classes,
    )
