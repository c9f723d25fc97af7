"""Tables of columns, from CSV and Parquet files: which columns have which role, and the series of a
table with a series or a step in each row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rnnscale._errors import UserError
from rnnscale.data import parse_time
from rnnscale.tasks._data_options import DataOptions
from rnnscale.tasks.files._series_table import SeriesTable, names_of, split_named

MISSING = frozenset({"", "?", "na", "n/a", "nan", "null", "none"})


@dataclass(frozen=True)
class Roles:
    """The roles of the columns of a table.

    **Attributes:**

    - `wide`: whether a row is a series; otherwise it is a step.
    - `inputs`: the columns with numbers.
    - `targets`: the columns with labels; those of a forecast are among the inputs.
    - `group`, `time`, `split`: see `DataOptions`.
    """

    wide: bool
    inputs: tuple[str, ...]
    targets: tuple[str, ...]
    group: str | None
    time: str | None
    split: str | None

    @property
    def texts(self) -> tuple[str, ...]:
        """The columns that are not inputs."""
        named = (*self.targets, self.group, self.time, self.split)
        return tuple(c for c in named if c is not None and c not in self.inputs)


@dataclass(frozen=True, eq=False)
class Columns:
    """The contents of a table.

    **Attributes:**

    - `path`: the file.
    - `word`, `numbers`: what a row is called in messages, and its numbers: `"line"`, and its lines.
    - `inputs`: float64, shape `(rows, inputs)`; NaN where a value is missing.
    - `texts`: the columns that are not inputs, as strings or float64, of shape `(rows,)`.
    """

    path: Path
    word: str
    numbers: Sequence[int]
    inputs: np.ndarray
    texts: Mapping[str, np.ndarray]

    def name(self, row: int) -> str:
        """The name of a row in messages."""
        return f"{self.path}, {self.word} {self.numbers[row]}"

    def short_name(self, row: int) -> str:
        """The name of a row in predictions."""
        return f"{self.path.name}, {self.word} {self.numbers[row]}"


def roles_of(path: Path, names: Sequence[str], options: DataOptions, *, new: bool) -> Roles:
    """The roles of the columns.

    **Arguments:**

    - `names`: all columns.
    - `new`: whether these are new data, in which labels and the column with the split can be
        missing.

    **Raises:** `ValueError` if a column is missing, none is left for the inputs, or an input has no
    name.
    """
    forecast = options.kind == "forecast" or options.horizon is not None
    split = options.split if isinstance(options.split, str) else None
    wide = options.form == "wide" or (
        options.form is None
        and bool(options.label)
        and not (options.group or options.time or forecast)
    )
    optional = {split, *(() if forecast else options.label)} if new else set()
    named = (*options.label, *options.inputs, options.group, options.time, split)
    for column in named:
        if column is not None and column not in names and column not in optional:
            listed = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
            raise UserError(f"{path} has no column {column!r}; it has {listed}")
    others = {options.group, options.time, split, *(() if forecast else options.label)}
    inputs = tuple(options.inputs) or tuple(name for name in names if name not in others)
    if forecast:
        # A forecast sees the past of what it forecasts.
        inputs += tuple(name for name in options.label if name not in inputs)
    if not inputs:
        past = ", ".join(options.label)
        hint = past and f"; to forecast {past} from its past, give a horizon (--horizon N)"
        raise UserError(
            f"{path}: no column is left for the inputs; it has {', '.join(names)}{hint}"
        )
    if "" in inputs:  # the first step of each series, or an input, would be the number of its row
        raise UserError(
            f"{path}: column {names.index('') + 1} has no name, as the index that pandas writes; "
            "remove it or name it, or name the columns that are inputs"
        )
    targets = tuple(name for name in options.label if name in names)
    if targets and len(targets) != len(options.label):
        raise UserError(f"{path} has only {', '.join(targets)} of {', '.join(options.label)}")
    split = split if split in names else None
    return Roles(wide, inputs, targets, options.group, options.time, split)


def table_of_columns(columns: Columns, roles: Roles) -> SeriesTable:
    """The series of a table.

    **Raises:** `ValueError` with the row if a label, a time or a split can't be used, or a series
    has no steps.
    """
    splits = _splits(columns, roles)
    return (_wide if roles.wide else _long)(columns, roles, splits)


def _wide(columns: Columns, roles: Roles, splits: np.ndarray | None) -> SeriesTable:
    """A series in each row. Missing values at its end are not a part of the series."""
    inputs = []
    for number, row in enumerate(columns.inputs):
        steps = np.flatnonzero(~np.isnan(row))
        if not len(steps):
            raise UserError(f"{columns.name(number)} has no values")
        inputs.append(row[: steps[-1] + 1, None])
    labels = _targets(columns, roles)
    return SeriesTable(
        columns=("value",),
        inputs=inputs,
        names=[columns.name(row) for row in range(len(inputs))],
        short_names=[columns.short_name(row) for row in range(len(inputs))],
        targets=roles.targets,
        labels=() if labels is None else list(labels),
        splits=() if splits is None else splits.tolist(),
        step_names=[roles.inputs] * len(inputs),
    )


def _long(columns: Columns, roles: Roles, splits: np.ndarray | None) -> SeriesTable:
    """A step in each row. Rows with the same group and split are a series."""
    count = len(columns.inputs)
    group = names_of(columns.texts[roles.group]) if roles.group else np.zeros(count, "U1")
    if roles.group and (missing := np.isin(group, ("", "nan"))).any():
        row = int(missing.argmax())
        raise UserError(f"{columns.name(row)}, column {roles.group!r}: the group is missing")
    split = np.zeros(count, "U1") if splits is None else splits
    times = None if roles.time is None else _times(columns, roles.time)
    keys: dict[tuple[str, str], list[int]] = {}
    for row, key in enumerate(zip(group.tolist(), split.tolist(), strict=True)):
        keys.setdefault(key, []).append(row)
    labels = _targets(columns, roles)
    rows = [np.array(of_series) for of_series in keys.values()]
    if times is not None:
        rows = [_in_order(of_series, times, columns) for of_series in rows]
    return SeriesTable(
        columns=roles.inputs,
        inputs=[columns.inputs[of_series] for of_series in rows],
        names=[f"{columns.path}{f', group {g!r}' if roles.group else ''}" for g, _ in keys],
        short_names=[g if roles.group else columns.path.name for g, _ in keys],
        targets=roles.targets,
        labels=() if labels is None else [labels[of_series] for of_series in rows],
        times=() if times is None else [times[of_series] for of_series in rows],
        splits=() if splits is None else [s for _, s in keys],
    )


def _targets(columns: Columns, roles: Roles) -> np.ndarray | None:
    """The labels of all rows, shape `(rows, targets)`; None if no column has labels."""
    labels = [columns.texts[name] for name in roles.targets if name in columns.texts]
    if not labels:
        return None
    return np.stack([each.astype(np.result_type(*labels)) for each in labels], axis=1)


def _in_order(rows: np.ndarray, times: np.ndarray, columns: Columns) -> np.ndarray:
    rows = rows[np.argsort(times[rows], kind="stable")]
    same = np.flatnonzero(np.diff(times[rows]) <= 0)
    if len(same):
        first, second = rows[same[0] : same[0] + 2].tolist()
        raise UserError(
            f"{columns.name(first)} and {columns.name(second)} have the same time in one series; "
            "name the column that tells series apart as group"
        )
    return rows


def _times(columns: Columns, name: str) -> np.ndarray:
    """Times as numbers; dates as seconds."""
    texts = columns.texts[name]
    if texts.dtype.kind == "f":
        times = texts
    else:
        times = np.array([parse_time(text) for text in texts.tolist()])
    wrong = np.flatnonzero(~np.isfinite(times))
    if len(wrong):
        raise UserError(
            f"{columns.name(wrong[0])}, column {name!r}: {texts[wrong[0]]!s} is not a time; write "
            "numbers, or dates like 2024-05-31 or 2024-05-31T12:00:00, for example with "
            "pandas.to_datetime(TIMES, format='%m/%d/%Y')"
        )
    return times


def _splits(columns: Columns, roles: Roles) -> np.ndarray | None:
    if roles.split is None:
        return None
    found = [split_named(str(text)) for text in columns.texts[roles.split]]
    if None in found:
        row = found.index(None)
        raise UserError(
            f"{columns.name(row)}, column {roles.split!r}: must be train, validation or test; got "
            f"{columns.texts[roles.split][row]!s}"
        )
    return np.array(found)
