"""Arrays in memory and in `.npz` and `.npy` files."""

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rnnscale._errors import UserError
from rnnscale.tasks._data_options import DataOptions
from rnnscale.tasks.files._series_table import SeriesTable, joined, split_named

# The names under which each array is found in a file, in lower case.
_NAMES: Mapping[str, tuple[str, ...]] = {
    "inputs": ("inputs", "x", "data"),
    "labels": ("labels", "y", "targets", "target"),
    "lengths": ("lengths",),
    "times": ("times", "time", "t"),
    "split": ("split", "splits"),
}


def read(path: Path, options: DataOptions, *, new: bool) -> SeriesTable:
    """The series of a `.npz` file, or of a `.npy` file, which has inputs only.

    **Raises:** `ValueError` if the file can't be read, or an array is missing or has another shape.
    """
    try:
        with path.open("rb") as file:  # NumPy leaves a file open that it can't read
            stored = np.load(file, allow_pickle=False)
            arrays = {"inputs": stored} if isinstance(stored, np.ndarray) else dict(stored)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} can't be read as arrays of NumPy: {error}") from error
    why = f"{path}: arrays have no columns (a split can be an array of this name)"
    options.refuse(why, "label", "group", "time", "inputs", "form", "split")
    names = {alias: name for name, aliases in _NAMES.items() for alias in aliases}
    by_split: dict[str, dict[str, np.ndarray]] = {}
    for stored_name, array in arrays.items():
        name, _, suffix = stored_name.lower().rpartition("_")
        split = (name and split_named(suffix)) or ""
        name = names.get(name if split else stored_name.lower())
        if name is None:
            known = ", ".join("/".join(aliases) for aliases in _NAMES.values())
            raise UserError(
                f"{path} has an array {stored_name!r}; expected {known}, each also with _train, "
                "_validation or _test at its end"
            )
        by_split.setdefault(split, {})[name] = array
    if len(by_split) > 1 and "" in by_split:
        raise UserError(f"{path}: either all arrays or none must end in _train, _test, ...")
    tables = []
    for split, named in by_split.items():
        if "inputs" not in named:
            raise UserError(f"{path} has no array 'inputs'; it has {', '.join(arrays)}")
        where = f"{path}{split and ', ' + split}"
        table = table_of_arrays(where, **named)
        tables.append(replace(table, splits=[split] * len(table)) if split else table)
    return joined(tables)


def table_of_arrays(
    where: str,
    inputs: np.ndarray | Sequence[np.ndarray],
    labels: np.ndarray | Sequence[Any] | None = None,
    lengths: np.ndarray | None = None,
    times: np.ndarray | Sequence[np.ndarray] | None = None,
    split: np.ndarray | Sequence[str] | None = None,
) -> SeriesTable:
    """The table of arrays in memory; see `Task.from_arrays`.

    **Arguments:**

    - `where`: the name of the arrays in messages.
    """
    series = _series(where, _rows(inputs), one=labels is None)
    if isinstance(times, np.ndarray) and times.shape == (len(series[0]),) and len(series) == 1:
        times = [times]  # of a single series, like its inputs
    given = {"labels": labels, "lengths": lengths, "times": times, "split": split}
    rows = {name: _rows(value) for name, value in given.items() if value is not None}
    for name, each in rows.items():
        if len(each) != len(series):
            raise UserError(
                f"{where}: {name} must have {len(series)} rows, as inputs; got {len(each)}"
            )
    steps = [len(x) for x in series]
    if lengths is not None:
        steps = _lengths(where, rows["lengths"], steps)
    found, per_step = _labels(where, rows.get("labels"), [len(x) for x in series])
    times_of = _times(where, rows.get("times", ()), series, steps)
    splits = [split_named(str(each)) for each in rows.get("split", ())]
    if None in splits:
        row = splits.index(None)
        raise UserError(f"{where}: split must be train, validation or test; row {row} is not")
    targets = found[0].shape[-1] if found else 0
    return SeriesTable(
        columns=tuple(f"channel {c}" for c in range(series[0].shape[1])),
        inputs=[x[:length] for x, length in zip(series, steps, strict=True)],
        names=[f"{where}, series {row}" for row in range(len(series))],
        short_names=[f"{Path(where).name}, series {row}" for row in range(len(series))],
        targets=("label",) if targets == 1 else tuple(f"label {n}" for n in range(targets)),
        labels=[y[:n] for y, n in zip(found, steps, strict=True)] if per_step else found,
        times=times_of,
        splits=[each for each in splits if each is not None],
    )


