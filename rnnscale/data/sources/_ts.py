"""Time series in the `.ts` format of the time series classification archives."""

import os
import re
from dataclasses import dataclass
from typing import TextIO

import numpy as np

from rnnscale._checks import check_arguments
from rnnscale._errors import UserError
from rnnscale.data.sources._arrays import SequenceArrays
from rnnscale.data.sources._times import parse_time
from rnnscale.data.sources._unusable import Unusable


@check_arguments
def read_ts(path: str | os.PathLike[str], *, skip: bool = False) -> SequenceArrays:
    """Reads a `.ts` file, the format of the archives at timeseriesclassification.com, into memory.

    After a header of `@` lines, each line is a series: channels separated by `:`, each with numbers
    separated by commas, and after one more `:` the label.

    **Arguments:**

    - `path`: the file.
    - `skip`: whether to leave out series that have missing values, have no steps, or contradict the
        header; otherwise they are an error. `skipped` lists them.

    **Returns:**

    Sequences with `"inputs"`, float32, shape `(None, channels)`. Their `"labels"` are the index of
    the class in the line `@classLabel`, int32, or for a regression the target, float32; a file
    without labels gives none.

    **Raises:** `ValueError` with file and line if there is no such file, it has time stamps, or a
    series can't be used.
    """
    file = parse_ts(path)
    if file.has_times:
        raise UserError(f"{file.path} has time stamps, which are not supported here")
    unusable = Unusable(skip)
    inputs, labels = [], []
    for line, series in file.lines:
        if isinstance(series, TsSeries) and np.isnan(series.inputs).any():
            step = int(np.isnan(series.inputs).any(axis=1).argmax())
            series = f"the value of step {step} is missing"
        if isinstance(series, str):
            unusable.note(f"{file.path}, line {line}", series)
            continue
        inputs.append(series.inputs.astype(np.float32))
        labels.append(series.label)
    if not inputs:
        raise UserError(f"{file.path} has no series that can be used")
    per_sequence = {}
    if file.classes is not None:
        per_sequence["labels"] = np.array(list(map(file.classes.index, labels)), np.int32)
    elif file.is_regression:
        per_sequence["labels"] = np.array(labels, np.float32)
    return SequenceArrays({"inputs": inputs}, per_sequence, skipped=unusable.all())


@dataclass(frozen=True)
class TsSeries:
    """A series of a `.ts` file.

    **Attributes:**

    - `inputs`: float64, shape `(steps, channels)`; NaN where a value is missing.
    - `label`: its class or its target; None if the file has no labels.
    - `times`: the times of the steps, float64, shape `(steps,)`, of dates in seconds; None if the
        file has no time stamps.
    """

    inputs: np.ndarray
    label: str | float | None
    times: np.ndarray | None = None


@dataclass(frozen=True)
class TsFile:
    """The contents of a `.ts` file.

    **Attributes:**

    - `path`: its absolute path.
    - `classes`: the names of the classes, in the order of the header; None if it has none.
    - `is_regression`: whether the labels are numbers.
    - `has_times`: whether the steps have time stamps.
    - `lines`: for each series, the number of its line, and the series or why it can't be used.
    """

    path: str
    classes: tuple[str, ...] | None
    is_regression: bool
    has_times: bool
    lines: list[tuple[int, TsSeries | str]]


@check_arguments
def parse_ts(path: str | os.PathLike[str]) -> TsFile:
    """Reads a `.ts` file, with missing values.

    **Raises:** `ValueError` with the file if there is no such file, its header can't be used, or it
    is not text.
    """
    path = os.path.abspath(path)
    if not os.path.isfile(path):
        raise UserError(f"there is no file {path}")
    lines: list[tuple[int, TsSeries | str]] = []
    first: tuple[int, ...] | None = None
    try:
        with open(path, encoding="utf-8") as file:
            header = _read_header(path, file)
            for number, line in enumerate(file, header.lines + 1):
                if not line.strip():
                    continue
                series = _read_series(line, header, first)
                if first is None and isinstance(series, TsSeries):
                    first = series.inputs.shape
                lines.append((number, series))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a .ts file: it is not text ({error.reason})") from error
    return TsFile(path, header.classes, header.is_regression, header.has_times, lines)


