"""Time series in the `.ts` format of the time series classification archives."""

import os
from dataclasses import dataclass
from typing import TextIO

import numpy as np

from rnnscale._errors import UserError
from rnnscale.data.sources._arrays import SequenceArrays
from rnnscale.data.sources._unusable import Unusable


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
    path = os.path.abspath(path)
    if not os.path.isfile(path):
        raise UserError(f"there is no file {path}")
    unusable = Unusable(skip)
    inputs, labels = [], []
    try:
        with open(path, encoding="utf-8") as file:
            header = _read_header(path, file)
            for number, line in enumerate(file, header.lines + 1):
                if not line.strip():
                    continue
                series = _read_series(line, header, inputs[0].shape if inputs else None)
                if isinstance(series, str):
                    unusable.note(f"{path}, line {number}", series)
                else:
                    inputs.append(series[0])
                    labels.append(series[1])
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a .ts file: it is not text ({error.reason})") from error
    if not inputs:
        raise UserError(f"{path} has no series that can be used")
    per_sequence = {}
    if header.classes is not None:
        per_sequence["labels"] = np.array(labels, np.int32)
    elif header.is_regression:
        per_sequence["labels"] = np.array(labels, np.float32)
    return SequenceArrays({"inputs": inputs}, per_sequence, skipped=unusable.all())


@dataclass(frozen=True)
class _Header:
    lines: int
    classes: tuple[str, ...] | None
    is_regression: bool
    equal_length: bool


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

    if says_true("@timestamps"):
        raise UserError(f"{path} has time stamps, which are not supported")
    classes = tuple(values["@classlabel"][1:]) if says_true("@classlabel") else None
    if classes == ():
        raise UserError(f"{path}: the line @classLabel has no classes")
    return _Header(
        lines=lines,
        classes=classes,
        is_regression=says_true("@targetlabel"),
        equal_length=says_true("@equallength"),
    )


def _read_series(
    line: str, header: _Header, first: tuple[int, ...] | None
) -> tuple[np.ndarray, float] | str:
    """The steps and the label of a series, or why it can't be used.

    `first` is the shape of the first series, which the others must match.
    """
    channels = [channel.split(",") for channel in line.strip().split(":")]
    label = 0.0
    if header.classes is not None or header.is_regression:
        text = ",".join(channels.pop()).strip()
        if header.classes is not None:
            if text not in header.classes:
                return f"its class {text!r} is not one of {', '.join(header.classes)}"
            label = header.classes.index(text)
        else:
            try:
                label = float(text)
            except ValueError:
                return f"its target {text!r} is not a number"
            if not np.isfinite(label):
                return f"its target is {text}"
    if len({len(channel) for channel in channels}) != 1:
        return f"its channels have different lengths: {[len(channel) for channel in channels]}"
    values = np.empty((len(channels[0]), len(channels)), np.float32)
    for column, channel in zip(values.T, channels, strict=True):
        for step, text in enumerate(channel):
            if text.strip().lower() in ("?", "nan"):
                return f"the value of step {step} is missing"
            try:
                column[step] = float(text)
            except ValueError:
                return f"step {step}: {text!r} is not a number"
    if not np.isfinite(values).all():
        return "it has infinite values"
    if first is not None and values.shape[1] != first[1]:
        return f"it has {values.shape[1]} channels, and the first has {first[1]}"
    if first is not None and header.equal_length and len(values) != first[0]:
        return f"it has {len(values)} steps, and the first has {first[0]}"
    return values, label