def _rows(value: Any) -> Any:
    """Rows that may have different lengths: a list as it is, and anything else as an array, of
    which a single value has no rows."""
    if isinstance(value, list | tuple):
        return value
    array = np.asarray(value)
    return array if array.ndim else np.zeros(0)


def _lengths(where: str, lengths: Any, steps: list[int]) -> list[int]:
    for row, (length, longest) in enumerate(zip(lengths, steps, strict=True)):
        whole = isinstance(length, int | np.integer) and not isinstance(length, bool)
        if not (whole and 1 <= length <= longest):
            raise UserError(
                f"{where}: series {row} must have 1 to {longest} steps, whole numbers; got {length}"
            )
    return [int(length) for length in lengths]


def _times(where: str, times: Any, series: list[np.ndarray], steps: list[int]) -> list[np.ndarray]:
    """The times of the steps of each series, without padding."""
    found = []
    for row, of_series in enumerate(times):
        of_series = np.asarray(of_series)
        if of_series.dtype.kind not in "iuf" or of_series.shape != (len(series[row]),):
            raise UserError(
                f"{where}: times must be real numbers of the shape (series, steps) of the inputs; "
                f"those of series {row} are {of_series.dtype} of shape {of_series.shape}"
            )
        found.append(of_series[: steps[row]].astype(np.float64))
        if not (np.diff(found[row]) > 0).all():  # false for NaN too
            raise UserError(f"{where}: the times of series {row} must increase from step to step")
    return found


def _series(where: str, inputs: Any, *, one: bool) -> list[np.ndarray]:
    """The series, each of shape `(steps, channels)`. `one` allows for an array that is a single
    series."""
    if isinstance(inputs, np.ndarray):
        if one and inputs.ndim in (1, 2):
            inputs = inputs[None]
        if inputs.ndim not in (2, 3):
            raise UserError(
                f"{where}: inputs must have the shape (series, steps) or (series, steps, "
                f"channels), or without labels (steps,) or (steps, channels); got {inputs.shape}"
            )
    series = []
    for row, x in enumerate(inputs):
        x = np.asarray(x)
        if x.dtype.kind not in "biuf" or x.ndim not in (1, 2):
            raise UserError(
                f"{where}: series {row} must be real numbers of shape (steps,) or (steps, "
                f"channels); got {x.dtype} of shape {x.shape}"
            )
        series.append(x.astype(np.float64).reshape(x.shape if x.ndim == 2 else (len(x), 1)))
        if np.isinf(series[row]).any():
            step, channel = np.argwhere(np.isinf(series[row]))[0]
            raise UserError(f"{where}, series {row}, step {step}, channel {channel} is infinite")
        if series[row].shape[1] != series[0].shape[1] or not series[row].size:
            raise UserError(
                f"{where}: series {row} has the shape {series[row].shape}, and the first one "
                f"{series[0].shape}; all must have the same channels and at least one step"
            )
    if not series:
        raise UserError(f"{where}: inputs have no series")
    return series


def _labels(where: str, labels: Any, steps: list[int]) -> tuple[list[np.ndarray], bool]:
    """The labels of each series as a table has them, and whether there is one at each step."""
    if labels is None:
        return [], False
    rows = [np.asarray(row) for row in labels]
    for number, row in enumerate(rows):
        strings = row.dtype.kind == "O" and all(isinstance(each, str) for each in row.ravel())
        if strings or row.dtype.kind == "b":  # classes False and True
            row = row.astype(str)
        if row.dtype.kind not in "biufU":
            raise UserError(
                f"{where}: labels must be real numbers or strings; that of series {number} is "
                f"{row.dtype}"
            )
        rows[number] = row if row.dtype.kind == "U" else row.astype(np.float64)
    shapes = {
        row.shape[1:] if row.shape[:1] == (n,) else None for row, n in zip(rows, steps, strict=True)
    }
    # With as many targets as steps this is ambiguous; a label at each step is more common.
    per_step = None not in shapes and len(shapes) == 1 and rows[0].ndim in (1, 2)
    if per_step:
        return [row.reshape(len(row), -1) for row in rows], True
    if len({row.shape for row in rows}) != 1 or rows[0].ndim > 1:
        raise UserError(
            f"{where}: labels must have the shape (series,), (series, targets), (series, steps) or "
            f"(series, steps, targets); got one of shape {rows[0].shape} for {steps[0]} steps"
        )
    return [row.reshape(-1) for row in rows], False