@dataclass(frozen=True)
class _Header:
    lines: int
    classes: tuple[str, ...] | None
    is_regression: bool
    equal_length: bool
    has_times: bool


def _read_header(path: str, file: TextIO) -> _Header:
    values: dict[str, list[str]] = {}
    lines = 0
    for line in file:
        lines += 1
        words = line.split()
        if not words or not words[0].startswith("@"):
            continue
        key = words[0].lower()
        values[key] = words[1:]
        if key == "@data":
            break
    else:
        raise UserError(f"{path} is not a .ts file, or is truncated: it has no line @data")

    def says_true(key: str) -> bool:
        return [word.lower() for word in values.get(key, [])[:1]] == ["true"]

    classes = tuple(values["@classlabel"][1:]) if says_true("@classlabel") else None
    if classes == ():
        raise UserError(f"{path}: the line @classLabel has no classes")
    return _Header(
        lines=lines,
        classes=classes,
        is_regression=says_true("@targetlabel"),
        equal_length=says_true("@equallength"),
        has_times=says_true("@timestamps"),
    )


def _read_series(line: str, header: _Header, first: tuple[int, ...] | None) -> TsSeries | str:
    """The series of a line, or why it can't be used.

    `first` is the shape of the first series, which the others must match.
    """
    # With time stamps, a step is a pair such as (2024-05-31 12:00:00,1.5).
    colon, comma = (f"{mark}(?![^()]*\\))" for mark in ":,") if header.has_times else ":,"
    channels = [re.split(comma, channel) for channel in re.split(colon, line.strip())]
    label: str | float | None = None
    if header.classes is not None or header.is_regression:
        text = ",".join(channels.pop()).strip()
        if header.classes is not None:
            if text not in header.classes:
                return f"its class {text!r} is not one of {', '.join(header.classes)}"
            label = text
        else:
            try:
                label = float(text)
            except ValueError:
                return f"its target {text!r} is not a number"
            if not np.isfinite(label):
                return f"its target is {text}"
    if len({len(channel) for channel in channels}) != 1:
        return f"its channels have different lengths: {[len(channel) for channel in channels]}"
    times = None
    if header.has_times:
        pairs = [[step.strip().strip("()").rpartition(",") for step in each] for each in channels]
        times = _read_times([[stamp for stamp, _, _ in each] for each in pairs])
        if isinstance(times, str):
            return times
        channels = [[value for _, _, value in each] for each in pairs]
    values = np.empty((len(channels[0]), len(channels)))
    for column, channel in zip(values.T, channels, strict=True):
        for step, text in enumerate(channel):
            try:
                column[step] = np.nan if text.strip() == "?" else float(text)
            except ValueError:
                return f"step {step}: {text!r} is not a number"
    if np.isinf(values).any():
        return "it has infinite values"
    if first is not None and values.shape[1] != first[1]:
        return f"it has {values.shape[1]} channels, and the first has {first[1]}"
    if first is not None and header.equal_length and len(values) != first[0]:
        return f"it has {len(values)} steps, and the first has {first[0]}"
    return TsSeries(values, label, times)


def _read_times(stamps: list[list[str]]) -> np.ndarray | str:
    """The times of the steps from the time stamps of each channel, or why they can't be used."""
    times = np.array([[parse_time(stamp) for stamp in channel] for channel in stamps])
    if not np.isfinite(times).all():
        return "a time stamp is neither a number nor a date of ISO 8601"
    if (times != times[0]).any():
        return "its channels have different time stamps"
    if (np.diff(times[0]) <= 0).any():
        return "its time stamps do not increase"
    return times[0]
